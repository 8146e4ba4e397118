"""Prompt files, good and bad."""

import io
import sys

import pytest

from memattn_jax import InputError
from memattn_jax.prompts import read_prompts

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
