"""Samplers of Stable Diffusion, and the building blocks for your own.

What depends on the configuration and the number of steps alone is computed on the host, in float64, into a
table with one row per UNet call. The denoising loop is then one `jax.lax.scan` over `Schedule.rows()`, whose
body calls `Schedule.step`. The table is traced and only the solver's functions are static, so that another beta
schedule, spacing or prediction type reuses the compiled loop.

Notation: the latents at timestep t are x_t = alpha_t x_0 + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 and
alpha_t^2 = `alphas_cumprod[t]`. Karras et al. write x_0 + sigma eps instead, with sigma = sigma_t / alpha_t.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import SCHEDULERS, load
from memattn_jax.schedulers.config import SchedulerConfig, as_pipeline
from memattn_jax.schedulers.noise import alphas_cumprod
from memattn_jax.schedulers.schedule import Row, Schedule, Solver, tabulate

__all__ = [
    "SCHEDULERS",
    "MakeSchedule",
    "Row",
    "Schedule",
    "SchedulerConfig",
    "Solver",
    "alphas_cumprod",
    "as_pipeline",
    "make_schedule",
    "tabulate",
]

MakeSchedule = Callable[[SchedulerConfig, int], Schedule]


def make_schedule(config: Mapping[str, Any], scheduler: str | Schedule | MakeSchedule, steps: int) -> Schedule:
    """The schedule of a checkpoint.

    Args:
      config: the parsed scheduler_config.json, written for whichever scheduler, after `as_pipeline` if its model is
        Stable Diffusion.
      scheduler: a name in `SCHEDULERS`; or a schedule, which is returned as it is; or a function that makes one, which
        gets the config as DDIM reads it.
      steps: number of denoising steps, 1 to num_train_timesteps.

    Raises:
      InputError: as `SchedulerConfig.from_json`, or this many steps cannot be taken.
    """
    if isinstance(scheduler, Schedule):
        return scheduler
    if isinstance(scheduler, str):
        check_name("scheduler", scheduler, SCHEDULERS)
    parsed = SchedulerConfig.from_json(config, scheduler if isinstance(scheduler, str) else "ddim")
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= parsed.num_train_timesteps:
        raise InputError(
            f"steps is {steps}; must be an integer from 1 to {parsed.num_train_timesteps}, the number of training "
            "timesteps"
        )
    if not isinstance(scheduler, str):
        return scheduler(parsed, steps)
    return load(SCHEDULERS[scheduler])(parsed, steps)
