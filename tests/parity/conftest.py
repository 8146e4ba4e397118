"""Small random checkpoints of both families, written by PyTorch, and loaded by PyTorch and by us."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from make_random_model import WORDS
from small_checkpoint import END, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from memattn_jax import StableDiffusion

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    family: str
    folder: Path
    torch: StableDiffusionPipeline
    ours: StableDiffusion


SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}


def write_pipeline(folder: Path, family: str, small: bool) -> None:
    """Geometry, options and quirks of the family, at tiny widths, with weights large enough to matter.

    A small UNet has two of the four resolutions and a layer of each, for what runs it many times: tests/test_golden.py
    has whole runs of the family's.
    """
    sd2 = family == "sd2"
    torch.manual_seed(2 if sd2 else 1)
    vocabulary = write_tokenizer(folder / "scratch", WORDS, pad_token="!" if sd2 else END)
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3 if sd2 else 2,
        num_attention_heads=4,
        hidden_act="gelu" if sd2 else "quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        norm_num_groups=8,
        attention_head_dim=([2, 4] if small else [2, 4, 8, 8]) if sd2 else 4,
        use_linear_projection=sd2,
        cross_attention_dim=32,
        **(SMALL if small else {"block_out_channels": (16, 32, 64, 64)}),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=128,
    )
    scheduler = (
        DDIMScheduler(
            **BETAS, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False, clip_sample=False
        )
        if sd2
        else PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True)
    )
    text_encoder = CLIPTextModel(text)
    for module in (unet, vae, text_encoder):
        sharpen(module)
    StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "scratch"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")
    # As in Stable Diffusion 1's own file. Where DDIM clips, its default, a random model's run is chaotic: PyTorch in
    # float32 is 1e-2 from PyTorch in float64 after ten steps.
    path = folder / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample": False}))


def sharpen(module: torch.nn.Module) -> None:
    """Random affine norms and biases, and queries large enough that attention is far from uniform."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith(("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight")):
                parameter.mul_(3.0)
            if name.endswith("token_embedding.weight"):
                parameter.copy_(0.3 * torch.randn_like(parameter))


@pytest.fixture(scope="session", params=["sd1", "sd2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder, family = tmp_path_factory.mktemp(request.param), request.param.removeprefix("small-")
    write_pipeline(folder, family, small=family != request.param)
    pipe = StableDiffusionPipeline.from_pretrained(folder / "model", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return Checkpoint(family, folder / "model", pipe, StableDiffusion.from_pretrained(folder / "model"))
