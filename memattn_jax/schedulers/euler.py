"""Euler's method on the probability-flow equation."""

import numpy as np
from jax import Array

from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import (
    conversion,
    initial_sigma,
    karras_sigmas,
    spaced,
    timesteps_of,
    training_sigmas,
)
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, no_memory, tabulate


def euler(config: SchedulerConfig, steps: int) -> Schedule:
    """Euler, Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without churn or second-order correction.

    Sigmas and initial noise are those of diffusers' scheduling_euler_discrete.py.
    """
    training = training_sigmas(config)
    t = spaced(config, steps).astype(np.float32)
    if config.interpolation_type == "linear":
        sigmas = np.interp(t, np.arange(len(training)), training)
    else:
        sigmas = np.exp(np.linspace(np.log(training[-1]), np.log(training[0]), steps + 1))
    if config.use_karras_sigmas:
        sigmas = karras_sigmas(config, sigmas, steps)
        t = timesteps_of(sigmas, training)
    # Log-linear sigmas already have one for the end of the last step, whatever final_sigmas_type says.
    sigmas = np.append(sigmas, 0 if config.final_sigmas_type == "zero" else training[0])[: steps + 1]
    coefficients = euler_steps(config, sigmas[:-1], sigmas[1:])
    return tabulate(SOLVER, t, init_noise_sigma=initial_sigma(config, sigmas), **coefficients)


def euler_steps(config: SchedulerConfig, sigma: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Coefficients of Euler steps from one noise level, in the notation of Karras et al., to another.

    Args:
      config: what the UNet predicts.
      sigma: noise levels that the steps start from, float64 [steps].
      target: those that they go to.
    """
    dt = target - sigma
    alpha = 1 / np.sqrt(sigma**2 + 1)
    noise = conversion(config.prediction_type, alpha, alpha * sigma)
    # One coefficient each, for x + dt eps would cancel in float32 where zero SNR starts from sigma 4096.
    return {"input_scale": alpha, "latents": 1 + dt * alpha * noise.noise_latents, "output": dt * noise.noise_output}


def step(c: Coefficients, memory: tuple[()], f: Array, x: Array) -> tuple[Array, tuple[()]]:
    """One call; see `Solver.step`."""
    return c["latents"] * x + c["output"] * f, memory


SOLVER = Solver(init=no_memory, step=step)
