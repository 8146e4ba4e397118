"""The process that runs us may be somebody's program: its settings do not reach our numbers, nor ours its own."""

import contextlib
import dataclasses
import os
import signal
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax import StableDiffusion
from memattn_jax.commands import command as commands
from memattn_jax.diffusion.noise import unit_noise
from memattn_jax.mitigations import compose
from memattn_jax.mitigations.embedding_optimization import EmbeddingOptimization
from memattn_jax.mitigations.guidance_transition import GuidanceTransition
from memattn_jax.mitigations.spike_attenuation import SpikeAttenuation
from memattn_jax.settings import jax_settings
from memattn_jax.training.objective import row_keys
from memattn_jax.training.step import draw

SEEDS = np.array([0, 1, 2**32 - 1], np.uint32)
SETTINGS = [
    {"jax_default_prng_impl": "rbg"},
    {"jax_default_prng_impl": "unsafe_rbg"},
    {"jax_threefry_partitionable": False},
    {"jax_random_seed_offset": 3},
    {"jax_enable_x64": True},
    {"jax_numpy_dtype_promotion": "strict"},
]
TOGETHER = {name: value for setting in SETTINGS[1:-1] for name, value in setting.items()}


def draws():
    keys = row_keys(jnp.uint32(7), jnp.int32(2), 4)
    return {"noise": unit_noise(jnp.asarray(SEEDS), (3, 5))} | draw(keys, (2, 3), 1000, 0.4, 0.5)._asdict()


def test_noise_is_what_the_docstring_says():
    keys = [jax.random.fold_in(jax.random.key(0), seed) for seed in SEEDS]
    expected = jnp.stack([jax.random.normal(key, (3, 5)) for key in keys])
    np.testing.assert_array_equal(unit_noise(jnp.asarray(SEEDS), (3, 5)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "=".join(map(str, *setting.items())))
def test_settings_of_the_host_do_not_change_draws(setting):
    expected = draws()
    with jax_settings(**setting):
        found = draws()
        chosen = jax.jit(draws)()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
        np.testing.assert_array_equal(chosen[name], values)


@pytest.mark.slow
def test_settings_of_the_host_do_not_change_pictures_and_scores(model, matrices):
    """A run beyond its noise: with 64 bits at hand, one constant of NumPy's makes float64 of all that follows.

    What else can run is traced in test_dtypes.py.
    """
    mitigation = compose(EmbeddingOptimization(0.0, iterations=2), SpikeAttenuation(), GuidanceTransition("dynamic"))

    def results():
        sd = StableDiffusion.from_pretrained(model, dtype="float32")
        run = sd.sample(["the cat"], seeds=3, steps=2)
        mitigated = matrices.sample(["the cat"], seeds=3, steps=2, taps=None, mitigation=mitigation).latents
        found = sd.detect(["the cat"], ["noise_norm"], seeds=5, site=sd.unet.sites[-1])
        return {"images": run.images, "latents": run.latents, "mitigated": mitigated, **run.tokens, **found.scores}

    expected = results()
    with jax_settings(**TOGETHER):
        found = results()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No options."""

    def check(self):
        """Nothing is wrong."""


def surroundings():
    return {
        "environment": dict(os.environ),
        "settings": dict(jax.config.values),
        "errors": (sys.stdout.errors, sys.stderr.errors),
        "showwarning": warnings.showwarning,
        "filters": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": os.getcwd(),
    }


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, ZeroDivisionError])
def test_a_command_leaves_the_process_as_it_found_it(end, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["detect"])
    for name in ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    within = {}

    def main(options):
        within.update(surroundings())
        jax.jit(lambda x: x + 17)(1.0)
        if end is not None:
            raise end

    with jax_settings(jax_compilation_cache_dir=None, jax_persistent_cache_min_compile_time_secs=1.0):
        before = surroundings()
        with pytest.raises((SystemExit, ZeroDivisionError)):
            commands.run_command("detect", Nothing, main)
        after = surroundings()
    assert after == before
    assert {name for name in before if before[name] != within[name]} >= {"environment", "settings", "showwarning"}
    assert within["settings"]["jax_compilation_cache_dir"] == str(tmp_path / "memattn_jax" / "xla")


def test_a_cache_folder_of_the_host_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["detect"])
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    found = []
    with jax_settings(jax_compilation_cache_dir=str(tmp_path)), contextlib.suppress(SystemExit):
        commands.run_command(
            "detect", Nothing, lambda options: found.append(jax.config.values["jax_compilation_cache_dir"])
        )
    assert found == [str(tmp_path)]
