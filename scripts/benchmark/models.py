"""Full-size models with random weights, for both sides to read."""

from pathlib import Path
from typing import Any

import numpy as np
from make_random_model import fill_randomly

from benchmark.worker import Call
from memattn_jax.checkpoints.diffusers_folder import save_part
from memattn_jax.models.abstract import abstract
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL

SD21 = UNetConfig(
    sample_size=96, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
OPENCLIP = CLIPTextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
)
PARTS: dict[str, list[tuple[str, Any, Any]]] = {
    "sd14": [
        ("unet", UNet2DConditionModel, UNetConfig()),
        ("vae", AutoencoderKL, VAEConfig()),
        ("text_encoder", CLIPTextModel, CLIPTextConfig()),
    ],
    "sd21": [
        ("unet", UNet2DConditionModel, SD21),
        ("vae", AutoencoderKL, VAEConfig(sample_size=768)),
        ("text_encoder", CLIPTextModel, OPENCLIP),
    ],
}


def write(preset: str, folder: Path) -> dict[str, Call]:
    """Writes the networks of one preset as a diffusers folder."""

    def run() -> None:
        for name, model_class, config in PARTS[preset]:
            model = abstract(model_class, config)
            fill_randomly(model, np.random.default_rng(0))
            save_part(model, folder, name)

    return {"write": Call(run)}
