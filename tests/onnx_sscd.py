"""A small SSCD as ONNX, written node by node: in floats, with batch norms, or quantized in either form."""

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

BLOCKS = ("layer1.0", "layer1.1", "layer2.0")
LAYERS = (
    "conv1",
    *(f"{block}.conv{i}" for block in BLOCKS for i in (1, 2, 3)),
    *("layer1.0.downsample.0", "layer2.0.downsample.0"),
)
STEP = np.float32(0.02)  # of every quantized activation


def random_tensors() -> dict[str, np.ndarray]:
    """By torchvision's names, with batch norms."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (8, 3, 7, 7), "layer1.0.downsample.0": (16, 8, 1, 1), "layer2.0.downsample.0": (32, 16, 1, 1)}
    for block, (inputs, width, outputs) in zip(BLOCKS, [(8, 8, 16), (16, 8, 16), (16, 16, 32)], strict=True):
        shapes[f"{block}.conv1"] = (width, inputs, 1, 1)
        shapes[f"{block}.conv2"] = (width, width, 3, 3)
        shapes[f"{block}.conv3"] = (outputs, width, 1, 1)
    tensors = {"fc.weight": rng.standard_normal((12, 32)), "fc.bias": rng.standard_normal(12)}
    for name in LAYERS:
        shape = shapes[name]
        tensors[f"{name}.weight"] = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        norm = norm_of(name)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{leaf}"] = rng.uniform(0.5, 1.5, shape[0])
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def norm_of(name: str) -> str:
    return name[:-1] + "1" if name.endswith("downsample.0") else name.replace("conv", "bn")


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 with a scale for each output channel, float32."""
    scale = np.abs(x).reshape(len(x), -1).max(axis=1) / 127
    return np.round(x / scale.reshape([-1] + [1] * (x.ndim - 1))).astype(np.int8), scale.astype(np.float32)


class Writer:
    """Nodes and constants; `kind` is "floats", "norms", "weights" or "activations" (QDQ), "operators", "dynamic"."""

    def __init__(self, tensors: Mapping[str, np.ndarray], kind: str, power: float = 3.0, early: bool = False):
        self.tensors, self.kind, self.power, self.early = tensors, kind, power, early
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}
        self.kept: dict[str, np.ndarray] = {}  # what the file's weights come to

    def add(self, operator: str, *inputs: str | np.ndarray | float, **attributes) -> str:
        names = []
        for value in inputs:
            names.append(value if isinstance(value, str) else f"c{len(self.constants)}")
            if not isinstance(value, str):
                self.constants[names[-1]] = np.asarray(value)
        output = f"v{len(self.nodes)}"
        domain = "com.microsoft" if operator == "QLinearAdd" else ""
        self.nodes.append(helper.make_node(operator, names, [output], domain=domain, **attributes))
        return output

    def activation(self, x: str) -> str:
        """A value that quantization has rounded; zero points of operators lie in the middle of the range."""
        if self.kind != "activations":
            return x
        rounded = self.add("QuantizeLinear", x, STEP, np.uint8(0))
        return self.add("DequantizeLinear", rounded, STEP, np.uint8(0))

    def convolution(self, x: str, name: str, stride: int = 1) -> str:
        kernel, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        size = kernel.shape[2]
        window = {"strides": [stride] * 2, "pads": [size // 2] * 4, "kernel_shape": [size] * 2}
        if self.kind == "norms":
            x = self.add("Conv", x, kernel, **window)
            leaves = ("weight", "bias", "running_mean", "running_var")
            return self.add("BatchNormalization", x, *(self.tensors[f"{norm_of(name)}.{leaf}"] for leaf in leaves))
        if self.kind == "floats":
            return self.add("Conv", x, kernel, bias, **window)
        stored, scale = quantized(kernel)
        scales = (STEP * scale).astype(np.float32)
        whole = np.round(bias / scales).astype(np.int32)
        self.kept[f"{name}.weight"] = stored * scale[:, None, None, None]
        self.kept[f"{name}.bias"] = whole * scales
        if self.kind == "dynamic":
            self.kept[f"{name}.bias"] = bias
            return self.add("Add", self.integers("Conv", x, stored, scale, **window), bias.reshape(1, -1, 1, 1))
        if self.kind == "operators":
            zeros = np.zeros(len(scale), np.int8)
            given = (x, STEP, np.uint8(128), stored, scale, zeros, STEP, np.uint8(128), whole)
            return self.add("QLinearConv", *given, **window)
        kernel = self.add("DequantizeLinear", stored, scale, np.zeros(len(scale), np.int8), axis=0)
        return self.activation(
            self.add("Conv", x, kernel, self.add("DequantizeLinear", whole, scales, axis=0), **window)
        )

    def integers(self, operator: str, x: str, stored: np.ndarray, scale: np.ndarray, **window) -> str:
        """A product of whole numbers, with scales that depend on the input."""
        self.add("DynamicQuantizeLinear", x)
        names = [f"{self.nodes[-1].output[0]}.{part}" for part in ("x", "scale", "zero")]
        self.nodes[-1].output[:] = names
        scales = self.add("Mul", names[1], scale.reshape(-1, 1, 1) if window else scale)
        found = self.add(f"{operator}Integer", names[0], stored, names[2], np.zeros((), np.int8), **window)
        return self.add("Mul", self.add("Cast", found, to=TensorProto.FLOAT), scales)

    def block(self, x: str, block: str, stride: int) -> str:
        first, second = (stride, 1) if self.early else (1, stride)
        hidden = self.add("Relu", self.convolution(x, f"{block}.conv1", first))
        hidden = self.add("Relu", self.convolution(hidden, f"{block}.conv2", second))
        hidden = self.convolution(hidden, f"{block}.conv3")
        if f"{block}.downsample.0.weight" in self.tensors:
            x = self.convolution(x, f"{block}.downsample.0", stride)
        if self.kind == "operators":
            middle = np.uint8(128)
            return self.add("Relu", self.add("QLinearAdd", x, STEP, middle, hidden, STEP, middle, STEP, middle))
        return self.add("Relu", self.activation(self.add("Add", x, hidden)))

    def model(self) -> ModelProto:
        x = self.add("Relu", self.convolution("image", "conv1", 2))
        x = self.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        for block in BLOCKS:
            x = self.block(x, block, 2 if block == "layer2.0" else 1)
        if self.kind == "operators":
            x = self.add("DequantizeLinear", x, STEP, np.uint8(128))
        x = self.add("Pow", self.add("Clip", x, np.float32(1e-6)), np.float32(self.power))
        x = self.add("Flatten", self.add("GlobalAveragePool", x))
        x = self.add("Pow", x, np.float32(1 / self.power))
        weight, bias = self.tensors["fc.weight"], self.tensors["fc.bias"]
        if self.kind == "norms":  # as others write it
            x = self.add("Add", self.add("MatMul", x, weight.T.copy()), bias)
        elif self.kind == "dynamic":
            stored, scale = quantized(weight)
            weight = stored * scale[:, None]
            x = self.add("Add", self.integers("MatMul", x, stored.T.copy(), scale), bias)
        else:
            x = self.add("Gemm", x, weight, bias, transB=1)
        self.kept |= {"fc.weight": weight, "fc.bias": bias}
        length = self.add("ReduceL2", x, np.array([1]), keepdims=1)
        last = self.add("Div", x, length)
        picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
        vector = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", len(bias)])
        stored = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "main", [picture], [vector], stored)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets)
