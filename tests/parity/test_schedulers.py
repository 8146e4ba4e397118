"""Whole trajectories against diffusers' PyTorch schedulers; a fixed nonlinear function is the UNet."""

import itertools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scheduler_pairs import (
    BETAS,
    CLASSES,
    NO_SAMPLE,
    RELATIVE,
    SD1,
    STEPS,
    ZERO_SNR,
    check,
    drawn,
    hand_over,
    jitted_step,
    keys_of,
    noise,
    unet,
)

from memattn_jax.schedulers import SCHEDULERS, SchedulerConfig, alphas_cumprod, make_schedule

# diffusers hands torch tensors to np.array, in a way that NumPy 2 wants torch to change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (scheduler, prediction)
        for scheduler, prediction in itertools.product(SCHEDULERS, ("epsilon", "v_prediction", "sample"))
        if prediction != "sample" or scheduler not in NO_SAMPLE
    ],
)
def test_trajectory(scheduler, prediction, spacing, steps):
    check(SD1 | {"prediction_type": prediction, "timestep_spacing": spacing}, scheduler, steps)


VARIANTS = {
    "ddim": {
        "defaults": {},
        "clipped": SD1 | {"clip_sample": True, "clip_sample_range": 0.8},
        "clipped-v": SD1 | {"clip_sample": True, "prediction_type": "v_prediction"},
        "alpha-to-one": SD1 | {"set_alpha_to_one": True},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero-snr": ZERO_SNR,
        "zero-snr-sample": ZERO_SNR | {"prediction_type": "sample"},
        "zero-snr-clipped-leading": BETAS | {"rescale_betas_zero_snr": True},
    },
    "pndm": {
        "runge-kutta": SD1 | {"skip_prk_steps": False},
        "runge-kutta-v": SD1 | {"skip_prk_steps": False, "prediction_type": "v_prediction"},
        "runge-kutta-linspace": SD1 | {"skip_prk_steps": False, "timestep_spacing": "linspace"},
        "runge-kutta-trailing": SD1 | {"skip_prk_steps": False, "timestep_spacing": "trailing"},
        "alpha-to-one": SD1 | {"set_alpha_to_one": True},
        "defaults": {},
        "cosine": {"beta_schedule": "squaredcos_cap_v2", "skip_prk_steps": True},
        "other-schedulers-keys": SD1 | ZERO_SNR | {"use_karras_sigmas": True, "solver_order": 3},
    },
    "euler": {
        "defaults": {},
        "karras": SD1 | {"use_karras_sigmas": True},
        "karras-bounds": SD1 | {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        "log-linear": SD1 | {"interpolation_type": "log_linear"},
        "log-linear-sigma-min": SD1 | {"interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"},
        "sigma-min": SD1 | {"final_sigmas_type": "sigma_min"},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero-snr-epsilon": ZERO_SNR | {"prediction_type": "epsilon"},
    },
    "euler-ancestral": {
        "zero-snr-epsilon": ZERO_SNR | {"prediction_type": "epsilon"},
        "defaults": {},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "other-schedulers-keys": SD1 | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    },
    "lcm": {
        "defaults": {},
        "clipped": SD1 | {"clip_sample": True, "clip_sample_range": 0.8},
        "distilled": SD1 | {"original_inference_steps": 100, "timestep_scaling": 0.01},
        "uneven": SD1 | {"original_inference_steps": 48},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero-snr": ZERO_SNR,
    },
    "dpm-solver++": {
        "defaults": {},
        "order-1": SD1 | {"solver_order": 1},
        "heun": SD1 | {"solver_type": "heun"},
        "bh2": SD1 | {"solver_type": "bh2"},
        "karras": SD1 | {"use_karras_sigmas": True},
        "karras-bounds": SD1 | {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        "karras-sigma-min": SD1 | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        "karras-cosine": {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
        "sigma-min": SD1 | {"final_sigmas_type": "sigma_min"},
        "sigma-min-heun": SD1 | {"final_sigmas_type": "sigma_min", "solver_type": "heun"},
        "sigma-min-euler": SD1 | {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        "sigma-min-high-order": SD1 | {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero-snr": ZERO_SNR,
    },
}
VARIANTS["dpm-solver++-sde"] = VARIANTS["dpm-solver++"] | {"named": SD1 | {"algorithm_type": "sde-dpmsolver++"}}
VARIANT_CASES = [
    pytest.param(scheduler, config, steps, id=f"{scheduler}-{name}-{steps}")
    for scheduler, variants in VARIANTS.items()
    for (name, config), steps in itertools.product(variants.items(), (1, 5, 14, 15, 48))
    # Runge-Kutta warm-up takes four steps; here and in diffusers.
    if not (scheduler == "pndm" and steps < 4 and not config.get("skip_prk_steps"))
]


@pytest.mark.parametrize(("scheduler", "config", "steps"), VARIANT_CASES)
def test_variant(scheduler, config, steps):
    check(config, scheduler, steps)


@pytest.mark.parametrize("steps", [1, 5, 14, 48])
@pytest.mark.parametrize("scheduler", ["euler", "euler-ancestral"])
def test_euler_zero_snr_velocity(scheduler, steps):
    """From sigma 4096, diffusers' float32 step errs by 1e-3 on latents of scale 1, so float64 is the oracle.

    One step of diffusers from the same latents stays within that rounding, which ties the formula to it.
    """
    reference = CLASSES[scheduler].from_config(ZERO_SNR)
    reference.set_timesteps(steps)
    schedule = make_schedule(ZERO_SNR, scheduler, steps)
    np.testing.assert_allclose(schedule.init_noise_sigma, reference.init_noise_sigma, rtol=RELATIVE)
    np.testing.assert_array_equal(schedule.timesteps, reference.timesteps)
    sigmas = reference.sigmas.numpy().astype(np.float64)
    assert sigmas[0] > 4000
    expected = noise().astype(np.float64) * sigmas[0]
    latents = jnp.asarray(noise()) * schedule.init_noise_sigma
    rows = jax.tree.map(np.asarray, schedule.rows())
    for i, (t, sigma) in enumerate(zip(reference.timesteps, sigmas, strict=False)):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        output = unet(expected / np.sqrt(sigma**2 + 1), float(t))
        x = torch.from_numpy(expected.astype(np.float32))
        reference.scale_model_input(x, t)
        with pytest.MonkeyPatch.context() as patch:
            hand_over(patch, reference, i)
            rounded = reference.step(torch.from_numpy(output), t, x).prev_sample
        rounding = 2 * np.spacing(np.float32(np.abs(expected).max()))
        down = sigmas[i + 1] ** 2 / sigma if scheduler == "euler-ancestral" else sigmas[i + 1]
        clean = expected / (sigma**2 + 1) - output * sigma / np.sqrt(sigma**2 + 1)
        expected = clean + (expected - clean) * down / sigma
        expected += np.sqrt(sigmas[i + 1] ** 2 - down**2) * np.asarray(drawn(i))
        np.testing.assert_allclose(rounded, expected, rtol=0, atol=rounding)
        output = unet(np.asarray(latents * row.input_scale), float(t))
        latents, _ = jitted_step(scheduler)(row, (), jnp.asarray(output), latents, keys_of(i))
        np.testing.assert_allclose(latents, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        SD1,
        BETAS | {"rescale_betas_zero_snr": True},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
    ids=["linear", "scaled-linear", "zero-snr", "cosine", "trained"],
)
def test_alphas_cumprod(scheduler, config):
    expected = CLASSES[scheduler].from_config(config).alphas_cumprod.numpy()
    actual = alphas_cumprod(SchedulerConfig.from_json(config, scheduler))
    rescaled = config.get("rescale_betas_zero_snr") and scheduler != "pndm"  # which does not read the key
    if rescaled and scheduler not in ("ddim", "lcm"):
        assert actual[-1] == 0
        actual[-1] = 2**-24  # the floor is the sigma solvers' own
    # Rescaling subtracts float32 numbers near 0.07, which are 7e-9 apart.
    atol = 2e-8 if rescaled else 0
    np.testing.assert_allclose(np.sqrt(actual), np.sqrt(expected), rtol=RELATIVE, atol=atol)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_defaults(scheduler):
    """Every field that diffusers' class has too takes its default where the json lacks it."""
    expected = CLASSES[scheduler].from_config({}).config
    actual = vars(SchedulerConfig.from_json({}, scheduler))
    shared = actual.keys() & expected.keys()
    assert len(shared) >= 9
    assert {key: actual[key] for key in shared} == {key: expected[key] for key in shared}


def test_trailing_count_is_exact():
    """At 61 steps diffusers' arange yields a 62nd timestep, -1, which no UNet was trained on."""
    reference = diffusers.DDIMScheduler.from_config(SD1 | {"timestep_spacing": "trailing"})
    reference.set_timesteps(61)
    schedule = make_schedule(SD1 | {"timestep_spacing": "trailing"}, "ddim", 61)
    assert reference.timesteps[-1] == -1
    np.testing.assert_array_equal(schedule.timesteps, reference.timesteps[:-1])
