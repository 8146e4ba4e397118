"""PyTorch loads the built-in model and samples what we sample."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from memattn_jax import StableDiffusion, demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [demo.prompts(group, "report")[place] for place, group in enumerate(demo.GROUPS)]


def test_pytorch_samples_the_same_latents(prompts):
    noise = np.random.default_rng(7).normal(size=(len(prompts), 16, 16, 12)).astype(np.float32)
    pipe = StableDiffusionPipeline.from_pretrained(demo.MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    latents = torch.from_numpy(np.ascontiguousarray(np.moveaxis(noise, -1, 1)))
    theirs = pipe(prompts, num_inference_steps=10, latents=latents, output_type="latent").images
    ours = StableDiffusion.from_pretrained(demo.MODEL).sample(prompts, steps=10, latents=noise)
    np.testing.assert_allclose(np.moveaxis(ours.latents, -1, 1), theirs.numpy(), atol=1e-3)
