"""DDIM, the sampler of the memorization papers."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import check_signal, conversion, signal_and_noise, spaced
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, no_memory, tabulate


def ddim(config: SchedulerConfig, steps: int) -> Schedule:
    """DDIM, Song et al. 2021 (arXiv:2010.02502), equation 12 at eta 0; see diffusers' scheduling_ddim.py."""
    t = np.round(spaced(config, steps)).astype(int)
    alpha, sigma = signal_and_noise(config, t)
    check_signal(config, t, alpha, "ddim", "use 'v_prediction' or timestep_spacing 'leading'")
    next_alpha, next_sigma = signal_and_noise(config, t - config.num_train_timesteps // steps)
    clip = np.full(steps, config.clip_sample_range if config.clip_sample else np.inf)
    to_clean_and_noise = conversion(config.prediction_type, alpha, sigma)._asdict()
    return tabulate(SOLVER, t, clip=clip, alpha=next_alpha, sigma=next_sigma, **to_clean_and_noise)


def step(c: Coefficients, memory: tuple[()], f: Array, x: Array) -> tuple[Array, tuple[()]]:
    """One call; see `Solver.step`."""
    clean = jnp.clip(c["clean_latents"] * x + c["clean_output"] * f, -c["clip"], c["clip"])
    noise = c["noise_latents"] * x + c["noise_output"] * f
    return c["alpha"] * clean + c["sigma"] * noise, memory


SOLVER = Solver(init=no_memory, step=step)
