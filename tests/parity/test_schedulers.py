"""Whole trajectories against diffusers' PyTorch schedulers; a fixed nonlinear function is the UNet."""

import functools
import inspect
import itertools
import json
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from memattn_jax.keys import draw_rows, seed_key
from memattn_jax.schedulers import SCHEDULERS, SchedulerConfig, alphas_cumprod, as_pipeline, make_schedule

# diffusers hands torch tensors to np.array, in a way that NumPy 2 wants torch to change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
    "dpm-solver++-sde": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
OVERRIDES = {"dpm-solver++-sde": {"algorithm_type": "sde-dpmsolver++"}}  # what a name here says beyond the class
NO_SAMPLE = ("pndm", "euler-ancestral")  # diffusers too refuses prediction_type "sample"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD1 = BETAS | {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
ZERO_SNR = BETAS | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
STEPS = (1, 2, 3, 5, 10, 20, 50)
SHAPE = (2, 4, 4, 4)
RELATIVE = 1e-5


def unet(x, t):
    """In NumPy on both sides, so that only the schedulers can differ."""
    return (0.7 * np.tanh(x) + 0.2 * np.tanh(np.roll(x, 1, axis=1)) + 0.01 * t / 1000).astype(np.float32)


@functools.cache
def jitted_step(scheduler):
    schedule = make_schedule(SD1, scheduler, 1)  # step reads nothing of it but the solver
    return jax.jit(schedule.step)


@jax.jit
def keys_of(call):
    """A key of each row, for one call."""
    return jax.vmap(seed_key)(jnp.arange(SHAPE[0]) + SHAPE[0] * call)


@jax.jit
def drawn(call):
    """The noise that a solver draws with `keys_of`."""
    return draw_rows(keys_of(call), SHAPE[1:])


def hand_over(patch, reference, call):
    """Lets a scheduler of diffusers that draws noise get `drawn` in its place."""
    module = sys.modules[type(reference).__module__]
    if hasattr(module, "randn_tensor"):
        patch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(np.array(drawn(call))))


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def check(config, scheduler, steps):
    reference = CLASSES[scheduler].from_config(config, **OVERRIDES.get(scheduler, {}))
    compare(reference, make_schedule(config, scheduler, steps), scheduler, steps)


def compare(reference, schedule, scheduler, steps):
    """One trajectory of diffusers' scheduler and one of ours."""
    reference.set_timesteps(steps)
    if scheduler not in ("ddim", "pndm"):
        reference.set_begin_index(0)  # else it starts from the second where Karras sigmas share a timestep
    np.testing.assert_allclose(schedule.init_noise_sigma, reference.init_noise_sigma, rtol=RELATIVE)
    timesteps = reference.timesteps.numpy().astype(np.float32)
    if (
        reference.config.get("use_karras_sigmas") and scheduler == "euler"
    ):  # the one case of timesteps through logarithms
        np.testing.assert_allclose(schedule.timesteps, timesteps, rtol=RELATIVE, atol=1e-3)
    else:
        np.testing.assert_array_equal(schedule.timesteps, timesteps)

    expected = torch.from_numpy(noise()) * reference.init_noise_sigma
    latents = jnp.asarray(noise()) * schedule.init_noise_sigma
    memory = schedule.init(latents)
    rows = jax.tree.map(np.asarray, schedule.rows())
    for i, t in enumerate(reference.timesteps):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        scaled = reference.scale_model_input(expected, t).numpy()
        scale = np.abs(scaled).max()
        np.testing.assert_allclose(latents * row.input_scale, scaled, rtol=0, atol=RELATIVE * scale)
        with pytest.MonkeyPatch.context() as patch:
            hand_over(patch, reference, i)
            expected = reference.step(torch.from_numpy(unet(scaled, float(t))), t, expected).prev_sample
        output = unet(np.asarray(latents * row.input_scale), float(t))
        latents, memory = jitted_step(scheduler)(row, memory, jnp.asarray(output), latents, keys_of(i))
        atol = RELATIVE * expected.abs().max().item()
        np.testing.assert_allclose(latents, expected, rtol=0, atol=atol, err_msg=f"after call {i}, t = {t}")


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


SAVING = [
    diffusers.DDIMScheduler,
    diffusers.DDIMParallelScheduler,
    diffusers.DDPMScheduler,
    diffusers.DDPMParallelScheduler,
    diffusers.DEISMultistepScheduler,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.DPMSolverMultistepInverseScheduler,
    diffusers.DPMSolverSinglestepScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.LCMScheduler,
    diffusers.LMSDiscreteScheduler,
    diffusers.PNDMScheduler,
    diffusers.SASolverScheduler,
    diffusers.TCDScheduler,
    diffusers.UniPCMultistepScheduler,
]
# Settings of a training or a user, by the key that a class must have for them to reach its file.
SETTINGS = {
    "beta_start": {},
    "prediction_type": {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "skip_prk_steps": True},
    "clip_sample": {"clip_sample": True, "clip_sample_range": 0.5, "set_alpha_to_one": True, "steps_offset": 3},
    "use_karras_sigmas": {"use_karras_sigmas": True},
    "rescale_betas_zero_snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    | {"timestep_spacing": "leading"},
}


def loaded_by_diffusers(folder, scheduler):
    """The folder's scheduler as `StableDiffusionPipeline.from_pretrained` corrects it."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    swapped = CLASSES[scheduler].from_pretrained(folder, **OVERRIDES.get(scheduler, {}))
    return diffusers.StableDiffusionPipeline(scheduler=swapped, requires_safety_checker=False, **parts).scheduler


@functools.cache  # the constructors of two classes take half a second
def saved(saving, key):
    """What the class writes under the settings that it knows; None where it does not know their key."""
    keys = inspect.signature(saving.__init__).parameters
    known = {k: v for k, v in SETTINGS[key].items() if k in keys}
    return saving(**BETAS, **known).to_json_string() if key in keys else None


def check_file(folder, content, scheduler):
    (folder / "scheduler_config.json").write_text(json.dumps(content))
    schedule = make_schedule(as_pipeline(content), scheduler, 10)
    compare(loaded_by_diffusers(folder, scheduler), schedule, scheduler, 10)


# The first is the point here, the second comes from constructors of diffusers under NumPy 2.
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("saving", SAVING, ids=lambda cls: cls.__name__)
def test_any_saved_config_is_what_the_pipeline_makes_of_it(saving, scheduler, tmp_path):
    """Every class of diffusers that a Stable Diffusion folder may name; ten steps of each of ours on its file."""
    files = [json.loads(text) for key in SETTINGS if (text := saved(saving, key)) is not None]
    assert files
    for content in files:
        if scheduler == "dpm-solver++" and content.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
            continue  # of DEIS and SA-Solver, which diffusers' DPM-Solver++ refuses
        try:
            check_file(tmp_path, content, scheduler)
        except AssertionError as error:
            raise AssertionError(f"{content}: {error}") from None


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_old_files_are_what_the_pipeline_makes_of_them(scheduler, tmp_path):
    """Files without the keys that came later, and one that names the keys whose values were defaults."""
    plms = BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    defaults = ["clip_sample", "timestep_spacing", "set_alpha_to_one", "steps_offset"]
    saved = json.loads(diffusers.LCMScheduler(**BETAS).to_json_string())
    for content in (BETAS, plms, plms | {"steps_offset": 1}, saved | {"_use_default_values": defaults}):
        check_file(tmp_path, content, scheduler)


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
