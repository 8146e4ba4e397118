"""A diffusers folder of Stable Diffusion 1.x or 2.x: finding its parts, reading and writing them.

model_index.json
unet/  vae/  text_encoder/     config.json and weights as safetensors, one file or shards with an index
tokenizer/  scheduler/
"""

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, NamedSharding
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memattn_jax.checkpoints.folder import read_json
from memattn_jax.checkpoints.names import Leaf, leaves, modern_name
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.abstract import abstract
from memattn_jax.models.attention import keep_rows_together
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, Config, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.registries import DTYPES
from memattn_jax.sharding.placement import partition_spec
from memattn_jax.text import counted

READERS = 2  # threads
READ_AT_ONCE = 2**23  # numbers; then the file is reopened, or its pages would stay in memory beside the parameters
STORED_DTYPES = ("F64", "F32", "F16", "BF16")  # in the notation of safetensors
PARTS: dict[str, tuple[type[Config], Callable[..., nnx.Module], str]] = {
    "unet": (UNetConfig, UNet2DConditionModel, "diffusion_pytorch_model"),
    "vae": (VAEConfig, AutoencoderKL, "diffusion_pytorch_model"),
    "text_encoder": (CLIPTextConfig, CLIPTextModel, "model"),
}


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one part: a single file, shards named by an index, or the fp16 variant of either."""
    for variant in ("", ".fp16"):
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            if not shards:
                raise InputError(f"{index}: lists no shards")
            return [folder / name for name in shards]
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
    hint = ""
    if any(folder.glob("*.bin")):
        hint = "; its .bin files are pickles: save the model with safe_serialization=True"
    raise InputError(f"{folder}: lacks {stem}.safetensors{hint}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def part_of(file: Any, name: str, index: Any) -> np.ndarray:
    """Reads a part of one tensor of an open safetensors file."""
    return file.get_slice(name)[index]


def stored_tensors(files: list[Path]) -> Iterator[Stored]:
    """All tensors of these files; raises InputError if a file is missing or damaged."""
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 -- the file is no mapping
                    part = file.get_slice(name)
                    yield Stored(path, name, tuple(part.get_shape()), part.get_dtype())
        except FileNotFoundError:
            raise InputError(f"{path}: missing, although the index lists it") from None
        except SafetensorError as error:
            raise InputError(f"{path}: not a complete safetensors file ({error})") from None


def read(leaf: Leaf, stored: Callable[[Any], np.ndarray], dtype: str, mesh: Mesh | None) -> Array:
    """Reads one parameter in our layout and dtype; on a mesh, split by its partition rule.

    On a mesh, each slice that a device of this process needs is read once, and no device holds more than its own.
    """
    if mesh is None:
        return jnp.asarray(leaf.from_torch(stored(...)), dtype)
    slices: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = str(index)  # slices have no hash before Python 3.12
        if key not in slices:
            in_torch = tuple(index[axis] for axis in leaf.axes)
            slices[key] = leaf.from_torch(stored(in_torch)).astype(jnp.dtype(dtype))
        return slices[key]

    shape = leaf.param.shape
    return jax.make_array_from_callback(shape, NamedSharding(mesh, partition_spec(leaf.name, shape, mesh)), part)


def fill(module: nnx.Module, files: list[Path], dtype: str, mesh: Mesh | None = None) -> None:
    """Fills an abstract module from safetensors, a few tensors at a time; see `read`.

    Raises:
      InputError: tensors are missing, unexpected or misshapen (all of them are listed), or a file is damaged.
    """
    wanted = {leaf.name: leaf for leaf in leaves(module)}
    problems, missing, found = [], set(wanted), []
    for stored in stored_tensors(files):
        name = modern_name(stored.name)
        if name is None:
            continue
        missing.discard(name)
        leaf = wanted.get(name)
        if leaf is None:
            problems.append(f"unexpected {stored.name} {list(stored.shape)}")
        elif stored.shape != leaf.torch_shape:
            problems.append(f"misshapen {stored.name} {list(stored.shape)}, not {list(leaf.torch_shape)}")
        elif stored.dtype not in STORED_DTYPES:
            supported = ", ".join(STORED_DTYPES)
            problems.append(f"{stored.name} is stored as {stored.dtype}; {supported} are supported")
        else:
            found.append((leaf, stored))
    problems += [f"missing {name} {list(wanted[name].torch_shape)}" for name in sorted(missing)]
    if problems:
        raise InputError(
            f"{files[0].parent}: {counted(len(problems), 'tensor')} at odds with the config: {'; '.join(problems)}"
        )

    def load(pairs: list[tuple[Leaf, Stored]]) -> None:
        with safe_open(pairs[0][1].path, framework="numpy") as file:
            for leaf, stored in pairs:
                value = read(leaf, partial(part_of, file, stored.name), dtype, mesh)
                setattr(leaf.owner, leaf.attribute, nnx.Param(value))

    sizes = np.cumsum([math.prod(stored.shape) for _, stored in found]) // READ_AT_ONCE
    parts = groupby(zip(found, sizes, strict=True), key=lambda item: (item[0][1].path, item[1]))
    with ThreadPoolExecutor(
        READERS
    ) as readers:  # most of the time goes into copying, which releases the interpreter lock
        for _ in readers.map(load, [[pair for pair, _ in part] for _, part in parts]):
            pass


def load_part(folder: Path, part: str, dtype: str, mesh: Mesh | None = None) -> Any:
    """One of the networks, its weights converted to `dtype`.

    Args:
      folder: the diffusers folder.
      part: "unet", "vae" or "text_encoder".
      dtype: "float32", "bfloat16" or "float16".
      mesh: devices to split the weights over, see `memattn_jax.sharding`.

    Raises:
      InputError: an unsupported config or dtype, or weights that do not fit.
    """
    check_name("dtype", dtype, DTYPES)
    config_class, model_class, stem = PARTS[part]
    path = folder / part / "config.json"
    stored = read_json(path)
    try:
        module = abstract(model_class, config_class.from_json(stored, where=str(path)))
    except InputError:
        raise
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # such as a list too short, or a null
        raise InputError(f"{path}: cannot build a model from this config ({str(error).splitlines()[0]})") from None
    fill(module, weight_files(folder / part, stem), dtype, mesh)
    if mesh is not None:
        keep_rows_together(module)
    return module


def save_part(module: UNet2DConditionModel | AutoencoderKL | CLIPTextModel, folder: Path, part: str) -> None:
    """Writes one network so that PyTorch's `from_pretrained` reads the same bits."""
    _, _, stem = PARTS[part]
    (folder / part).mkdir(parents=True, exist_ok=True)
    config = module.config.to_json()
    (folder / part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {leaf.name: leaf.to_torch(jax.device_get(leaf.param[...])) for leaf in leaves(module)}
    partial_file = folder / part / f"{stem}.partial"
    save_file(tensors, partial_file, metadata={"format": "pt"})
    for old in (folder / part).glob(f"{stem}*.safetensors*"):  # shards of another save would be read instead
        old.unlink()
    partial_file.rename(folder / part / f"{stem}.safetensors")
