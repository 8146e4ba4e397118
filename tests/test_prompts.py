"""Prompt files, good and bad."""

import gzip
import io
import random
import sys
import tracemalloc
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.prompts import Prompt, count_prompts, read_prompts, stream_prompts

LINES = ["a cat, “quoted”", "日本の猫", "  spaced  out  "]


def stripped(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines]


def test_text(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff" + "\r\n\n".join(LINES) + "\n", encoding="utf-8", newline="")
    assert read_prompts(path) == stripped(LINES)
    path.write_text("a\x0bline\u2028still", encoding="utf-8")
    assert read_prompts(path) == ["a\x0bline\u2028still"]


def test_jsonl(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one", "seed": 3}\n\n"two"\n{"prompt": "three"}\n', encoding="utf-8")
    assert read_prompts(path) == ["one", "two", "three"]
    path.write_text('{"caption": "one"}\n', encoding="utf-8")
    assert read_prompts(path, column="caption") == ["one"]


def test_csv(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt\n1,"a, b"\n2,"c ""d"""\n3,\n', encoding="utf-8")
    assert read_prompts(path) == ["a, b", 'c "d"']


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert read_prompts("-") == ["one", "two"]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_gzip(tmp_path, suffix):
    content = {"txt": "one\ntwo\n", "jsonl": '"one"\n{"prompt": "two"}\n', "csv": "prompt\none\ntwo\n"}[suffix]
    path = tmp_path / f"prompts.{suffix}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    assert read_prompts(path) == ["one", "two"]
    path.write_bytes(gzip.compress(content.encode())[:-9])
    with pytest.raises(InputError, match="damaged gzip file"):
        read_prompts(path)


def test_parquet(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "caption": [" one", None, "", "two"]}), path)
    assert read_prompts(path, column="caption") == ["one", "two"]
    with pytest.raises(InputError, match=r"prompts\.parquet: no column 'prompt'; it has id, caption"):
        read_prompts(path)
    with pytest.raises(InputError, match=r"prompts\.parquet: column 'id' holds int64, not text"):
        read_prompts(path, column="id")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged Parquet file"):
        read_prompts(path)


def test_parquet_damaged_past_its_beginning(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [str(i**3) for i in range(20_000)]}), path, row_group_size=5000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    prompts = stream_prompts(path)
    assert next(prompts) == Prompt("0")
    with pytest.raises(InputError, match=r"p\.parquet: damaged Parquet file"):
        list(prompts)


def test_parquet_text_of_every_kind(tmp_path):
    path = tmp_path / "p.parquet"
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"prompt": pa.array(["one", None, "one"], kind)}), path)
        assert read_prompts(path) == ["one", "one"]
    pq.write_table(pa.table({"prompt": pa.array([b"one"]).dictionary_encode()}), path)
    with pytest.raises(InputError, match=r"column 'prompt' holds .*binary.*, not text"):
        read_prompts(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["one"])] * 2, ["prompt", "prompt"]), path)
    with pytest.raises(InputError, match="several columns 'prompt'"):
        read_prompts(path)


def test_folder(tmp_path):
    """Files in the order of their names; what is no prompt file is left alone."""
    (tmp_path / "b.jsonl").write_text('"three"\n')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "README.md").write_text("no prompt")
    (tmp_path / ".hidden.txt").write_text("no prompt")
    (tmp_path / "c").mkdir()
    (tmp_path / "folder.txt").mkdir()
    assert read_prompts(tmp_path) == ["one", "two", "three"]
    with pytest.raises(InputError, match=r"c: no prompt file in this folder; \.txt, .* are read"):
        read_prompts(tmp_path / "c")


def test_object_storage(tmp_path):
    """fsspec's file system in memory stands for gs:// and s3://."""
    folder = f"memory://{uuid.uuid4()}"
    for name, content in (("a.txt", b"one\n"), ("b.csv.gz", gzip.compress(b"prompt\ntwo\n"))):
        with fsspec.open(f"{folder}/{name}", "wb") as file:
            file.write(content)
    assert read_prompts(f"{folder}/b.csv.gz") == ["two"]
    assert read_prompts(folder) == ["one", "two"]
    assert count_prompts(folder) == 2
    with pytest.raises(FileNotFoundError, match=f"no such prompt file: {folder}/c.txt"):
        read_prompts(f"{folder}/c.txt")
    with pytest.raises(InputError, match=r"nowhere://a\.txt: .*nowhere.*memattn-jax\[remote\]"):
        read_prompts("nowhere://a.txt")


def test_a_bad_line_is_told_and_passed_over(tmp_path):
    """Unless it is the first: then likely none can be read."""
    path = tmp_path / "p.jsonl"
    lines = [b'"fine"', b"{", b'{"text": "x"}', "caf\xe9".encode("latin-1"), b'"\\ud800"', b'"also fine"']
    path.write_bytes(b"\n".join(lines))
    assert list(stream_prompts(path)) == [
        Prompt("fine"),
        Prompt("", f"{path}: line 2 is not JSON"),
        Prompt("", f"{path}: line 3 has no text under 'prompt'"),
        Prompt("", f"{path}: line 4 is not UTF-8; save the file as UTF-8"),
        Prompt("", f"{path}: line 5: the prompt '\\ud800' is no valid text; UTF-8 is needed"),
        Prompt("also fine"),
    ]
    path.write_bytes(b"\n".join(lines[1:]))
    with pytest.raises(InputError, match="line 1 is not JSON"):
        next(stream_prompts(path))
    path = tmp_path / "p.csv"
    path.write_bytes("prompt\nfine\ncaf\xe9\n".encode("latin-1") + b'"also\r\nfine"\r\n')
    assert list(stream_prompts(path)) == [
        Prompt("fine"),
        Prompt("", f"{path}: line 3 is not UTF-8; save the file as UTF-8"),
        Prompt("also\r\nfine"),
    ]
    path = tmp_path / "p.parquet"
    raw = pa.array([b"fine", b"caf\xe9", b"also fine"])
    pq.write_table(pa.table({"prompt": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), path)
    assert list(stream_prompts(path)) == [
        Prompt("fine"),
        Prompt("", f"{path}: row 2 is not UTF-8"),
        Prompt("also fine"),
    ]


def test_a_folder_is_read_past_what_is_wrong_in_its_second_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jsonl").write_text("{\n")
    (tmp_path / "c.csv").write_text("text\nthree\n")
    prompts = stream_prompts(tmp_path)
    assert next(prompts) == Prompt("one")
    assert next(prompts) == Prompt("", f"{tmp_path}/b.jsonl: line 1 is not JSON")
    with pytest.raises(InputError, match=r"c\.csv: no column 'prompt'; its header has text"):
        next(prompts)


@pytest.mark.parametrize("suffix", ["txt", "parquet"])
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path, suffix):
    peaks = []
    draw = random.Random(0)
    for count in (40_000, 200_000):
        path = tmp_path / f"{count}.{suffix}"
        prompts = [f"{draw.getrandbits(160):040x}" for _ in range(count)]  # compression must not hide them
        if suffix == "parquet":
            pq.write_table(pa.table({"prompt": prompts}), path)
        else:
            path.write_text("\n".join(prompts))
        del prompts
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        pool = 0
        for number, _ in enumerate(stream_prompts(path)):
            if number % 5000 == 0:
                pool = max(pool, pa.total_allocated_bytes() - before)
        assert number == count - 1
        peaks.append(tracemalloc.get_traced_memory()[1] + pool)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6  # the prompts of the second file alone are 8 MB


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n \n", r"empty\.txt: holds no prompt"),
        ("latin.txt", "fine\ncaf\xe9".encode("latin-1"), r"latin\.txt: line 2 is not UTF-8"),
        ("prompts.doc", b"x", r"unknown prompt format '\.doc'; there are \.txt, \.jsonl, \.csv"),
        ("bad.jsonl", b'"fine"\n{"prompt": \n', r"bad\.jsonl: line 2 is not JSON"),
        ("bad.jsonl", b'{"text": "x"}', r"bad\.jsonl: line 1 has no text under 'prompt'"),
        ("bad.jsonl", b"[1]", r"bad\.jsonl: line 1 has no text under 'prompt'"),
        ("bad.csv", b"id,text\n1,x\n", r"bad\.csv: no column 'prompt'; its header has id, text"),
        ("bad.csv", b"", r"bad\.csv: no column 'prompt'; its header has no column"),
        ("bad.csv", b'prompt\n"open\n', r"bad\.csv: line 1 is not CSV"),
        ("bad.csv", b'"prompt\na', r"bad\.csv: line 0 is not CSV"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such prompt file: .*missing\.txt"):
        read_prompts(tmp_path / "missing.txt")
