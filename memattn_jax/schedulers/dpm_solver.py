"""DPM-Solver++ 2M: a second-order multistep method, good in few steps."""

from typing import Any

import numpy as np
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import conversion, karras_sigmas, spaced, timesteps_of, training_sigmas
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, tabulate


def dpm_solver(config: SchedulerConfig, steps: int) -> Schedule:
    """DPM-Solver++ 2M, Lu et al. 2022 (arXiv:2211.01095), algorithm 2."""
    return tabulate(SOLVER, **multistep(config, *noise_levels(config, steps), decay=1))


def noise_levels(config: SchedulerConfig, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [steps] and sigmas [steps + 1], Karras et al.'s; see diffusers' scheduling_dpmsolver_multistep.py."""
    training = training_sigmas(config)
    # But for trailing, diffusers places one timestep more, where the last step ends, and leaves it out.
    points = steps if config.timestep_spacing == "trailing" else steps + 1
    t = np.round(spaced(config, points)[:steps])
    sigmas = np.interp(t, np.arange(len(training)), training)
    if config.use_karras_sigmas:
        sigmas = karras_sigmas(config, training[::-1], steps)
        t = timesteps_of(sigmas, training)
        t = np.trunc(t if config.beta_schedule == "squaredcos_cap_v2" else np.round(t))
    return t, np.append(sigmas, 0 if config.final_sigmas_type == "zero" else training[0])


def second_order_steps(config: SchedulerConfig, sigmas: np.ndarray) -> np.ndarray:
    """Which steps are second order, bool [steps]; as in diffusers for solver_order 1 and 2."""
    steps = len(sigmas) - 1
    second_order = np.arange(steps) > 0 if config.solver_order == 2 else np.zeros(steps, bool)
    if sigmas[-1] == 0 or config.euler_at_final or (config.lower_order_final and steps < 15):
        second_order[-1] = False
    if not np.diff(sigmas[:-1])[second_order[1:]].all():
        raise InputError(
            f"dpm-solver++ would repeat a timestep in {steps} steps of timestep_spacing "
            f"{config.timestep_spacing!r}; use fewer steps"
        )
    return second_order


def multistep(config: SchedulerConfig, t: np.ndarray, sigmas: np.ndarray, decay: int) -> dict[str, Any]:
    """Coefficients of the ODE and SDE solvers; solver_type "heun" is diffusers' own.

    h and h_0 are this step and the last in lambda = -log sigma.

    Args:
      config: the checkpoint's.
      t: timesteps [steps].
      sigmas: where each step starts, and where the last ends, [steps + 1].
      decay: the weight of the old latents falls as exp(-decay h): 1 for the ODE, 2 for the SDE.
    """
    alpha = 1 / np.sqrt(sigmas**2 + 1)
    sigma = alpha * sigmas
    kept = (sigmas[1:] / sigmas[:-1]) ** decay  # exp(-decay h)
    clean = alpha[1:] * (1 - kept)
    change = np.zeros(len(t))
    for i in np.flatnonzero(second_order_steps(config, sigmas)):
        h_0, h = -np.diff(np.log(sigmas[i - 1 : i + 2]))
        change[i] = clean[i] / 2 * h / h_0
        if config.solver_type == "heun":
            change[i] = (alpha[i + 1] * h - clean[i] / decay) / h_0
    to_clean = conversion(config.prediction_type, alpha[:-1], sigma[:-1])
    return {
        "timesteps": t,
        "clean_latents": to_clean.clean_latents,
        "clean_output": to_clean.clean_output,
        "latents": alpha[1:] / alpha[:-1] * kept,
        "clean": clean,
        "change": change,
    }


def step(c: Coefficients, previous: Array, f: Array, x: Array) -> tuple[Array, Array]:
    """One call; memory is the last call's estimate of the clean latents. See `Solver.step`."""
    clean = c["clean_latents"] * x + c["clean_output"] * f
    return c["latents"] * x + c["clean"] * clean + c["change"] * (clean - previous), clean


def init(zeros: Array) -> Array:
    """No estimate; see `Solver.init`."""
    return zeros


SOLVER = Solver(init=init, step=step)
