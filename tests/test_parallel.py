"""Several devices and several processes against one: the same numbers, by programs that are really split.

A process has the devices it starts with, so two processes with eight virtual ones make all measurements, and the tests
judge them.
"""

import collections
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import nnx
from jax import NamedSharding
from jax import P as Spec
from jax.sharding import AbstractMesh
from quick import xla_flags
from test_extending import LargestDifference, Peak, PeakDrift

from memattn_jax import Guard, InputError, StableDiffusion
from memattn_jax.checkpoints import filling
from memattn_jax.checkpoints.names import leaves
from memattn_jax.detectors import scorer
from memattn_jax.detectors.first_step import Inputs, Levels, NoiseLevel, Unconditional
from memattn_jax.detectors.programs import score_first_step
from memattn_jax.detectors.scorer import named_detectors
from memattn_jax.diffusion import run as sampling_run
from memattn_jax.interceptors import TokenMeans
from memattn_jax.mitigations import AttentionMask, Mitigation
from memattn_jax.models.abstract import abstract
from memattn_jax.models.attention import spread_attention
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.pytree import pytree
from memattn_jax.registries import FIRST_STEP
from memattn_jax.sharding.placement import make_mesh, partition_spec, replicate, rows_multiple, spread
from memattn_jax.sharding.processes import start_processes
from memattn_jax.training.loop import Checkpoints, pinned_step
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start
from memattn_jax.training.step import Batch, train_step

pytestmark = pytest.mark.slow

DEVICES = 8
MESHES = ("data=8", "data=4,model=2")
COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)(?:-start)?\(")
PROMPTS = ("the cat", "a", "an odd and long line on the hill", "x y z", "zebra")
LIKE_OTHERS = ("dsm", "condition_jacobian")  # forwards and derivatives as others have them, which take long to compile
OF_FIRST_STEP = tuple(name for name in FIRST_STEP if name not in LIKE_OTHERS)
DETECTORS = (*OF_FIRST_STEP, "noise_norm_steps", "entropy_d", "bottleneck_spikiness")
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
SITE = f"{BLOCK}.attn2"


def detectors_on(mesh: str | None) -> tuple:
    """With two of a stranger's. Derivatives take long to compile; of split weights, `attribute` has some."""
    if mesh == "data=4,model=2":
        return "noise_norm", "entropy_e", "noise_norm_steps", "entropy_d", "bottleneck_spikiness"
    return *DETECTORS, LargestDifference(), PeakDrift()


class Recorder:
    """A jitted function that remembers what it was called with."""

    def __init__(self, owner, name):
        self.function = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *arguments, **options):
        self.last = arguments, options
        return self.function(*arguments, **options)

    def program(self) -> dict:
        arguments, options = self.last
        return measured(self.function.lower(*arguments, **options))


UNET = dataclasses.replace(  # a layer down, with attention, and two up without: what is split takes long to compile
    micro.UNET, attention_head_dim=4, mid_block_type=None, up_block_types=("UpBlock2D",)
)
VAE = dataclasses.replace(
    micro.VAE,
    sample_size=4,
    block_out_channels=(8,),
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
)
SEED = 6  # the weights of other draws lose digits of derivatives from one batch size to another


@pytree
class Stronger(Mitigation):
    """A stranger's mitigation, whose numbers have names of their own."""

    strength: np.ndarray  # [batch]

    def edits(self, step):
        return AttentionMask(self.strength).edits(step)


def measured(lowered: jax.stages.Lowered) -> dict:
    """Floating-point operations of one device, and how many collectives there are."""
    program = lowered.compile()
    return {"flops": program.cost_analysis()["flops"], "collectives": len(COLLECTIVE.findall(program.as_text()))}


def bytes_read(folder: Path, mesh) -> tuple[StableDiffusion, dict[str, list[int]]]:
    """A model, and of each tensor what was read at a time."""
    reads = collections.defaultdict(list)
    part_of = filling.part_of

    def counted(leaf, stored, index):
        array = part_of(leaf, stored, index)
        reads[leaf.name].append(array.nbytes)
        return array

    filling.part_of = counted
    try:
        sd = StableDiffusion.from_pretrained(folder, mesh=mesh)
    finally:
        filling.part_of = part_of
    return dataclasses.replace(sd, entropy_site=SITE), reads


def train(sd: StableDiffusion, folder: Path | None) -> dict:
    """One update, and a checkpoint of it where there is a folder for it."""
    settings = TrainSettings(batch_size=4, learning_rate=1e-3, dropout=0.3, ema_decay=0.9, gate="entropy")
    state, setup = replicate(start(sd, settings), sd.mesh)
    pictures = np.random.default_rng(0).integers(0, 255, (4, 4, 4, 3), dtype=np.uint8)
    batch = Batch(pictures, sd.tokenizer(["the a", "the b", "c", "hat"]).input_ids)
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    update = train_step if sd.mesh is None else pinned_step(state)
    state, metrics = update(state, setup, spread(batch, sd.mesh))
    facts = {
        "loss": float(metrics["loss"]),
        "gradient": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state.optimizer[1][0].mu)],
        "kept": before == [leaf.sharding for leaf in jax.tree.leaves(state)],
        "split": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)),
    }
    if folder is not None:
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, state)
        facts["restored"] = before == [leaf.sharding for leaf in jax.tree.leaves(checkpoints.restore(state))]
    return facts


def full_size(names: tuple[str, ...]) -> list[dict]:
    """A detector on Stable Diffusion 1.4's geometry, eight prompts on one device and on eight."""

    def program(mesh) -> dict:
        def shape(*dimensions, spec=Spec()):  # noqa: B008 -- immutable
            return jax.ShapeDtypeStruct(
                dimensions, jnp.float32, sharding=None if mesh is None else NamedSharding(mesh, spec)
            )

        unet = abstract(UNet2DConditionModel, UNetConfig())
        for leaf in leaves(unet):
            setattr(leaf.owner, leaf.attribute, nnx.Param(shape(*leaf.param.shape)))
        if mesh is not None:
            spread_attention(unet, mesh)
        noise, text, number = shape(1, 1, 64, 64, 4), shape(8, 77, 768, spec=Spec("data")), shape()
        lengths = jax.ShapeDtypeStruct((8,), jnp.int32, sharding=text.sharding and NamedSharding(mesh, Spec("data")))
        levels = Levels(*[NoiseLevel(*[number] * 4)] * 3)
        inputs = Inputs(unet, noise, text, shape(1, 77, 768), lengths, levels, Unconditional(*[noise] * 3))
        return measured(score_first_step.lower(inputs, named_detectors(names, site=unet.sites[3])))

    return [program(None), program(make_mesh("data=8"))]


def measure_inference(folder: str) -> dict:
    """Loading, detecting and sampling on one device and on meshes."""
    facts: dict = {"full size": full_size(("entropy_e",))}
    first_step, trajectory = (Recorder(scorer, name) for name in ("score_first_step", "score_trajectory"))
    denoise = Recorder(sampling_run, "denoise")
    settings = {"steps": 3, "site": SITE, "attribute": True}
    for text in (None, *MESHES):
        sd, reads = bytes_read(Path(folder), make_mesh(text) if text else None)
        detection = sd.detect(PROMPTS, detectors_on(text), **settings)
        scales = np.linspace(1, 1.5, len(PROMPTS))
        sample = {"seeds": range(5), "steps": 3, "guidance_scale": [7.5, 1, 3, 2, 5]}
        taps = {"tokens": TokenMeans(), "peak": Peak()}
        run = sd.sample(PROMPTS, mitigation=Stronger(scales), taps=taps, **sample)
        kernel = sd.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.kernel[...]
        facts[str(text)] = {
            "model": sd.fingerprint(),
            "half": StableDiffusion.from_pretrained(folder, "bfloat16", sd.mesh).fingerprint(),
            "reads": reads,
            "kernel": [shard.data.shape for shard in kernel.addressable_shards],
            "scores": {name: score.tolist() for name, score in detection.scores.items()},
            "attention": detection.attention.tolist(),
            "gradients": detection.gradients.tolist(),
            "latents": np.asarray(run.latents).tolist(),
            "tokens": np.asarray(run.tokens[SITE]).tolist(),
            "peak": np.asarray(run.taps["peak"][SITE]).tolist(),
            "images": run.images.tolist(),
            "programs": {"first step": first_step.program(), "run": trajectory.program(), "sample": denoise.program()},
        }
        if text != "data=4,model=2":
            guarded = sd.sample(PROMPTS, guard=Guard(2.0, mitigation=Stronger(scales)), **sample)
            facts[str(text)] |= {
                "guard scores": guarded.guard_scores.tolist(),
                "mitigated": guarded.mitigated.tolist(),
                "guarded": np.asarray(guarded.latents).tolist(),
            }
            alone = scorer.Scorer(sd, ("entropy_e",), steps=3, site=SITE)
            for prompts in (PROMPTS, PROMPTS + PROMPTS[:3]):
                alone(prompts)
                facts[str(text)]["programs"][f"entropy_e of {len(prompts)}"] = first_step.program()
    return facts


def measure_training(folder: str, scratch: Path) -> dict:
    """One update on one device and on a mesh."""
    facts = {}
    for text in (None, "data=2,model=2"):
        sd = StableDiffusion.from_pretrained(folder, mesh=make_mesh(text) if text else None)
        facts[f"training {text}"] = train(sd, scratch / "state" if text else None)
    return facts


def main(folder: str, scratch: str) -> None:
    """What a process with eight devices runs."""
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    facts = measure_inference(folder) | measure_training(folder, Path(scratch))
    Path(scratch, "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def folder(random_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    micro.write_model(path, random_model, unet=UNET, vae=VAE, seed=SEED)
    return path


@pytest.fixture(scope="module")
def facts(folder, tmp_path_factory) -> dict:
    scratch = tmp_path_factory.mktemp("facts")
    path = os.pathsep.join(str(Path(__file__).parents[1] / place) for place in (".", "tests", "scripts"))
    environment = os.environ | {"XLA_FLAGS": xla_flags(DEVICES), "PYTHONPATH": path}
    command = [sys.executable, "-c", "import sys, test_parallel; test_parallel.main(*sys.argv[1:])"]
    done = subprocess.run([*command, folder, scratch], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((scratch / "facts.json").read_text())


def assert_same(facts: dict, mesh: str, *path: str) -> None:
    """1e-5 of the largest value."""
    one, several = facts["None"], facts[mesh]
    for key in path:
        one, several = one[key], several[key]
    one, several = np.asarray(one), np.asarray(several)
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-5 * np.abs(one).max(), err_msg=" ".join(path))


@pytest.mark.parametrize("mesh", MESHES)
def test_scores_are_those_of_one_device(facts, mesh):
    """Five prompts, which divide among neither four devices nor eight."""
    names = [name if isinstance(name, str) else type(name).__name__ for name in detectors_on(mesh)]
    assert list(facts[mesh]["scores"]) == names
    for name in names:
        assert_same(facts, mesh, "scores", name)
    assert_same(facts, mesh, "attention")
    assert_same(facts, mesh, "gradients")


@pytest.mark.parametrize("mesh", MESHES)
def test_samples_are_those_of_one_device(facts, mesh):
    assert_same(facts, mesh, "latents")
    assert_same(facts, mesh, "tokens")
    assert_same(facts, mesh, "peak")
    one, several = (np.asarray(facts[name]["images"]) for name in ("None", mesh))
    assert several.shape == (len(PROMPTS), 4, 4, 3)
    assert np.abs(one - several).max() <= 1


def test_a_guard_finds_the_same_rows(facts):
    assert_same(facts, "data=8", "guard scores")
    assert_same(facts, "data=8", "guarded")
    assert facts["data=8"]["mitigated"] == facts["None"]["mitigated"]
    assert 0 < sum(facts["None"]["mitigated"]) < len(PROMPTS)


def test_detectors_are_split_and_exchange_nothing(facts):
    """The empty prompt's part, which all rows share, each device computes: a forward beside five to six a prompt."""
    one, eight = facts["None"]["programs"], facts["data=8"]["programs"]
    assert eight["first step"]["collectives"] == eight["entropy_e of 8"]["collectives"] == 0
    assert eight["entropy_e of 8"]["flops"] == pytest.approx(one["entropy_e of 8"]["flops"] / 8, rel=0.01)
    assert eight["first step"]["flops"] < 0.26 * one["first step"]["flops"]
    assert eight["entropy_e of 5"]["flops"] == pytest.approx(one["entropy_e of 5"]["flops"], rel=0.01)  # not filled up
    one, eight = facts["full size"]
    assert eight["collectives"] == 0
    assert eight["flops"] == pytest.approx(one["flops"] / 8, rel=0.001)


@pytest.mark.parametrize("mesh", MESHES)
def test_sampling_is_split(facts, mesh):
    """Eight rows on eight devices, against five on one; a prompt's two rows of guidance lie on one device."""
    for name in ("sample", "run"):
        one, several = (facts[text]["programs"][name] for text in ("None", mesh))
        assert several["flops"] == pytest.approx(one["flops"] / 5, rel=0.05)
        assert mesh != "data=8" or several["collectives"] == 0


@pytest.mark.parametrize("mesh", MESHES)
def test_loading_reads_each_slice_once(facts, mesh):
    one, several = facts["None"]["reads"], facts[mesh]["reads"]
    assert {name: sum(read) for name, read in one.items()} == {name: sum(read) for name, read in several.items()}
    assert {facts["None"][key] == facts[mesh][key] for key in ("model", "half")} == {True}
    pieces = 2 if "model" in mesh else 1
    query = several[f"{BLOCK}.attn1.to_q.weight"]
    assert len(query) == pieces
    assert facts[mesh]["kernel"] == [[16, 16 // pieces]] * DEVICES


def test_training_on_a_mesh(facts):
    one, four = facts["training None"], facts["training data=2,model=2"]
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for slope, expected in zip(four["gradient"], one["gradient"], strict=True):
        np.testing.assert_allclose(slope, expected, atol=1e-6)
    assert four["kept"]
    assert four["restored"]
    assert four["split"] > 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data", "--mesh 'data': "),
        ("data=2,", "--mesh 'data=2,': "),
        ("data=-1", "--mesh 'data=-1': "),
        ("data=1,data=1", "--mesh 'data=1,data=1': "),
        ("rows=2", "--mesh rows=2: unknown axis 'rows'"),
        ("data=0", "--mesh data=0: data"),
        ("model=3,data=2", "needs 6 devices, but there are 1; XLA_FLAGS=--xla_force_host_platform_device_count=6"),
    ],
)
def test_meshes_that_cannot_be(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_mesh(text)


def test_meshes():
    assert make_mesh(None) is None
    mesh = make_mesh("data=1")
    assert dict(mesh.shape) == {"data": 1, "model": 1}
    assert [rows_multiple(count, None) for count in (1, 5)] == [1, 5]
    eight = AbstractMesh((8, 1), ("data", "model"))
    assert [rows_multiple(count, eight) for count in (1, 8, 9)] == [8, 8, 16]


def test_nearly_all_of_stable_diffusion_is_split():
    mesh = AbstractMesh((1, 2), ("data", "model"))
    models = (
        abstract(UNet2DConditionModel, UNetConfig()),
        abstract(AutoencoderKL, VAEConfig()),
        abstract(CLIPTextModel, CLIPTextConfig()),
    )
    total = split = 0
    for leaf in (leaf for model in models for leaf in leaves(model)):
        shape = leaf.param.shape
        here = "model" in partition_spec(leaf.name, shape, mesh)
        total, split = total + leaf.param.size, split + here * leaf.param.size
        assert here or leaf.param.size < 77 * 768 + 1, leaf.name
    assert split / total > 0.99


def test_partition_rules():
    mesh = AbstractMesh((1, 8), ("data", "model"))
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    layer = "text_model.encoder.layers.0"
    for name, shape, spec in (
        (f"{block}.attn1.to_q.weight", (320, 320), Spec(None, "model")),
        (f"{block}.attn2.to_v.weight", (768, 320), Spec(None, "model")),
        (f"{block}.attn2.to_out.0.weight", (320, 320), Spec("model", None)),
        (f"{block}.attn2.to_out.0.bias", (320,), Spec(None)),
        (f"{block}.ff.net.0.proj.bias", (2560,), Spec("model")),
        (f"{block}.ff.net.2.weight", (1280, 320), Spec("model", None)),
        (f"{block}.norm1.weight", (320,), Spec(None)),
        (f"{layer}.self_attn.q_proj.weight", (768, 768), Spec(None, "model")),
        (f"{layer}.self_attn.out_proj.weight", (768, 768), Spec("model", None)),
        (f"{layer}.mlp.fc2.bias", (768,), Spec(None)),
        ("down_blocks.0.resnets.0.conv1.weight", (3, 3, 320, 320), Spec(None, None, None, "model")),
        ("conv_norm_out.weight", (320,), Spec(None)),
        ("conv_in.weight", (3, 3, 4, 320), Spec(None, None, None, "model")),
        ("conv_out.weight", (3, 3, 320, 4), Spec(None, None, None, None)),  # four channels for eight devices
        ("conv_out.bias", (4,), Spec(None)),
    ):
        assert partition_spec(name, shape, mesh) == spec, name


START = """
import os, signal, sys, time
from memattn_jax.sharding.placement import make_mesh, partition_spec, replicate, rows_multiple, spread
from memattn_jax.sharding.processes import start_processes
index, count = start_processes(sys.argv[1], int(sys.argv[2]), 2)
print(index, count, flush=True)
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
import jax.numpy as jnp
print(jnp.ones(3).sum(), flush=True)
"""


def test_two_processes_meet_and_part():
    """One that dies afterwards leaves the other alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = (
        subprocess.Popen([sys.executable, "-c", START, address, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    )
    assert first.communicate(timeout=60)[0].splitlines() == ["0 2", "3.0"]
    assert second.communicate(timeout=60)[0].splitlines() == ["1 2"]
    assert (first.returncode, second.returncode) == (0, -9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "--process-id and --num-processes missing"),
        ({"process_id": 1}, "--num-processes missing"),
        ({"coordinator": "a", "process_id": 0, "num_processes": 2}, "--coordinator a: "),
        ({"coordinator": "a:1", "process_id": 2, "num_processes": 2}, "--process-id 2: .*--num-processes 2"),
    ],
)
def test_processes_that_cannot_be(given, message):
    assert start_processes() == (0, 1)
    assert start_processes(process_id=1, num_processes=3) == (1, 3)
    with pytest.raises(InputError, match=message):
        start_processes(**given)
