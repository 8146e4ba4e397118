"""Latent consistency sampling: each step predicts the clean latents and adds noise for the next timestep."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.keys import draw_rows
from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import check_signal, conversion, signal_and_noise
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, no_memory, tabulate

_SIGMA_DATA = 0.5


def lcm(config: SchedulerConfig, steps: int) -> Schedule:
    """Multistep latent consistency sampling, Luo et al. 2023 (arXiv:2310.04378); see diffusers' scheduling_lcm.py.

    The timesteps are a subset of the `original_inference_steps` of the distillation; timestep_spacing has no effect.
    The prediction is c_skip x_t + c_out x_0, which at timestep 0 is x_t itself: the boundary condition of Song et al.
    2023 (arXiv:2303.01469), appendix C.
    """
    original = config.original_inference_steps
    if original > config.num_train_timesteps:
        raise InputError(f"original_inference_steps is {original}; choose at most {config.num_train_timesteps}")
    if steps > original:
        raise InputError(f"steps is {steps}; lcm takes at most {original}, the config's original_inference_steps")
    distilled = np.arange(original, 0, -1) * (config.num_train_timesteps // original) - 1
    t = distilled[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)]
    alpha, sigma = signal_and_noise(config, t)
    check_signal(config, t, alpha, "lcm", "use 'v_prediction'")
    to_clean = conversion(config.prediction_type, alpha, sigma)
    scaled = t * config.timestep_scaling
    return tabulate(
        SOLVER,
        t,
        clean_latents=to_clean.clean_latents,
        clean_output=to_clean.clean_output,
        clip=np.full(steps, config.clip_sample_range if config.clip_sample else np.inf),
        skip=_SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2),
        out=scaled / np.hypot(scaled, _SIGMA_DATA),
        alpha=np.append(alpha[1:], 1),
        noise=np.append(sigma[1:], 0),
    )


def step(c: Coefficients, memory: tuple[()], f: Array, x: Array, keys: Array) -> tuple[Array, tuple[()]]:
    """One call; see `Solver.step`."""
    clean = jnp.clip(c["clean_latents"] * x + c["clean_output"] * f, -c["clip"], c["clip"])
    prediction = c["skip"] * x + c["out"] * clean
    return c["alpha"] * prediction + c["noise"] * draw_rows(keys, x.shape[1:]), memory


SOLVER = Solver(init=no_memory, step=step, stochastic=True)
