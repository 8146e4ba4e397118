"""What a process with eight virtual devices measures on one of them and on meshes, for test_parallel.py to judge."""

import collections
import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from extensions import LargestDifference, Peak, PeakDrift
from flax import nnx
from jax import NamedSharding
from jax import P as Spec

from memattn_jax import Guard, StableDiffusion
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
from memattn_jax.models.configs import UNetConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.pytree import pytree
from memattn_jax.registries import FIRST_STEP
from memattn_jax.sharding.placement import make_mesh, replicate, spread
from memattn_jax.training.loop import Checkpoints, pinned_step
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start
from memattn_jax.training.step import Batch, train_step

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
        return measured(self.function.jitted(arguments[0]).lower(*arguments, **options))  # kept since it ran


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
