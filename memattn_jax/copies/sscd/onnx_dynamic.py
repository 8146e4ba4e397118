"""Dynamic quantization taken out of an ONNX graph: integer convolutions and products become those of floats.

onnxruntime's `quantize_dynamic` makes x ∗ w + b, of a Conv or a MatMul, this:

    q, s, z = DynamicQuantizeLinear(x);  Cast(ConvInteger(q, w, z, zero)) · (s · scale) + Reshape(b)
"""

from typing import Any

from memattn_jax.copies.sscd.onnx_graph import Graph, attribute, dequantized

FLOAT = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def without_dynamic(graph: Graph) -> None:
    """Replaces the nodes; raises ValueError, KeyError or IndexError where they are others."""
    from onnx.helper import make_node

    for number, node in enumerate(graph.nodes):
        if node.op_type not in FLOAT:
            continue
        quantizer = graph.producers[node.input[0]]
        product = reader(graph, reader(graph, node))
        (scales,) = (found for name in product.input if (found := graph.producers[name]).op_type == "Mul")
        (scale,) = (graph.constant(name) for name in scales.input if name not in quantizer.output)
        zero = graph.constant(node.input[3]) if len(node.input) > 3 else None
        stored = graph.constant(node.input[1])
        if stored is None:
            raise ValueError(f"weights of a {node.op_type} that depend on the input")
        convolution = node.op_type == "ConvInteger"
        weight = f"{node.output[0]} weight"
        graph.arrays[weight] = dequantized(stored, scale, zero, axis=0 if convolution else 1)
        inputs, output = [quantizer.input[0], weight], product.output[0]
        addition = reader(graph, product)
        biases = [graph.constant(name) for name in addition.input] if addition.op_type == "Add" else []
        found = [bias for bias in biases if bias is not None]
        if convolution and found:
            inputs.append(f"{node.output[0]} bias")
            graph.arrays[inputs[2]] = found[0].reshape(-1)
            output = addition.output[0]
        names = ("strides", "pads", "kernel_shape", "dilations", "group", "auto_pad")
        given = {name: value for name in names if (value := attribute(node, name)) is not None}
        graph.replace(number, make_node(FLOAT[node.op_type], inputs, [output], **given))


def reader(graph: Graph, node: Any) -> Any:
    """The first node that reads a node's output."""
    return graph.readers[node.output[0]][0]
