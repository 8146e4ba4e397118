"""Writes a small Stable Diffusion with random weights, to try the commands without a checkpoint.

    python scripts/make_random_model.py tiny-model

It has Stable Diffusion's blocks, 16 cross-attention layers and a tokenizer that knows single letters and four words, so
every command runs as on a real checkpoint; its pictures are noise. The folder is a diffusers folder that PyTorch loads
too.
"""

import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from small_checkpoint import SCHEDULER, write_tokenizer

from memattn_jax.checkpoints.names import leaves
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.models.abstract import abstract
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.pipeline import StableDiffusion

WORDS = ("the", "and", "on", "in")


def fill_randomly(module: nnx.Module, rng: np.random.Generator) -> None:
    """Fills an abstract module: kernels by fan-in, norms as the identity, biases with zero.

    Queries are larger, so that attention is not uniform.
    """
    for leaf in leaves(module):
        shape = leaf.param.shape
        if leaf.attribute in ("kernel", "embedding"):
            gain = 8.0 if leaf.name.endswith("attn2.to_q.weight") else 1.0
            values = gain * rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            values = np.full(shape, leaf.attribute == "scale")
        setattr(leaf.owner, leaf.attribute, nnx.Param(jnp.asarray(values, jnp.float32)))


def main(folder: Path) -> None:
    """Builds the model, seed 0, and saves it."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = write_tokenizer(Path(scratch), WORDS)
        text = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        unet = UNetConfig(
            sample_size=16,
            block_out_channels=(32, 32, 64, 64),
            norm_num_groups=16,
            attention_head_dim=4,
            cross_attention_dim=32,
        )
        vae = VAEConfig(sample_size=128, block_out_channels=(16, 16, 32, 32), norm_num_groups=16, layers_per_block=1)
        sd = StableDiffusion(
            unet=abstract(UNet2DConditionModel, unet),
            vae=abstract(AutoencoderKL, vae),
            text_encoder=abstract(CLIPTextModel, text),
            tokenizer=Tokenizer(Path(scratch), text.max_position_embeddings),
            scheduler_config=SCHEDULER,
        )
        for module in (sd.unet, sd.vae, sd.text_encoder):
            fill_randomly(module, rng)
        sd.save_pretrained(folder)
    print(f"a random Stable Diffusion in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/make_random_model.py FOLDER")
    main(Path(sys.argv[1]))
