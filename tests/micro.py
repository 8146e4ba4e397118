"""A Stable Diffusion small enough to train in a test, and a folder of pictures to train it on."""

import dataclasses
import json
from pathlib import Path

import make_random_model
import numpy as np
from PIL import Image

from memattn_jax import StableDiffusion
from memattn_jax.models.abstract import abstract
from memattn_jax.models.configs import UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL

UNET = UNetConfig(
    sample_size=4,
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=32,
)
TWO_RESOLUTIONS = dataclasses.replace(  # what the comparisons with PyTorch need; it compiles half as quickly
    UNET,
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
WITHOUT_MIDDLE = dataclasses.replace(UNET, mid_block_type=None)  # its training step compiles in two thirds of the time
VAE = VAEConfig(
    sample_size=8,
    block_out_channels=(8, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
)


def write_model(
    folder: Path,
    random_model: Path,
    prediction_type: str = "epsilon",
    *,
    unet: UNetConfig = UNET,
    vae: VAEConfig = VAE,
    seed: int = 0,
) -> None:
    """By default one resolution, a layer down and two up, 4 × 4 latents; the text encoder is the random model's."""
    sd = dataclasses.replace(
        StableDiffusion.from_pretrained(random_model),
        unet=abstract(UNet2DConditionModel, unet),
        vae=abstract(AutoencoderKL, vae),
    )
    sd.scheduler_config["prediction_type"] = prediction_type
    rng = np.random.default_rng(seed)
    make_random_model.fill_randomly(sd.unet, rng)
    make_random_model.fill_randomly(sd.vae, rng)
    sd.save_pretrained(folder)


def write_pictures(folder: Path, count: int = 12) -> None:
    """Pictures of one colour with a bar, and captions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    lines = []
    for i in range(count):
        picture = np.full((9, 12, 3), rng.integers(0, 255, 3), np.uint8)
        picture[3:5] = rng.integers(0, 255, 3)
        Image.fromarray(picture).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"the {chr(ord('a') + i)}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
