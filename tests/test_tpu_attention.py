"""Self-attention on a TPU: the kernel in interpret mode, and what is lowered for a TPU that is not there."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu

from memattn_jax.models.kernels import attention, tpu_attention
from memattn_jax.models.kernels.attention import plain_attention, self_attention
from memattn_jax.models.kernels.tpu_attention import flash_attention, flash_tile, rematerialized_attention
from memattn_jax.sharding.placement import make_mesh


@pytest.mark.parametrize(
    ("pixels", "tile"), [(4096, 512), (9216, 512), (2304, 384), (1152, 384), (640, 128), (1300, 0)]
)
def test_tiles_divide_what_they_cover(pixels, tile):
    assert flash_tile(pixels) == tile


@pytest.mark.parametrize("mesh", [None, "data=1,model=1"])
@pytest.mark.parametrize(("pixels", "head_dim"), [(768, 40), (256, 160)], ids=["two-tiles", "a-padded-head"])
def test_the_kernel_of_a_tpu_equals_plain_attention(pixels, head_dim, mesh):
    query, keys, values = (jax.random.normal(jax.random.key(i), (2, pixels, 2, head_dim)) for i in range(3))
    devices = None if mesh is None else make_mesh(mesh)
    with pltpu.force_tpu_interpret_mode():
        out = jax.jit(partial(flash_attention, mesh=devices))(query, keys, values)
    np.testing.assert_allclose(out, plain_attention(query, keys, values), atol=1e-5)


def test_rematerialized_equals_plain(monkeypatch):
    """With derivatives of each kind, along queries, keys and values at once, in blocks with a rest."""
    monkeypatch.setattr(tpu_attention, "QUERY_BLOCK", 16)
    arrays, tangents = (
        tuple(jax.random.normal(jax.random.key(first + i), (2, 40, 2, 8)) for i in range(3)) for first in (0, 3)
    )

    @partial(jax.jit, static_argnums=0)
    def found(form, arrays, tangents):
        out, moved = jax.jvp(form, arrays, tangents)
        return out, moved, jax.linearize(form, *arrays)[1](*tangents), jax.vjp(form, *arrays)[1](tangents[0])

    expected = found(plain_attention, arrays, tangents)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-5), found(rematerialized_attention, arrays, tangents), expected
    )


@pytest.fixture
def tpu(monkeypatch):
    """This process as one on a machine with a TPU, as far as tracing asks."""
    monkeypatch.setattr(attention, "get_backend", lambda: SimpleNamespace(platform="tpu", platform_version=""))


def lowered_for_tpu(function, *shapes, dtype=jnp.bfloat16) -> str:
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("dtype", "pixels", "kernel"),
    [(jnp.bfloat16, 1024, True), (jnp.float32, 1152, True), (jnp.float16, 1024, False), (jnp.bfloat16, 1300, False)],
    ids=str,
)
def test_a_tpu_has_no_map(tpu, dtype, pixels, kernel):
    text = lowered_for_tpu(lambda *arrays: self_attention(*arrays), *[(2, pixels, 2, 40)] * 3, dtype=dtype)
    assert ("tpu_custom_call" in text) == kernel
    assert f"{pixels}x{pixels}x" not in text


def test_derivatives_on_a_tpu_are_of_the_form_that_has_them(tpu):
    def forward(x, tangent):
        return jax.jvp(lambda x: self_attention(x, x, x), (x,), (tangent,))

    text = lowered_for_tpu(forward, *[(1, 1024, 2, 40)] * 2)
    assert "1024x1024x" not in text
    assert "tpu_custom_call" not in text
    reverse = jax.grad(lambda x: self_attention(x, x, x).astype(jnp.float32).sum())
    assert "tpu_custom_call" not in lowered_for_tpu(reverse, (1, 1024, 2, 40))


def test_small_maps_are_whole_on_a_tpu(tpu):
    text = lowered_for_tpu(lambda *arrays: self_attention(*arrays), *[(2, 256, 2, 40)] * 3)
    assert "256x256x" in text
    assert "tpu_custom_call" not in text


def test_elsewhere_a_program_for_a_tpu_has_no_kernel():
    """As JAX would lower it for all platforms that the program is exported for."""
    shapes = [jax.ShapeDtypeStruct((2, 1024, 2, 40), jnp.bfloat16)] * 3
    exported = export.export(jax.jit(lambda *arrays: self_attention(*arrays)), platforms=("cpu", "tpu", "cuda"))
    assert "custom_call" not in exported(*shapes).mlir_module()
