"""Single files of either family, made of the built-in model: what tells how each is to be read."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memattn_jax import InputError, demo
from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.single_file import text
from memattn_jax.commands.converting import convert

CONFIG = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
"""


class Made(NamedTuple):
    """A model as a folder, and as a file with this package's metadata."""

    folder: Path
    file: Path


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Made]:
    """The built-in model, and the same with Stable Diffusion 2's text encoder."""
    made = {}
    for family, activation in (("sd1", "quick_gelu"), ("sd2", "gelu")):
        folder = shutil.copytree(demo.MODEL, tmp_path_factory.mktemp(family) / "folder")
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": activation}))
        made[family] = Made(folder, folder.with_name("model.safetensors"))
        convert(folder, Source(), made[family].file, "single-file", None)
    return made


def with_yaml(file: Path, folder: Path, content: str) -> Path:
    """The file without metadata, and a .yaml beside it."""
    save_file(load_file(file), folder / "other.safetensors")
    (folder / "other.yaml").write_text(content)
    return folder / "other.safetensors"


@pytest.mark.parametrize(
    ("content", "first", "second"),
    [
        (CONFIG, "epsilon", "epsilon"),
        (f'{CONFIG}    parameterization: "v"\n', "v_prediction", "v_prediction"),
        (f"{CONFIG}    parameterization: v  # velocity\n", "v_prediction", "v_prediction"),
        (f"{CONFIG}    parameterization: 'eps'\n", "epsilon", "epsilon"),
        (f'{CONFIG}    # parameterization: "v"\n', "epsilon", None),
        (CONFIG.replace("LatentDiffusion", "LatentDiffusionOfMine"), "epsilon", None),
        ("", "epsilon", None),
    ],
)
def test_the_yaml_beside_a_file_says_what_it_predicts(families, tmp_path, content, first, second):
    """As for AUTOMATIC1111's web UI; in doubt, the same as without one."""
    path = with_yaml(families["sd1"].file, tmp_path, content)
    assert open_checkpoint(path).scheduler_config["prediction_type"] == first
    path = with_yaml(families["sd2"].file, tmp_path, content)
    if second is None:
        with pytest.raises(InputError, match="the file does not say what it predicts"):
            open_checkpoint(path)
    else:
        assert open_checkpoint(path).scheduler_config["prediction_type"] == second


def test_what_is_asked_for_and_what_a_file_says_come_before_its_yaml(families, tmp_path):
    path = with_yaml(families["sd2"].file, tmp_path, f"{CONFIG}    parameterization: v\n")

    def predicts(**source: object) -> str:
        return open_checkpoint(path, Source(**source)).scheduler_config["prediction_type"]

    assert predicts(prediction_type="epsilon") == "epsilon"
    assert predicts(config=families["sd2"].folder) == "v_prediction"  # the folder says nothing of this file
    save_file(load_file(path), path, metadata={"modelspec.prediction_type": "epsilon"})
    assert predicts() == "epsilon"


def test_a_yaml_that_says_nothing_leaves_the_configs_prediction(families, tmp_path):
    folder = shutil.copytree(families["sd2"].folder, tmp_path / "folder")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    opened = open_checkpoint(with_yaml(families["sd2"].file, tmp_path, CONFIG), Source(config=folder))
    assert opened.scheduler_config["prediction_type"] == "v_prediction"


def test_another_prediction_in_a_yaml_is_refused(families, tmp_path):
    path = with_yaml(families["sd1"].file, tmp_path, f"{CONFIG}    parameterization: x0\n")
    with pytest.raises(InputError, match="prediction type 'x0'; expected epsilon or v_prediction"):
        open_checkpoint(path)


def test_sd_turbos_file_opens_whole(families, tmp_path):
    """By Stability-AI/generative-models: other first names, and the noise levels of its sampler."""
    theirs = {
        name.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): tensor
        for name, tensor in load_file(families["sd2"].file).items()
    }
    save_file(theirs | {"denoiser.sigmas": np.ones(1000, np.float32)}, tmp_path / "turbo.safetensors")
    opened = open_checkpoint(tmp_path / "turbo.safetensors", Source(prediction_type="epsilon"))
    wanted = open_checkpoint(families["sd2"].file)
    for part in PARTS:
        found, expected = (checkpoint.parts[part].tensors() for checkpoint in (opened, wanted))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_configs_say_how_many_layers_are_used(families, monkeypatch):
    """Where the text encoder has one fewer than Stable Diffusion 2's, as in folders that were saved with clip skip."""
    folder, file = families["sd2"]
    used = open_checkpoint(folder).parts["text_encoder"].config
    monkeypatch.setattr(text, "SD2", (used.num_hidden_layers + 1, used.hidden_size))
    for source in (Source(), Source(config=folder)):
        names = open_checkpoint(file, source).parts["text_encoder"].tensors()
        layers = {int(name.split(".")[3]) for name in names if ".layers." in name}
        assert layers == set(range(used.num_hidden_layers))
