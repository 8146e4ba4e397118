"""What is refused before weights are read: the model here has none."""

import json
import shutil
from pathlib import Path

import pytest
import verb_runs

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.checkpoint import PARTS
from memattn_jax.commands import audit, convert, detect, evaluate, generate, visualize


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A model without weights."""
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    for part in PARTS:
        for path in (copy / part).glob("*.safetensors"):
            path.unlink()
    return copy


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_model_has_no_weights(folder):
    """So that the tests below can fail."""
    with pytest.raises(InputError, match="lacks weights"):
        StableDiffusion.from_pretrained(folder)


SOLVER = ("--scheduler", "dpm-solver++")
SCHEDULES = {
    "order": ({"solver_order": 3}, SOLVER, "solver_order is 3; choose 1 or 2"),
    "sde": ({"algorithm_type": "sde-dpmsolver++"}, SOLVER, "algorithm_type is 'sde-dpmsolver++'"),
    "lambdas": ({"use_lu_lambdas": True}, SOLVER, "use_lu_lambdas is True"),
    "thresholding": ({"thresholding": True}, (), "thresholding is True"),
    "unknown": ({"wings": 2}, (), "unknown keys in the scheduler config: wings"),
    "lcm": ({}, ("--scheduler", "lcm", "--steps", 100), "steps is 100; lcm takes at most 50"),
    "pndm": ({"skip_prk_steps": False}, ("--scheduler", "pndm", "--steps", 3), "steps is 3; pndm with"),
    "steps": ({}, ("--steps", 1000), "timestep 1000 is past the last training timestep"),
}


@pytest.mark.parametrize(("changes", "options", "message"), SCHEDULES.values(), ids=SCHEDULES)
def test_settings_that_the_scheduler_does_not_take(folder, tmp_path, changes, options, message):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    given = ("a prompt", "--model", folder, "--out", tmp_path / "out", *options)
    status, _, errors = verb_runs.command("generate", *given)
    assert (status, len(errors)) == (2, 1)
    assert message in errors[0]


PROMPT = {"prompt": ("a prompt",)}
COMMANDS = {
    "generate": (generate, PROMPT, ()),
    "detect": (detect, PROMPT, ()),
    "evaluate": (evaluate, {}, ("memorized", "clean")),
    "evaluate --mitigations": (evaluate, {"mitigations": "attention_mask"}, ("memorized", "clean")),
    "visualize": (visualize, PROMPT, ()),
    "convert": (convert, {}, ()),
    "audit": (audit, {}, ("prompts", "clean")),
}


@pytest.mark.parametrize(("command", "options", "files"), COMMANDS.values(), ids=COMMANDS)
def test_every_command_that_samples_or_scores(folder, tmp_path, command, options, files):
    (tmp_path / "prompts.txt").write_text("a prompt\nanother\n")
    given = options | dict.fromkeys(files, str(tmp_path / "prompts.txt"))
    with pytest.raises(InputError, match="timestep 1000 is past the last training timestep"):
        command.main(command.Options(model=str(folder), steps=1000, out=tmp_path / "out", **given))


def test_a_prediction_type_is_one_that_is_known(folder):
    with pytest.raises(InputError, match="unknown prediction type 'v'; did you mean 'v_prediction'"):
        StableDiffusion.from_pretrained(folder, prediction_type="v")


def test_the_layer_of_metric_e_is_one_of_the_models(folder):
    (folder / "memattn_jax.json").write_text(json.dumps({"entropy_site": "attic"}))
    with pytest.raises(InputError, match="unknown cross-attention layer 'attic'"):
        StableDiffusion.from_pretrained(folder)
