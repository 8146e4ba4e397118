"""SDE-DPM-Solver++ 2M: DPM-Solver++ 2M for the reverse SDE, which adds fresh noise in every step."""

import numpy as np
from jax import Array

from memattn_jax.keys import draw_rows
from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.dpm_solver import init, multistep, noise_levels
from memattn_jax.schedulers.dpm_solver import step as ode_step
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, tabulate


def dpm_solver_sde(config: SchedulerConfig, steps: int) -> Schedule:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095).

    Equals diffusers' DPMSolverMultistepScheduler with algorithm_type "sde-dpmsolver++", whichever the config names.
    """
    t, sigmas = noise_levels(config, steps)
    end = sigmas[1:]
    fresh = 1 - (end / sigmas[:-1]) ** 2
    fresh = np.maximum(fresh, 0)  # rounding makes it negative where Karras sigmas already end at the last sigma
    noise = end / np.sqrt(end**2 + 1) * np.sqrt(fresh)
    return tabulate(SOLVER, noise=noise, **multistep(config, t, sigmas, decay=2))


def step(c: Coefficients, previous: Array, f: Array, x: Array, keys: Array) -> tuple[Array, Array]:
    """One call; memory is as in the ODE's solver. See `Solver.step`."""
    x_next, clean = ode_step(c, previous, f, x)
    return x_next + c["noise"] * draw_rows(keys, x.shape[1:]), clean


SOLVER = Solver(init=init, step=step, stochastic=True)
