"""Compiling for slices that are not there: two kinds of TPU, the three programs; and what is compiled."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import aot_check
import aot_machines
import aot_programs
import jax
import jax.numpy as jnp
import micro
import pytest
from flax import nnx
from jax import NamedSharding
from jax import P as Spec
from jax.experimental.compilation_cache import compilation_cache

from memattn_jax import StableDiffusion, demo
from memattn_jax.detectors import Scorer, scorer
from memattn_jax.diffusion import run
from memattn_jax.models.abstract import abstract
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig
from memattn_jax.models.kernels.attention import self_attention
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.settings import jax_settings
from memattn_jax.sharding.placement import make_mesh
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.step import train_step

pytestmark = pytest.mark.slow

CHECK = Path(__file__).parents[2] / "tpu" / "aot_check.py"
SLICES = {"v5e:2x2": ("TPU v5 lite", 4, 16), "v6e:2x4": ("TPU v6 lite", 8, 32)}
SMALL = (
    UNetConfig(
        sample_size=32,  # pixels enough for the kernel of self-attention
        block_out_channels=(64,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,  # libtpu takes its time for every layer
        norm_num_groups=8,
        cross_attention_dim=32,
    ),
    dataclasses.replace(
        micro.VAE,
        sample_size=4,
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    ),
    CLIPTextConfig(vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4),
)
FEW_PIXELS = dataclasses.replace(SMALL[0], sample_size=8), *SMALL[1:]  # and no kernel, whose gradient takes long
ROWS = ("--rows", "2")
RUNS = {
    "detector": (*ROWS, "--detectors", "noise_norm", "--no-explain", "--topology", ",".join(SLICES)),
    "sampler": (*ROWS, "--steps", "3"),
    "finetuning": ("--rows", "1", "--budget-gib", "0.001"),
}


@contextlib.contextmanager
def settings_of_the_script():
    """Those that the script sets, at a process's start; later, JAX has to be told that the cache has changed."""
    with jax_settings(jax_enable_compilation_cache=False, jax_default_matmul_precision=None):
        compilation_cache.reset_cache()
        yield
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[int, str, dict]]:
    """Exit status, what was printed, and the JSON of each program's run; small models stand in for `tiny`."""
    folder = tmp_path_factory.mktemp("aot")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for program, options in RUNS.items():
            patch.setitem(aot_programs.PRESETS, "tiny", (FEW_PIXELS if program == "finetuning" else SMALL, "epsilon"))
            path, printed = folder / program, io.StringIO()
            with contextlib.redirect_stdout(printed), settings_of_the_script():
                status = aot_check.main(["--preset", "tiny", "--program", program, *options, "--json", str(path)])
            found[program] = status, printed.getvalue(), json.loads(path.read_text())
    return found


def weights(config: UNetConfig) -> int:
    """Bytes of a UNet in bfloat16."""
    return 2 * sum(leaf.size for leaf in jax.tree.leaves(abstract(UNet2DConditionModel, config)))


@pytest.mark.parametrize(("program", "slices"), [("detector", list(SLICES)), ("sampler", ["v5e:2x2"])])
def test_both_kinds_of_slices(program, slices, runs):
    status, printed, report = runs[program]
    assert status == 0
    size = weights(SMALL[0])
    assert [(result["topology"], result["program"]) for result in report["tpu"]] == [(name, program) for name in slices]
    for result in report["tpu"]:
        kind, count, gib = SLICES[result["topology"]]
        assert (result["device"], result["devices"], result["budget"]) == (kind, count, gib * 2**30)
        sizes = [result[name] for name in ("argument", "output", "temporary", "code")]
        assert result["total"] == sum(sizes) - result["alias"] <= result["budget"]
        assert result["fits"]
        assert result["code"] > 0
        assert result["flops"] > 0
        assert result["accessed"] > 0
        assert result["custom_calls"]["tpu_custom_call"] == 1  # self-attention
        assert f"{count} × {kind}" in printed
        # weights, in which the smallest arrays take up more than they hold, and rows, which are little
        assert 0.8 * size < result["argument"] < 3 * size
        assert result["collectives"] == {}  # the two rows of a guidance pair lie on one device
    arguments = [result["argument"] for result in report["tpu"]]
    assert arguments == pytest.approx(arguments[:1] * len(slices), rel=0.01)  # a device's own, however many there are
    assert report["versions"]["libtpu"] == aot_machines.libtpu_version() != "none"
    assert [result["program"] for result in report["cuda"]] == [program]


def attention_needs(form, topology: str, heads: int, head_dim: int, side: int) -> aot_machines.Needs:
    """What a form of self-attention, called with a mesh, too, needs with 8 rows a device in bfloat16."""
    devices = aot_machines.devices(topology)
    mesh = make_mesh(f"data={len(devices)}", devices)
    shape, sharding = (8 * len(devices), side**2, heads, head_dim), NamedSharding(mesh, Spec("data"))
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    with settings_of_the_script():
        return aot_machines.needs(jax.jit(lambda *arrays: form(*arrays, mesh)).lower(*[array] * 3).compile())


def pushed(query, keys, values, mesh):
    arrays = query, keys, values
    return jax.jvp(lambda *arrays: self_attention(*arrays, mesh), arrays, arrays)


def pulled(query, keys, values, mesh):
    return jax.vjp(lambda *arrays: self_attention(*arrays, mesh), query, keys, values)[1](query)


@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize(
    ("form", "size", "part"),
    [(self_attention, (8, 40, 64), 1 / 20), (self_attention, (5, 64, 96), 1 / 20)]
    + [(derivative, (8, 40, 64), 1 / 6) for derivative in (pushed, pulled)],
    ids=["sd14", "sd21", "pushed", "pulled"],
)
def test_self_attention_holds_no_map(form, size, part, topology):
    """At the sizes of Stable Diffusion, whose maps take 4 GiB and more; nor do devices exchange anything."""
    heads, _, side = size
    needed = attention_needs(form, topology, *size)
    assert needed.temporary < part * 8 * heads * side**4 * 4
    assert ("tpu_custom_call" in needed.custom_calls) == (form is self_attention)
    assert needed.collectives == {}


def test_decoding_keeps_rows_on_their_devices():
    """The autoencoder's attention, mapped over rows."""

    def mapped(query, keys, values, mesh):
        one = jax.vmap(lambda *row: self_attention(*(x[None] for x in row), mesh)[0], spmd_axis_name="data")
        return one(query, keys, values)

    needed = attention_needs(mapped, "v5e:2x2", 1, 512, 64)
    assert needed.custom_calls["tpu_custom_call"] == 1
    assert needed.collectives == {}


def test_more_than_the_budget_is_an_error(runs):
    status, printed, report = runs["finetuning"]
    assert status == 1
    assert "DOES NOT FIT" in printed
    (found,) = report["tpu"]
    assert found["total"] > found["budget"] == int(0.001 * 2**30)
    assert not found["fits"]
    # weights, moving moments and gate are given up for the new ones, and gradients are summed over devices
    assert found["alias"] > 3 * 2 * weights(FEW_PIXELS[0])
    assert set(found["collectives"]) == {"all-reduce"}


def test_it_starts():
    done = subprocess.run([sys.executable, CHECK, "--topology", "v99:2x2"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: topology v99:2x2")


@pytest.mark.parametrize("wrong", [("--program", "trainer"), ("--rows", "0"), ("--detectors", "entropy_d")])
def test_wrong_arguments(wrong, capsys):
    try:
        status = aot_check.main(["--preset", "tiny", *wrong])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert "error: " in capsys.readouterr().err


def test_presets_are_the_models_that_they_are_called_after():
    tiny, full, second = (aot_programs.model(name) for name in ("tiny", "sd14", "sd21"))

    def sizes(sd) -> list[int]:
        networks = (sd.unet, sd.vae, sd.text_encoder)
        return [sum(leaf.size for leaf in jax.tree.leaves(network)) for network in networks]

    assert sizes(full) == [859_520_964, 83_653_863, 123_060_480]
    assert sizes(second) == [865_910_724, 83_653_863, 340_387_840]
    assert second.velocity
    assert not full.velocity
    assert tiny.unet.sites == full.unet.sites
    assert len(jax.tree.leaves(tiny.unet)) == len(jax.tree.leaves(full.unet))


def shapes(program: aot_programs.Program) -> list[tuple]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(program.arguments)]


def recorded(monkeypatch, owner, name) -> list[aot_programs.Program]:
    """Notes what the function is called with, and goes no further."""
    calls, function = [], getattr(owner, name)

    def note(*arguments, **static):
        calls.append(aot_programs.Program(function, arguments, static))
        raise aot_programs.Called

    monkeypatch.setattr(owner, name, note)
    return calls


def test_it_is_what_the_commands_compile(monkeypatch):
    """The built-in model with weights calls the same functions with the same shapes."""
    sd, bare = StableDiffusion.from_pretrained(demo.MODEL), aot_programs.model("demo")
    expected = aot_programs.detector(bare, 2), aot_programs.sampler(bare, 2, 3)
    detected = recorded(monkeypatch, scorer, "score_first_step")
    sampled = recorded(monkeypatch, run, "denoise")
    with pytest.raises(aot_programs.Called):
        Scorer(sd, attribute=True).start(demo.SHOWCASE)
    with pytest.raises(aot_programs.Called):
        sd.sample(demo.SHOWCASE, steps=3)
    for program, (real,) in zip(expected, (detected, sampled), strict=True):
        assert program.function is real.function
        assert program.static == real.static
        assert shapes(program) == shapes(real)
        assert jax.tree.structure(program.arguments) == jax.tree.structure(real.arguments)


def test_rows_are_spread_and_all_else_is_whole():
    mesh, bare = make_mesh("data=1"), aot_programs.model("demo")
    for program in (aot_programs.detector(bare, 6), aot_programs.sampler(bare, 6, 5)):
        placed = aot_programs.on_mesh(program, mesh, 6).arguments
        parts = jax.tree.leaves(placed, is_leaf=lambda part: isinstance(part, nnx.Module))
        weights, others = ([part for part in parts if isinstance(part, nnx.Module) == found] for found in (True, False))
        assert weights
        assert all(leaf.sharding.spec == Spec() for leaf in jax.tree.leaves(weights))
        spread = [leaf for leaf in others if leaf.sharding.spec == Spec("data")]
        assert {leaf.shape[0] for leaf in spread} == {6}
        assert all(leaf.shape[:1] != (6,) for leaf in others if leaf.sharding.spec == Spec())
    state, setup, batch = aot_programs.on_mesh(
        aot_programs.finetuning(bare, 6, TrainSettings(batch_size=6)), mesh, 6
    ).arguments
    assert all(leaf.sharding.spec == Spec() for leaf in jax.tree.leaves((state, setup)))
    assert [leaf.sharding.spec for leaf in batch] == [Spec("data")] * 2


def test_finetuning_is_the_trainers_step():
    program = aot_programs.finetuning(aot_programs.model("tiny"), 2, TrainSettings(batch_size=2, dtype="bfloat16"))
    assert program.function is train_step
    state, _, batch = program.arguments
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert batch.pictures.shape == (2, 128, 128, 3)


def test_custom_calls_for_cuda_are_counted():
    matrix = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    factorize = jax.jit(lambda x: jnp.linalg.eigh(jnp.linalg.cholesky(x)))
    found = aot_machines.cuda_custom_calls(factorize.trace(matrix))
    assert sum(found.values()) >= 2
    assert all(name.startswith("cusolver") for name in found)
    assert aot_machines.cuda_custom_calls(jax.jit(lambda x: x @ x).trace(matrix)) == {}
