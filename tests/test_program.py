"""Programs: what the host calls on a CPU is compiled with a choice of libraries; inside another one nothing changes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax.models.kernels.program import ALL_BUT_CONVOLUTIONS, NOTHING, Program, program

X = np.random.default_rng(0).standard_normal((2, 16, 16, 32), np.float32)
KERNEL = np.random.default_rng(1).standard_normal((3, 3, 32, 32), np.float32)


@program("times")
def convolved(x, kernel, *, times=1):
    """Some convolutions."""
    for _ in range(times):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x


def test_the_same_numbers_wherever_it_is_called():
    expected = np.asarray(jax.jit(convolved.__wrapped__)(X, KERNEL))
    size = np.abs(expected).max()
    for found in (
        convolved(X, KERNEL),
        jax.jit(lambda x: convolved(x, KERNEL))(X),
        jax.jit(lambda: convolved(X, KERNEL))(),  # no argument is traced
        jax.vmap(lambda x: convolved(x[None], KERNEL)[0])(X),
    ):
        np.testing.assert_allclose(np.asarray(found) / size, expected / size, atol=1e-5)
    slopes = [jax.grad(lambda x, f=f: f(x, KERNEL, times=2).sum())(X) for f in (convolved, convolved.__wrapped__)]
    np.testing.assert_allclose(*slopes, atol=1e-5 * np.abs(slopes[1]).max())


def test_values_that_are_traced_elsewhere():
    """As where everything is computed at once that depends on no weight."""

    def called(x):
        with jax.ensure_compile_time_eval():
            return convolved(x, KERNEL)

    assert jax.eval_shape(called, X).shape == X.shape


def test_convolutions_are_eigens():
    text = convolved.jitted(X).lower(X, KERNEL).compile().as_text()
    assert "convolution(" in text
    assert "ynn" not in text


@pytest.mark.parametrize(
    ("channels", "dtype", "library"),
    [
        (128, "float32", NOTHING),
        (768, "float32", ALL_BUT_CONVOLUTIONS),
        (128, "bfloat16", ALL_BUT_CONVOLUTIONS),  # whose instructions YNNPACK alone has
    ],
)
def test_text_embeddings_choose_the_library(channels, dtype, library):
    made = Program(lambda plan: plan.context)
    assert made.jitted(SimpleNamespace(context=jnp.zeros((2, 5, channels), dtype))) is made.by_library[library]
    assert made.jitted(jnp.zeros(3)) is made.by_library[ALL_BUT_CONVOLUTIONS]


def test_other_platforms_get_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolved.jitted(X) is convolved.plain
