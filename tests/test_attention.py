"""The blocked form of self-attention: equal to the plain one, and small."""

import subprocess
import sys

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


# What a process grows by: XLA's memory_analysis does not count what the library behind its fused products allocates.
# Linux's own count, for getrusage's starts from that of the process that started this one.
PEAK_MEMORY = """
import re, sys
from pathlib import Path
import jax, jax.numpy as jnp
from memattn_jax.models import attention
x = jnp.ones((1, 4096, 8, 40))
program = jax.jit(getattr(attention, sys.argv[1])).lower(x, x, x).compile()
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
jax.block_until_ready(program(x, x, x))
print((peak() - before) / 1e3)
"""


def test_self_attention_over_4096_pixels_stays_under_300_megabytes_a_row():
    commands = [[sys.executable, "-c", PEAK_MEMORY, name] for name in ("self_attention", "plain_attention")]
    blocked, naive = (
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for command in commands
    )
    assert blocked < 300 < naive


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
