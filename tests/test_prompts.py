"""Prompt files, good and bad."""

import contextlib
import gzip
import io
import json
import os
import random
import sys
import tracemalloc
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_records import records

from memattn_jax import InputError
from memattn_jax.prompts import Prompt, read_prompts, stream_prompts

LINES = ["a cat, “quoted”", "日本の猫", "  spaced  out  "]


def test_text(tmp_path):
    """Each line as it is, blank ones too."""
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff" + "\r\n\n".join(LINES) + "\n", encoding="utf-8", newline="")
    assert read_prompts(path) == LINES
    assert records(path) == [LINES[0], "! line 2: empty prompt", LINES[1], "! line 4: empty prompt", LINES[2]]
    path.write_text("a\x0bline\u2028still", encoding="utf-8")
    assert read_prompts(path) == ["a\x0bline\u2028still"]
    path.write_text("one\rtwo\r\nthree", newline="")
    assert read_prompts(path) == ["one", "two", "three"]
    path.write_text("\ufeffone\n\ufefftwo\n\ufeff\n", encoding="utf-8")  # files that were put after one another
    assert records(path) == ["one", "two", "! line 3: empty prompt"]


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


def test_folder(tmp_path):
    """Files of all sub-folders, in the order of their paths; what is no prompt file is left alone, and named."""
    (tmp_path / "b.jsonl").write_text('"three"\n')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "README.md").write_text("no prompt")
    for hidden in (".hidden.txt", "_SUCCESS", ".a.txt.crc"):
        (tmp_path / hidden).write_text("no prompt")
    for folder in ("c", "date=2024/hour=1", "_delta_log", ".cache"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.TXT").write_text(f"{folder}\n")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "c" / "a.txt.zst").write_bytes(b"packed")
    (tmp_path / "c" / "loop").symlink_to(tmp_path, target_is_directory=True)
    notes: list[str] = []
    found = [prompt.text for prompt in stream_prompts(tmp_path, note=notes.append)]
    assert found == ["one", "two", "three", "c", "date=2024/hour=1"]
    assert notes == [f"{tmp_path}: skipped because of their suffix: README.md, c/a.txt.zst (2 in all)"]
    with pytest.raises(InputError, match=r"folder\.txt: .* \.txt, "):
        read_prompts(tmp_path / "folder.txt")


def test_object_storage(tmp_path):
    """fsspec's file system in memory stands for gs:// and s3://."""
    folder = f"memory://{uuid.uuid4()}"
    for name, content in (("a.txt", b"one\n"), ("b.csv.gz", gzip.compress(b"prompt\ntwo\n"))):
        with fsspec.open(f"{folder}/{name}", "wb") as file:
            file.write(content)
    assert read_prompts(f"{folder}/b.csv.gz") == ["two"]
    assert read_prompts(folder) == ["one", "two"]
    assert len(list(stream_prompts(folder))) == 2
    with pytest.raises(FileNotFoundError, match=f"{folder}/c.txt"):
        read_prompts(f"{folder}/c.txt")
    with pytest.raises(InputError, match=r"nowhere://a\.txt: .*nowhere.*memattn-jax\[remote\]"):
        read_prompts("nowhere://a.txt")


def test_a_bad_line_is_told_and_passed_over(tmp_path):
    """The first one too, as long as there is another."""
    path = tmp_path / "p.jsonl"
    lines = [b"{", b'"fine"', b'{"text": "x"}', "caf\xe9".encode("latin-1"), b'"\\ud800"', b'{"prompt": "also fine"}']
    path.write_bytes(b"\n".join(lines))
    assert records(path) == [
        "! line 1 is not JSON",
        "fine",
        "! line 3: no column 'prompt'; it has text",
        "! line 4 is not UTF-8; save the file as UTF-8",
        "! line 5: the prompt '\\ud800' is not valid UTF-8 text",
        "also fine",
    ]
    place = f"{path}: line 1"
    assert next(stream_prompts(path)) == Prompt("", f"{place} is not JSON", place)
    path.write_bytes(b"\n".join([lines[0], lines[3]]))
    with pytest.raises(InputError, match=r"line 1 is not JSON.*other 1"):
        next(stream_prompts(path))
    path = tmp_path / "p.csv"
    path.write_bytes("prompt\nfine\ncaf\xe9\n".encode("latin-1") + b'"also\r\nfine"\r\n')
    assert records(path) == ["fine", "! line 3 is not UTF-8; save the file as UTF-8", "also\r\nfine"]


def test_a_folder_is_read_past_what_is_wrong_in_its_second_file(tmp_path):
    """But a file without the column is found before the first is read."""
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jsonl").write_text("{\n")
    (tmp_path / "c.csv").write_text("prompt\nthree\n")
    assert records(tmp_path)[::2] == ["one", "three"]
    assert records(tmp_path)[1].endswith("b.jsonl: line 1 is not JSON")
    (tmp_path / "c.csv").write_text("text\nthree\n")
    with pytest.raises(InputError, match=r"c\.csv: no column 'prompt'"):
        next(stream_prompts(tmp_path))


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "json", "parquet", "csv.gz"])
def test_whatever_bytes_a_file_has(tmp_path, suffix):
    """Records that are text or say why not, or one line about the file."""
    draw, path = random.Random(suffix), tmp_path / f"p.{suffix}"
    values = [
        {"id": i, "prompt": text} for i, text in enumerate(["a cat", "dog, big", 'x "y"', "日本", "two\nlines", ""])
    ]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(values), path)
    else:
        table = "id,prompt\n" + "".join(f"{row['id']},{json.dumps(row['prompt'])}\n" for row in values)
        lines = "\n".join(map(json.dumps, values))
        text = {"json": json.dumps(values, indent=1), "jsonl": lines, "tsv": table.replace(",", "\t")}.get(
            suffix, table
        )
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    whole, bits = (
        path.read_bytes(),
        (b'"', b'""', b"\n", b"\r", b",", b"{", b"]", b"\\", b"\xff\xfe", b"\0", b"\xef\xbb\xbf"),
    )
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 5)):
            at = draw.randrange(len(content) + 1)
            content[at : at + draw.choice([0, 0, 1, 5])] = draw.choice(bits)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        with contextlib.suppress(InputError):
            for prompt in stream_prompts(path, keep=() if suffix == "txt" else ("id",)):
                assert prompt.error is None or "\n" not in prompt.error
                assert prompt.text.encode().strip() or prompt.error
                assert "".join(kept or "" for kept in prompt.kept).encode() is not None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_encodings(tmp_path, name, encoding):
    content = {"p.txt": "a cat\né\n", "p.csv": "prompt\na cat\né\n", "p.jsonl": '{"prompt": "a cat"}\n"é"\n'}[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    notes: list[str] = []
    assert [prompt.text for prompt in stream_prompts(path, note=notes.append)] == ["a cat", "é"]
    guessed = encoding in ("utf-16-le", "utf-16-be")
    assert notes == [f"{path}: read as {encoding.upper()}, because of its zero bytes"] * guessed


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_of_other_scripts(tmp_path, encoding):
    """Only its line ends have zero bytes; bytes that are zero elsewhere do not make it UTF-16."""
    path = tmp_path / "p.txt"
    path.write_bytes("中天\n日本の猫\n中中\n".encode(encoding))
    assert records(path) == ["中天", "日本の猫", "中中"]
    for content in (b"ab\n\0cd\nef\n", b"a\0b\ncd\n", b"ab\n\0c\n"):
        path.write_bytes(content)
        assert [line for line in records(path) if not line.startswith("!")] == [
            line.decode() for line in content.splitlines() if b"\0" not in line
        ]


def test_what_is_said_of_a_file(tmp_path):
    files = {
        "a.txt": (b'{"prompt": "a"}\n', "read as one prompt per line, although it looks like .jsonl"),
        "b.txt": (b"id,prompt\n1,a\n", "read as one prompt per line, although it looks like .csv"),
        "c.txt": ("id\tprompt\n1\ta\n".encode("utf-16"), "read as one prompt per line, although it looks like .tsv"),
        "a.csv": (b"id;prompt\n1;a\n", "fields are separated by semicolons"),
        "b.csv": (gzip.compress(b"prompt\na\n"), "compressed with gzip"),
        "c.csv": (b'prompt\n"a \\"b\\" c"\n', "line 2: quotes are escaped with backslashes"),
        "d.csv": (b'prompt\n"' + b"a\n" * 30 + b'"\n', "lines 2 to 32 are one quoted record"),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        notes: list[str] = []
        list(stream_prompts(tmp_path / name, note=notes.append))
        assert len(notes) == 1
        assert notes[0].startswith(f"{tmp_path / name}: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "json", "parquet"])
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path, suffix):
    peaks = []
    draw = random.Random(0)
    for count in (40_000, 200_000) if suffix == "parquet" else (10_000, 40_000):
        path = tmp_path / f"{count}.{suffix}"
        prompts = [f"{draw.getrandbits(160):040x}" for _ in range(count)]  # compression must not hide them
        if suffix == "parquet":
            pq.write_table(pa.table({"prompt": prompts}), path)
        else:
            text = json.dumps(prompts, indent=1) if suffix == "json" else "\n".join(json.dumps(p) for p in prompts)
            path.write_text("prompt\n" * (suffix == "csv") + text)
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
    assert peaks[1] < peaks[0] + (2e6 if suffix == "parquet" else 1e6)  # the prompts would be 8 MB more, or 3 MB


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n \n", r"empty\.txt: "),
        ("latin.txt", "fine\ncaf\xe9".encode("latin-1"), r"latin\.txt: line 2 is not UTF-8"),
        ("prompts.doc", b"x", r"unknown prompt format '\.doc'; expected \.txt, \.csv, \.tsv, "),
        ("a.txt.zst", b"x", r"a\.txt\.zst: .*\.gz"),
        ("bad.txt", b"\x28\xb5\x2f\xfdx", r"bad\.txt: compressed with zstd; decompress it, or use gzip"),
        ("bad.csv", b"PK\x03\x04x", r"bad\.csv: a zip archive or an Excel workbook; export its sheet as CSV"),
        ("bad.jsonl", b'"fine"\n{"prompt": \n', r"bad\.jsonl: line 2 is not JSON"),
        ("bad.jsonl", b'{"text": "x"}', r"bad\.jsonl: no column 'prompt'; it has text"),
        ("bad.jsonl", b"[1]", r"bad\.jsonl: record 1: a number instead of text"),
        ("bad.csv", b"id,text\n1,x\n", r"bad\.csv: no column 'prompt'; it has id, text"),
        ("bad.csv", b"id;text\n1;x\n", r"bad\.csv: no column 'prompt'; it has id, text"),
        ("bad.csv", b"prompt,prompt\na,b\n", r"bad\.csv: 2 columns 'prompt'; rename all but one"),
        ("bad.csv", b"", r"bad\.csv: has no prompts"),
        ("bad.csv", b'prompt\n"open\n', r"bad\.csv: line 2: an unclosed quote"),
        ("bad.csv", b'"prompt\na', r"bad\.csv: line 1 "),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        read_prompts(tmp_path / "missing.txt")


def test_a_files_name_that_is_not_utf_8_is_shown_as_text(tmp_path):
    """In places and errors, which tables hold as UTF-8."""
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    path.write_text('prompt\na cat\n""\n')
    for source in (path, tmp_path):
        good, bad = stream_prompts(str(source))
        assert good.place.encode()
        assert bad.error.encode()
        assert "caf\ufffd.csv" in good.place
