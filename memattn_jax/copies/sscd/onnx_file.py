"""SSCD from ONNX: exported by PyTorch, batch norms folded or not, in floats or quantized.

Names and the order of nodes differ between exporters, so a layer is known by its place: the walk begins at the linear
map, passes the pooling, and goes from one residual addition to the one before. What the file does to pictures before
the first convolution, and to vectors after the linear map, is the preset's and the network's work here.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.copies.sscd.network import EPSILON
from memattn_jax.copies.sscd.onnx_dynamic import without_dynamic
from memattn_jax.copies.sscd.onnx_graph import Graph, attribute, dequantized, read_graph
from memattn_jax.errors import InputError
from memattn_jax.text import printable

CONVOLUTION = ("Conv", "QLinearConv")
LINEAR = ("Gemm", "MatMul", "QGemm", "QLinearMatMul")
ADDITION = ("Add", "QLinearAdd")
POOLING = ("Pow", "ReduceMean", "AveragePool", "GlobalAveragePool", "QLinearGlobalAveragePool", "QLinearAveragePool")
SHAPING = ("Reshape", "Flatten", "Squeeze", "Clip", "Max")
BETWEEN = ("Relu", "MaxPool", "QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Dropout")
FIRST = 7  # pixels along each edge of the first convolution
EXPONENTS = (1 / 3, 3.0)  # of the pooling, from its end


class Layer(NamedTuple):
    """A convolution: its node and its tensors, by their names within a layer and its batch norm."""

    node: Any
    kernel: np.ndarray
    bias: np.ndarray | None
    norm: dict[str, np.ndarray]


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """The network's tensors by torchvision's names.

    Raises:
      InputError: a damaged file, another network, or the package onnx is not installed.
    """
    graph = read_graph(path)
    try:
        without_dynamic(graph)
        return tensors_of(graph)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        what = printable(str(error), 60)
        raise InputError(f"{path}: not SSCD as PyTorch exports it to ONNX ({what}); use its .pt file") from None


def tensors_of(graph: Graph) -> dict[str, np.ndarray]:
    """Walks the graph from its end; raises ValueError where it is another network's."""
    head, tensors = linear(graph)
    addition = pooled(graph, head)
    blocks, stem = residual_blocks(graph, addition)
    place(tensors, "conv1", "bn1", stem, FIRST, 2)
    pools = [node for node in graph.nodes if node.op_type == "MaxPool"]
    if [shape_of(node, 3) for node in pools] != [(2, 1)]:
        raise ValueError("no pooling of 3 × 3 after the first convolution")
    stage = block = 0
    for main, short in reversed(blocks):
        stage, block = (stage + 1, 0) if short else (stage, block + 1)
        stride = 2 if short and stage > 1 else 1
        for number, layer in enumerate(reversed(main), 1):
            size, own = (3, stride) if number == 2 else (1, 1)
            place(tensors, f"layer{stage}.{block}.conv{number}", f"layer{stage}.{block}.bn{number}", layer, size, own)
        for layer in short:
            shortcut = f"layer{stage}.{block}.downsample"
            place(tensors, f"{shortcut}.0", f"{shortcut}.1", layer, 1, stride)
    return tensors


def linear(graph: Graph) -> tuple[Any, dict[str, np.ndarray]]:
    """The linear map's node, and its tensors."""
    found = [node for node in graph.nodes if node.op_type in LINEAR]
    if len(found) != 1:
        raise ValueError(f"{len(found)} linear maps in place of 1")
    node = found[0]
    if node.op_type in ("QGemm", "QLinearMatMul"):
        parts = [graph.constant(name) for name in node.input]
        weight = dequantized(known(parts[3], node), parts[4], parts[5], axis=0 if attribute(node, "transB", 0) else 1)
        bias = None
        if node.op_type == "QGemm" and len(node.input) > 6 and node.input[6]:
            bias = dequantized(known(parts[6], node), known(parts[1], node) * known(parts[4], node))
    else:
        weight = known(graph.constant(node.input[1]), node) * np.float32(attribute(node, "alpha", 1.0))
        bias = None
        if len(node.input) > 2:
            bias = known(graph.constant(node.input[2]), node) * np.float32(attribute(node, "beta", 1.0))
    if not attribute(node, "transB", 0):
        weight = weight.T
    if bias is None:
        bias = added_later(graph, node)
    return node, {"fc.weight": floats(weight), "fc.bias": floats(bias.reshape(-1))}


def added_later(graph: Graph, node: Any) -> np.ndarray:
    """The constant that is added to a node's output."""
    while (readers := graph.readers.get(node.output[0], [])) and readers[0].op_type in BETWEEN:
        node = readers[0]
    for reader in readers:
        if reader.op_type in ADDITION:
            if reader.op_type == "QLinearAdd":
                values = [graph.constant(name) for name in reader.input]
                for first in (0, 3):
                    if (stored := values[first]) is not None:
                        return dequantized(stored, *values[first + 1 : first + 3])
            for name in reader.input:
                if (constant := graph.constant(name)) is not None:
                    return constant
    raise ValueError("a linear map without a bias")


def pooled(graph: Graph, head: Any) -> Any:
    """The last residual addition, behind generalised mean pooling with a power of 3."""
    node, exponents = graph.producers[head.input[0]], []
    while node.op_type not in ADDITION:
        if node.op_type not in (*POOLING, *SHAPING, *BETWEEN):
            raise ValueError(f"{node.op_type} in the pooling")
        if node.op_type == "Pow":
            exponents.append(float(known(graph.constant(node.input[1]), node).reshape(())))
        node = graph.producers[node.input[0]]
    if not np.allclose(exponents, EXPONENTS[: len(exponents)], atol=1e-6) or len(exponents) != len(EXPONENTS):
        raise ValueError(f"pooling with powers {exponents} in place of {EXPONENTS[1]} and its root")
    return node


def residual_blocks(graph: Graph, addition: Any) -> tuple[list[tuple[list[Layer], list[Layer]]], Layer]:
    """Each block's three convolutions and its shortcut's, all from the end, and the first convolution of all."""
    blocks = []
    while True:
        inputs = addition.input[:1], addition.input[3:4] if addition.op_type == "QLinearAdd" else addition.input[1:]
        (one, before), (other, same) = (back(graph, name[0]) for name in inputs)
        main, short = sorted((one, other), key=len, reverse=True)
        if before is not same:
            raise ValueError("an addition of values from two places")
        if before is None:  # nothing but the first convolution is left
            stem = main.pop()
            if not short or short.pop().node is not stem.node:
                raise ValueError("two first convolutions")
        if len(main) != 3 or len(short) > 1 or (before is None and not short):
            raise ValueError(f"a block of {len(main)} and {len(short)} convolutions")
        blocks.append((main, short))
        if before is None:
            return blocks, stem
        addition = before


def back(graph: Graph, value: str) -> tuple[list[Layer], Any]:
    """The convolutions on the way back to an addition, and that; None where there are no more."""
    layers: list[Layer] = []
    norm: dict[str, np.ndarray] = {}
    while (node := graph.producers.get(value)) is not None:
        if node.op_type in ADDITION:
            return layers, node
        if node.op_type in CONVOLUTION:
            layers.append(convolution(graph, node, norm))
            norm = {}
        elif node.op_type == "BatchNormalization":
            norm = batch_norm(graph, node)
        elif node.op_type not in BETWEEN:
            if not layers or layers[-1].kernel.shape[2] != FIRST:
                raise ValueError(f"{node.op_type} between convolutions")
            break  # what is done to pictures
        value = node.input[0]
    return layers, None


def convolution(graph: Graph, node: Any, norm: dict[str, np.ndarray]) -> Layer:
    """A convolution with its tensors in floats; quantized biases have the product of the scales before them."""
    parts = [graph.constant(name) for name in node.input]
    if node.op_type == "Conv":
        return Layer(
            node, floats(known(parts[1], node)), None if len(parts) < 3 else floats(known(parts[2], node)), norm
        )
    kernel = dequantized(known(parts[3], node), parts[4], parts[5])
    if len(parts) < 9:
        return Layer(node, kernel, None, norm)
    return Layer(node, kernel, dequantized(known(parts[8], node), known(parts[1], node) * known(parts[4], node)), norm)


def batch_norm(graph: Graph, node: Any) -> dict[str, np.ndarray]:
    """The four vectors, the variance such that an epsilon of `EPSILON` is right."""
    weight, bias, mean, variance = (floats(known(graph.constant(name), node)) for name in node.input[1:5])
    variance = variance + np.float32(attribute(node, "epsilon", 1e-5) - EPSILON)
    return {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}


def place(tensors: dict[str, np.ndarray], name: str, norm: str, layer: Layer, size: int, stride: int) -> None:
    """Adds a layer's tensors; raises ValueError where it is not computed as that layer is."""
    if layer.kernel.shape[2:] != (size, size) or shape_of(layer.node, size) != (stride, size // 2):
        raise ValueError(f"{name}: not a convolution of {size} × {size} with stride {stride}")
    tensors[f"{name}.weight"] = layer.kernel
    if layer.bias is not None:
        tensors[f"{name}.bias"] = layer.bias
    elif not layer.norm:
        tensors[f"{name}.bias"] = np.zeros(len(layer.kernel), np.float32)
    tensors.update({f"{norm}.{leaf}": vector for leaf, vector in layer.norm.items()})


def shape_of(node: Any, size: int) -> tuple[int, int] | None:
    """Stride and padding of a square window; None for one with different ones, or dilated."""
    strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0] * 4)
    plain = attribute(node, "kernel_shape", [size] * 2) == [size] * 2 and attribute(node, "dilations", [1, 1]) == [1, 1]
    same = len(set(strides)) == len(set(pads)) == 1 and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    return (strides[0], pads[0]) if plain and same else None


def known(constant: np.ndarray | None, node: Any) -> np.ndarray:
    """The array; raises ValueError where there is none."""
    if constant is None:
        raise ValueError(f"weights of a {node.op_type} that depend on the input")
    return constant


def floats(x: np.ndarray) -> np.ndarray:
    """As float32; raises ValueError for whole numbers, which lack their scale."""
    if x.dtype.kind in "iub":
        raise ValueError(f"weights stored as {x.dtype} without a scale")
    return np.ascontiguousarray(x, np.float32)
