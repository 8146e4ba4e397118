"""Loading in few passes: kernels of convolutions in one, shapes without tracing, layers of one kind traced once."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from memattn_jax.checkpoints.relayout import channels_last
from memattn_jax.copies.sscd.network import SSCD, Geometry, Stage
from memattn_jax.models.abstract import abstract
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.layers import traced_once
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("out", [1, 7, 24, 64, 320])
def test_kernels_are_transposed_bit_by_bit(out: int, dtype: type) -> None:
    size = out * 5 * 9
    data = np.random.default_rng(out).bytes(8 + size * np.dtype(dtype).itemsize)  # NaNs of any payload among them
    stored = np.ndarray((out, 5, 3, 3), dtype, data, offset=8)  # as far from a multiple of 64 as files have it
    kernel = channels_last(stored.transpose(2, 3, 1, 0))
    assert kernel.dtype == dtype
    assert kernel.flags.c_contiguous
    assert kernel.tobytes() == np.ascontiguousarray(stored.transpose(2, 3, 1, 0)).tobytes()


def test_jax_takes_the_memory_over() -> None:
    kernel = channels_last(np.ones((320, 5, 3, 3), np.float32).transpose(2, 3, 1, 0))
    array = jax.device_put(kernel, may_alias=True)
    assert array.unsafe_buffer_pointer() == kernel.ctypes.data
    del kernel
    assert float(array.sum()) == 320 * 5 * 9


@pytest.mark.parametrize(
    ("network", "config"),
    [
        (UNet2DConditionModel, UNetConfig(layers_per_block=1)),
        (AutoencoderKL, VAEConfig(layers_per_block=1)),
        (CLIPTextModel, CLIPTextConfig(num_hidden_layers=1)),
        (SSCD, Geometry(8, (Stage(1, 8, 16),), 2, 4)),
    ],
    ids=["unet", "vae", "text_encoder", "sscd"],
)
def test_abstract_models_hold_no_array(network: type[nnx.Module], config: object) -> None:
    leaves = jax.tree.leaves(abstract(network, config))
    assert leaves
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


class Counted(nnx.Module):
    """A layer that counts how often it is traced."""

    calls = 0

    def __init__(self, weight: float):
        self.weight = nnx.Param(jnp.float32(weight))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Times the weight."""
        Counted.calls += 1
        return x * self.weight[...]


def test_layers_of_one_kind_are_traced_once() -> None:
    layers = [Counted(2), Counted(3), Counted(5)]

    def product(layers: list[Counted], x: jax.Array) -> jax.Array:
        for layer in layers:
            x = traced_once(layer, x)
        return x

    assert float(jax.jit(product)(layers, jnp.float32(1))) == 30
    assert Counted.calls == 1
