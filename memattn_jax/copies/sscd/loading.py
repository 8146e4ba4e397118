"""SSCD from the files that people hold: `.torchvision.pt`, `.classy.pt`, `.torchscript.pt`, safetensors, ONNX."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from memattn_jax.checkpoints.filling import STORED_DTYPES, load
from memattn_jax.checkpoints.mapped import map_file
from memattn_jax.checkpoints.names import leaves
from memattn_jax.checkpoints.pickle_file import is_pickle, load_pickle
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.checkpoints.torchscript import is_program, load_program
from memattn_jax.copies.sscd.frozen import in_order
from memattn_jax.copies.sscd.names import named
from memattn_jax.copies.sscd.network import EPSILON, SSCD, Geometry, Stage
from memattn_jax.copies.sscd.onnx_file import read_onnx
from memattn_jax.copies.sscd.onnx_graph import is_onnx
from memattn_jax.errors import InputError
from memattn_jax.models.abstract import abstract
from memattn_jax.text import printable

DAMAGE = (KeyError, IndexError, ValueError, ArithmeticError)


def load_network(path: Path | str) -> SSCD:
    """The network in a file, float32.

    Args:
      path: a state dict (torchvision's or ClassyVision's names, nested or not, in a pickle or safetensors), a program
        of TorchScript, frozen or not, or an ONNX file, quantized or not. The first bytes say which, not the name. Its
        geometry is that of its tensors.

    Raises:
      FileNotFoundError: no such file.
      InputError: another network, or a file that cannot be read.
    """
    path = Path(path)
    tensors = read_named(path)
    try:
        folded = fold(tensors)
        network = abstract(SSCD, geometry_of(folded))
    except DAMAGE as error:
        raise refusal(path, error) from None
    wanted = {leaf.name: leaf for leaf in leaves(network)}
    for name in sorted(wanted.keys() | folded.keys()):
        if name not in folded:
            raise refusal(path, KeyError(name))
        if name not in wanted or folded[name].shape != wanted[name].torch_shape:
            raise refusal(path, ValueError())
    for name, leaf in wanted.items():
        load(leaf, folded[name], None, "float32", None)
    return network


def read_named(path: Path) -> dict[str, np.ndarray]:
    """A file's tensors by torchvision's names; raises InputError where these are none of a ResNet's, or not floats."""
    try:
        if is_program(path):
            program = load_program(path)
            tensors = named(program.module, str(path)) or in_order(program.constants)
        elif is_onnx(first := map_file(path)[:64].tobytes()):
            tensors = read_onnx(path)
        elif is_pickle(first):
            tensors = named(load_pickle(path), str(path))
        else:
            tensors = named(read_tensors(path).tensors, str(path))
    except InputError:
        raise
    except DAMAGE as error:
        raise refusal(path, error) from None
    for name, tensor in tensors.items():
        if tensor.dtype.name not in STORED_DTYPES:
            raise InputError(f"{path}: {name} is stored as {tensor.dtype}; {', '.join(STORED_DTYPES)} are supported")
    return tensors


def refusal(path: Path, error: Exception) -> InputError:
    """What to raise for an error that the tensors of another network cause."""
    what = (
        f"{error.args[0]} is missing" if type(error) is KeyError else "its tensors have other shapes or another order"
    )
    return InputError(f"{path}: not an SSCD network ({printable(what, 80)}); expected ResNet-50 or ResNeXt-101")


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Makes each batch norm part of the convolution before it: the same map, with a bias and other weights.

    Args:
      tensors: torchvision's names; what was folded before has a bias and no batch norm.

    Returns:
      float32, by the names of our layers: {"layer1.0.conv2.weight", "layer1.0.conv2.bias", …}, "fc" as it was.

    Raises:
      KeyError: a tensor is missing.
    """
    folded = {}
    for name, weight in tensors.items():
        layer, _, leaf = name.rpartition(".")
        first, last = layer[:-1], layer[-1:]
        if leaf != "weight" or weight.ndim != 4:
            continue
        norm = f"{first}1" if first.endswith("downsample.") else f"{first.removesuffix('conv')}bn{last}"
        ours = layer.removesuffix(".0")
        bias = tensors.get(f"{layer}.bias")
        if bias is not None and f"{norm}.weight" not in tensors:
            folded[f"{ours}.weight"], folded[f"{ours}.bias"] = weight, bias
            continue
        scale, shift, mean, variance = (
            tensors[f"{norm}.{key}"].astype(np.float64) for key in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + EPSILON)
        folded[f"{ours}.weight"] = (weight * factor[:, None, None, None]).astype(np.float32)
        folded[f"{ours}.bias"] = (shift + ((0 if bias is None else bias) - mean) * factor).astype(np.float32)
    return folded | {name: tensors[name] for name in ("fc.weight", "fc.bias")}


def geometry_of(folded: Mapping[str, np.ndarray]) -> Geometry:
    """The geometry that the shapes of folded tensors have.

    Raises:
      KeyError: a tensor is missing.
      ValueError, IndexError, ZeroDivisionError: a tensor has a shape that no such network has.
    """
    stages = []
    for number in itertools.count(1):
        blocks = sum(f"layer{number}.{block}.conv1.weight" in folded for block in range(len(folded)))
        if blocks == 0 and number > 1:
            break
        width, channels = (len(folded[f"layer{number}.0.{layer}.weight"]) for layer in ("conv2", "conv3"))
        stages.append(Stage(blocks, width, channels))
    groups = stages[0].width // folded["layer1.0.conv2.weight"].shape[1]
    return Geometry(len(folded["conv1.weight"]), tuple(stages), groups, len(folded["fc.weight"]))
