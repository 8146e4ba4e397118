"""Prompt files, good and bad."""

import gzip
import io
import json
import random
import sys
import tracemalloc
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.prompts import Prompt, count_prompts, read_prompts, stream_prompts

LINES = ["a cat, “quoted”", "日本の猫", "  spaced  out  "]


def records(path: Path, column: str = "prompt", keep: tuple[str, ...] = ()) -> list[str]:
    """Texts, and what follows the file's name in an error."""
    shown = []
    for prompt in stream_prompts(path, column, keep):
        shown.append(prompt.text if prompt.error is None else "! " + prompt.error.replace(f"{path}: ", ""))
    return shown


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


def test_jsonl(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one", "seed": 3}\n\n"two"\n{"prompt": "three"}\n', encoding="utf-8")
    assert read_prompts(path) == ["one", "two", "three"]
    assert records(path) == ["one", "! line 2 is empty", "two", "three"]
    path.write_text('{"caption": "one"}\n', encoding="utf-8")
    assert read_prompts(path, column="caption") == ["one"]


def test_csv(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt\n1,"a, b"\n2,"c ""d"""\n3,\n', encoding="utf-8")
    assert read_prompts(path) == ["a, b", 'c "d"']
    assert records(path)[2] == "! line 4: empty prompt"


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
    wrong = ["! record 2: null instead of a prompt", "! record 3: empty prompt"]
    assert records(path, "caption") == [" one", *wrong, "two"]
    with pytest.raises(InputError, match=r"prompts\.parquet: no column 'prompt'; there are id, caption"):
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
    assert next(prompts).text == "0"
    with pytest.raises(InputError, match=r"p\.parquet: damaged Parquet file"):
        list(prompts)


def test_parquet_text_of_every_kind(tmp_path):
    path = tmp_path / "p.parquet"
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()):
        pq.write_table(pa.table({"prompt": pa.array(["one", None, "one"], pa.string()).cast(kind)}), path)
        assert records(path) == ["one", "! record 2: null instead of a prompt", "one"]
    lists = pa.array([["one"], ["two", "three"], [], None])
    pq.write_table(pa.table({"prompt": lists, "row": pa.array([{"prompt": "in", "n": 1}] * 4)}), path)
    assert records(path) == [
        "one",
        "! record 2: a list of 2 instead of a text",
        "! record 3: a list of 0 instead of a text",
        "! record 4: null instead of a prompt",
    ]
    assert read_prompts(path, "row.prompt") == ["in"] * 4
    with pytest.raises(InputError, match=r"column 'row' holds struct<.*>, not text; one of its fields\? row\.NAME"):
        read_prompts(path, "row")
    with pytest.raises(InputError, match=r"no column 'row\.caption'; there are prompt, row"):
        read_prompts(path, "row.caption")
    pq.write_table(pa.table({"a.b": ["dot"], "prompt": pa.nulls(1)}), path)
    assert read_prompts(path, "a.b") == ["dot"]
    with pytest.raises(InputError, match=r"p\.parquet: holds no prompt"):
        read_prompts(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["one"])] * 2, ["prompt", "prompt"]), path)
    with pytest.raises(InputError, match="2 columns 'prompt'; rename all but one"):
        read_prompts(path)


def test_text_of_parquet_that_is_not_utf8(tmp_path):
    raw = pa.array([b"fine", b"caf\xe9", b"also fine"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = tmp_path / "p.parquet"
    wrong = "! record 2 is not UTF-8; save the file as UTF-8"
    for column in (raw, text, pa.ListArray.from_arrays([0, 1, 2, 3], text)):
        pq.write_table(pa.table({"prompt": column}), path)
        assert records(path) == ["fine", wrong, "also fine"]


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
    assert notes == [f"{tmp_path}: not read, for their suffix: README.md, c/a.txt.zst (2 in all)"]
    with pytest.raises(InputError, match=r"folder\.txt: no prompt file in this folder; \.txt, .* are read"):
        read_prompts(tmp_path / "folder.txt")


@pytest.mark.parametrize("folder", ["", "out"])
def test_what_an_earlier_run_wrote_is_not_read(tmp_path, folder):
    """Whether --out is a folder among the prompts, or theirs."""
    (tmp_path / "log.txt").write_text("one\n")
    out = tmp_path / folder
    out.mkdir(exist_ok=True)
    pq.write_table(pa.table({"prompt": ["own"]}), out / "00000.parquet")
    (out / "results.jsonl").write_text('{"prompt": "own"}\n')
    assert len(list(stream_prompts(tmp_path))) == 3
    (out / "manifest.json").write_text('{"identity": {}}')
    (out / "calibration.json").write_text("{}")
    notes: list[str] = []
    assert [prompt.text for prompt in stream_prompts(tmp_path, note=notes.append)] == ["one"]
    assert notes == [f"{out!s}: what this package wrote there is not read (4 files)"]


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
    """The first one too, as long as there is another."""
    path = tmp_path / "p.jsonl"
    lines = [b"{", b'"fine"', b'{"text": "x"}', "caf\xe9".encode("latin-1"), b'"\\ud800"', b'{"prompt": "also fine"}']
    path.write_bytes(b"\n".join(lines))
    assert records(path) == [
        "! line 1 is not JSON",
        "fine",
        "! line 3: no column 'prompt'; there are text",
        "! line 4 is not UTF-8; save the file as UTF-8",
        "! line 5: the prompt '\\ud800' is no valid text; UTF-8 is needed",
        "also fine",
    ]
    place = f"{path}: line 1"
    assert next(stream_prompts(path)) == Prompt("", f"{place} is not JSON", place)
    path.write_bytes(b"\n".join([lines[0], lines[3]]))
    with pytest.raises(InputError, match="line 1 is not JSON; nor can any other of its 2 records be read"):
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
    with pytest.raises(InputError, match=r"c\.csv: no column 'prompt'; there are text"):
        next(stream_prompts(tmp_path))


UNQUOTED = "fields, and the header has {}; quote prompts that hold a delimiter or a line end"
STRAY = 'text after a closing quote; quotes in a field are written ""'
OPEN = "a quote that is not closed"
CSV = {  # what a file holds, and the records of its column "prompt"
    "unquoted commas, one column": (
        'prompt\na red boat, sunset, 4k\n5" board, b\n',
        ["a red boat, sunset, 4k", '5" board, b'],
    ),
    "unquoted commas, two columns": (
        "id,prompt\n1,a red boat, sunset\n2,plain\n3\n4,fine,\n",
        [f"! line 2: 3 {UNQUOTED.format(2)}", "plain", f"! line 4: 1 {UNQUOTED.format(2)}", "fine"],
    ),
    "too long": (
        "prompt\nok\n" + "x" * 140_000 + "\nlater\n",
        ["ok", "! line 3: 140000 characters; a prompt has at most 131072", "later"],
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
    "null of databases": ('n,prompt\n1,\\N\n2,"\\N"\n', ["! line 2: null instead of a prompt", "\\N"]),
    "semicolons": ("\ufeff;prompt;URL\n0;a blue, dark boat;http://x\n", ["a blue, dark boat"]),
    "pipes": ("id|prompt\n0|a;b,c\n", ["a;b,c"]),
    "tabs": ('id\tprompt\n0\t"a\tb"\n', ["a\tb"]),
    "Excel's first line": ("sep=;\r\nid;prompt\r\n1;a, b\r\n", ["a, b"]),
    "carriage returns": ("prompt\rfirst\rsecond\r", ["first", "second"]),
    "header with spaces": ('id, prompt\n1, "a, b"\n2, c\n', ["a, b", "c"]),
    "NUL": ("prompt\na\0b\nlater\n", ["! line 2 holds NUL characters; is it text?", "later"]),
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
            "! record 3: a number instead of a text",
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
            "! record 5 is missing: the array is not closed; is the file whole?",
        ],
    ),
    "f.jsonl": (
        '{"prompt":null}\n{"x":1}\n{"prompt":5}\n{"prompt":["a"]}\n{"prompt":["a","b"]}\n{"prompt":{"a":1}}\n'
        '{"prompt":"a","prompt":"b"}\n{"prompt":"a\\u0000b"}\n"ok" x\n' + "[" * 100_000 + "\n"
        '{"prompt":"b","n":' + "9" * 5000 + ', "s":NaN}\n{"prompt": true}',
        [
            "! line 1: null instead of a prompt",
            "! line 2: no column 'prompt'; there are x",
            "! line 3: a number instead of a text",
            "a",
            "! line 5: a list of 2 instead of a text",
            "! line 6: an object of a instead of a text",
            "! line 7: several 'prompt'",
            "! line 8 holds NUL characters; is it text?",
            "! line 9 is not JSON",
            "! line 10 is nested too deep",
            "b",
            "! line 12: true or false instead of a text",
        ],
    ),
    "g.ndjson": ('{"prompt":"a"}\n{"prompt":""}\n', ["a", "! line 2: empty prompt"]),
    "h.jsonl": ('["a"]\n["b", "c"]\n', ["a", "! line 2: a list of 2 instead of a text"]),
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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_encodings(tmp_path, name, encoding):
    content = {"p.txt": "a cat\né\n", "p.csv": "prompt\na cat\né\n", "p.jsonl": '{"prompt": "a cat"}\n"é"\n'}[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    notes: list[str] = []
    assert [prompt.text for prompt in stream_prompts(path, note=notes.append)] == ["a cat", "é"]
    guessed = encoding in ("utf-16-le", "utf-16-be")
    assert notes == [f"{path}: read as {encoding.upper()}, since its zero bytes are where that has them"] * guessed


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
        "a.txt": (b'{"prompt": "a"}\n', "read a prompt a line, though it looks like .jsonl; rename it if it is"),
        "b.txt": (b"id,prompt\n1,a\n", "read a prompt a line, though it looks like .csv; rename it if it is"),
        "c.txt": ("id\tprompt\n1\ta\n".encode("utf-16"), "read a prompt a line, though it looks like .tsv; rename"),
        "a.csv": (b"id;prompt\n1;a\n", "its fields are separated by semicolons"),
        "b.csv": (gzip.compress(b"prompt\na\n"), "compressed with gzip, and read so"),
        "c.csv": (b'prompt\n"a \\"b\\" c"\n', "line 2: quotes escaped with backslashes, read so"),
        "d.csv": (b'prompt\n"' + b"a\n" * 30 + b'"\n', "lines 2 to 32 are one record, in quotes; if they are several,"),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        notes: list[str] = []
        list(stream_prompts(tmp_path / name, note=notes.append))
        assert len(notes) == 1
        assert notes[0].startswith(f"{tmp_path / name}: {said}")


def test_kept_columns(tmp_path):
    """As text, whatever the format; null where a record has none."""
    texts = {"p.csv": 'id,prompt,user.name\n007,a,é\n1.0,"",\nbad\n', "p.tsv": "id\tprompt\tuser.name\n007\ta\té\n"}
    expected = [("007", "é"), ("1.0", ""), (None, None)]
    for name, content in texts.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        found = [prompt.kept for prompt in stream_prompts(tmp_path / name, keep=("id", "user.name"))]
        assert found == expected[: len(found)]
    path = tmp_path / "p.jsonl"
    user = '{"name": "é", "x": [1.50, null]}'
    path.write_text(f'{{"id": 12345678901234567890, "prompt": "a", "user": {user}}}\n{{"prompt": "b"}}\n{{')
    found = [prompt.kept for prompt in stream_prompts(path, keep=("id", "user.name", "user"))]
    assert found == [("12345678901234567890", "é", user), (None,) * 3, (None,) * 3]
    path = tmp_path / "p.parquet"
    columns = {
        "prompt": ["a", "b"],
        "id": [1, None],
        "time": pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns", "UTC")),
        "tags": [["x"], []],
        "user": [{"name": "é"}, None],
        "raw": [b"caf\xe9", b"tea"],
    }
    pq.write_table(pa.table(columns), path)
    found = [prompt.kept for prompt in stream_prompts(path, keep=("id", "time", "tags", "user.name", "raw"))]
    assert found == [
        ("1", "2023-11-14 22:13:20.000000001Z", '["x"]', "é", "caf\ufffd"),
        (None, None, "[]", None, "tea"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.csv", r"p\.csv: no column 'usr'; there are id, prompt"),
        ("p.jsonl", r"p\.jsonl: no column 'usr'; there are id, prompt"),
        ("p.parquet", r"p\.parquet: no column 'usr'; there are id, prompt"),
        ("p.txt", r"p\.txt: plain lines have no columns to keep"),
    ],
)
def test_a_column_to_keep_that_is_not_there(tmp_path, name, message):
    path = tmp_path / name
    if name == "p.parquet":
        pq.write_table(pa.table({"id": [1], "prompt": ["a"]}), path)
    else:
        path.write_text({"p.csv": "id,prompt\n1,a\n", "p.jsonl": '{"id":1,"prompt":"a"}\n', "p.txt": "a\n"}[name])
    with pytest.raises(InputError, match=message):
        next(stream_prompts(path, keep=("usr",)))


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
        ("empty.txt", b"\n \n", r"empty\.txt: holds no prompt"),
        ("latin.txt", "fine\ncaf\xe9".encode("latin-1"), r"latin\.txt: line 2 is not UTF-8"),
        ("prompts.doc", b"x", r"unknown prompt format '\.doc'; there are \.txt, \.csv, \.tsv, "),
        ("a.txt.zst", b"x", r"a\.txt\.zst: of compressed files, \.gz alone is read; decompress it"),
        ("bad.txt", b"\x28\xb5\x2f\xfdx", r"bad\.txt: compressed with zstd; decompress it, or use gzip"),
        ("bad.csv", b"PK\x03\x04x", r"bad\.csv: a zip archive or an Excel workbook; export its sheet as CSV"),
        ("bad.jsonl", b'"fine"\n{"prompt": \n', r"bad\.jsonl: line 2 is not JSON"),
        ("bad.jsonl", b'{"text": "x"}', r"bad\.jsonl: no column 'prompt'; there are text"),
        ("bad.jsonl", b"[1]", r"bad\.jsonl: record 1: a number instead of a text"),
        ("bad.csv", b"id,text\n1,x\n", r"bad\.csv: no column 'prompt'; there are id, text"),
        ("bad.csv", b"id;text\n1;x\n", r"bad\.csv: no column 'prompt'; there are id, text"),
        ("bad.csv", b"prompt,prompt\na,b\n", r"bad\.csv: 2 columns 'prompt'; rename all but one"),
        ("bad.csv", b"", r"bad\.csv: holds no prompt"),
        ("bad.csv", b'prompt\n"open\n', r"bad\.csv: line 2: a quote that is not closed"),
        ("bad.csv", b'"prompt\na', r"bad\.csv: line 1 is no header"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such prompt file: .*missing\.txt"):
        read_prompts(tmp_path / "missing.txt")
