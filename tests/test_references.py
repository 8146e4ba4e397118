"""Image files embedded once and kept: of any size and format, added to, changed, killed in the middle."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memattn_jax.copies import nearest as nearest_module
from memattn_jax.copies import references
from memattn_jax.copies.embedding import Embeddings, Measure, embed
from memattn_jax.copies.kept import FILES, VECTORS
from memattn_jax.copies.nearest import ranked
from memattn_jax.copies.references import embed_files
from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import decode
from memattn_jax.pictures.files import image_files

MEASURE = Measure("mean colour", "none")
SIZES = {"a.png": (24, 16), "b.jpg": (40, 56), "c.webp": (24, 16), "deep/er/d.bmp": (8, 9), "e.GIF": (24, 16)}


class Colours:
    """The mean colour of pictures of any size; counts the pictures of each call."""

    measure = MEASURE

    def __init__(self, stop_at: int | None = None):
        self.calls: list[int] = []
        self.stop_at = stop_at

    def __call__(self, pictures):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(int((pictures != 0).any(axis=(1, 2, 3)).sum()))
        return pictures.mean(axis=(1, 2)) / 255


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, 3).astype(np.uint8) + np.zeros((*size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "training"
    for seed, (name, size) in enumerate(SIZES.items()):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, size)).save(place / name)
    return place


def embedded(place: Path, embedding, batch: int = 2):
    return embed_files(image_files([place]), embedding, place.parent / "index", batch)


def test_files_of_any_size_are_embedded_once(folder):
    (folder / "metadata.jsonl").write_text("{}")
    (folder / ".hidden.png").write_bytes(b"")
    first = Colours()
    found = embedded(folder, first)
    assert [path.relative_to(folder).as_posix() for path in found.files] == sorted(SIZES)
    wanted = [np.asarray(decode(path.read_bytes())).mean(axis=(0, 1)) / 255 for path in found.files]
    np.testing.assert_allclose(found.embeddings().vectors, wanted, atol=1e-6)
    assert sorted(first.calls) == [1, 1, 1, 2]  # a call for each size, and another for a third picture of one
    again = Colours()
    kept = embedded(folder, again)
    assert (again.calls, kept.added, kept.files) == ([], 0, found.files)
    np.testing.assert_array_equal(kept.embeddings().vectors, found.embeddings().vectors)


def test_what_is_new_or_changed_is_embedded_and_what_is_moved_is_not(folder):
    embedded(folder, Colours())
    Image.fromarray(picture(10)).save(folder / "new.png")
    Image.fromarray(picture(11)).save(folder / "a.png")
    shutil.move(folder / "c.webp", folder / "deep" / "c.webp")
    shutil.copy(folder / "e.GIF", folder / "same.gif")
    (folder / "b.jpg").unlink()
    changed = Colours()
    found = embedded(folder, changed)
    assert (found.added, sum(changed.calls)) == (2, 2)
    names = [path.relative_to(folder).as_posix() for path in found.files]
    assert names == ["a.png", "deep/c.webp", "deep/er/d.bmp", "e.GIF", "new.png", "same.gif"]
    vectors = found.embeddings().vectors
    np.testing.assert_allclose(vectors[[0, 4]], [picture(seed).mean(axis=(0, 1)) / 255 for seed in (11, 10)], atol=1e-6)
    assert [path.name for path in found.equal_to(3)] == ["e.GIF", "same.gif"]
    assert len(found.vectors) == 7  # those of what has changed or gone are there still, and are not searched
    queries = Embeddings(found.vectors, MEASURE)
    assert found.ranked(queries).index.shape == (7, 1)
    assert set(found.ranked(queries, 9).index.ravel()) == set(range(5))  # every different file, the first of equal ones


def test_a_run_that_is_killed_resumes(folder):
    plain = embedded(folder, Colours())
    shutil.rmtree(folder.parent / "index")
    with pytest.raises(KeyboardInterrupt):
        embedded(folder, Colours(stop_at=2))
    (index,) = (folder.parent / "index").iterdir()
    with (index / VECTORS).open("ab") as vectors, (index / FILES).open("ab") as files:
        vectors.write(bytes(17))  # as if killed while a batch was written
        files.write(b'["/some/file", 12')
    rest = Colours()
    found = embedded(folder, rest)
    assert len(rest.calls) == 2
    assert found.files == plain.files
    np.testing.assert_allclose(found.embeddings().vectors, plain.embeddings().vectors, atol=1e-7)
    os.truncate(index / VECTORS, 12)
    with pytest.raises(InputError, match="damaged; remove it"):
        embedded(folder, Colours())


def test_what_cannot_be_used_is_skipped_with_a_reason(folder):
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    (folder / "gone.png").symlink_to(folder / "nowhere")
    Image.fromarray(np.full((24, 16, 3), 255, np.uint8)).save(folder / "white.png")

    def sometimes_blind(pictures):
        means = pictures.mean(axis=(1, 2)) / 255
        return np.where(means == 1, np.nan, means)

    index = folder.parent / "index"
    found = embed_files(image_files([folder]), sometimes_blind, index, measure=MEASURE)
    assert len(found.files) == len(SIZES)
    reasons = found.skipped.places
    assert reasons["not an image"] == ["text.png"]
    assert reasons["a damaged image"] == ["cut.png"]
    assert reasons["a vector that is not finite"] == ["white.png"]
    (unread,) = (places for reason, places in reasons.items() if "cannot be read" in reason)
    assert unread == ["gone.png"]


def test_images_of_a_size_do_not_wait_for_ever(folder, monkeypatch):
    monkeypatch.setattr(references, "WAITING", 2000)
    crowded = Colours()
    embedded(folder, crowded, batch=5)
    assert sum(crowded.calls) == len(SIZES)
    assert max(crowded.calls) < 3


def test_two_embeddings_have_their_own_vectors(folder):
    class Preparing(Colours):
        measure = Measure("corner", "2 × 2")
        fingerprint = "1"

        def prepare(self, image):
            return np.asarray(image.resize((2, 2)))

        def describe(self, prepared):
            assert prepared.shape == (5, 2, 2, 3)
            return super().__call__(prepared)[:, :2]

    embedded(folder, Colours())
    own = Preparing()
    found = embedded(folder, own, batch=8)
    assert (own.calls, found.vectors.shape, found.measure) == ([5], (5, 2), own.measure)
    assert len(list((folder.parent / "index").iterdir())) == 2
    own.fingerprint = "2"  # other weights
    assert embedded(folder, own, batch=8).added == 5


def test_one_process_at_a_time(folder):
    class Nested(Colours):
        def __call__(self, pictures):
            return embedded(folder, Colours())

    with pytest.raises(InputError, match="another process"):
        embedded(folder, Nested())


def test_places_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        image_files([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no images"):
        image_files([tmp_path])


class Watched:
    """A mapped file; notes how much of it is read at a time."""

    def __init__(self, vectors: np.ndarray):
        self.vectors, self.most = vectors, 0

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, key) -> np.ndarray:
        found = self.vectors[key]
        self.most = max(self.most, len(found))
        return found


def test_the_nearest_of_100_000_are_found_in_blocks_with_bounded_memory(tmp_path):
    rng = np.random.default_rng(0)
    mapped = np.memmap(tmp_path / "vectors.f32", np.float32, "w+", shape=(100_000, 16))
    mapped[:] = rng.standard_normal(mapped.shape, np.float32)
    queries = rng.standard_normal((20, 16)).astype(np.float32)
    rows = np.delete(np.arange(100_000), [5, 70_000])
    watched = Watched(mapped)
    found = ranked(Embeddings(queries, MEASURE), Embeddings(watched, MEASURE), 3, block=8192, rows=rows)
    products = queries.astype(np.float64) @ mapped[rows].T.astype(np.float64)
    wanted = np.argsort(-products, axis=1)[:, :3]
    np.testing.assert_array_equal(found.index, wanted)
    np.testing.assert_allclose(found.scores, np.take_along_axis(products, wanted, 1), atol=1e-5)
    assert watched.most == 8192
    arguments = [np.zeros(shape, np.float32) for shape in ((20, 3), (20, 3), (20, 16), (8192, 16))]
    arguments[1] = arguments[1].astype(np.int32)
    used = nearest_module.better.lower(*arguments, 0, 8192).compile().memory_analysis()
    block, products = 8192 * 16 * 4, 20 * 8192 * 4
    assert used.temp_size_in_bytes + used.argument_size_in_bytes < block + 4 * products


def test_arrays_and_files_have_the_same_vectors(folder):
    found = embedded(folder, Colours())
    arrays = embed(Colours(), picture(0)[None])
    np.testing.assert_allclose(found.embeddings().vectors[0], arrays.vectors[0], atol=1e-7)


def test_links_to_folders_are_followed_and_each_folder_is_read_once(folder, tmp_path):
    """A folder of pictures often is links to the parts of a data set."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "part").symlink_to(folder, target_is_directory=True)
    (tmp_path / "links" / "twice").symlink_to(folder, target_is_directory=True)
    (folder / "loop").symlink_to(tmp_path / "links", target_is_directory=True)
    found = image_files([tmp_path / "links"])
    assert [path.relative_to(tmp_path / "links" / "part").as_posix() for path in found] == sorted(SIZES)
