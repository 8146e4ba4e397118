"""Single files of other models are named."""

import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from memattn_jax import InputError
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.single_file.family import as_named


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conditioner.embedders.0.transformer.x"], "Stable Diffusion XL"),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.x"], "Flux"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["lora_unet_down_blocks_0_x.lora_up.weight"], "LoRA"),
        (["model.wings"], "model.wings"),
        (["model.diffusion_model.out.0.weight", "first_stage_model.x"], "text_encoder"),
        (["cond_stage_model.transformer.text_model.x", "model.diffusion_model.a"], "--vae"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_named(names, message, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file({name: np.zeros(1, np.float32) for name in names}, path)
    with pytest.raises(InputError, match=re.escape(message)):
        open_checkpoint(path)


def test_the_names_of_sd_turbos_file():
    """By Stability-AI/generative-models, whose first names Stable Diffusion XL shares."""
    theirs = {"conditioner.embedders.0.model.ln_final.bias": np.ones(1), "first_stage_model.x": np.zeros(1)}
    assert as_named(theirs).keys() == {"cond_stage_model.model.ln_final.bias", "first_stage_model.x"}
    for more in ("conditioner.embedders.1.model.x", "model.diffusion_model.label_emb.0.0.weight"):
        assert as_named(theirs | {more: np.zeros(1)}).keys() == theirs.keys() | {more}
