"""Compiling for slices that are not there: two presets, two kinds of TPU, the three programs; and what is compiled."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aot_check
import aot_machines
import aot_programs
import jax
import jax.numpy as jnp
import pytest
from jax import P as Spec

from memattn_jax import StableDiffusion, demo, pipeline
from memattn_jax.detectors import Scorer, scorer
from memattn_jax.sharding.placement import make_mesh
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.step import train_step

pytestmark = pytest.mark.slow

CHECK = Path(__file__).parents[2] / "tpu" / "aot_check.py"
SLICES = {"v5e:2x2": ("TPU v5 lite", 4, 16), "v6e:2x4": ("TPU v6 lite", 8, 32)}
TOPOLOGY = ("--rows", "2", "--topology")
RUNS = {
    "demo": ("--preset", "demo", "--program", "detector", *TOPOLOGY, ",".join(SLICES)),
    "tiny": (
        "--preset",
        "tiny",
        "--program",
        "detector,sampler",
        "--no-explain",
        "--topology",
        "v5e:2x2",
        "--rows",
        "2",
    ),
    "over": ("--preset", "demo", "--program", "finetuning", "--rows", "1", "--budget-gib", "0.1"),
}


def check(folder: Path, name: str) -> tuple[int, str, dict]:
    command = [sys.executable, CHECK, *RUNS[name], "--json", folder / name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout, json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[int, str, dict]]:
    """Exit status, what was printed, and the JSON of each; two at a time, as libtpu often compiles on one core."""
    folder = tmp_path_factory.mktemp("aot")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(RUNS, pool.map(lambda name: check(folder, name), RUNS), strict=True))


def weights(preset: str) -> int:
    """Bytes of the UNet in bfloat16."""
    return 2 * sum(leaf.size for leaf in jax.tree.leaves(aot_programs.model(preset).unet))


@pytest.mark.parametrize(
    ("preset", "programs", "slices"),
    [("demo", ["detector"], list(SLICES)), ("tiny", ["detector", "sampler"], ["v5e:2x2"])],
)
def test_both_kinds_of_slices(preset, programs, slices, runs):
    status, printed, report = runs[preset]
    assert status == 0
    size = weights(preset)
    found = {(result["topology"], result["program"]): result for result in report["tpu"]}
    assert list(found) == [(topology, program) for topology in slices for program in programs]
    for (topology, program), result in found.items():
        kind, count, gib = SLICES[topology]
        assert (result["device"], result["devices"], result["budget"]) == (kind, count, gib * 2**30)
        sizes = [result[name] for name in ("argument", "output", "temporary", "code")]
        assert result["total"] == sum(sizes) - result["alias"] <= result["budget"]
        assert result["fits"]
        assert result["code"] > 0
        assert result["flops"] > 0
        assert f"{count} × {kind}" in printed
        # weights, in which the smallest arrays take up more than they hold, and rows, which are little
        assert 0.8 * size < result["argument"] < 3 * size
        # the two halves of a guidance pair meet; detectors exchange nothing
        assert (sum(result["collectives"].values()) > 0) == (program == "sampler")
    arguments = [found[topology, "detector"]["argument"] for topology in slices]
    assert arguments == pytest.approx(arguments[:1] * len(slices), rel=0.01)  # a device's own, however many there are
    assert report["versions"]["libtpu"] == aot_machines.libtpu_version() != "none"
    assert [result["program"] for result in report["cuda"]] == programs


def test_more_than_the_budget_is_an_error(runs):
    status, printed, report = runs["over"]
    assert status == 1
    assert "DOES NOT FIT" in printed
    (found,) = report["tpu"]
    assert found["total"] > found["budget"] == int(0.1 * 2**30)
    assert not found["fits"]
    # weights, moving moments and gate are given up for the new ones, and gradients are summed over devices
    assert found["alias"] > 3 * 2 * weights("demo")
    assert set(found["collectives"]) == {"all-reduce"}


@pytest.mark.parametrize(
    "wrong", [("--topology", "v99:2x2"), ("--program", "trainer"), ("--rows", "0"), ("--detectors", "entropy_d")]
)
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
    calls, function = [], getattr(owner, name)

    def note(*arguments, **static):
        calls.append(aot_programs.Program(function, arguments, static))
        return function(*arguments, **static)

    monkeypatch.setattr(owner, name, note)
    return calls


def test_it_is_what_the_commands_compile(monkeypatch):
    """The built-in model with weights calls the same functions with the same shapes."""
    sd, bare = StableDiffusion.from_pretrained(demo.MODEL), aot_programs.model("demo")
    expected = aot_programs.detector(bare, 2), aot_programs.sampler(bare, 2, 3)
    detected = recorded(monkeypatch, scorer, "score_first_step")
    sampled = recorded(monkeypatch, pipeline, "denoise")
    Scorer(sd, attribute=True).start(demo.SHOWCASE)
    sd.sample(demo.SHOWCASE, steps=3)
    for program, (real,) in zip(expected, (detected, sampled), strict=True):
        assert program.function is real.function
        assert program.static == real.static
        assert shapes(program) == shapes(real)
        assert jax.tree.structure(program.arguments) == jax.tree.structure(real.arguments)


def test_rows_are_spread_and_all_else_is_whole():
    mesh, bare = make_mesh("data=1"), aot_programs.model("demo")
    for program, rows in ((aot_programs.detector(bare, 6), (6,)), (aot_programs.sampler(bare, 6, 5), (6, 12))):
        placed = aot_programs.on_mesh(program, mesh, 6).arguments
        assert all(leaf.sharding.spec == Spec() for leaf in jax.tree.leaves(placed[0]))  # weights
        others = jax.tree.leaves(placed[1:])
        spread = [leaf for leaf in others if leaf.sharding.spec == Spec("data")]
        assert {leaf.shape[0] for leaf in spread} == set(rows)
        assert all(leaf.shape[:1] not in [(6,), (12,)] for leaf in others if leaf.sharding.spec == Spec())
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
