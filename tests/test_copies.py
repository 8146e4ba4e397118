"""Preprocessing as Pillow and torchvision do it; the nearest of many pictures; distances and cliques."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from memattn_jax.copies.agreement import agreement
from memattn_jax.copies.cliques import largest_clique
from memattn_jax.copies.embedding import Embeddings, Measure, embed
from memattn_jax.copies.nearest import nearest
from memattn_jax.copies.resizing import resize, resize_on_host
from memattn_jax.copies.sscd.frozen import in_order
from memattn_jax.copies.sscd.presets import PRESETS, normalize, preprocess
from memattn_jax.copies.tiled import tiled_distance
from memattn_jax.errors import InputError

MINE = Measure("mine", "none")
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)


def pillow(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resized along rows and then along columns, as all of Pillow does that papers have used."""
    image = Image.fromarray(picture)
    for wanted in ((size[1], image.height), (size[1], size[0])):
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    return np.asarray(image)


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
    prepared = resize_on_host(Image.fromarray(picture), *PRESETS[preset].window(*shape))
    np.testing.assert_allclose(normalize(prepared, PRESETS[preset]), found[0], atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1)], ids=["sorted", "classy", "torchvision"])
def test_names_of_frozen_tensors_come_from_their_order(order):
    shapes = [(8, 4, 1, 1), (16, 4, 1, 1), (8, 2, 3, 3), (16, 8, 1, 1)]
    block = [array for which in order for array in (np.zeros(shapes[which]), np.zeros(shapes[which][0]))]
    second = [array for shape in [(8, 16, 1, 1), *shapes[2:]] for array in (np.zeros(shape), np.zeros(shape[0]))]
    ends = [np.zeros((4, 3, 7, 7)), np.zeros(4)], [np.zeros((12, 16)), np.zeros(12)]
    found = in_order([*ends[0], *block, *second, *ends[1], None])
    named = {name.removesuffix(".weight"): x.shape for name, x in found.items() if name.endswith("weight")}
    names = ["layer1.0.conv1", "layer1.0.downsample.0", "layer1.0.conv2", "layer1.0.conv3"]
    wanted = dict(zip(names, shapes, strict=True)) | {"layer1.1.conv1": (8, 16, 1, 1), "layer1.1.conv2": shapes[2]}
    assert named == wanted | {"layer1.1.conv3": shapes[3], "conv1": (4, 3, 7, 7), "fc": (12, 16)}


def unit(rng: np.random.Generator, number: int) -> np.ndarray:
    vectors = rng.standard_normal((number, 16), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_nearest_of_many_references_is_exact():
    rng = np.random.default_rng(0)
    measure = MINE
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


def test_the_distance_is_that_of_the_worst_tile():
    first = PICTURES.astype(np.float64) / 255
    found = tiled_distance(PICTURES, PICTURES[:2])
    tiles = [(slice(i, i + 10), slice(j, j + 14)) for i in range(0, 40, 10) for j in range(0, 56, 14)]
    for picture in range(3):
        for reference in range(2):
            worst = max(np.sqrt(((first[picture] - first[reference])[tile] ** 2).mean()) for tile in tiles)
            assert found[picture, reference] == pytest.approx(worst, abs=1e-6)
    assert (found[0, 0], found[1, 1]) == (0, 0)
    with pytest.raises(InputError, match="3 × 3 tiles"):
        tiled_distance(PICTURES, PICTURES, tiles=3)
    with pytest.raises(InputError, match="same size"):
        tiled_distance(PICTURES, PICTURES[:, :20])


def by_trying(close: np.ndarray) -> int:
    """The size of the largest clique, of few vertices."""
    sets = [set(np.flatnonzero(row)) for row in close]
    every = range(len(close))
    sizes = range(1, len(close) + 1)
    cliques = (group for size in sizes for group in itertools.combinations(every, size))
    return max(len(g) for g in cliques if all(b in sets[a] for a, b in itertools.combinations(g, 2)))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_the_largest_clique(density):
    rng = np.random.default_rng(round(10 * density))
    for _ in range(5):
        close = np.triu(rng.random((9, 9)) < density, 1)
        close |= close.T
        clique = largest_clique(close)
        assert all(close[a, b] for a, b in itertools.combinations(clique, 2))
        assert len(clique) == by_trying(close)


def test_seeds_that_agree_are_a_clique():
    rng = np.random.default_rng(3)
    group = np.arange(500) % 3 == 0  # more members than Python has levels of recursion to spare
    close = group[:, None] & group | (rng.random((500, 500)) < 0.01)
    np.testing.assert_array_equal(largest_clique(close & close.T), np.flatnonzero(group))
    assert largest_clique(np.ones((1100, 1100), bool)).tolist() == list(range(1100))
    assert largest_clique(np.eye(4, dtype=bool)).size == 1


def test_how_far_seeds_agree():
    """Two groups, and one image that is near to one of the first group alone."""
    vectors = np.zeros((6, 3), np.float32)
    vectors[[0, 2, 5], 0] = vectors[[1, 4], 1] = 1
    vectors[3] = [0.6, 0, 0.8]
    vectors[5] = [0.8, 0, 0.6]
    found = agreement(Embeddings(vectors, MINE).similarities(), 0.8, MINE)
    assert found.clique.tolist() == [0, 2, 5]
    assert [cluster.tolist() for cluster in found.clusters] == [[0, 2, 3, 5], [1, 4]]
    pairs = [a @ b for a, b in itertools.combinations(vectors, 2)]
    assert (found.mean, found.highest) == pytest.approx((np.mean(pairs), 1))
    assert "mine (preset none)" in str(found)
    with pytest.raises(InputError, match="2 or more images"):
        agreement(np.ones((1, 1)), 0.8, MINE)
    with pytest.raises(InputError, match=r"mine \(preset none\).*finite"):
        agreement(np.full((2, 2), np.nan), 0.8, MINE)
