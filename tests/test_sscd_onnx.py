"""SSCD from ONNX files, in floats and quantized."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from flax import nnx
from onnx.reference import ReferenceEvaluator
from onnx_sscd import LAYERS, Writer, random_tensors

from memattn_jax.copies.sscd.loading import fold, load_network, read_named
from memattn_jax.errors import InputError

TENSORS = random_tensors()


@pytest.fixture(scope="module")
def folded() -> dict[str, np.ndarray]:
    """Batch norms made part of the convolutions; torchvision's names, but for those of what is downsampled."""
    found = fold(TENSORS)
    names = [*(name.removesuffix(".0") if "downsample" in name else name for name in LAYERS), "fc"]
    wide = {name: f"{name}.0" if name.endswith("downsample") else name for name in names}
    return {f"{wide[name]}.{leaf}": found[f"{name}.{leaf}"] for name in names for leaf in ("weight", "bias")}


def saved(path: Path, writer: Writer) -> str:
    onnx.save(writer.model(), path)
    return str(path)


def test_the_vectors_are_those_of_the_file(folded, tmp_path):
    """In floats, whose vectors are computed by the reference implementation of ONNX."""
    path = saved(tmp_path / "x.onnx", Writer(folded, "floats"))
    pictures = np.random.default_rng(1).standard_normal((2, 3, 24, 40)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(path).run(None, {"image": pictures})
    found = nnx.jit(load_network(path))(pictures.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_batch_norms_are_read_with_their_epsilon(tmp_path):
    writer = Writer(TENSORS, "norms")
    model = writer.model()
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("epsilon", 1e-3))
    onnx.save(model, tmp_path / "x.onnx")
    found = read_named(tmp_path / "x.onnx")
    for name, value in TENSORS.items():
        given = value + np.float32(1e-3 - 1e-5) if name.endswith("running_var") else value
        np.testing.assert_allclose(found[name], given, rtol=1e-6, err_msg=name)
    assert found.keys() == TENSORS.keys()


@pytest.mark.parametrize("kind", ["weights", "activations", "operators", "dynamic"])
def test_quantized_weights_are_dequantized(folded, tmp_path, kind):
    writer = Writer(folded, kind)
    found = read_named(Path(saved(tmp_path / "x.onnx", writer)))
    assert found.keys() == writer.kept.keys() == folded.keys()
    for name, value in writer.kept.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(found[name], folded[name], atol=0.02 * np.abs(folded[name]).max(), err_msg=name)


def without_pooling(model: onnx.ModelProto) -> None:
    (pool,) = (node for node in model.graph.node if node.op_type == "MaxPool")
    pool.op_type = "Relu"


def with_another_activation(model: onnx.ModelProto) -> None:
    relu = [node for node in model.graph.node if node.op_type == "Relu"][3]
    relu.op_type = "Sigmoid"


def of_whole_numbers(model: onnx.ModelProto) -> None:
    stored = model.graph.initializer[0]
    stored.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored).astype(np.int8), stored.name))


REFUSED = {  # by what differs
    "powers": ({"power": 4.0}, None),
    r"layer2\.0\.conv1": ({"early": True}, None),
    "pooling of 3 × 3": ({}, without_pooling),
    "Sigmoid between": ({}, with_another_activation),
    "int8 without a scale": ({}, of_whole_numbers),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_graphs_are_refused_in_one_line(folded, tmp_path, what):
    settings, change = REFUSED[what]
    model = Writer(folded, "floats", **settings).model()
    if change is not None:
        change(model)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match=what) as error:
        load_network(tmp_path / "x.onnx")
    assert str(tmp_path / "x.onnx") in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files_and_a_missing_package_are_named(folded, tmp_path, monkeypatch):
    path = tmp_path / "x.onnx"
    path.write_bytes(Writer(folded, "floats").model().SerializeToString()[:-400])
    with pytest.raises(InputError, match="damaged ONNX"):
        load_network(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"memattn-jax\[onnx\]"):
        load_network(path)
