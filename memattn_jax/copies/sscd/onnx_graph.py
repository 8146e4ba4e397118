"""An ONNX graph as its constants, dequantized, and the way from each value back to what it is computed from.

Source: the ONNX operator specification, and onnxruntime's contrib operators for what quantization makes of Conv, Gemm
and Add. A graph is data: nothing of it is run.
"""

from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.text import printable

MISSING = 'reading ONNX needs the package onnx: pip install "memattn-jax[onnx]"'
FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42\x4a\x72"  # tags of what may follow the version in a model


def is_onnx(first: bytes) -> bool:
    """Whether a file begins as an ONNX model does: with its version, a small number, and another field."""
    return len(first) > 2 and first[0] == 8 and 0 < first[1] < 0x80 and first[2] in FIELDS


def read_graph(path: Path) -> "Graph":
    """Reads a file, and the files beside it that hold its tensors, if it has any.

    Raises:
      InputError: a damaged file, or the package onnx is not installed.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise InputError(f"{path}: {MISSING}") from None
    try:
        model = onnx.load(path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return Graph(model.graph)
    except Exception as error:  # at damaged bytes, the package raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: a damaged ONNX file ({printable(reason, 80)})") from None


class Graph:
    """Nodes by what they compute, and by what they read.

    Attributes:
      nodes: in an order in which they can be run.
      producers: {value: the node that computes it}.
      readers: {value: the nodes that read it}.
      arrays: constants that were computed, by name.
    """

    def __init__(self, graph: Any):
        """Takes an onnx.GraphProto."""
        self.nodes = list(graph.node)
        self.producers = {value: node for node in self.nodes for value in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.arrays: dict[str, np.ndarray] = {}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}

    def replace(self, number: int, node: Any) -> None:
        """Puts another node in the place of the one with this number, and of those between it and the new output."""
        self.nodes[number] = node
        self.producers[node.output[0]] = node

    def constant(self, value: str) -> np.ndarray | None:
        """The array of a value that does not depend on the graph's input, such as a kernel; None for others.

        Raises:
          ValueError: quantized in blocks.
        """
        from onnx import numpy_helper

        if value in self.arrays:
            return self.arrays[value]
        if value in self._stored:
            return numpy_helper.to_array(self._stored[value])
        node = self.producers.get(value)
        if node is None:
            return None
        if node.op_type == "Constant":
            found = attribute(node, "value", attribute(node, "value_float", attribute(node, "value_floats")))
            return np.asarray(found if isinstance(found, float | list) else numpy_helper.to_array(found))
        if node.op_type not in ("Identity", "Cast", "Transpose", "Reshape", "DequantizeLinear"):
            return None
        stored, *others = (self.constant(name) for name in node.input)
        if stored is None:
            return None
        if node.op_type == "Transpose":
            return stored.transpose(attribute(node, "perm"))
        if node.op_type == "Reshape":
            return None if others[0] is None else stored.reshape(others[0])
        if node.op_type == "DequantizeLinear":
            if attribute(node, "block_size", 0):
                raise ValueError("quantized in blocks")
            return dequantized(stored, *others, axis=attribute(node, "axis", 1))
        return stored


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def dequantized(
    stored: np.ndarray, scale: np.ndarray | None, zero: np.ndarray | None = None, *, axis: int = 0
) -> np.ndarray:
    """(stored − zero) · scale, float32, with scales and zeros of the whole array or of each index along an axis."""

    def along(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float32)
        return x.reshape(()) if x.size == 1 else x.reshape([-1 if i == axis else 1 for i in range(stored.ndim)])

    if scale is None:
        raise ValueError("a scale that depends on the input")
    return (stored.astype(np.float32) - (0 if zero is None else along(zero))) * along(scale)
