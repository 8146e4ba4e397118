"""Prompts in JSON, a value a line or one document."""

import json
import random

import pytest
from prompt_records import records

from memattn_jax.prompts import read_prompts, stream_prompts


def test_jsonl(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one", "seed": 3}\n\n"two"\n{"prompt": "three"}\n', encoding="utf-8")
    assert read_prompts(path) == ["one", "two", "three"]
    assert records(path) == ["one", "! line 2 is empty", "two", "three"]
    path.write_text('{"caption": "one"}\n', encoding="utf-8")
    assert read_prompts(path, column="caption") == ["one"]


JSON = {
    "a.json": ('[\n {"prompt": "a"},\n {"prompt": "b"}\n]\n', ["a", "b"]),
    "b.json": ('["a", "b", "c"]', ["a", "b", "c"]),
    "c.json": ('{\n  "prompt": "a"\n}\n{\n  "prompt": "b"\n}', ["a", "b"]),
    "d.json": ('{"prompt": "a"}', ["a"]),
    "e.json": (
        '[{"prompt": "a"}, {"prompt": "b" "c"}, {"prompt": 12}, {"prompt": "d"}, {"prompt": ',
        [
            "a",
            "! record 2 is not JSON",
            "! record 3: a number instead of text",
            "d",
            "! record 5 is not JSON, and after it no record was found",
        ],
    ),
    "i.json": ('["a", b, "c", "d\\q", "e"]', ["a", "! record 2 is not JSON", "c", "! record 4 is not JSON", "e"]),
    "j.json": (
        '[["a"], ["b" 1], ["c"], {"prompt": "d"}',
        [
            "a",
            "! record 2 is not JSON",
            "c",
            "d",
            "! record 5 is missing: the array is not closed; is the file truncated?",
        ],
    ),
    "f.jsonl": (
        '{"prompt":null}\n{"x":1}\n{"prompt":5}\n{"prompt":["a"]}\n{"prompt":["a","b"]}\n{"prompt":{"a":1}}\n'
        '{"prompt":"a","prompt":"b"}\n{"prompt":"a\\u0000b"}\n"ok" x\n' + "[" * 100_000 + "\n"
        '{"prompt":"b","n":' + "9" * 5000 + ', "s":NaN}\n{"prompt": true}',
        [
            "! line 1: null instead of a prompt",
            "! line 2: no column 'prompt'; it has x",
            "! line 3: a number instead of text",
            "a",
            "! line 5: a list of 2 instead of text",
            "! line 6: an object of a instead of text",
            "! line 7: several keys 'prompt'",
            "! line 8 contains NUL characters; is it text?",
            "! line 9 is not JSON",
            "! line 10 is nested too deeply",
            "b",
            "! line 12: true or false instead of text",
        ],
    ),
    "g.ndjson": ('{"prompt":"a"}\n{"prompt":""}\n', ["a", "! line 2: empty prompt"]),
    "k.json": (
        '[oops {"prompt": "a", "user": "u"}, {"prompt": "b"}]',
        ["! record 1 is not JSON", "! record 2 is not JSON", "b"],
    ),
    "l.json": ('[{"prompt": "a"},\n{"prompt": "b"}\n]', ["a", "b"]),
    "m.jsonl": ('[INFO] begins\n{"prompt": "a", "user": "u"}\n{"prompt": "b"}', ["! line 1 is not JSON", "a", "b"]),
    "n.jsonl": ('[2024-05-01] begins\n"a"\n{"prompt": "b"}', ["! line 1 is not JSON", "a", "b"]),
    "p.jsonl": ('[2024-05-01, 12:00] begins\n"a"\n{"prompt": "b"}', ["! line 1 is not JSON", "a", "b"]),
    "q.jsonl": ('["INFO"] begins\n{"prompt": "b", "user": "u"}\n', ["! line 1 is not JSON", "b"]),
    "o.json": ('[1,\n"a"\n]', ["! record 1: a number instead of text", "a"]),
    "h.jsonl": ('["a"]\n["b", "c"]\n', ["a", "! line 2: a list of 2 instead of text"]),
}


@pytest.mark.parametrize("name", JSON)
def test_every_record_of_a_json_file_is_there(tmp_path, name):
    content, expected = JSON[name]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert records(path) == expected


def test_json_documents_of_any_length(tmp_path):
    """Read in parts, wherever a part ends."""
    draw = random.Random(0)
    values = [{"prompt": '\\"é' * draw.randint(1, 4000), "n": draw.randint(0, 10**20)} for _ in range(200)]
    path = tmp_path / "p.json"
    for indent in (None, 1):
        path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
        found = list(stream_prompts(path, keep=("n",)))
        assert [(prompt.text, prompt.kept) for prompt in found] == [(v["prompt"], (str(v["n"]),)) for v in values]
