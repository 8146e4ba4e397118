"""What commands check by name, and what they say of a name that does not exist."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import micro
import pytest

from memattn_jax import InputError, demo
from memattn_jax.checkpoints.geometry import Geometry, cross_attention_sites
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.commands import copies, detect, evaluate, finetune, generate
from memattn_jax.errors import LIMIT, check_name
from memattn_jax.models.abstract import abstract
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.registries import DETECTORS, MITIGATIONS, PRESETS, SCHEDULERS, load


def test_names_stand_for_what_they_say():
    for name, (needs, path) in DETECTORS.items():
        assert load(path).needs == needs, name
    for path in (*MITIGATIONS.values(), *SCHEDULERS.values()):
        assert callable(load(path))


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("ddmi", SCHEDULERS, "did you mean 'ddim'? expected one of ddim, pndm, euler, euler-ancestral, dpm-solver++, "),
        ("DDIM", SCHEDULERS, "did you mean 'ddim'?"),
        ("solver", SCHEDULERS, "did you mean 'dpm-solver++'?"),
        ("heun", SCHEDULERS, "unknown thing 'heun'; expected one of ddim, "),
        ("", SCHEDULERS, "unknown thing ''; expected one of ddim, "),
        ("entropyE", DETECTORS, "did you mean 'entropy_e'? expected one of entropy_e, noise_norm, "),
        ("\x1b[2J" + "x" * 900, DETECTORS, r"unknown thing '\x1b[2Jxxx"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest_and_the_list(name, known, message):
    with pytest.raises(InputError) as refused:
        check_name("thing", name, known, "--option")
    assert str(refused.value).startswith("--option: unknown thing '")
    assert message in str(refused.value)
    assert len(str(refused.value)) <= LIMIT
    assert str(refused.value).isprintable()
    check_name("thing", next(iter(known)), known)


WRONG = {
    "generate": [
        ["--steps", "0"],
        ["--scheduler", "ddmi"],
        ["--guard", "noise"],
        ["--mitigation-options", "pad"],
        ["--dtype", "float8"],
        ["--mesh", "data"],
        ["--prompts", "gone.txt"],
        ["a", "--model", "gone"],
        ["a", "--height", "3"],
        ["a", "--mitigation-options", "mask=none"],
        ["--guard", "noise_norm"],
        ["--mitigation", "clip_embedding"],
        ["--height", "128", "--width", "128"],
    ],
    "detect": [["--detectors", "entropyE"], ["--fpr", "2"], ["--calibration", "gone.json"], ["--site", "attic"]],
    "evaluate": [["--detectors", "vibes"], ["--probes", "0"], ["--clean", "gone.txt"]],
    "visualize": [
        ["--figures", "pie"],
        ["--format", "gif"],
        ["--over-steps", "50:60"],
        ["--head", "1"],
        ["a", "--site", "attic"],
        ["--clean", "gone.txt"],
        ["a", "--model", "gone"],
        ["--seed", "-1"],
    ],
    "convert": [["--platforms", "gpu"], ["--detectors", "entropy_d"], ["--steps", "5000"], ["--out", "."]],
    "copies": [
        ["a", "--preset", "oficial"],
        ["a", "--sscd", "."],
        ["a", "--preset", "nemo"],
        ["a", "--references", "gone"],
        ["a", "--embedding", "file.py"],
        ["a", "--threshold", "0.5"],
        ["a", "--same-prompt", "--references", "."],
        ["a", "--shifts", "-1"],
    ],
    "finetune": [[], ["--data", "gone"], ["--data", ".", "--gate", "hope"]],
}


def test_wrong_options_are_refused_before_jax_is_imported(tmp_path):
    """And so before a model is loaded; `--help` needs it as little, and lists all names."""
    program = f"""
import importlib, sys
from memattn_jax.commands import command as commands
for verb, lines in {WRONG!r}.items():
    module = importlib.import_module("memattn_jax.commands." + verb)
    for line in [*lines, ["--help"]]:
        sys.argv = [verb, *line]
        try:
            commands.run_command(verb, module.Options, module.main)
        except SystemExit as stopped:
            assert stopped.code == (0 if line == ["--help"] else 2), line
    assert "jax" not in sys.modules, verb
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    errors = done.stderr.splitlines()
    lines = [line for lines in WRONG.values() for line in lines]
    assert len(errors) == len(lines)
    for error, line in zip(errors, lines, strict=True):
        assert error.startswith("error: ")
        options = [word for word in line if word.startswith("--")] or ["--data"]
        assert any(option in error for option in options) or "no such model: gone" in error
        assert len(error) <= LIMIT + len("error: ")
    shown = " ".join(done.stdout.replace("│", " ").split())
    for name in (*DETECTORS, *SCHEDULERS, *MITIGATIONS, *PRESETS):
        assert name in shown
    assert "owner/name on the Hugging Face Hub. Default: the built-in demo model." in shown  # lines are filled
    from_calibration = "Default: the calibration's, else "
    assert shown.count(f"{from_calibration}the one that the checkpoint names, else the fourth") == 2  # of two verbs
    assert f"{from_calibration}all." in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{}, {"only_cross_attention": (True, False)}, {"transformer_layers_per_block": 2}, {"mid_block_type": None}],
)
def test_sites_are_known_from_the_config(change):
    config = dataclasses.replace(micro.TWO_RESOLUTIONS, **change)
    assert cross_attention_sites(config) == abstract(UNet2DConditionModel, config).sites


def test_the_geometry_of_the_built_in_model():
    geometry = Geometry.of(open_checkpoint(demo.MODEL))
    assert (geometry.scale, geometry.timesteps, len(geometry.sites)) == (4, 1000, 10)
    assert "up_blocks.0.attentions.1.transformer_blocks.0.attn2" in geometry.sites


def test_each_verb_has_an_output_folder_of_its_own():
    """So that one command's results are not in another's way."""
    folders = {
        "generate": generate.Options(prompt=("a",)).out,
        "detect": detect.Options(prompt=("a",)).out,
        "evaluate": evaluate.Options().out,
        "copies": copies.Options().out,
        "finetune": finetune.Options(data=Path("data")).out,
    }
    for module in (generate, detect):  # the built-in model's own prompts are in nobody's way either
        assert module.Options().out == f"{module.Options(prompts='p.txt').out}-demo"
        assert module.Options(out="mine").out == "mine"
    assert detect.Options(calibrate=Path("c")).out == "out/detect"
    assert {verb: str(folder) for verb, folder in folders.items()} == {verb: f"out/{verb}" for verb in folders}
