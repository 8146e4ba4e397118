"""Several devices: the mesh, and the placement of weights and rows on it.

A mesh has two axes. `data` splits the rows of a batch, one prompt each; `model` splits the weights, by the rules below.
Nothing here changes a program: arrays are placed, and `jax.jit`, which has taken over what was `pjit`,
splits a program by where its arguments lie; `in_shardings` would say the same again. What XLA does not split is
self-attention's kernel on a TPU, so loading tells models the mesh (`models.attention.spread_attention`). With `data`
alone, devices exchange nothing in first-step detectors and sampling. Each process has a mesh of its own devices, so
hosts exchange nothing either.
"""

import re
from typing import Any, TypeVar

import jax
import numpy as np
from jax import NamedSharding
from jax import P as Spec
from jax.sharding import AxisType, Mesh

from memattn_jax.errors import InputError
from memattn_jax.sharding.mesh import AXES, mesh_sizes
from memattn_jax.text import counted

BY_OUTPUT = Spec("model")  # last axis of kernels and biases
BY_INPUT = Spec("model", None)  # last but one of kernels: the products are summed over `model`

# Dotted PyTorch path of a parameter, and the axes of ours from the last one backwards; the first match counts. A layer
# split by its output is followed, where there is one, by a layer split by its input (Shoeybi et al., arXiv 1909.08053).
PARTITION_RULES: tuple[tuple[str, Spec], ...] = (
    (r"\.to_[qkv]\.(weight|bias)$", BY_OUTPUT),
    (r"\.to_out\.0\.weight$", BY_INPUT),
    (r"\.net\.0\.proj\.(weight|bias)$", BY_OUTPUT),
    (r"\.net\.2\.weight$", BY_INPUT),
    (r"\.[qkv]_proj\.(weight|bias)$", BY_OUTPUT),
    (r"\.out_proj\.weight$", BY_INPUT),
    (r"\.fc1\.(weight|bias)$", BY_OUTPUT),
    (r"\.fc2\.weight$", BY_INPUT),
    (r"\btoken_embedding\.weight$", BY_OUTPUT),
    (r"\btime_emb_proj\.(weight|bias)$", BY_OUTPUT),
    (r"\blinear_1\.(weight|bias)$", BY_OUTPUT),
    (r"\blinear_2\.weight$", BY_INPUT),
    (r"\b(conv\d?|conv_(in|out|shortcut)|(post_)?quant_conv|proj_(in|out))\.(weight|bias)$", BY_OUTPUT),
)

Tree = TypeVar("Tree")


def partition_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> Spec:
    """How a parameter is split over the mesh.

    Args:
      name: its path in PyTorch, from `memattn_jax.checkpoints.names.leaves`.
      shape: its shape in JAX, [in, out] for linear maps and [h, w, in, out] for convolutions.
      mesh: has an axis `model`.

    Returns:
      One entry for each axis of `shape`; replicated where no rule matches or the axis does not divide.
    """
    rule = next((spec for pattern, spec in PARTITION_RULES if re.search(pattern, name)), Spec())
    aligned = (*[None] * (len(shape) - len(rule)), *rule)
    return Spec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(aligned, shape, strict=True))
    )


def make_mesh(text: str | None, devices: list[jax.Device] | None = None) -> Mesh | None:
    """A mesh of this process' devices.

    Args:
      text: sizes of the axes, such as "data=4,model=2"; an omitted axis has size 1. None uses all devices for `data`.
      devices: default: all devices of this process.

    Returns:
      The mesh, of as many devices as `text` names; None for a single device where `text` is None.

    Raises:
      InputError: unknown axes, sizes below 1, or more devices than there are.
    """
    devices = jax.local_devices() if devices is None else devices
    if text is None:
        sizes = {"data": len(devices), "model": 1}
        if len(devices) == 1:
            return None
    else:
        sizes = mesh_sizes(text)
    needed = sizes["data"] * sizes["model"]
    if needed > len(devices):
        hint = ""
        if devices[0].platform == "cpu":
            hint = f"; XLA_FLAGS=--xla_force_host_platform_device_count={needed} makes that many on a CPU"
        raise InputError(f"--mesh {text}: needs {counted(needed, 'device')}, but there are {len(devices)}{hint}")
    # Auto: with Explicit axes, which make_mesh defaults to, each convolution would have to name its output's sharding
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * 2, devices=devices[:needed])


def rows_multiple(count: int, mesh: Mesh | None) -> int:
    """`count` rounded up to a multiple of the devices of `data`."""
    size = 1 if mesh is None else mesh.shape["data"]
    return -(-count // size) * size


def take_rows(tree: Tree, count: int, rows: np.ndarray) -> Tree:
    """Selects rows of every array whose leading axis has one entry per row; other arrays are unchanged.

    Args:
      tree: any pytree, such as a mitigation with a strength for each row.
      count: number of rows of the tree.
      rows: int [rows], the rows to select.
    """
    return jax.tree.map(lambda leaf: leaf[rows] if np.shape(leaf)[:1] == (count,) else leaf, tree)


def spread(tree: Tree, mesh: Mesh | None) -> Tree:
    """Splits arrays with one row per prompt over `data`.

    Scalars, and rows that do not divide, such as the single one of the empty prompt, are replicated.
    """
    if mesh is None:
        return tree

    def place(array: jax.Array | np.ndarray) -> jax.Array:
        divides = np.ndim(array) and array.shape[0] % mesh.shape["data"] == 0
        return jax.device_put(array, NamedSharding(mesh, Spec("data") if divides else Spec()))

    return jax.tree.map(place, tree)


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """Replicates arrays that all rows share; arrays that are on the mesh already are unchanged."""
    if mesh is None:
        return tree

    def place(array: Any) -> jax.Array:
        placed = isinstance(getattr(array, "sharding", None), NamedSharding) and array.sharding.mesh == mesh
        return array if placed else jax.device_put(array, NamedSharding(mesh, Spec()))

    return jax.tree.map(place, tree)
