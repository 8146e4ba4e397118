"""SSCD as PyTorch computes it, from every file that people hold, and preprocessing as Pillow and torchvision do it."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from safetensors.torch import save_file
from torch_sscd import ClassyModel, Model, tiny

from memattn_jax.checkpoints.pickle_file import load_pickle
from memattn_jax.copies.embedding import Embeddings, Measure, embed
from memattn_jax.copies.nearest import nearest
from memattn_jax.copies.resizing import resize
from memattn_jax.copies.sscd.descriptor import load_sscd
from memattn_jax.copies.sscd.loading import load_network
from memattn_jax.copies.sscd.presets import PRESETS, Preset, preprocess
from memattn_jax.errors import InputError

SMALL = Preset("small", (64, 48))
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
ON_DISK = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch prefers torch.export


@pytest.fixture(scope="module", params=[1, 4], ids=["resnet", "resnext"])
def torch_model(request) -> Model:
    return tiny(request.param)


def pillow(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resized along rows and then along columns, as all of Pillow does that papers have used."""
    image = Image.fromarray(picture)
    for wanted in ((size[1], image.height), (size[1], size[0])):
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    return np.asarray(image)


def expected(model: torch.nn.Module) -> np.ndarray:
    """What the descriptor of preset SMALL is to give, from Pillow and PyTorch."""
    values = (
        np.stack([pillow(x, (64, 48)) for x in PICTURES]) / np.float32(255) - np.float32(SMALL.mean)
    ) / np.float32(SMALL.std)
    with torch.no_grad():
        return model(torch.from_numpy(values).permute(0, 3, 1, 2)).numpy()


def nested(model: Model) -> dict:
    """A checkpoint of ClassyVision: trunk and head apart, a few levels down."""
    state = ClassyModel(model).state_dict()
    trunk = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    head = {"fc.weight": model.backbone.fc.weight, "fc.bias": model.backbone.fc.bias}
    inner = {"trunk": trunk, "heads": {"block1-0": {"default_head": head}}}
    return {"classy_state_dict": {"base_model": {"model": inner}, "losses": [0.5]}, "phase_idx": 3}


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


@pytest.mark.parametrize("size", [(23, 61), (64, 64), (37, 50), (131, 20), (1, 1)], ids=str)
def test_resizing_is_pillows_to_the_bit(size):
    picture = np.random.default_rng(1).integers(0, 256, (37, 50, 3), np.uint8)
    found = jax.jit(resize, static_argnums=1)(picture[None], size)
    np.testing.assert_array_equal(found[0], pillow(picture, size))
    at_once = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(at_once.astype(int) - found[0]).max() <= 1  # since Pillow 13


def as_torchvision(picture: np.ndarray, preset: str) -> np.ndarray:
    """Resize, CenterCrop, ToTensor and Normalize, of Pillow and numpy."""
    size = (320, 320)
    if preset != "nemo":
        edge = {"official": 288, "wen": 256, "dcr": 256}[preset]
        short, long = sorted(picture.shape[:2])
        sizes = {short: edge, long: int(edge * long / short)}
        size = tuple(sizes[side] for side in picture.shape[:2])
    image = Image.fromarray(pillow(picture, size))
    if preset in ("wen", "dcr"):
        left, top = (round((side - 224) / 2) for side in image.size)
        image = image.crop((left, top, left + 224, top + 224))
    values = np.asarray(image, np.float32) / np.float32(255)
    if preset == "wen":
        return (values - np.float32(0.5)) / np.float32(0.5)
    return (values - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])


@pytest.mark.parametrize("shape", [(90, 141), (512, 401)], ids=["enlarged", "reduced"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, shape):
    picture = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    found = jax.jit(preprocess, static_argnums=1)(picture[None], PRESETS[preset])
    np.testing.assert_allclose(found[0], as_torchvision(picture, preset), atol=1e-6)


def test_unknown_presets_are_named(plain):
    with pytest.raises(InputError, match="'oficial'; did you mean 'official'"):
        load_sscd(plain, "oficial")


def unit(rng: np.random.Generator, number: int) -> np.ndarray:
    vectors = rng.standard_normal((number, 16), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_nearest_of_many_references_is_exact():
    rng = np.random.default_rng(0)
    measure = Measure("mine", "none")
    pictures, references = unit(rng, 5), unit(rng, 100_000)
    references[[7, 99_999]] = pictures[2]  # the first of two
    found = nearest(Embeddings(pictures, measure), Embeddings(references, measure), block=30_000)
    wanted = pictures.astype(np.float64) @ references.T.astype(np.float64)
    np.testing.assert_array_equal(found.index, wanted.argmax(axis=1))
    np.testing.assert_allclose(found.scores, wanted.max(axis=1), atol=1e-6)
    assert found.index[2] == 7
    assert found.measure == measure
    with pytest.raises(InputError, match=r"mine \(preset none\)"):
        nearest(Embeddings(pictures, Measure("other", "none")), Embeddings(references, measure))


def test_an_embedding_of_your_own():
    measure = Measure("mean colour", "none")

    def colours(pictures):
        assert pictures.shape == (2, 40, 56, 3)
        return pictures.mean(axis=(1, 2))

    found = embed(colours, PICTURES, batch=2, measure=measure)
    assert (found.vectors.dtype, found.measure) == (np.float32, measure)
    np.testing.assert_allclose(found.vectors, PICTURES.mean(axis=(1, 2)), rtol=1e-6)
    with pytest.raises(InputError, match="measure"):
        embed(colours, PICTURES)
    with pytest.raises(InputError, match=r"float32 .*uint8 \[n, h, w, 3\]"):
        embed(colours, PICTURES.astype(np.float32), measure=measure)
    with pytest.raises(InputError, match="picture 0 is not finite"):
        embed(lambda x: np.full((len(x), 2), np.nan), PICTURES, measure=measure)
