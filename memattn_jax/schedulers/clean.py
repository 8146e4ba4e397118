"""The clean image that a UNet's output predicts, for any scheduler."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import conversion, training_sigmas
from memattn_jax.schedulers.schedule import Schedule


def clean_prediction(config: Mapping[str, Any], schedule: Schedule, scheduler: object = None) -> np.ndarray:
    """Factors of latents and output, float32 [calls, 2]: x_0 = factors[0] · latents + factors[1] · output.

    Latents are as the schedule has them, Karras et al.'s where it scales them for the UNet. Timesteps that are not
    whole are interpolated in log sigma.

    Args:
      config: the checkpoint's scheduler config.
      schedule: made of it.
      scheduler: what made it, see `make_schedule`; a name reads the keys of the config that it knows, and others as
        DDIM does.
    """
    parsed = SchedulerConfig.from_json(config, scheduler if isinstance(scheduler, str) else "ddim")
    training = training_sigmas(parsed)
    timesteps = np.asarray(schedule.timesteps, np.float64)
    sigmas = np.exp(np.interp(timesteps, np.arange(len(training)), np.log(training)))
    alpha = 1 / np.hypot(1, sigmas)
    factors = conversion(parsed.prediction_type, alpha, sigmas * alpha)
    of_latents = factors.clean_latents * np.asarray(schedule.input_scale, np.float64)
    return np.stack([of_latents, factors.clean_output], axis=1).astype(np.float32)
