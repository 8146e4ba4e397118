import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax.keys import seed_key
from memattn_jax.schedulers import SCHEDULERS, SchedulerConfig, alphas_cumprod, make_schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None}
SD1 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    **BETAS,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SIGMAS = {"final_sigmas_type": "zero", "use_karras_sigmas": False, "timestep_spacing": "linspace"}
SIGMAS |= {"use_exponential_sigmas": False, "use_beta_sigmas": False, "rescale_betas_zero_snr": False}
CHECKPOINTS = {
    "sd1-pndm": SD1,
    "sd2-ddim": SD1 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sd2-ddim-saved": SD1
    | {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
    | {"thresholding": False, "timestep_spacing": "leading", "rescale_betas_zero_snr": False},
    "sd2-euler": SD1
    | SIGMAS
    | {"interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None, "sigma_max": None},
    "sd2-dpm": SD1
    | SIGMAS
    | {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "flow_shift": 1.0}
    | {"lower_order_final": True, "euler_at_final": False, "lambda_min_clipped": float("-inf")}
    | {"use_lu_lambdas": False, "use_flow_sigmas": False, "use_dynamic_shifting": False}
    | {"thresholding": False, "variance_type": None, "time_shift_type": "exponential"},
    "turbo-euler-ancestral": BETAS
    | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "steps_offset": 1}
    | {"prediction_type": "epsilon", "interpolation_type": "linear", "rescale_betas_zero_snr": False},
    "lcm": BETAS
    | {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0}
    | {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "leading"},
    "ddpm": SD1 | {"variance_type": "fixed_small", "prediction_type": "epsilon"},
    "unipc": SD1
    | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None}
    | {"solver_order": 2, "lower_order_final": True, "thresholding": False},
}


STOCHASTIC = ("euler-ancestral", "dpm-solver++-sde", "lcm")


def at(schedule, i):
    return jax.tree.map(lambda leaf: leaf[i], schedule.rows())


def noise(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, 3, 5), dtype=np.float32))


def keys_of(seeds, call):
    return jax.vmap(lambda seed: jax.random.fold_in(seed_key(seed), call))(jnp.asarray(seeds))


def denoise(schedule, latents, seeds=(0, 1)):
    """The loop as a sampler writes it, with a stand-in for the UNet."""

    def call(carry, inputs):
        row, i = inputs
        latents, memory = carry
        output = jnp.tanh(latents * row.input_scale) + row.timestep / 1000
        return schedule.step(row, memory, output, latents, keys_of(seeds, i)), None

    table = (schedule.rows(), jnp.arange(len(schedule.timesteps)))
    (latents, _), _ = jax.lax.scan(call, (latents, schedule.init(latents)), table)
    return latents


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("config", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_load_for_every_scheduler(config, scheduler):
    schedule = make_schedule(config, scheduler, 10)
    pndm_calls = 11 if config.get("skip_prk_steps") else 3 * 4 + 7
    calls = pndm_calls if scheduler == "pndm" else 10
    assert schedule.timesteps.shape == schedule.input_scale.shape == (calls,)
    assert schedule.timesteps.dtype == schedule.init_noise_sigma.dtype == jnp.float32
    assert jnp.isfinite(denoise(schedule, noise() * schedule.init_noise_sigma)).all()


PATHS = [
    (scheduler, spacing, steps, skip_prk_steps)
    for scheduler in SCHEDULERS
    if scheduler not in STOCHASTIC
    for spacing in ("leading", "trailing", "linspace")
    for steps in (1, 4, 20)
    for skip_prk_steps in (True, False)
    if skip_prk_steps or (scheduler == "pndm" and steps >= 4)
    # There the stride of diffusers is not the distance between timesteps, so a step does not end at the next.
    if not (scheduler in ("ddim", "pndm") and spacing == "linspace" and steps > 1)
]


@pytest.mark.parametrize(("scheduler", "spacing", "steps", "skip_prk_steps"), PATHS)
def test_straight_path_ends_at_the_image(scheduler, spacing, steps, skip_prk_steps):
    """With the true, constant noise as its output, every exact solver of the ODE returns x_0 itself."""
    config = BETAS | {"timestep_spacing": spacing, "set_alpha_to_one": True, "clip_sample": False}
    schedule = make_schedule(config | {"skip_prk_steps": skip_prk_steps}, scheduler, steps)
    if scheduler == "euler":
        alpha = schedule.input_scale[0]
        latents = noise(1) + jnp.sqrt(1 / alpha**2 - 1) * noise(2)
    else:
        signal = alphas_cumprod(SchedulerConfig(**BETAS))[int(schedule.timesteps[0])]
        latents = np.sqrt(signal) * noise(1) + np.sqrt(1 - signal) * noise(2)
    memory = schedule.init(latents)
    for i in range(len(schedule.timesteps)):
        latents, memory = schedule.step(at(schedule, i), memory, noise(2), latents)
    np.testing.assert_allclose(latents, noise(1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_noise_level_of_each_call_is_its_timesteps(scheduler, spacing, steps):
    """Given the true noise of latents around one image, each call leaves the next timestep's noise level."""
    image, start = jax.random.normal(jax.random.key(0), (2, 2, 64, 64))
    # LCM keeps c_skip of the latents, which this scaling makes negligible.
    config = BETAS | {"timestep_spacing": spacing, "timestep_scaling": 1e4}
    schedule = make_schedule(config, scheduler, steps)
    signal = alphas_cumprod(SchedulerConfig(**BETAS))
    alphas = schedule.input_scale if scheduler == "euler-ancestral" else np.sqrt(signal[schedule.timesteps.astype(int)])
    latents = (alphas[0] * image + np.sqrt(1 - alphas[0] ** 2) * start) / schedule.input_scale[0]
    memory = schedule.init(latents)
    for i, alpha in enumerate(alphas):
        row = at(schedule, i)
        true_noise = (latents * row.input_scale - alpha * image) / np.sqrt(1 - alpha**2)
        np.testing.assert_allclose(true_noise.std(), 1, atol=0.05)  # 8192 numbers
        latents, memory = schedule.step(row, memory, true_noise, latents, keys_of((0, 1), i))
    np.testing.assert_allclose(latents, image, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_noise_of_a_row_depends_on_its_seed_alone(scheduler):
    schedule = make_schedule(SD1, scheduler, 6)
    start = jnp.broadcast_to(noise()[0], (3, 3, 5)) * schedule.init_noise_sigma
    run = jax.jit(denoise)
    together = run(schedule, start, jnp.array([5, 9, 5]))
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_array_equal(together, run(schedule, start, jnp.array([5, 9, 5])))
    np.testing.assert_allclose(run(schedule, start[:1], jnp.array([9]))[0], together[1], rtol=0, atol=1e-5)
    assert jnp.abs(together[0] - together[1]).mean() > 0.01


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_scan_equals_loop_and_numbers_do_not_retrace(scheduler):
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(denoise, n=1))
    for change in (
        {},
        {"prediction_type": "v_prediction"},
        {"timestep_spacing": "trailing", "beta_schedule": "linear"},
        {"clip_sample": True, "use_karras_sigmas": True, "solver_type": "heun"},
    ):
        schedule = make_schedule(SD1 | change, scheduler, 6)
        start = noise() * schedule.init_noise_sigma
        latents, memory = start, schedule.init(start)
        for i in range(len(schedule.timesteps)):
            row = at(schedule, i)
            output = jnp.tanh(latents * row.input_scale) + row.timestep / 1000
            latents, memory = schedule.step(row, memory, output, latents, keys_of((0, 1), i))
        actual = compiled(schedule, start)
        np.testing.assert_allclose(actual, latents, rtol=0, atol=1e-5 * float(jnp.abs(latents).max()))
        assert not jnp.allclose(actual, start)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_bfloat16_latents_are_stepped_in_float32(scheduler):
    schedule = make_schedule(SD1, scheduler, 4)
    latents, output = noise(1).astype(jnp.bfloat16), noise(2).astype(jnp.bfloat16)
    row, memory = at(schedule, 0), schedule.init(latents)
    keys = keys_of((0, 1), 0)
    actual, remembered = schedule.step(row, memory, output, latents, keys)
    expected, _ = schedule.step(row, memory, output.astype(jnp.float32), latents.astype(jnp.float32), keys)
    assert actual.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(remembered))
    np.testing.assert_array_equal(actual, expected.astype(jnp.bfloat16))


def test_ddim_clips_the_predicted_image():
    config = SD1 | {"clip_sample": True, "clip_sample_range": 0.5, "set_alpha_to_one": True}
    schedule = make_schedule(config, "ddim", 1)
    assert jnp.abs(schedule.step(at(schedule, 0), (), noise(1), 10 * noise(2))[0]).max() == 0.5


def test_keys_of_other_schedulers_are_ignored():
    other = {"use_karras_sigmas": True, "solver_order": 3, "algorithm_type": "sde-dpmsolver++"}
    other |= {"timestep_type": "continuous", "variance_type": "learned", "final_sigmas_type": "elsewhere"}
    other |= {"not_invented_yet": None, "_use_default_values": 3}
    assert SchedulerConfig.from_json(SD1 | other, "ddim") == SchedulerConfig.from_json(SD1, "ddim")


ERRORS = [
    ("ddim", {"thresholding": True}, 10, "thresholding is True; ddim needs False or None"),
    ("pndm", {"thresholding": True}, 10, "thresholding is True; pndm needs False or None"),
    ("euler", {"thresholding": True}, 10, "thresholding is True; euler needs False or None"),
    ("dpm-solver++", {"thresholding": True}, 10, "thresholding is True; dpm-solver++ needs False or None"),
    ("lms", {}, 10, "unknown scheduler 'lms'; did you mean 'lcm'? expected one of ddim"),
    (
        "ddim",
        {"beta_schedule": "sigmoid"},
        10,
        "beta_schedule is 'sigmoid'; choose 'linear' or 'scaled_linear'",
    ),
    (
        "ddim",
        {"prediction_type": "flow_prediction"},
        10,
        "prediction_type is 'flow_prediction'; choose 'epsilon'",
    ),
    ("pndm", {"prediction_type": "sample"}, 10, "pndm needs 'epsilon' or 'v_prediction'"),
    ("euler-ancestral", {"prediction_type": "sample"}, 10, "euler-ancestral needs 'epsilon' or 'v_prediction'"),
    ("euler", {"timestep_spacing": "log"}, 10, "timestep_spacing is 'log'; choose 'leading' or 'trailing'"),
    ("euler", {"interpolation_type": "cubic"}, 10, "interpolation_type is 'cubic'; choose 'linear'"),
    ("euler", {"final_sigmas_type": "one"}, 10, "final_sigmas_type is 'one'; choose 'zero' or 'sigma_min'"),
    ("euler", {"timestep_type": "continuous"}, 10, "timestep_type is 'continuous'; euler needs 'discrete'"),
    ("euler", {"use_beta_sigmas": True}, 10, "use_beta_sigmas is True; euler needs False"),
    ("euler", {"use_exponential_sigmas": True}, 10, "use_exponential_sigmas is True; euler needs False"),
    (
        "euler",
        {"use_karras_sigmas": True, "sigma_min": -1.0},
        10,
        "sigma_min is -1.0; a noise level must be positive",
    ),
    ("dpm-solver++", {"sigma_max": 0.0}, 10, "sigma_max is 0.0; a noise level must be positive and finite"),
    ("dpm-solver++", {"use_lu_lambdas": True}, 10, "use_lu_lambdas is True; dpm-solver++ needs False"),
    ("dpm-solver++", {"use_flow_sigmas": True}, 10, "use_flow_sigmas is True; dpm-solver++ needs False"),
    ("dpm-solver++", {"use_dynamic_shifting": True}, 10, "use_dynamic_shifting is True; dpm-solver++ needs"),
    ("dpm-solver++", {"use_beta_sigmas": True}, 10, "use_beta_sigmas is True; dpm-solver++ needs False"),
    ("dpm-solver++", {"use_exponential_sigmas": True}, 10, "use_exponential_sigmas is True; dpm-solver++ needs"),
    (
        "dpm-solver++",
        {"algorithm_type": "dpmsolver"},
        10,
        "algorithm_type is 'dpmsolver'; dpm-solver++ needs",
    ),
    ("dpm-solver++", {"lambda_min_clipped": -5.1}, 10, "lambda_min_clipped is -5.1; dpm-solver++ needs -inf"),
    (
        "dpm-solver++",
        {"variance_type": "learned"},
        10,
        "variance_type is 'learned'; dpm-solver++ needs None or",
    ),
    ("dpm-solver++", {"solver_order": 3}, 10, "solver_order is 3; choose 1 or 2"),
    ("dpm-solver++", {"solver_type": "rk4"}, 10, "solver_type is 'rk4'; choose 'midpoint' or 'heun'"),
    ("dpm-solver++-sde", {"use_lu_lambdas": True}, 10, "use_lu_lambdas is True; dpm-solver++-sde needs False"),
    ("lcm", {"original_inference_steps": 2000}, 10, "original_inference_steps is 2000; choose at most 1000"),
    ("lcm", {"original_inference_steps": 8}, 9, "steps is 9; lcm takes at most 8, the config's original_inference_st"),
    ("lcm", {"rescale_betas_zero_snr": True}, 4, "rescale_betas_zero_snr, so lcm cannot start there"),
    ("ddim", {"predict_epsilon": False}, 10, "predict_epsilon is False; ddim needs True"),
    (
        "ddim",
        {"sigma_data": 0.5, "flavour": 1},
        10,
        "unknown keys in the scheduler config: flavour, sigma_data",
    ),
    ("ddim", {"num_train_timesteps": 10**9}, 10, "num_train_timesteps is 1000000000; choose 1 to 1000000"),
    ("ddim", {"num_train_timesteps": "1000"}, 10, "num_train_timesteps='1000'; expected a whole number"),
    ("ddim", {"beta_schedule": 3}, 10, "beta_schedule=3; expected a text"),
    ("ddim", {"beta_start": None}, 10, "beta_start=None; expected a number"),
    ("ddim", {"beta_end": 1.5}, 10, "beta_end is 1.5; a beta must lie in [0, 1)"),
    ("ddim", {"trained_betas": [0.1]}, 10, "trained_betas has 1 values where num_train_timesteps is 1000"),
    ("ddim", {}, 0, "steps is 0; "),
    ("ddim", {}, -3, "steps is -3; "),
    ("euler", {}, 1001, "steps is 1001; "),
    ("ddim", {}, 1000, "timestep 1000 is past the last training timestep, 999"),
    ("pndm", {"skip_prk_steps": False}, 3, "steps is 3; pndm with skip_prk_steps false needs at least 4"),
    ("dpm-solver++", {}, 1000, "dpm-solver++ would repeat a timestep in 1000 steps"),
    (
        "ddim",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        10,
        "timestep 999 has no signal under rescale_betas_zero_snr, so ddim cannot start there",
    ),
]


@pytest.mark.parametrize(
    ("scheduler", "change", "steps", "message"),
    ERRORS,
    ids=[f"{scheduler}-{'-'.join(change) or 'steps'}-{steps}" for scheduler, change, steps, _ in ERRORS],
)
def test_errors_say_what_would_be_right(scheduler, change, steps, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_schedule(SD1 | change, scheduler, steps)
    assert "\n" not in str(error.value)
