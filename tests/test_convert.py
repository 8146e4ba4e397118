"""convert: the exported detector gives what detect gives, where this package cannot be imported."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import aot_programs
import jax
import micro
import numpy as np
import pytest
import safetensors.numpy
from jax.export import deserialize
from transformers import CLIPTokenizer

from memattn_jax import InputError, StableDiffusion, demo
from memattn_jax.commands import command as commands
from memattn_jax.commands import convert
from memattn_jax.detectors import Scorer, export
from memattn_jax.detectors.calibration.file import load_calibration, to_json
from memattn_jax.detectors.calibration.fit import calibrate
from memattn_jax.models.kernels import attention
from memattn_jax.registries import FIRST_STEP

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
(SERVE,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), flags=re.DOTALL)
ALONE = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("memattn_jax", "flax"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""
PROMPTS = ("the cat", "Zebra 7", "an odd and long line on the hill in the land")
LONG = "the cat and the hat " * 40


@pytest.fixture(scope="module")
def tiny(model) -> StableDiffusion:
    return StableDiffusion.from_pretrained(model)


@pytest.fixture
def command(monkeypatch, capsys):
    """`python -m memattn_jax.convert`, in this process: exit status, lines of standard output and of standard error."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        warnings.simplefilter("always")  # as outside pytest, which restores the filters after each test
        with pytest.raises(SystemExit) as stopped:
            commands.run_command("convert", convert.Options, convert.main)
        captured = capsys.readouterr()
        return stopped.value.code, captured.out.splitlines(), captured.err.splitlines()

    return run


def call(artifact: export.Artifact, input_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the artifact's program gives, as whoever loads it calls it."""
    return jax.device_get(deserialize(bytearray(artifact.program)).call(artifact.arrays, input_ids))


def check(scores: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """The same detectors, and the same scores but for `tolerance` of the largest."""
    assert set(scores) == set(expected)
    for name, score in expected.items():
        assert scores[name].dtype == np.float32
        np.testing.assert_allclose(scores[name], score, rtol=0, atol=tolerance * np.abs(score).max(), err_msg=name)


def test_the_readme_program_runs_without_this_package(command, tmp_path):
    """The whole way, for three platforms: scores and verdicts are those of detect on the built-in model."""
    out = tmp_path / "new" / "detector.zip"
    status, printed, errors = command("--out", out, "--platforms", "cpu,tpu,cuda", "--batch-size", 2)
    assert (status, errors) == (0, [])
    assert printed[0] == demo.NOTE
    assert printed[1].startswith(f"{out}: {out.stat().st_size:,} bytes: ")
    assert printed[2].startswith("entropy_e, noise_norm on cpu, tpu, cuda: any number of prompts, in batches of 2, ")

    (tmp_path / "serve.py").write_text(SERVE)
    (tmp_path / "alone.py").write_text(ALONE)
    prompts = (*demo.SHOWCASE, "a" + " penguin" * 90)  # three in batches of two, the last one too long
    done = subprocess.run(
        [sys.executable, "alone.py", "serve.py", str(out), *prompts],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == list(prompts)

    calibration = load_calibration(demo.CALIBRATION)
    sd = StableDiffusion.from_pretrained(demo.MODEL, dtype="float32")
    with pytest.warns(UserWarning, match="prompt cut at 77 tokens"):
        expected = sd.detect(prompts, site=calibration.settings["site"])
    check({name: np.float32([row[name] for row in rows]) for name in expected.scores}, expected.scores)
    over = calibration.memorized(expected)
    assert [row["over"] for row in rows] == [[name for name in over if over[name][i]] for i in range(len(prompts))]
    assert "noise_norm" in rows[0]["over"]
    assert rows[1]["over"] == []
    assert [row["verdict"] for row in rows[:2]] == ["memorized", "clean"]


def test_the_program_is_blocked_where_it_imports_this_package(tmp_path):
    """So that the test above can fail."""
    (tmp_path / "alone.py").write_text(ALONE)
    (tmp_path / "cheat.py").write_text("import memattn_jax")
    done = subprocess.run([sys.executable, "alone.py", "cheat.py"], capture_output=True, text=True, cwd=tmp_path)
    assert "memattn_jax is not to be imported" in done.stderr


def test_derivatives_probes_and_any_number_of_prompts(tiny):
    """One, where a batch has two, and three."""
    names = ("hessian_difference", "entropy_e")
    scorer = Scorer(tiny, names, seed=3, probes=2, steps=4, site=tiny.unet.sites[-1])
    artifact = export.export_detector(scorer, 2)
    assert artifact.platforms == (jax.default_backend(),)
    expected = scorer(PROMPTS)
    for count in (1, 3):
        first = {name: score[:count] for name, score in expected.scores.items()}
        check(call(artifact, expected.input_ids[:count]), first)


def test_half_precision_survives_the_archive(model, tmp_path):
    sd = StableDiffusion.from_pretrained(model, dtype="bfloat16")
    scorer = Scorer(sd, ("noise_norm",), steps=4)
    artifact = export.export_detector(scorer, 4)
    export.write_artifact(tmp_path / "d.zip", artifact, {}, sd.tokenizer)
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        arrays = safetensors.numpy.load_file(archive.extract("arrays.safetensors", tmp_path))
    assert {str(arrays[name].dtype) for name in arrays if name.startswith("unet.")} == {"bfloat16"}
    expected = scorer(PROMPTS)
    # eight bits of a number: XLA may fuse, and so round, a program of another number of rows differently
    check(call(artifact._replace(arrays=arrays), expected.input_ids), expected.scores, 0.02)


def test_only_what_scores_depend_on_is_kept(tiny):
    """Entropy at the first layer needs nothing after it; noise norm the whole UNet; each array counts."""
    site = tiny.unet.sites[0]
    _, arrays = export.block_program(Scorer(tiny, ("entropy_e",), site=site))
    entropy = export.export_detector(Scorer(tiny, ("entropy_e",), site=site), 2)
    norm = export.export_detector(Scorer(tiny, ("noise_norm",)), 2)
    parameters = {name for name in arrays if name.startswith("unet.")}
    assert len(parameters) == len(jax.tree.leaves(tiny.unet))
    assert parameters <= set(norm.arrays)
    kept = parameters & set(entropy.arrays)
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.kernel" in kept
    for later in ("attn2.to_v", "attn2.to_out", ".ff.", "mid_block", "up_blocks", "conv_out"):
        assert not [name for name in kept if later in name]
        assert [name for name in parameters if later in name]
    assert not [
        name
        for name in (*entropy.arrays, *norm.arrays)
        if name.startswith(("vae", "empty", "levels.second", "levels.late"))
    ]
    assert 0 < entropy.flops < norm.flops
    input_ids = tiny.tokenizer(PROMPTS).input_ids
    before = call(entropy, input_ids)["entropy_e"]
    for name in ("probes", "levels.first.timestep", "text_encoder.text_model.embeddings.token_embedding.embedding"):
        changed = entropy._replace(arrays=entropy.arrays | {name: np.sin(100 * entropy.arrays[name])})
        assert np.abs(call(changed, input_ids)["entropy_e"] - before).max() > 1e-6


@pytest.mark.parametrize(("names", "share"), [(("entropy_e",), 0.1525), (("entropy_e", "noise_norm"), 0.9216)])
def test_what_of_stable_diffusion_14_an_archive_holds(names, share):
    """The gigabytes of docs/serving.md, of shapes: no weights are allocated."""
    sd = aot_programs.model("sd14")
    programs = []

    def arrays_of(sd: StableDiffusion) -> dict[str, jax.Array]:
        score, arrays = export.block_program(Scorer(sd, names))
        programs.append(score)
        return arrays

    arrays = aot_programs.on_shapes(sd, arrays_of)
    block = jax.ShapeDtypeStruct((16, 77), np.int32)
    used = export.used_by(export.lower(programs[0], arrays, block, ("cpu", "cuda", "tpu")), arrays)

    def gigabytes(tree) -> float:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9

    whole = gigabytes((sd.unet, sd.vae, sd.text_encoder))
    assert whole == pytest.approx(4.265, abs=0.001)
    assert gigabytes(used) / whole == pytest.approx(share, abs=0.001)


def test_the_archive_holds_data_alone(tiny, tmp_path, monkeypatch):
    """Stored as it is, the same bytes each time, and no file name of the machine that made it."""
    scorer = Scorer(tiny, ("noise_norm",))
    artifact = export.export_detector(scorer, 2)
    for name in ("a.zip", "b.zip"):
        export.write_artifact(tmp_path / name, artifact, {"detectors": ["noise_norm"]}, tiny.tokenizer)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert {"metadata.json", "detector.jaxexport", "arrays.safetensors"} < set(names)
    assert {Path(name).suffix for name in names} <= {".json", ".txt", ".jaxexport", ".safetensors"}
    padded = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")(
        [*PROMPTS, LONG], padding="max_length", truncation=True, max_length=tiny.tokenizer.tokens
    )
    with pytest.warns(UserWarning, match="prompt cut"):
        np.testing.assert_array_equal(padded["input_ids"], tiny.tokenizer([*PROMPTS, LONG]).input_ids)

    assert b"programs.py" not in artifact.program
    monkeypatch.setattr(export, "no_locations", nullcontext)
    assert b"programs.py" in export.export_detector(scorer, 2).program


def test_input_that_does_not_fit_is_refused(tiny):
    artifact = export.export_detector(Scorer(tiny, ("noise_norm",)), 2)
    for shape, dtype in (((0, 77), np.int32), ((2, 76), np.int32), ((2, 77), np.float32)):
        with pytest.raises(ValueError, match=r"(?i)prompts|shape|dtype"):
            call(artifact, np.zeros(shape, dtype))


@pytest.fixture
def nvidia(monkeypatch):
    """As on a machine with an NVIDIA GPU, as far as tracing looks."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(
        attention, "get_backend", lambda: SimpleNamespace(platform="gpu", platform_version="cuda 13000")
    )
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_cudnn_is_exported_where_the_model_takes_it(nvidia, random_model, tmp_path):
    micro.write_model(tmp_path, random_model, unet=dataclasses.replace(micro.UNET, attention_head_dim=1))
    sd = StableDiffusion.from_pretrained(tmp_path, dtype="bfloat16")
    scorer = Scorer(sd, ("noise_norm",))
    for platforms, fused in ((("cpu",), False), (("cuda",), True)):
        program = export.export_detector(scorer, 2, platforms).program
        assert (export.CUDNN in deserialize(bytearray(program)).mlir_module()) == fused
    with pytest.raises(InputError, match=r"cpu,cuda.*NVIDIA GPU"):
        export.export_detector(scorer, 2, ("cpu", "cuda"))


@pytest.fixture
def tpu(monkeypatch):
    """As on a machine with a TPU, as far as tracing looks."""
    monkeypatch.setattr(attention, "get_backend", lambda: SimpleNamespace(platform="tpu", platform_version=""))
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_a_tpus_kernel_is_exported_where_there_is_a_tpu(tpu, random_model, tmp_path):
    micro.write_model(tmp_path, random_model, unet=dataclasses.replace(micro.UNET, sample_size=32))
    scorer = Scorer(StableDiffusion.from_pretrained(tmp_path), ("noise_norm",))
    for platform in ("cpu", "tpu"):
        program = export.export_detector(scorer, 2, (platform,)).program
        assert ("tpu_custom_call" in deserialize(bytearray(program)).mlir_module()) == (platform == "tpu")
    with pytest.raises(InputError, match=r"cpu,tpu.*TPU"):
        export.export_detector(scorer, 2, ("cpu", "tpu"))


BAD = [
    (("--detectors", "vibes"), "unknown detector 'vibes'; expected one of entropy_e"),
    (
        ("--detectors", "entropy_d"),
        f"--detectors entropy_d: only first-step detectors can be exported: {', '.join(FIRST_STEP)}",
    ),
    (("--detectors", "text_baseline"), "--detectors text_baseline: "),
    (("--batch-size", 0), "--batch-size 0: "),
    (("--platforms", "cpu,gpu"), "unknown platform 'gpu'; did you mean 'tpu'? expected one of cpu, cuda, rocm, tpu"),
    (("--platforms", "cpu,cpu"), "cpu,cpu"),
    (("--site", "attic"), "unknown cross-attention layer 'attic'"),
    (("--probes", 0), "--probes 0: "),
    (("--calibration", "none.json"), "--calibration none.json: "),
    (("--model", "none"), "none"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(map(str, arguments)) for arguments, _ in BAD])
def test_bad_input(command, model, tmp_path, arguments, message):
    given = arguments if "--model" in arguments else ("--model", model, *arguments)
    status, _, errors = command("--out", tmp_path / "d.zip", *given)
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written(command, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, message in (
        (tmp_path / "file", "file: already exists"),
        (tmp_path / "file" / "d.zip", "file"),
        (tmp_path, f"--out {tmp_path}: "),
    ):
        status, _, errors = command("--model", model, "--out", out)
        assert status == 2
        assert len(errors) == 1
        assert message in errors[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_serializer_is_named(tiny, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"flatbuffers.*pip install"):
        export.export_detector(Scorer(tiny, ("noise_norm",)), 2)


def metadata(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("metadata.json"))


def test_thresholds_come_along_if_they_fit(command, model, tiny, tmp_path):
    """A calibration's settings are taken over; it is refused for other settings, and another model."""
    scorer = Scorer(tiny, ("noise_norm",), seed=5, steps=4, attribute=True)
    calibration = calibrate(scorer, [scorer(PROMPTS)], 0.5)
    (tmp_path / "c.json").write_text(to_json(calibration))
    use = ("--model", model, "--detectors", "all", "--site", tiny.unet.sites[0], "--calibration", tmp_path / "c.json")
    status, _, errors = command(*use, "--out", tmp_path / "refused.zip")
    assert (status, len(errors)) == (2, 1)
    assert f"site {tiny.unet.sites[3]}, not {tiny.unet.sites[0]}" in errors[0]
    use = ("--model", model, "--detectors", "noise_norm", "--calibration", tmp_path / "c.json")
    for overwrite in ((), ("--overwrite",)):
        status, printed, errors = command(*use, "--out", tmp_path / "d.zip", *overwrite)
        assert (status, errors) == (0, [])
    about = metadata(tmp_path / "d.zip")
    limits = calibration.joint(("noise_norm",)).thresholds(0.5)
    assert about["thresholds"] == limits
    assert about["fpr"] == 0.5
    assert about["settings"] | {"seed": 5, "steps": 4, "probes": 1, "site": tiny.unet.sites[3]} == about["settings"]
    assert f"thresholds: noise_norm {limits['noise_norm']:.4f}" in printed
    status, _, errors = command(*use, "--out", tmp_path / "e.zip", "--steps", 5)
    assert (status, len(errors)) == (2, 1)
    assert "steps 4, not 5" in errors[0]
    (tmp_path / "c.json").write_text(to_json(dataclasses.replace(calibration, fpr=0.05)))
    status, _, errors = command(*use, "--out", tmp_path / "e.zip")
    assert (status, len(errors)) == (2, 1)
    assert "rate of 0.05" in errors[0]
    own = dataclasses.replace(calibration, settings=calibration.settings | {"seed": None})
    (tmp_path / "c.json").write_text(to_json(own))
    status, _, errors = command(*use, "--out", tmp_path / "e.zip")
    assert (status, len(errors)) == (2, 1)
    assert "the same noise" in errors[0]


def test_the_built_in_models_thresholds_are_left_out_where_they_do_not_fit(command, tmp_path):
    status, printed, errors = command("--out", tmp_path / "d.zip", "--detectors", "entropy_e", "--seed", 1)
    assert (status, len(errors)) == (0, 1)
    assert errors[0].startswith("warning: no verdicts: ")
    assert "seed 0, not 1" in errors[0]
    assert metadata(tmp_path / "d.zip")["thresholds"] == {}
    assert any(line.startswith("thresholds: none; ") for line in printed)
