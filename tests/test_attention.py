"""The blocked form of self-attention: equal to the plain one, and small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax.models.attention import blocked_attention, plain_attention, self_attention


@pytest.mark.parametrize("pixels", [1024, 1300], ids=["whole-blocks", "a-rest"])
def test_blocked_equals_plain(pixels):
    query, keys, values = (jax.random.normal(jax.random.key(i), (2, pixels, 4, 16)) for i in range(3))
    expected = plain_attention(query, keys, values)
    np.testing.assert_allclose(blocked_attention(query, keys, values), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(self_attention)(query, keys, values), expected, atol=1e-5)
    np.testing.assert_allclose(jax.nn.dot_product_attention(query, keys, values), expected, atol=1e-5)


def test_self_attention_over_4096_pixels_stays_under_300_megabytes_a_row():
    arguments = [jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)] * 3
    compiled, naive = (jax.jit(f).lower(*arguments).compile() for f in (self_attention, plain_attention))
    megabytes = [program.memory_analysis().temp_size_in_bytes / 1e6 for program in (compiled, naive)]
    assert megabytes[0] < 300 < megabytes[1]


def test_it_has_derivatives():
    """Detectors differentiate through it."""
    x = jax.random.normal(jax.random.key(0), (1, 1024, 2, 8))
    tangent = jax.random.normal(jax.random.key(1), x.shape)
    _, blocked = jax.jvp(lambda x: self_attention(x, x, x), (x,), (tangent,))
    _, plain = jax.jvp(lambda x: plain_attention(x, x, x), (x,), (tangent,))
    np.testing.assert_allclose(blocked, plain, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(self_attention(x, x, x) ** 2))(x)
    expected = jax.grad(lambda x: jnp.sum(plain_attention(x, x, x) ** 2))(x)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
