"""Whole runs against diffusers and against the authors' arithmetic, from injected latents."""

import dataclasses
import itertools
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from reference import Settings, run_reference

from memattn_jax import detectors
from memattn_jax.diffusion.noise import row_keys, step_keys
from memattn_jax.interceptors import AttentionMaps, Interceptor, MaskTokens, ScaleBeginToken, TokenMeans
from memattn_jax.keys import draw_rows
from memattn_jax.mitigations import AttentionMask

pytestmark = pytest.mark.slow

PROMPTS = ["the cat", "an odd and long line on the hill in the land of the sun", ""]
STEPS = 10
SEEDS = [3, 1, 4]
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "dpm-solver++-sde": DPMSolverMultistepScheduler,
}


def noise(rows: int = len(PROMPTS)) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(rows, 16, 16, 4)).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def use_scheduler(pipe, name: str) -> None:
    algorithm = {"algorithm_type": "sde-dpmsolver++"} if name.endswith("-sde") else {}
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config, **algorithm)


def hand_over_noise(monkeypatch, scheduler, seeds) -> None:
    """Lets a scheduler of diffusers that draws noise get what a run of ours draws for these seeds, call by call."""
    module = sys.modules[type(scheduler).__module__]
    keys, calls = row_keys(jnp.asarray(seeds, jnp.uint32)), itertools.count()

    def randn_tensor(shape, **_):
        draws = draw_rows(step_keys(keys, jnp.int32(next(calls))), (*shape[2:], shape[1]))
        return nchw(np.asarray(draws))

    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)


@pytest.mark.parametrize(
    ("checkpoint", "scheduler"),
    [
        *(("small-sd1", scheduler) for scheduler in SCHEDULERS),
        ("small-sd2", "ddim"),
    ],  # tests/parity/test_schedulers.py has the rest
    indirect=["checkpoint"],
)
def test_guided_sample(checkpoint, scheduler, monkeypatch):
    pipe = checkpoint.torch
    use_scheduler(pipe, scheduler)
    hand_over_noise(monkeypatch, pipe.scheduler, SEEDS)
    theirs = pipe(
        PROMPTS,
        negative_prompt=["", "a dog", "blue"],
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        latents=nchw(noise()),
        output_type="latent",
    ).images
    run = checkpoint.ours.sample(
        PROMPTS,
        negative_prompts=["", "a dog", "blue"],
        steps=STEPS,
        scheduler=scheduler,
        seeds=SEEDS,
        latents=noise(),
    )
    np.testing.assert_allclose(np.moveaxis(run.latents, -1, 1), theirs.numpy(), atol=1e-3)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FILES = [EulerAncestralDiscreteScheduler(**BETAS), PNDMScheduler(**BETAS, skip_prk_steps=True)]


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")  # it is the point here
@pytest.mark.parametrize("checkpoint", ["small-sd1"], indirect=True)
@pytest.mark.parametrize("saved", FILES, ids=lambda scheduler: type(scheduler).__name__)
def test_ddim_with_the_file_of_another_scheduler(checkpoint, saved, tmp_path):
    """Neither file says `clip_sample` or a `steps_offset` of 1, which the pipeline makes of them."""
    folder = shutil.copytree(checkpoint.folder, tmp_path / "model")
    saved.save_pretrained(folder / "scheduler")
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(PROMPTS, num_inference_steps=STEPS, latents=nchw(noise()), output_type="latent").images
    assert theirs.abs().max() > 2  # where clipping to 1 would show
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    run = dataclasses.replace(checkpoint.ours, scheduler_config=config).sample(PROMPTS, steps=STEPS, latents=noise())
    np.testing.assert_allclose(np.moveaxis(run.latents, -1, 1), theirs.numpy(), atol=1e-3)


@pytest.mark.parametrize("checkpoint", ["small-sd1"], indirect=True)
@pytest.mark.parametrize("alike", [True, False])
def test_guidance_by_embeddings_of_more_tokens_than_the_encoder_has(checkpoint, alike):
    """As prompts of any length are encoded in pieces; the negative ones once for all rows, or one a row."""
    use_scheduler(checkpoint.torch, "ddim")
    width = checkpoint.ours.encode(["a"])[0].shape[-1]
    drawn = np.random.default_rng(5).normal(size=(2, 3, 154, width)).astype(np.float32)
    positive, negative = drawn[0], drawn[1][:1] if alike else drawn[1]
    theirs = checkpoint.torch(
        prompt_embeds=torch.from_numpy(positive),
        negative_prompt_embeds=torch.from_numpy(np.broadcast_to(negative, positive.shape).copy()),
        num_inference_steps=STEPS,
        latents=nchw(noise()),
        output_type="latent",
    ).images
    run = checkpoint.ours.sample(
        embeddings=positive, negative_embeddings=negative, steps=STEPS, latents=noise(), taps=None
    )
    np.testing.assert_allclose(np.moveaxis(run.latents, -1, 1), theirs.numpy(), atol=1e-3)


@pytest.mark.parametrize("checkpoint", ["small-sd1"], indirect=True)
def test_unguided_sample_and_picture(checkpoint):
    use_scheduler(checkpoint.torch, "ddim")
    theirs = checkpoint.torch(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0, latents=nchw(noise()), output_type="np"
    ).images
    run = checkpoint.ours.sample(PROMPTS, steps=STEPS, guidance_scale=1.0, latents=noise())
    np.testing.assert_allclose(run.images / 255, theirs, atol=1 / 255)


@pytest.mark.parametrize(
    ("checkpoint", "mitigation", "c1", "keep"),
    [
        ("small-sd1", None, None, None),
        ("small-sd1", AttentionMask(), 1.25, 0),
        ("small-sd1", AttentionMask(begin_scale=1.5, mask="summary"), 1.5, -1),
        ("small-sd1", AttentionMask(begin_scale=0.7, mask=None), 0.7, None),
        ("small-sd2", AttentionMask(begin_scale=1.5, mask="summary"), 1.5, -1),
    ],
    ids=["sd1-plain", "sd1-padding", "sd1-summary", "sd1-begin-only", "sd2-summary"],
    indirect=["checkpoint"],
)
def test_attention_and_metrics_equal_the_reference(checkpoint, mitigation, c1, keep):
    """One batch of ours with prompts of different lengths against one run of the reference for each prompt."""
    use_scheduler(checkpoint.torch, "ddim")
    run = checkpoint.ours.sample(PROMPTS, steps=STEPS, latents=noise(), mitigation=mitigation)
    assert run.lengths.tolist() == [len(checkpoint.torch.tokenizer(p).input_ids) for p in PROMPTS]
    for row, prompt in enumerate(PROMPTS):
        length = int(run.lengths[row])
        settings = Settings(c1=c1, keep=None if keep is None else length + keep)
        latents = run_reference(
            checkpoint.torch,
            settings,
            prompt=prompt,
            num_inference_steps=STEPS,
            guidance_scale=7.5,
            latents=nchw(noise()[row : row + 1]),
        )
        np.testing.assert_allclose(np.moveaxis(run.latents[row], -1, 0), latents[0].numpy(), atol=1e-3)
        assert list(run.tokens) == list(settings.recorded)
        recorded = {site: torch.stack(steps).numpy() for site, steps in settings.recorded.items()}
        for site, means in recorded.items():
            np.testing.assert_allclose(run.tokens[site][:, row], means, atol=1e-4)
        expected_e, expected_d = reference_metrics(list(recorded.values()), length)
        np.testing.assert_allclose(detectors.entropy_e(run)[row], expected_e, atol=1e-4)
        np.testing.assert_allclose(detectors.entropy_d(run)[row], expected_d, atol=1e-4)


def reference_metrics(recorded: list[np.ndarray], length: int) -> tuple[float, float]:
    """E and D as the reference's `detect.py` has them, from [steps, heads, tokens] a site."""

    def entropy(a: np.ndarray) -> np.ndarray:
        return -(a * np.log(np.where(a > 0, a, 1.0))).sum(-1)

    mean = np.stack([site.mean(1) for site in recorded]).mean(0)  # [steps, tokens]
    summary = entropy(mean[:, length - 1 :])
    e = entropy(recorded[3][0].mean(0))
    d = entropy(mean)[-2:].mean() + summary[-2:].mean() - summary[0]
    return float(e), float(d)


@pytest.mark.parametrize("checkpoint", ["small-sd1"], indirect=True)
def test_a_scaled_logit_equals_a_scaled_key(checkpoint):
    ours = checkpoint.ours
    context, tokens = ours.encode(["", PROMPTS[0], "", PROMPTS[1]])
    call = jax.jit(lambda unet, *args: unet(*args))
    stages = []
    for stage in ("inputs", "logits"):
        edits = (MaskTokens(tokens.lengths[1::2] - 1), ScaleBeginToken(1.5, stage=stage))
        taps = {"tokens": TokenMeans(), "maps": AttentionMaps()}
        interceptor = Interceptor(edits, taps, conditional=np.tile([False, True], 2))
        stages.append(call(ours.unet, noise(4), np.float32(981), context, interceptor))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *stages)
