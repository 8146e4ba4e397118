"""Prompts in CSV and its kin: each record on its own."""

import random

import pytest
from prompt_records import records

from memattn_jax.prompts import read_prompts, stream_prompts


def test_csv(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt\n1,"a, b"\n2,"c ""d"""\n3,\n', encoding="utf-8")
    assert read_prompts(path) == ["a, b", 'c "d"']
    assert records(path)[2] == "! line 4: empty prompt"


UNQUOTED = "fields, but the header has {}; quote prompts that contain a delimiter or a line end"
STRAY = 'text after a closing quote; quotes in a field are written ""'
OPEN = "an unclosed quote"
CSV = {  # what a file holds, and the records of its column "prompt"
    "unquoted commas, one column": (
        'prompt\na red boat, sunset, 4k\n5" board, b\n',
        ["a red boat, sunset, 4k", '5" board, b'],
    ),
    "unquoted commas, two columns": (
        "id,prompt\n1,a red boat, sunset\n2,plain\n3\n4,fine,\n",
        [
            f"! line 2: 3 {UNQUOTED.format(2)}",
            "plain",
            f"! line 4: 1 {UNQUOTED.format(2).replace('fields', 'field', 1)}",
            "fine",
        ],
    ),
    "too long": (
        "prompt\nok\n" + "x" * 140_000 + "\nlater\n",
        ["ok", "! line 3: 140000 characters; at most 131072 are allowed", "later"],
    ),
    "a stray quote": ('prompt\nfirst\n"a "big" cat",\nlater\n', ["first", f"! line 3: {STRAY}", "later"]),
    "a stray quote first": ('prompt\n"a "big" cat",\nlater\n', [f"! line 2: {STRAY}", "later"]),
    "an open quote": ('prompt\nfirst\n"unfinished\nlater\nlast', ["first", f"! line 3: {OPEN}", "later", "last"]),
    "an open quote, closed ones after it": (
        'id,prompt\n1,"unfinished\n2,"a, b"\n3,"c\nd"\n',
        [f"! line 2: {STRAY}", "a, b", "c\nd"],
    ),
    "a line end without quotes": (
        "id,prompt,url\n1,a cat\non a mat,http\n2,fine,u\n",
        [f"! line 2: 2 {UNQUOTED.format(3)}", f"! line 3: 2 {UNQUOTED.format(3)}", "fine"],
    ),
    "backslashes": (
        'prompt,n\n"a \\"big\\" cat, \\\\",1\n"say \\"",2\n"C:\\",3\n',
        ['a "big" cat, \\', 'say "', "C:\\"],
    ),
    "backslashes, first on a later line": (
        'prompt,n\n"a cat\nsaid \\"hi\\" there",1\n"plain",2\n',
        ['a cat\nsaid "hi" there', "plain"],
    ),
    "null of databases": ('n,prompt\n1,\\N\n2,"\\N"\n', ["! line 2: null instead of a prompt", "\\N"]),
    "semicolons": ("\ufeff;prompt;URL\n0;a blue, dark boat;http://x\n", ["a blue, dark boat"]),
    "pipes": ("id|prompt\n0|a;b,c\n", ["a;b,c"]),
    "tabs": ('id\tprompt\n0\t"a\tb"\n', ["a\tb"]),
    "Excel's first line": ("sep=;\r\nid;prompt\r\n1;a, b\r\n", ["a, b"]),
    "carriage returns": ("prompt\rfirst\rsecond\r", ["first", "second"]),
    "header with spaces": ('id, prompt\n1, "a, b"\n2, c\n', ["a, b", "c"]),
    "NUL": ("prompt\na\0b\nlater\n", ["! line 2 contains NUL characters; is it text?", "later"]),
    "blank lines": (
        "id,prompt\n\n1,a\n  \n2, \n",
        ["! line 2: empty prompt", "a", "! line 4: empty prompt", "! line 5: empty prompt"],
    ),
    "delimiters at the end": ("prompt,\na\nb,\nc,d\n", ["a", "b", f"! line 4: 2 {UNQUOTED.format(1)}"]),
    "header twice": ("id,prompt\n1,a\n\ufeffid,prompt\n2,b\n", ["a", "! line 3 repeats the header", "b"]),
}


@pytest.mark.parametrize("name", CSV)
def test_every_record_of_a_csv_file_is_there(tmp_path, name):
    content, expected = CSV[name]
    path = tmp_path / "p.csv"
    path.write_text(content, encoding="utf-8", newline="")
    assert records(path) == expected


def test_random_damage_costs_its_own_records(tmp_path):
    """Good records are read, in order, whatever lies between them."""
    draw = random.Random(0)
    path = tmp_path / "p.csv"
    damage = ['"open', 'x,"a "b" c"', "1,2,3", "only", '"a""', 'x,"', "", '"', "\0", 'y,"""']
    alphabet = ['"', '""', ",", "\n", "\r\n", "cat", " ", "é", "\\"]
    for _ in range(300):
        lines, expected = ["id,prompt"], []
        for number in range(draw.randint(1, 8)):
            if draw.random() < 0.4:
                lines.append(draw.choice(damage))
            text = "a" + "".join(draw.choices(alphabet, k=draw.randint(0, 6))) + "z"
            expected.append((str(number), text))
            lines.append(f"{number}," + '"' + text.replace('"', '""') + '"')
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        found = [(prompt.kept[0], prompt.text) for prompt in stream_prompts(path, keep=("id",)) if prompt.error is None]
        assert found == expected, lines
