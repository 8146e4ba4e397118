"""DPM-Solver++ 2M: a second-order multistep method, good in few steps."""

import numpy as np
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import conversion, karras_sigmas, spaced, timesteps_of, training_sigmas
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, tabulate


def dpm_solver(config: SchedulerConfig, steps: int) -> Schedule:
    """DPM-Solver++ 2M, Lu et al. 2022 (arXiv:2211.01095), algorithm 2.

    Sigmas, the order of each step and solver_type "heun" are those of diffusers'
    scheduling_dpmsolver_multistep.py. h and h_0 are this step and the last in lambda = -log sigma.
    """
    training = training_sigmas(config)
    # But for trailing, diffusers places one timestep more, where the last step ends, and leaves it out.
    points = steps if config.timestep_spacing == "trailing" else steps + 1
    t = np.round(spaced(config, points)[:steps])
    sigmas = np.interp(t, np.arange(len(training)), training)
    if config.use_karras_sigmas:
        sigmas = karras_sigmas(config, training[::-1], steps)
        t = timesteps_of(sigmas, training)
        t = np.trunc(t if config.beta_schedule == "squaredcos_cap_v2" else np.round(t))
    ends_at_zero = config.final_sigmas_type == "zero"
    second_order = np.arange(steps) > 0 if config.solver_order == 2 else np.zeros(steps, bool)
    if ends_at_zero or config.euler_at_final or (config.lower_order_final and steps < 15):
        second_order[-1] = False
    if not np.diff(sigmas)[second_order[1:]].all():
        raise InputError(
            f"dpm-solver++ meets one timestep twice in {steps} steps of timestep_spacing "
            f"{config.timestep_spacing!r}; take fewer steps"
        )
    sigmas = np.append(sigmas, 0 if ends_at_zero else training[0])
    alpha = 1 / np.sqrt(sigmas**2 + 1)
    sigma = alpha * sigmas
    clean = alpha[1:] * (1 - sigmas[1:] / sigmas[:-1])
    change = np.zeros(steps)
    for i in np.flatnonzero(second_order):
        h_0, h = -np.diff(np.log(sigmas[i - 1 : i + 2]))
        change[i] = clean[i] / 2 * h / h_0
        if config.solver_type == "heun":
            change[i] = (alpha[i + 1] * h - clean[i]) / h_0
    to_clean = conversion(config.prediction_type, alpha[:-1], sigma[:-1])
    return tabulate(
        SOLVER,
        t,
        clean_latents=to_clean.clean_latents,
        clean_output=to_clean.clean_output,
        latents=sigma[1:] / sigma[:-1],
        clean=clean,
        change=change,
    )


def step(c: Coefficients, previous: Array, f: Array, x: Array) -> tuple[Array, Array]:
    """One call; memory is the last call's estimate of the clean latents. See `Solver.step`."""
    clean = c["clean_latents"] * x + c["clean_output"] * f
    return c["latents"] * x + c["clean"] * clean + c["change"] * (clean - previous), clean


def init(zeros: Array) -> Array:
    """No estimate; see `Solver.init`."""
    return zeros


SOLVER = Solver(init=init, step=step)
