"""Ancestral sampling with Euler steps: each step denoises past the next noise level, then adds fresh noise."""

import numpy as np
from jax import Array

from memattn_jax.keys import draw_rows
from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.euler import euler_steps
from memattn_jax.schedulers.noise import initial_sigma, spaced, training_sigmas
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, no_memory, tabulate


def euler_ancestral(config: SchedulerConfig, steps: int) -> Schedule:
    """An Euler step of Karras et al. 2022 (arXiv:2206.00364) to sigma_down, then noise of deviation sigma_up.

    sigma_down^2 + sigma_up^2 is the square of the next sigma, and sigma_up^2 = next^2 (1 - next^2 / sigma^2) is the
    variance of the next latents given the current and the clean ones. This is k-diffusion's `sample_euler_ancestral`
    at eta 1; sigmas and initial noise are those of diffusers' scheduling_euler_ancestral_discrete.py.
    """
    training = training_sigmas(config)
    t = spaced(config, steps).astype(np.float32)
    sigmas = np.append(np.interp(t, np.arange(len(training)), training), 0)
    sigma, following = sigmas[:-1], sigmas[1:]
    down = following**2 / sigma
    return tabulate(
        SOLVER,
        t,
        init_noise_sigma=initial_sigma(config, sigmas),
        noise=np.sqrt(following**2 - down**2),
        **euler_steps(config, sigma, down),
    )


def step(c: Coefficients, memory: tuple[()], f: Array, x: Array, keys: Array) -> tuple[Array, tuple[()]]:
    """One call; see `Solver.step`."""
    return c["latents"] * x + c["output"] * f + c["noise"] * draw_rows(keys, x.shape[1:]), memory


SOLVER = Solver(init=no_memory, step=step, stochastic=True)
