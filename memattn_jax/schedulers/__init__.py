"""Deterministic samplers of Stable Diffusion: DDIM, PNDM (PLMS), Euler and DPM-Solver++ 2M.

What depends on the configuration and the number of steps alone is computed on the host, in float64, into a
table with one row per UNet call. The denoising loop is then one `jax.lax.scan` over `Schedule.rows()`, whose
body calls `Schedule.step`. The table is traced and only the solver's functions are static, so that another beta
schedule, spacing or prediction type reuses the compiled loop.

Notation: the latents at timestep t are x_t = alpha_t x_0 + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 and
alpha_t^2 = `alphas_cumprod[t]`. Karras et al. write x_0 + sigma eps instead, with sigma = sigma_t / alpha_t.
"""

from collections.abc import Callable, Mapping
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.schedulers.config import SCHEDULERS, SchedulerConfig, as_pipeline
from memattn_jax.schedulers.ddim import ddim
from memattn_jax.schedulers.dpm_solver import dpm_solver
from memattn_jax.schedulers.euler import euler
from memattn_jax.schedulers.noise import alphas_cumprod
from memattn_jax.schedulers.pndm import pndm
from memattn_jax.schedulers.schedule import Row, Schedule

__all__ = ["SCHEDULERS", "Row", "Schedule", "SchedulerConfig", "alphas_cumprod", "as_pipeline", "make_schedule"]

_TABULATE: dict[str, Callable[[SchedulerConfig, int], Schedule]] = {
    "ddim": ddim,
    "pndm": pndm,
    "euler": euler,
    "dpm-solver++": dpm_solver,
}


def make_schedule(config: Mapping[str, Any], scheduler: str, steps: int) -> Schedule:
    """The schedule of a checkpoint.

    Args:
      config: the parsed scheduler_config.json, written for whichever scheduler, after `as_pipeline` if its model is
        Stable Diffusion.
      scheduler: one of `SCHEDULERS`.
      steps: number of denoising steps, 1 to num_train_timesteps.

    Raises:
      InputError: as `SchedulerConfig.from_json`, or this many steps cannot be taken.
    """
    parsed = SchedulerConfig.from_json(config, scheduler)
    if not 1 <= steps <= parsed.num_train_timesteps:
        raise InputError(f"steps is {steps}; choose 1 to {parsed.num_train_timesteps}, the timesteps of the training")
    return _TABULATE[scheduler](parsed, steps)
