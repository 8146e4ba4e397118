"""Reading pictures and captions, and batches of them in an order that resumes."""

import itertools
import json
import re
import shutil

import micro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.training.data import TOGETHER, Examples, batches, check, open_pairs, readable


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


def test_processes_read_the_same_batches_as_threads(folder):
    """Beyond what one process hands over at once, from the middle of that."""
    source = examples(folder)
    start, count = TOGETHER + 3, 2 * TOGETHER
    expected = itertools.islice(batches(source, 4, 0, start), count)
    reader = batches(source, 4, 0, start, workers=2)
    for ours in expected:
        found = next(reader)
        assert ours.keys() == found.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(found[name], array)
    reader.close()


def test_a_batch_of_one(folder):
    reader = batches(examples(folder), 1, 0, 5)
    assert next(reader)["pictures"].shape == (1, 8, 8, 3)


def test_more_rows_than_pairs(folder):
    assert next(batches(examples(folder, [3]), 4, 0, 0))["input_ids"].ravel().tolist() == [ord("d")] * 4


def metadata(folder, *rows) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines_of(path) -> tuple[list[int], list[str]]:
    found = check(open_pairs(path))
    return found.indices, found.skipped.lines()


def test_unreadable_pictures_are_skipped_counted_and_listed(folder):
    (folder / "3.png").write_bytes(b"not a picture")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    for name in ("1.png", "2.png", "8.png", "9.png"):
        (folder / name).unlink()
    with pytest.warns(UserWarning, match="skipped") as caught:
        good = readable(open_pairs(folder))
    assert good == [i for i in range(12) if i not in (1, 2, 3, 7, 8, 9)]
    first, *others = (str(warning.message) for warning in caught)
    assert first == "of 12 pairs, 4 skipped, no such image: line 2, 1.png; line 3, 2.png; line 9, 8.png; …"
    assert others == [
        "of 12 pairs, 1 skipped, not an image: line 4, 3.png",
        "of 12 pairs, 1 skipped, a damaged image: line 8, 7.png: image file is truncated",
    ]
    for i in range(12):
        (folder / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"12 skipped, .*: line 1, "):
        readable(open_pairs(folder))


def test_names_of_images(folder, tmp_path):
    """Relative to the folder, as the system or Windows writes them; nothing outside is read."""
    (folder / "sub").mkdir()
    shutil.copy(folder / "0.png", folder / "sub" / "s.png")
    shutil.copy(folder / "0.png", folder / "A.PNG")
    shutil.copy(folder / "0.png", tmp_path / "outside.png")
    names = ["./0.png", "sub\\s.png", "sub/../1.png", "A.PNG", "../outside.png", str(tmp_path / "outside.png"), "sub"]
    metadata(folder, *({"file_name": name, "text": "x"} for name in [*names, "", "a\0.png", "\ud800.png", None, 5]))
    indices, lines = lines_of(folder)
    assert indices == [0, 1, 2, 3]
    assert [line.split(":")[0] for line in lines] == [
        "10 skipped, no caption in metadata.jsonl",  # 2.png to 11.png
        "4 skipped, no such image",
        "2 skipped, an image outside the folder",
        "2 skipped, the name of the image file is not text",
    ]


def test_a_list_of_captions_makes_a_pair_of_each(folder):
    metadata(folder, {"file_name": "0.png", "text": ["x", None, "y"]}, {"file_name": "1.png", "text": "z"})
    pairs = open_pairs(folder)
    found = check(pairs)
    assert [pairs[index][1] for index in found.indices] == ["x", "y", "z"]
    assert "1 skipped, no caption (null): line 1, caption 2, 0.png" in found.skipped.lines()


def test_an_empty_caption_is_one(folder):
    metadata(folder, *({"file_name": f"{i}.png", "text": text} for i, text in enumerate(["", " ", "x", None])))
    found = check(open_pairs(folder))
    assert (found.indices, found.empty) == ([0, 1, 2], 2)


def test_a_csv_and_a_parquet_file_of_captions_are_the_same(folder):
    expected = check(open_pairs(folder))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").unlink()
    (folder / "Metadata.CSV").write_text("file_name,text\n" + "".join(f"{r['file_name']},{r['text']}\n" for r in rows))
    assert check(open_pairs(folder)).identity == expected.identity
    (folder / "Metadata.CSV").unlink()
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    assert check(open_pairs(folder)).identity == expected.identity
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(InputError, match=r"metadata\.jsonl and metadata\.parquet"):
        open_pairs(folder)


def test_data_is_known_by_its_pixels_captions_and_order(folder, tmp_path):
    known = check(open_pairs(folder)).identity
    shutil.copytree(folder, tmp_path / "moved")
    assert check(open_pairs(tmp_path / "moved")).identity == known
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(reversed(lines)))
    assert check(open_pairs(folder)).identity != known
    (folder / "metadata.jsonl").write_text("".join(lines))
    shutil.copy(folder / "0.png", folder / "1.png")
    assert check(open_pairs(folder)).identity != known


def test_images_of_a_parquet_file(folder, tmp_path):
    path = folder / "p.parquet"
    data = (folder / "0.png").read_bytes()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": data, "path": None}, None, {"bytes": None, "path": "1.png"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": pa.array([*images, images[0]], kind), "text": ["a", "b", "c", "d", None]}), path)
    indices, lines = lines_of(path)
    assert indices == [0, 2]
    assert lines == ["2 skipped, no image (null): row 2; row 4", "1 skipped, no caption (null): row 5"]
    pq.write_table(pa.table({"image": ["0.png", "../x.png", "gone.png"], "text": [["x", "y"], ["z"], []]}), path)
    indices, lines = lines_of(path)
    assert indices == [0, 1]
    assert [line.split(":")[0] for line in lines] == [
        "1 skipped, an image outside the folder",
        "1 skipped, an empty list of captions",
    ]
    for images in ([[1, 2]], [5]):
        pq.write_table(pa.table({"image": images, "text": ["x"]}), path)
        with pytest.raises(InputError, match="not text: row 1"):
            check(open_pairs(path))


def test_a_picture_that_vanishes_is_named(folder):
    reader = batches(examples(folder), 4, 0, 0)
    source = examples(folder)
    (folder / "3.png").unlink()
    with pytest.raises(InputError, match=r"line 4, 3\.png"):
        source[3]
    with pytest.raises(InputError, match=r"line 4, 3\.png"):
        list(itertools.islice(reader, 60))


def test_bad_data(folder, tmp_path):
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"metadata\.jsonl, metadata\.csv, metadata\.parquet"):
        open_pairs(folder)
    metadata(folder)
    with pytest.raises(FileNotFoundError, match=rf"; {re.escape(str(folder))} has one$"):
        open_pairs(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_pairs(tmp_path / "nowhere")
    pq.write_table(pa.table({"picture": [b""], "text": ["x"]}), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=r"'image'.* picture, text"):
        open_pairs(tmp_path / "bad.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"nope")
    with pytest.raises(InputError, match="Parquet"):
        open_pairs(tmp_path / "bad.parquet")


def test_an_empty_set(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(InputError, match="empty"):
        readable(open_pairs(tmp_path))
