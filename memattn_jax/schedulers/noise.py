"""The noise schedule of training, and how a sampler picks timesteps and noise levels from it."""

from typing import NamedTuple

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.schedulers.config import SchedulerConfig


def alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """alpha_t^2, float32 [num_train_timesteps]; the last is 0 where betas are rescaled to zero SNR.

    Linear betas are those of Ho et al. 2020 (arXiv:2006.11239), scaled_linear those of Rombach et al. 2022
    (arXiv:2112.10752), squaredcos_cap_v2 is equation 17 of Nichol and Dhariwal 2021 (arXiv:2102.09672), the
    rescaling is algorithm 1 of Lin et al. 2023 (arXiv:2305.08891).

    Raises:
      InputError: betas that leave no signal, without the rescaling.
    """
    n = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas)
    elif config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, n)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, n) ** 2
    else:
        cosine = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    # diffusers rounds 1 - beta to float32, which a thousand factors later is no longer negligible.
    signal = np.cumprod(1 - betas.astype(np.float32), dtype=np.float64).astype(np.float32)
    if config.rescale_betas_zero_snr:
        root = np.sqrt(signal)
        return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    if not signal.all():
        raise InputError(f"the betas leave no signal at timestep {int(np.argmin(signal))}; they are too large")
    return signal


class Conversion(NamedTuple):
    """x_0 = clean_latents x_t + clean_output f and eps = noise_latents x_t + noise_output f, f the UNet's."""

    clean_latents: np.ndarray
    clean_output: np.ndarray
    noise_latents: np.ndarray
    noise_output: np.ndarray


def conversion(prediction_type: str, alpha: np.ndarray, sigma: np.ndarray) -> Conversion:
    """How the UNet's output becomes x_0 and eps; alpha, sigma and the result are float64 [calls].

    v = alpha eps - sigma x_0 is from Salimans and Ho 2022 (arXiv:2202.00512), appendix D.
    """
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    if prediction_type == "epsilon":
        return Conversion(1 / alpha, -sigma / alpha, zero, one)
    if prediction_type == "v_prediction":
        return Conversion(alpha, -sigma, sigma, alpha)
    return Conversion(zero, one, 1 / sigma, -alpha / sigma)


def spaced(config: SchedulerConfig, steps: int) -> np.ndarray:
    """Table 2 of Lin et al. 2023 (arXiv:2305.08891), descending, float64 [steps]; linspace is unrounded."""
    n = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, n - 1, steps)[::-1]
    if config.timestep_spacing == "leading":
        return np.arange(steps)[::-1] * float(n // steps) + config.steps_offset
    # diffusers' arange decides ties, as at 48 steps; for some counts, as 61, it runs one past the last step.
    return np.round(np.arange(n, 0, -n / steps))[:steps] - 1


def signal_and_noise(config: SchedulerConfig, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha_t and sigma_t; a negative timestep stands for the end of sampling."""
    if timesteps.max() >= config.num_train_timesteps:
        raise InputError(
            f"timestep {timesteps.max()} is past the last training timestep, {config.num_train_timesteps - 1}; "
            "use fewer steps"
        )
    signal = alphas_cumprod(config).astype(np.float64)
    end = 1.0 if config.set_alpha_to_one else signal[0]
    signal = np.where(timesteps < 0, end, signal[timesteps])
    return np.sqrt(signal), np.sqrt(1 - signal)


def check_signal(
    config: SchedulerConfig, timesteps: np.ndarray, alpha: np.ndarray, scheduler: str, remedy: str
) -> None:
    """Raises InputError if x_0 would have to be computed from a noise prediction where alpha is 0."""
    if config.prediction_type == "epsilon" and not alpha.all():
        raise InputError(
            f"timestep {timesteps[0]} has no signal under rescale_betas_zero_snr, so {scheduler} cannot start there "
            f"with prediction_type 'epsilon'; {remedy}"
        )


def training_sigmas(config: SchedulerConfig) -> np.ndarray:
    """Sigma of every training timestep, ascending, float64 [num_train_timesteps]."""
    signal = alphas_cumprod(config).astype(np.float64)
    if config.rescale_betas_zero_snr:
        signal[-1] = 2**-24  # keeps the first sigma finite; diffusers' value, float16's smallest
    return np.sqrt((1 - signal) / signal)


def initial_sigma(config: SchedulerConfig, sigmas: np.ndarray) -> np.floating:
    """Standard deviation of the initial latents of both Euler methods, as in diffusers; in Karras et al.'s scale."""
    largest = sigmas.max()
    return np.hypot(largest, 1) if config.timestep_spacing == "leading" else largest


def karras_sigmas(config: SchedulerConfig, sigmas: np.ndarray, steps: int) -> np.ndarray:
    """Equation 5 of Karras et al. 2022 (arXiv:2206.00364) with rho = 7, from sigmas' first to their last."""
    largest = sigmas[0] if config.sigma_max is None else config.sigma_max
    smallest = sigmas[-1] if config.sigma_min is None else config.sigma_min
    return np.linspace(largest ** (1 / 7), smallest ** (1 / 7), steps) ** 7


def timesteps_of(sigmas: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Timesteps, not whole, whose sigmas these are; interpolates in log sigma between training's."""
    return np.interp(np.log(sigmas), np.log(training.astype(np.float32)), np.arange(len(training)))
