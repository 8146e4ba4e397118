"""SSCD as PyTorch computes it, from every file that people hold."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from safetensors.torch import save_file
from torch_sscd import ClassyModel, Model, tiny

from memattn_jax.checkpoints.pickle_file import load_pickle
from memattn_jax.copies.embedding import embed
from memattn_jax.copies.references import embed_files
from memattn_jax.copies.sscd.descriptor import load_sscd
from memattn_jax.copies.sscd.loading import load_network
from memattn_jax.copies.sscd.presets import Preset
from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import decode

SMALL = Preset("small", (64, 48))  # as large as the pictures
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), np.uint8)
ON_DISK = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch prefers torch.export


@pytest.fixture(scope="module", params=[1, 4], ids=["resnet", "resnext"])
def torch_model(request) -> Model:
    return tiny(request.param)


def expected(model: torch.nn.Module) -> np.ndarray:
    """What the descriptor of preset SMALL is to give."""
    values = (PICTURES / np.float32(255) - np.float32(SMALL.mean)) / np.float32(SMALL.std)
    with torch.no_grad():
        return model(torch.from_numpy(values).permute(0, 3, 1, 2)).numpy()


def nested(model: Model) -> dict:
    """A checkpoint of ClassyVision: trunk and head apart, a few levels down."""
    state = ClassyModel(model, wrapped=True).state_dict()
    trunk = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    head = {"fc.weight": model.backbone.fc.weight, "fc.bias": model.backbone.fc.bias}
    inner = {"trunk": trunk, "heads": {"block1-0": {"default_head": head}}}
    return {"classy_state_dict": {"base_model": {"model": inner}, "losses": [0.5]}, "phase_idx": 3}


def export(model: torch.nn.Module, path: str, **settings) -> None:
    """By the exporter that most files come from, and that needs no more packages."""
    pictures = torch.zeros(1, 3, 64, 48)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch prefers torch.export
        torch.onnx.export(model, pictures, path, dynamo=False, **settings)


FILES = {
    "torchvision": lambda model, path: torch.save(model.state_dict(), path),
    "backbone": lambda model, path: torch.save(model.backbone.state_dict(), path),
    "classy": lambda model, path: torch.save(ClassyModel(model).state_dict(), path),
    "nested": lambda model, path: torch.save(nested(model), path),
    "safetensors": lambda model, path: save_file(model.state_dict(), path),
    "scripted": lambda model, path: torch.jit.script(model).save(path),
    "scripted-classy": lambda model, path: torch.jit.script(ClassyModel(model)).save(path),
    "traced": lambda model, path: torch.jit.trace(model, torch.zeros(1, 3, 64, 48)).save(path),
    "frozen": lambda model, path: torch.jit.freeze(torch.jit.script(model)).save(path),
    "frozen-classy": lambda model, path: torch.jit.freeze(torch.jit.script(ClassyModel(model))).save(path),
    "onnx": lambda model, path: export(model, path),
    "onnx-classy-norms": lambda model, path: export(
        ClassyModel(model), path, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE
    ),
    "frozen-norms": lambda m, path: torch.jit.freeze(torch.jit.script(m), optimize_numerics=False).save(path),
}


@pytest.fixture(scope="module")
def plain(torch_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sscd") / "tiny.torchvision.pt"
    torch.save(torch_model.state_dict(), path)
    return path


def test_the_vectors_are_those_of_pytorch(torch_model, plain):
    found = embed(load_sscd(plain, SMALL), PICTURES, batch=2)
    assert found.measure == ("tiny", "small")
    np.testing.assert_allclose(found.vectors, expected(torch_model), atol=1e-5)
    np.testing.assert_allclose(found.vectors, expected(ClassyModel(torch_model)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


def test_files_have_the_vectors_of_arrays(plain, tmp_path):
    """Each of another size, prepared on the host."""
    preset = Preset("cropped", 70, 48)
    paths = []
    for number, size in enumerate([(64, 48), (50, 90), (200, 80)]):
        picture = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture).save(paths[-1])
    found = embed_files(paths, load_sscd(plain, preset), tmp_path / "index")
    for path, vector in zip(paths, found.embeddings().vectors, strict=True):
        array = np.asarray(decode(path.read_bytes()))
        np.testing.assert_allclose(vector, embed(load_sscd(plain, preset), array[None]).vectors[0], atol=1e-6)
    assert load_sscd(plain, "nemo").fingerprint != load_sscd(plain, "dcr").fingerprint


@ON_DISK
@pytest.mark.parametrize("kind", FILES)
def test_every_file_holds_the_same_network(torch_model, plain, tmp_path, kind):
    path = str(tmp_path / "x.pt")
    FILES[kind](torch_model, path)
    graph, weights = nnx.split(load_network(path))
    wanted_graph, wanted = nnx.split(load_network(plain))
    assert graph == wanted_graph
    for name, value in nnx.to_flat_state(wanted):
        np.testing.assert_allclose(dict(nnx.to_flat_state(weights))[name][...], value[...], atol=1e-5, err_msg=name)


def without(state: dict, ending: str) -> dict:
    return {name: value for name, value in state.items() if not name.endswith(ending)}


REFUSED = {
    r"layer1\.0\.conv3\.weight": lambda m, path: torch.save(without(m.state_dict(), "conv3.weight"), path),
    r"fc\.weight": lambda m, path: torch.save(without(m.state_dict(), "fc.weight"), path),
    r"layer2\.0\.bn2\.running_var": lambda m, path: torch.save(
        without(m.state_dict(), "layer2.0.bn2.running_var"), path
    ),
    r"layer1\.1\.conv2": lambda m, path: torch.save(without(m.state_dict(), "layer1.1.conv2.weight"), path),
    "two networks": lambda m, path: torch.save({"model": m.state_dict(), "ema": m.state_dict()}, path),
    "stored as int8": lambda m, path: torch.save({k: v.to(torch.int8) for k, v in m.state_dict().items()}, path),
    "other shapes": lambda m, path: torch.jit.freeze(torch.jit.script(m.backbone.fc)).save(path),
    "torch.save": lambda m, path: Path(path).write_bytes(b"PK\x03\x04" + bytes(100)),
    "safetensors": lambda m, path: Path(path).write_bytes(b"\x08\x07onnx" + bytes(100)),
    "ONNX": lambda m, path: export(torch.nn.Conv2d(3, 4, 3), path),
}


@ON_DISK
@pytest.mark.parametrize("what", REFUSED)
def test_other_files_are_refused_in_one_line(tmp_path, what):
    path = str(tmp_path / "x.pt")
    REFUSED[what](tiny(), path)
    with pytest.raises(InputError, match=what) as error:
        load_network(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


@ON_DISK
def test_a_program_of_torchscript_is_no_state_dict(tmp_path):
    torch.jit.script(tiny()).save(str(tmp_path / "x.pt"))
    with pytest.raises(InputError, match="TorchScript"):
        load_pickle(tmp_path / "x.pt")


def test_unknown_presets_are_named(plain):
    with pytest.raises(InputError, match="'oficial'; did you mean 'official'"):
        load_sscd(plain, "oficial")
