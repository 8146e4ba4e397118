"""Captions as people write them down: a record is a pair, several, or a reason."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.pictures.skipped import UnusableError
from memattn_jax.training.captions import checked, read_captions


def outcome(entry):
    """Place, picture and caption; or place and reason."""
    try:
        if entry.problem is not None:
            raise entry.problem
        return entry.place, entry.picture, checked(entry.caption)
    except UnusableError as error:
        return entry.place, error.reason


def jsonl(tmp_path, content: bytes) -> list:
    (tmp_path / "metadata.jsonl").write_bytes(content)
    return [outcome(entry) for entry in read_captions(tmp_path / "metadata.jsonl")]


def line(text, name="a.png") -> bytes:
    return json.dumps({"file_name": name, "text": text}, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("caption", ["one\u2028two", "one\x85two", "one\x0btwo", "\U0001f600", "", " "])
def test_json_lines_end_at_line_ends_alone(tmp_path, caption):
    assert jsonl(tmp_path, line(caption)) == [("line 1", "a.png", caption)]


def test_marks_blank_lines_and_line_ends(tmp_path):
    one, two = line("x").rstrip(), line("é", "b.png").rstrip()
    expected = [("line 1", "a.png", "x"), ("line 3", "b.png", "é")]
    for end in (b"\n", b"\r\n", b"\r"):
        for mark in (b"", b"\xef\xbb\xbf"):
            assert jsonl(tmp_path, mark + one + end + b"  " + end + two + end + end) == expected
    for encoding in ("utf-16", "utf-16-le"):
        text = (one + b"\n\n" + two).decode().encode(encoding)
        assert jsonl(tmp_path, text if encoding == "utf-16" else b"\xff\xfe" + text) == expected


def test_what_is_wrong_with_a_json_line_is_told(tmp_path):
    content = line("caf\xe9").decode().encode("latin-1") + line(None) + line(5) + line(True) + line({"en": "x"})
    content += (
        line([]) + line(["x", None, "y"]) + b"nonsense\n" + b"[1]\n" + b'{"file_name": "a.png"}\n' + b"[" * 100_000
    )
    content += b'\n{"file_name": "a.png", "caption": "x"}\n{"file_name": "a.png", "text": "\\ud800"}\n' + line("fine")
    assert jsonl(tmp_path, content) == [
        ("line 1", "the caption is not UTF-8; save the file as UTF-8"),
        ("line 2", "no caption (null)"),
        ("line 3", "the caption is a number, not text"),
        ("line 4", "the caption is true or false, not text"),
        ("line 5", "the caption is an object, not text"),
        ("line 6", "an empty list of captions"),
        ("line 7, caption 1", "a.png", "x"),
        ("line 7, caption 2", "no caption (null)"),
        ("line 7, caption 3", "a.png", "y"),
        ("line 8", "not JSON"),
        ("line 9", "not a JSON object"),
        ("line 10", "no 'text', only file_name"),
        ("line 11", "not JSON"),
        ("line 12", "no 'text', only file_name, caption"),
        ("line 13", "the caption is not UTF-8; save the file as UTF-8"),
        ("line 14", "a.png", "fine"),
    ]


def csv(tmp_path, content: bytes) -> list:
    (tmp_path / "metadata.csv").write_bytes(content)
    return [outcome(entry) for entry in read_captions(tmp_path / "metadata.csv")]


def test_csv(tmp_path):
    for mark in (b",", b";", b"\t"):
        content = b'file_name,text\r\na.png,"one, ""two""\r\nthree"\r\n\r\nb.png,\r\n5.png,5\r\n'.replace(b",", mark)
        expected = 'one, "two"\r\nthree'.replace(",", mark.decode())
        rows = [("line 2", "a.png", expected), ("line 5", "b.png", ""), ("line 6", "5.png", "5")]
        assert csv(tmp_path, content) == rows
        assert csv(tmp_path, b"\xef\xbb\xbf" + content) == rows


def test_a_bad_csv_record_costs_itself_alone(tmp_path):
    content = b'text,file_name,n\nx,a.png\n"she said "hi"",b.png,1\n' + b"y" * 200_000 + b",e.png,1\n"
    content += b'"never closed,c.png,1\ncaf\xe9,d.png,1\nx,y,z,1\nfine,f.png,1\n'
    assert csv(tmp_path, content) == [
        ("line 2", "another number of fields than the header"),
        ("line 3", "not CSV (',' expected after '\"')"),
        ("line 4", "not CSV (field larger than field limit (131072))"),
        ("line 5", "not CSV (unexpected end of data)"),
        ("line 6", "the caption is not UTF-8; save the file as UTF-8"),
        ("line 7", "another number of fields than the header"),
        ("line 8", "f.png", "fine"),
    ]


def test_parquet(tmp_path):
    path = tmp_path / "metadata.parquet"
    texts = pa.array([b"x", None, b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"file_name": ["a.png", "b.png", None], "text": texts, "other": [1, 2, 3]}), path)
    reasons = ("no caption (null)", "the caption is not UTF-8; save the file as UTF-8")
    expected = [("row 1", "a.png", "x"), ("row 2", reasons[0]), ("row 3", reasons[1])]
    assert [outcome(entry) for entry in read_captions(path)] == expected
    pq.write_table(pa.table({"file_name": ["a.png"], "text": [["x", "y"]]}), path)
    assert [outcome(entry)[2] for entry in read_captions(path)] == ["x", "y"]
    pq.write_table(pa.table({"file_name": ["a.png"] * 2, "text": [5, 6]}), path)
    assert {outcome(entry)[1] for entry in read_captions(path)} == {"the caption is a number, not text"}


def test_tables_without_the_columns_are_refused(tmp_path):
    for content, message in (
        (b"file_name,caption\na.png,x\n", "no column 'text'; it has file_name, caption"),
        (b"file_name,text,text\na.png,x,y\n", "several columns 'text'"),
        (b"", "no column 'file_name'; it has none"),
    ):
        with pytest.raises(InputError, match=message):
            csv(tmp_path, content)
    path = tmp_path / "metadata.parquet"
    pq.write_table(pa.table({"name": ["a.png"], "text": ["x"]}), path)
    with pytest.raises(InputError, match=r"'file_name'.* name, text"):
        read_captions(path)
    for content in (b"nope", b"PAR1" + b"\0" * 20 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="Parquet"):
            read_captions(path)
