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
    """From noise where rounding moves PyTorch's own latents by under half of the tolerance; elsewhere, by all of it."""
    noise = np.random.default_rng(13).normal(size=(len(prompts), 16, 16, 12)).astype(np.float32)
    pipe = StableDiffusionPipeline.from_pretrained(demo.MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def sampled(dtype: torch.dtype) -> np.ndarray:
        latents = torch.from_numpy(np.ascontiguousarray(np.moveaxis(noise, -1, 1))).to(dtype)
        found = pipe.to(dtype=dtype)(prompts, num_inference_steps=10, latents=latents, output_type="latent").images
        return np.moveaxis(found.numpy(), 1, -1)

    theirs = sampled(torch.float32)
    ours = StableDiffusion.from_pretrained(demo.MODEL).sample(prompts, steps=10, latents=noise)
    np.testing.assert_allclose(ours.latents, theirs, atol=1e-3)
    np.testing.assert_allclose(theirs, sampled(torch.float64), atol=5e-4)
