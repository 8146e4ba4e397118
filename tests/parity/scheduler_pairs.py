"""Schedules beside diffusers' schedulers: the same steps, of the same noise, give the same latents."""

import functools
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from memattn_jax.keys import draw_rows, seed_key
from memattn_jax.schedulers import make_schedule

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
    "dpm-solver++-sde": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
OVERRIDES = {"dpm-solver++-sde": {"algorithm_type": "sde-dpmsolver++"}}  # what a name here says beyond the class
NO_SAMPLE = ("pndm", "euler-ancestral")  # diffusers too refuses prediction_type "sample"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD1 = BETAS | {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
ZERO_SNR = BETAS | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
STEPS = (1, 2, 3, 5, 10, 20, 50)
SHAPE = (2, 4, 4, 4)
RELATIVE = 1e-5


def unet(x, t):
    """In NumPy on both sides, so that only the schedulers can differ."""
    return (0.7 * np.tanh(x) + 0.2 * np.tanh(np.roll(x, 1, axis=1)) + 0.01 * t / 1000).astype(np.float32)


@functools.cache
def jitted_step(scheduler):
    schedule = make_schedule(SD1, scheduler, 1)  # step reads nothing of it but the solver
    return jax.jit(schedule.step)


@jax.jit
def keys_of(call):
    """A key of each row, for one call."""
    return jax.vmap(seed_key)(jnp.arange(SHAPE[0]) + SHAPE[0] * call)


@jax.jit
def drawn(call):
    """The noise that a solver draws with `keys_of`."""
    return draw_rows(keys_of(call), SHAPE[1:])


def hand_over(patch, reference, call):
    """Lets a scheduler of diffusers that draws noise get `drawn` in its place."""
    module = sys.modules[type(reference).__module__]
    if hasattr(module, "randn_tensor"):
        patch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(np.array(drawn(call))))


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def check(config, scheduler, steps):
    reference = CLASSES[scheduler].from_config(config, **OVERRIDES.get(scheduler, {}))
    compare(reference, make_schedule(config, scheduler, steps), scheduler, steps)


def compare(reference, schedule, scheduler, steps):
    """One trajectory of diffusers' scheduler and one of ours."""
    reference.set_timesteps(steps)
    if scheduler not in ("ddim", "pndm"):
        reference.set_begin_index(0)  # else it starts from the second where Karras sigmas share a timestep
    np.testing.assert_allclose(schedule.init_noise_sigma, reference.init_noise_sigma, rtol=RELATIVE)
    timesteps = reference.timesteps.numpy().astype(np.float32)
    if (
        reference.config.get("use_karras_sigmas") and scheduler == "euler"
    ):  # the one case of timesteps through logarithms
        np.testing.assert_allclose(schedule.timesteps, timesteps, rtol=RELATIVE, atol=1e-3)
    else:
        np.testing.assert_array_equal(schedule.timesteps, timesteps)

    expected = torch.from_numpy(noise()) * reference.init_noise_sigma
    latents = jnp.asarray(noise()) * schedule.init_noise_sigma
    memory = schedule.init(latents)
    rows = jax.tree.map(np.asarray, schedule.rows())
    for i, t in enumerate(reference.timesteps):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        scaled = reference.scale_model_input(expected, t).numpy()
        scale = np.abs(scaled).max()
        np.testing.assert_allclose(latents * row.input_scale, scaled, rtol=0, atol=RELATIVE * scale)
        with pytest.MonkeyPatch.context() as patch:
            hand_over(patch, reference, i)
            expected = reference.step(torch.from_numpy(unet(scaled, float(t))), t, expected).prev_sample
        output = unet(np.asarray(latents * row.input_scale), float(t))
        latents, memory = jitted_step(scheduler)(row, memory, jnp.asarray(output), latents, keys_of(i))
        atol = RELATIVE * expected.abs().max().item()
        np.testing.assert_allclose(latents, expected, rtol=0, atol=atol, err_msg=f"after call {i}, t = {t}")
