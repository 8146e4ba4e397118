"""PNDM, and PLMS, which is PNDM without its Runge-Kutta steps: Stable Diffusion's own sampler."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.schedulers.config import SchedulerConfig
from memattn_jax.schedulers.noise import conversion, signal_and_noise, spaced
from memattn_jax.schedulers.schedule import Coefficients, Schedule, Solver, tabulate

_HEUN = np.array([1, 1]) / 2
_RUNGE_KUTTA = np.array([1, 2, 2, 1]) / 6
_ADAMS_BASHFORTH = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


class _PNDMMemory(NamedTuple):
    history: Array  # [3, batch, ...] outputs at the starts of earlier steps, newest first
    average: Array  # weighted sum of the outputs within a step of several calls
    base: Array  # latents at the start of such a step


def pndm(config: SchedulerConfig, steps: int) -> Schedule:
    """PNDM, Liu et al. 2022 (arXiv:2202.09778), algorithm 2; see diffusers' scheduling_pndm.py.

    A step is one call with Adams-Bashforth weights on the outputs so far. The first lack these: three are
    Runge-Kutta steps of four calls or, with skip_prk_steps (PLMS), one is a Heun step of two. Each call moves
    the latents from its `start` to its `end` by equation 11 of the paper, which is DDIM's transfer.
    """
    if not config.skip_prk_steps and steps < 4:
        raise InputError(f"steps is {steps}; pndm with skip_prk_steps false needs at least 4")
    stride = config.num_train_timesteps // steps
    t = np.round(spaced(config, steps)).astype(int)
    # One step alone has no second timestep to warm up with.
    warm_up = min(1, steps - 1) if config.skip_prk_steps else 3
    calls: list[tuple[Any, ...]] = []  # timestep, start, end, is_first, is_last, average, weights
    for i, now in enumerate(t):
        if i >= warm_up:
            calls.append((now, now, now - stride, True, False, 0, _ADAMS_BASHFORTH[min(i, 3)]))
            continue
        then = t[i + 1]
        middle = then + stride // 2
        if config.skip_prk_steps:
            stages, average = [(now, now, now - stride), (then, then + stride, then)], _HEUN
        else:
            stages = [
                (now, now, now - stride // 2),
                (middle, now, middle),
                (middle, now, then),
                (then, now, then),
            ]
            average = _RUNGE_KUTTA
        for j, stage in enumerate(stages):
            calls.append((*stage, j == 0, j == len(stages) - 1, average[j], _ADAMS_BASHFORTH[0]))
    timesteps, start, end, is_first, is_last, averages, weights = map(np.array, zip(*calls, strict=True))
    alpha, sigma = signal_and_noise(config, start)
    end_alpha, end_sigma = signal_and_noise(config, end)
    noise = conversion(config.prediction_type, alpha, sigma)
    transfer = end_sigma - sigma * end_alpha / alpha
    return tabulate(
        SOLVER,
        timesteps,
        is_first=is_first,
        is_last=is_last,
        average=averages,
        weights=weights,
        latents=end_alpha / alpha + transfer * noise.noise_latents,
        output=transfer * noise.noise_output,
    )


def init(zeros: Array) -> _PNDMMemory:
    """No history; see `Solver.init`."""
    return _PNDMMemory(jnp.stack([zeros] * 3), zeros, zeros)


def step(c: Coefficients, memory: _PNDMMemory, f: Array, x: Array) -> tuple[Array, _PNDMMemory]:
    """One call; see `Solver.step`."""
    history, average, base = memory
    base = jnp.where(c["is_first"], x, base)
    average = jnp.where(c["is_first"], 0, average) + c["average"] * f
    outputs = jnp.concatenate([f[None], history])
    multistep = sum(w * output for w, output in zip(c["weights"], outputs, strict=True))
    history = jnp.where(c["is_first"], outputs[:3], history)
    f = jnp.where(c["is_last"], average, multistep)
    return c["latents"] * base + c["output"] * f, _PNDMMemory(history, average, base)


SOLVER = Solver(init=init, step=step)
