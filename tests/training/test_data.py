"""Reading pictures and captions, and batches of them in an order that resumes."""

import json
import re
import shutil

import micro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from memattn_jax import InputError
from memattn_jax.training.data import Examples, batches, open_pairs, readable, resize_and_crop


@pytest.fixture
def folder(tmp_path):
    micro.write_pictures(tmp_path / "data")
    return tmp_path / "data"


def examples(folder, indices=None) -> Examples:
    pairs = open_pairs(folder)
    indices = list(range(len(pairs))) if indices is None else indices
    return Examples(pairs, indices, lambda text: np.frombuffer(text[-1:].encode(), np.uint8), 8, 8)


def test_a_parquet_file_holds_the_same_as_the_folder(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    pictures = [{"bytes": (folder / row["file_name"]).read_bytes(), "path": None} for row in rows]
    texts = [row["text"] for row in rows]
    pq.write_table(pa.table({"image": pictures, "text": texts}), tmp_path / "struct.parquet")
    pq.write_table(pa.table({"image": [p["bytes"] for p in pictures], "text": texts}), tmp_path / "bytes.parquet")
    expected = examples(folder)
    for name in ("struct.parquet", "bytes.parquet"):
        ours = examples(tmp_path / name)
        assert len(ours) == len(expected) == 12
        for i in range(12):
            np.testing.assert_array_equal(ours[i]["pictures"], expected[i]["pictures"])
            np.testing.assert_array_equal(ours[i]["input_ids"], expected[i]["input_ids"])


def test_resize_and_crop_covers_and_centres():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255  # the middle square
    np.testing.assert_array_equal(resize_and_crop(Image.fromarray(picture), 20, 20), 255)
    assert resize_and_crop(Image.fromarray(picture), 10, 30).shape == (10, 30, 3)
    assert resize_and_crop(Image.new("LA", (5, 7)), 8, 8).shape == (8, 8, 3)


def test_batch_n_depends_on_seed_and_n_alone(folder):
    source = examples(folder)

    def order(seed: int, start: int, count: int) -> list[list[int]]:
        reader = batches(source, 4, seed, start)
        return [next(reader)["input_ids"].ravel().tolist() for _ in range(count)]

    whole = order(0, 0, 7)
    assert order(0, 4, 3) == whole[4:]
    assert order(1, 0, 7) != whole
    first, second = (sorted(letter for batch in whole[i : i + 3] for letter in batch) for i in (0, 3))
    assert first == second == sorted(ord(c) for c in "abcdefghijkl")  # an epoch is every picture once
    assert whole[:3] != whole[3:6]


def test_unreadable_pictures_are_skipped_counted_and_listed(folder):
    (folder / "3.png").write_bytes(b"not a picture")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"2 of 12 pictures cannot be read and are skipped: 3 \(.*7 \("):
        good = readable(open_pairs(folder))
    assert good == [i for i in range(12) if i not in (3, 7)]
    for i in range(12):
        (folder / f"{i}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="12 of 12"), pytest.raises(InputError, match="holds no picture that can be"):
        readable(open_pairs(folder))


def test_bad_data(folder, tmp_path):
    shutil.copy(folder / "0.png", folder / "extra.png")
    with pytest.raises(InputError, match=re.escape("metadata.jsonl: no caption for extra.png")):
        open_pairs(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n{"file_name": "1.png"}\n')
    with pytest.raises(InputError, match="line 2 is not"):
        open_pairs(folder)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl"):
        open_pairs(folder)
    with pytest.raises(FileNotFoundError, match="no such training data"):
        open_pairs(tmp_path / "nowhere")
    pq.write_table(pa.table({"picture": [b""], "text": ["x"]}), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="no column 'image'; it has picture, text"):
        open_pairs(tmp_path / "bad.parquet")


def test_an_empty_set(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no picture"):
        readable(open_pairs(tmp_path))
