"""Fills a network with stored tensors."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, NamedSharding
from jax.sharding import Mesh, Sharding

from memattn_jax.checkpoints.checkpoint import Change, Part
from memattn_jax.checkpoints.mapped import forget
from memattn_jax.checkpoints.names import Leaf, leaves, modern_name
from memattn_jax.checkpoints.orbax_part import restore_orbax
from memattn_jax.checkpoints.relayout import channels_last
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.abstract import abstract
from memattn_jax.models.attention import spread_attention
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.config import Config
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.registries import DTYPES
from memattn_jax.sharding.placement import partition_spec
from memattn_jax.text import counted

CONVERTED_HERE = 2**20  # numbers of a tensor; for each shape JAX would compile a program, which takes longer
READERS = 2  # threads
STORED_DTYPES = ("float64", "float32", "float16", "bfloat16")
MODELS: dict[type[Config], Callable[..., nnx.Module]] = {
    UNetConfig: UNet2DConditionModel,
    VAEConfig: AutoencoderKL,
    CLIPTextConfig: CLIPTextModel,
}


def part_of(leaf: Leaf, stored: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    """A part of a parameter, in our layout; `index` too. Nothing else of the stored tensor is read."""
    return leaf.from_torch(stored[tuple(index[axis] for axis in leaf.axes)])


def read(leaf: Leaf, stored: np.ndarray, dtype: str, mesh: Mesh | None) -> Array:
    """Reads one parameter in our layout and dtype; on a mesh, split by its partition rule.

    On a mesh, each slice that a device of this process needs is read once, and no device holds more than its own.
    """
    if mesh is None:
        view = part_of(leaf, stored, (slice(None),) * stored.ndim)
        if view.size <= CONVERTED_HERE:
            with np.errstate(over="ignore", invalid="ignore"):
                view = view.astype(jnp.dtype(dtype), copy=False)
        elif view.ndim == 4 and view.shape[:2] != (1, 1):
            return jnp.asarray(jax.device_put(channels_last(view), may_alias=True), dtype)
        return jnp.asarray(jax.device_put(view, may_alias=False), dtype)  # transposed by JAX, as quickly as it copies
    slices: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = str(index)  # slices have no hash before Python 3.12
        if key not in slices:
            slices[key] = part_of(leaf, stored, index).astype(jnp.dtype(dtype))
        return slices[key]

    shape = leaf.param.shape
    return jax.make_array_from_callback(shape, NamedSharding(mesh, partition_spec(leaf.name, shape, mesh)), part)


def match(wanted: Mapping[str, Leaf], tensors: Mapping[str, np.ndarray], where: str) -> list[tuple[Leaf, np.ndarray]]:
    """The stored tensor of each parameter; raises InputError, see `build`."""
    problems, missing, found = [], set(wanted), []
    for stored_name, stored in tensors.items():
        name = modern_name(stored_name)
        if name is None:
            continue
        missing.discard(name)
        leaf = wanted.get(name)
        if leaf is None:
            problems.append(f"unexpected {stored_name} {list(stored.shape)}")
        elif stored.shape != leaf.torch_shape:
            problems.append(f"misshapen {stored_name} {list(stored.shape)}, not {list(leaf.torch_shape)}")
        elif stored.dtype.name not in STORED_DTYPES:
            problems.append(f"{stored_name} is stored as {stored.dtype}; {', '.join(STORED_DTYPES)} are supported")
        else:
            found.append((leaf, stored))
    problems += [f"missing {name} {list(wanted[name].torch_shape)}" for name in sorted(missing)]
    if problems:
        raise InputError(f"{where}: {counted(len(problems), 'tensor')} at odds with the config: {'; '.join(problems)}")
    return found


def load(leaf: Leaf, stored: np.ndarray, change: Change | None, dtype: str, mesh: Mesh | None) -> None:
    """Puts a stored tensor, or what `change` makes of it, in a parameter's place."""
    changed = stored if change is None else change(leaf.name, stored)
    setattr(leaf.owner, leaf.attribute, nnx.Param(read(leaf, changed, dtype, mesh)))
    forget(stored)


def blank(part: Part) -> Any:
    """The network of a part without weights; raises InputError for a config that none can be built of."""
    try:
        return abstract(MODELS[type(part.config)], part.config)
    except InputError:
        raise
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # such as a list too short, or a null
        reason = str(error).splitlines()[0]
        raise InputError(f"{part.where}: cannot build a model from this config ({reason})") from None


def restore(network: nnx.Module, folder: Path, dtype: str, mesh: Mesh | None) -> None:
    """Restores a network from Orbax straight to its devices; raises InputError, see `restore_orbax`."""
    found = {leaf.name: leaf for leaf in leaves(network)}

    def place(leaf: Leaf) -> Sharding:
        if mesh is None:
            return jnp.zeros(()).sharding
        return NamedSharding(mesh, partition_spec(leaf.name, leaf.param.shape, mesh))

    wanted = {name: jax.ShapeDtypeStruct(leaf.param.shape, dtype, sharding=place(leaf)) for name, leaf in found.items()}
    for name, array in restore_orbax(folder, wanted).items():
        setattr(found[name].owner, found[name].attribute, nnx.Param(array))


def build(parts: Mapping[str, Part], dtype: str, mesh: Mesh | None = None) -> dict[str, Any]:
    """Networks of a checkpoint, their weights converted to `dtype`.

    Args:
      parts: what to load, by name.
      dtype: "float32", "bfloat16" or "float16".
      mesh: devices to split the weights over, see `memattn_jax.sharding`.

    Raises:
      InputError: a dtype or config that is not supported; or tensors that are missing, unexpected or misshapen, of
        which those of all parts are listed.
    """
    check_name("dtype", dtype, DTYPES)
    networks, problems = {}, []
    with ThreadPoolExecutor(READERS) as readers:  # copying releases the interpreter lock
        pending: list[Future[None]] = []
        for name, part in parts.items():
            try:
                networks[name] = blank(part)
                if part.orbax is not None:
                    restore(networks[name], part.orbax, dtype, mesh)
                    continue
                found = match({leaf.name: leaf for leaf in leaves(networks[name])}, part.tensors(), part.where)
            except InputError as error:
                problems.append(str(error))
                continue
            pending += [readers.submit(load, leaf, stored, part.change, dtype, mesh) for leaf, stored in found]
        if problems:
            readers.shutdown(cancel_futures=True)
            raise InputError("; ".join(dict.fromkeys(problems)))
        for copied in pending:
            copied.result()
    if mesh is not None:
        for network in networks.values():
            spread_attention(network, mesh)
    return networks
