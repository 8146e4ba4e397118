"""Forms of attention and convolution: equal to each other, small, and chosen as they are meant to be."""

import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import gpu
from flax import nnx
from jax import lax

from memattn_jax.interceptors import Interceptor
from memattn_jax.models.abstract import abstract
from memattn_jax.models.attention import FeedForward
from memattn_jax.models.configs import UNetConfig
from memattn_jax.models.kernels import attention, blocks, convolution
from memattn_jax.models.kernels.attention import blocked_attention, plain_attention, self_attention
from memattn_jax.models.kernels.blocks import even_block, overwrite
from memattn_jax.models.kernels.convolution import (
    convolve,
    direct_convolution,
    gathered_convolution,
    repeated_convolution,
    summed_convolution,
    upsample,
)
from memattn_jax.models.kernels.products import matrix_product
from memattn_jax.models.unet import UNet2DConditionModel


@pytest.mark.parametrize("pixels", [pytest.param(1024, marks=pytest.mark.slow), 1300], ids=["whole-blocks", "a-rest"])
def test_blocked_equals_plain(pixels):
    query, keys, values = (jax.random.normal(jax.random.key(i), (2, pixels, 4, 16)) for i in range(3))
    expected = plain_attention(query, keys, values)
    np.testing.assert_allclose(blocked_attention(query, keys, values), expected, atol=1e-5)
    np.testing.assert_allclose(blocked_attention(query, keys, values, rows_together=True), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(self_attention)(query, keys, values), expected, atol=1e-5)
    np.testing.assert_allclose(jax.nn.dot_product_attention(query, keys, values), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.bfloat16, 8e-3), (jnp.float16, 1e-3)])
def test_blocked_attention_in_half_precision_is_as_exact_as_its_rounding(dtype, rounding):
    """Against float32 arithmetic on the same numbers, with logits of standard deviation 9; derivatives too."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(size * rng.normal(size=(1, 1024, 2, 40)), dtype) for size in (3, 3, 1)]
    wide = [x.astype(jnp.float32) for x in arrays]

    @jax.jit
    def moved(query, keys, values):
        return jax.jvp(blocked_attention, (query, keys, values), (jnp.zeros_like(query), jnp.zeros_like(keys), values))

    for ours, exact in zip(moved(*arrays), moved(*wide), strict=True):
        assert ours.dtype == dtype
        assert np.abs(ours.astype(jnp.float32) - exact).max() < rounding * np.abs(exact).max()
    pulled = jax.jit(jax.grad(lambda values: blocked_attention(*arrays[:2], values).astype(jnp.float32).sum()))
    assert pulled(arrays[2]).dtype == dtype


# What a process grows by: XLA's memory_analysis does not count what the library behind its fused products allocates.
# Linux's own count, for getrusage's starts from that of the process that started this one.
PEAK_MEMORY = """
import re
from pathlib import Path
import jax, jax.numpy as jnp
from memattn_jax.models.kernels.attention import self_attention
x = jnp.ones((1, 4096, 8, 40))
def whole_map(query, keys, values):
    return jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, keys))
programs = [jax.jit(function).lower(x, x, x).compile() for function in (self_attention, whole_map)]
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
for program in programs:
    jax.block_until_ready(program(x, x, x))
    print((peak() - before) / 1e3)
"""


def test_self_attention_over_4096_pixels_stays_under_300_megabytes_a_row():
    """A program that returns the map, 537 MB, runs afterwards, and shows that the measure sees one."""
    done = subprocess.run([sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, check=True)
    blocked, whole = map(float, done.stdout.split())
    assert blocked < 300
    assert whole > 537


def test_it_has_derivatives(monkeypatch):
    """Detectors differentiate through it."""
    monkeypatch.setattr(attention, "BLOCKED_FROM", 40)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)  # three blocks, of which the last two overlap
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 16)
    x, tangent = (jax.random.normal(jax.random.key(i), (1, 40, 2, 8)) for i in range(2))

    def derivatives(form, x, tangent):
        _, forward = jax.jvp(lambda x: form(x, x, x), (x,), (tangent,))
        return forward, jax.grad(lambda x: jnp.sum(form(x, x, x) ** 2))(x)

    def both(*inputs):
        return [derivatives(form, *inputs) for form in (self_attention, plain_attention)]

    lowered = jax.jit(both).lower(x, tangent)
    assert "while" in lowered.as_text()
    for blocked, plain, atol in zip(*lowered.compile()(x, tangent), (1e-5, 1e-4), strict=True):
        np.testing.assert_allclose(blocked, plain, atol=atol)


def convolution_inputs(*shape: int, out: int = 24) -> tuple[jax.Array, jax.Array]:
    kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], out)) / np.sqrt(9 * shape[-1])
    return jax.random.normal(jax.random.key(0), shape), kernel


@pytest.mark.parametrize(("stride", "border"), [(1, (1, 1)), (2, (1, 1)), (2, (0, 1))])
@pytest.mark.parametrize("size", [(8, 8), (5, 8), (7, 6)], ids=str)
def test_gathered_convolution_equals_xlas(size, stride, border):
    x, kernel = convolution_inputs(2, *size, 16)
    expected = direct_convolution(x, kernel, stride, border)
    np.testing.assert_allclose(gathered_convolution(x, kernel, stride, border), expected, atol=1e-5)


def test_gathering_some_rows_at_a_time_is_the_same(monkeypatch):
    x, kernel = convolution_inputs(2, 7, 6, 16)
    whole = gathered_convolution(x, kernel, 1, (1, 1))
    monkeypatch.setattr(convolution, "CHUNK", 3 * 2 * 6 * 9 * 16)  # three rows, of which the last three overlap two
    text = jax.jit(lambda x, kernel: gathered_convolution(x, kernel, 1, (1, 1))).lower(x, kernel).as_text()
    assert "while" in text
    np.testing.assert_allclose(gathered_convolution(x, kernel, 1, (1, 1)), whole, atol=1e-5)


def test_upsampling_with_a_quarter_of_the_products_is_the_same():
    x, kernel = convolution_inputs(2, 5, 7, 16)
    np.testing.assert_allclose(summed_convolution(x, kernel), repeated_convolution(x, kernel), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "exact_form"),
    [(upsample, repeated_convolution), (convolve, partial(direct_convolution, stride=1, border=(1, 1)))],
)
def test_convolutions_in_bfloat16_round_once(form, exact_form):
    x, kernel = (array.astype(jnp.bfloat16) for array in convolution_inputs(1, 6, 6, 64, out=256))
    exact = exact_form(x.astype(jnp.float32), kernel.astype(jnp.float32))
    rounded = form(x, kernel)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "out", "dtype", "gathers"),
    [
        ((2, 8, 8, 640), 8, jnp.float32, True),
        ((2, 16, 16, 640), 8, jnp.float32, False),
        ((2, 8, 8, 320), 8, jnp.float32, False),
        ((2, 64, 64, 320), 256, jnp.bfloat16, True),
        ((2, 64, 64, 320), 128, jnp.bfloat16, False),
    ],
    ids=str,
)
def test_convolutions_are_gathered_on_a_cpu_alone(shape, out, dtype, gathers):
    """Those of small pictures with many channels, and in bfloat16 those with many channels of their result."""
    arrays = (array.astype(dtype) for array in convolution_inputs(*shape, out=out))
    traced = jax.jit(convolve).trace(*arrays)
    for platform, gathered in (("cpu", gathers), ("cuda", False), ("tpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" not in text) == gathered


@pytest.mark.parametrize(
    ("dtype", "widened"), [(jnp.bfloat16, True), (jnp.float16, False), (jnp.float32, False)], ids=str
)
def test_products_of_bfloat16_are_returned_in_float32_on_a_cpu_alone(dtype, widened):
    left, right = (jax.random.normal(jax.random.key(i), (8, 8)).astype(dtype) for i in range(2))
    traced = jax.jit(matrix_product).trace(left, right)
    for platform, wide in (("cpu", widened), ("cuda", False), ("tpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert bool(re.search(r"dot_general.*-> tensor<8x8xf32>", text)) == (wide or dtype == jnp.float32)
    exact = left.astype(jnp.float32) @ right.astype(jnp.float32)
    rounding = {jnp.bfloat16: 2**-8, jnp.float16: 2**-11, jnp.float32: 1e-6}[dtype]
    product = matrix_product(left, right)
    assert product.dtype == dtype
    np.testing.assert_allclose(product.astype(jnp.float32), exact, rtol=rounding, atol=1e-6)


def test_products_of_bfloat16_have_derivatives():
    """Of both kinds, in bfloat16: fine-tuning's, and detectors'."""
    left, right, tangent = (jax.random.normal(jax.random.key(i), (8, 8)).astype(jnp.bfloat16) for i in range(3))

    @jax.jit
    def derivatives(left, right, tangent):
        _, pushed = jax.jvp(matrix_product, (left, right), (tangent, jnp.zeros_like(right)))
        _, pull = jax.vjp(matrix_product, left, right)
        return pushed, *pull(tangent)

    one, other, cotangent = (x.astype(jnp.float32) for x in (left, right, tangent))
    expected = cotangent @ other, cotangent @ other.T, one.T @ cotangent
    for found, exact in zip(derivatives(left, right, tangent), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_upsampling_is_by_platform():
    traced = jax.jit(upsample).trace(*convolution_inputs(1, 4, 4, 8))
    for platform, summed in (("cpu", True), ("cuda", False), ("tpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" not in text) == summed


@pytest.mark.slow
def test_memory_of_a_guidance_pair_of_stable_diffusion_14():
    """Beside weights and inputs; a single map of 4,096 × 4,096 pixels would take 1,074 MB more."""
    unet = abstract(UNet2DConditionModel, UNetConfig())
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 64, 64, 4), (), (2, 77, 768))]
    program = jax.jit(lambda unet, *args: unet(*args)).lower(unet, *shapes, Interceptor()).compile()
    assert program.memory_analysis().temp_size_in_bytes < 200e6


@pytest.fixture
def nvidia(monkeypatch):
    """This process as one on a machine with an NVIDIA GPU, as far as tracing asks."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(attention, "get_backend", lambda: gpu("9.0"))


def lowered_for_cuda(function, *shapes, dtype) -> str:
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "fused"),
    [(jnp.bfloat16, 40, True), (jnp.float16, 64, True), (jnp.bfloat16, 160, False), (jnp.float32, 40, False)],
    ids=str,
)
def test_cudnn_computes_attention_where_it_can(nvidia, dtype, head_dim, fused):
    shape = (2, 1024, 8, head_dim)
    text = lowered_for_cuda(self_attention, *[shape] * 3, dtype=dtype)
    assert ("__cudnn$fmhaSoftmax" in text) == fused
    assert ("1024x1024x" in text) != fused  # the map


def test_a_gpu_before_ampere_has_no_fused_kernels_in_half_precision(nvidia, monkeypatch):
    monkeypatch.setattr(attention, "get_backend", lambda: gpu("7.5"))
    assert "__cudnn" not in lowered_for_cuda(self_attention, *[(1, 1024, 2, 64)] * 3, dtype=jnp.float16)


def test_derivatives_on_a_gpu_are_of_the_form_that_has_them(nvidia):
    def derivative(x, tangent):
        return jax.linearize(lambda x: self_attention(x, x, x), x)[1](tangent)

    text = lowered_for_cuda(derivative, *[(1, 1024, 2, 64)] * 2, dtype=jnp.bfloat16)
    assert "__cudnn" not in text


@pytest.mark.parametrize(
    ("length", "most", "block"), [(4096, 512, 512), (1300, 512, 434), (7, 3, 3), (16, 5, 4), (9, 0, 1)]
)
def test_blocks_are_as_even_as_can_be(length, most, block):
    assert even_block(length, most) == block


@pytest.mark.parametrize("length", [8, 7, 2])
def test_overwriting_reaches_every_element_once(length):
    values = jnp.arange(2.0 * length).reshape(2, length)

    def squares(x):
        block = min(3, length)
        return overwrite(x, lambda start: lax.dynamic_slice_in_dim(x, start, block, axis=1) ** 2, block, axis=1)

    np.testing.assert_array_equal(jax.jit(squares)(values), values**2)
    np.testing.assert_array_equal(jax.grad(lambda x: squares(x).sum())(values), 2 * values)


def test_a_perceptron_in_chunks_is_the_same(monkeypatch):
    layer = FeedForward(8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 100, 8))
    whole = layer(x)
    text = jax.jit(layer).lower(x).as_text()
    monkeypatch.setattr(blocks, "CHUNKED_FROM", 0)
    monkeypatch.setattr(blocks, "CHUNK", 2 * 64 * 20)  # 16 pixels of two rows, with a rest
    np.testing.assert_allclose(layer(x), whole, atol=1e-5)
    chunked = jax.jit(lambda x: layer(x)).trace(x)
    assert "while" not in text
    assert "while" in chunked.lower().as_text()
    assert "while" not in chunked.lower(lowering_platforms=("cuda",)).as_text()
