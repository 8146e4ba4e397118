"""Prompts in Parquet, and columns that are kept, of all formats."""

import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_records import records

from memattn_jax import InputError
from memattn_jax.prompts import read_prompts, stream_prompts


def test_parquet(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "caption": [" one", None, "", "two"]}), path)
    wrong = ["! record 2: null instead of a prompt", "! record 3: empty prompt"]
    assert records(path, "caption") == [" one", *wrong, "two"]
    with pytest.raises(InputError, match=r"prompts\.parquet: no column 'prompt'; it has id, caption"):
        read_prompts(path)
    with pytest.raises(InputError, match=r"prompts\.parquet: column 'id' .*int64"):
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
        "! record 2: a list of 2 instead of text",
        "! record 3: a list of 0 instead of text",
        "! record 4: null instead of a prompt",
    ]
    assert read_prompts(path, "row.prompt") == ["in"] * 4
    with pytest.raises(InputError, match=r"column 'row' .*struct<.*row\.NAME"):
        read_prompts(path, "row")
    with pytest.raises(InputError, match=r"no column 'row\.caption'; it has prompt, row"):
        read_prompts(path, "row.caption")
    pq.write_table(pa.table({"a.b": ["dot"], "prompt": pa.nulls(1)}), path)
    assert read_prompts(path, "a.b") == ["dot"]
    with pytest.raises(InputError, match=r"p\.parquet: has no prompts"):
        read_prompts(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["one"])] * 2, ["prompt", "prompt"]), path)
    with pytest.raises(InputError, match="2 columns 'prompt'"):
        read_prompts(path)


def test_text_of_parquet_that_is_not_utf8(tmp_path):
    raw = pa.array([b"fine", b"caf\xe9", b"also fine"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = tmp_path / "p.parquet"
    wrong = "! record 2 is not UTF-8; save the file as UTF-8"
    for column in (raw, text, pa.ListArray.from_arrays([0, 1, 2, 3], text)):
        pq.write_table(pa.table({"prompt": column}), path)
        assert records(path) == ["fine", wrong, "also fine"]


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


def test_kept_values_that_arrow_has_no_text_for(tmp_path):
    """UUIDs, of which one is UTF-8, and durations, of which one is too long for Python; nested ones as JSON."""
    known = [uuid.UUID(bytes=b"sixteen letters!"), uuid.UUID(int=2**128 - 1)]
    for ids in (known[:1], known[1:], known):
        stored = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes for one in ids], pa.binary(16)))
        waits = pa.array([90, 10**15][: len(ids)], pa.duration("s"))
        both = pa.StructArray.from_arrays([stored, waits], ["id", "wait"])
        columns = {"prompt": ["a"] * len(ids), "id": stored, "wait": waits, "both": both}
        pq.write_table(pa.table(columns), tmp_path / "p.parquet")
        kept = [record.kept for record in stream_prompts(tmp_path / "p.parquet", keep=("id", "wait", "both"))]
        texts = [(str(one), wait) for one, wait in zip(ids, ("0:01:30", "1000000000000000 s"), strict=False)]
        assert kept == [(one, wait, f'{{"id": "{one}", "wait": "{wait}"}}') for one, wait in texts]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.csv", r"p\.csv: no column 'usr'; it has id, prompt"),
        ("p.jsonl", r"p\.jsonl: no column 'usr'; it has id, prompt"),
        ("p.parquet", r"p\.parquet: no column 'usr'; it has id, prompt"),
        ("p.txt", r"p\.txt: .*no columns"),
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


def test_nested_columns_hold_what_python_has_no_type_for(tmp_path):
    """Nanoseconds, years after 9999, bytes, and text that is not UTF-8: one such value ends no run."""
    nanoseconds = pa.array([{"t": [1600000000000000001]}], pa.struct([("t", pa.list_(pa.timestamp("ns")))]))
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffo")])
    columns = {
        "prompt": ["a cat"],
        "times": nanoseconds,
        "years": pa.array([[10**7]], pa.list_(pa.date32())),
        "bytes": [[b"ok"]],
        "text": pa.StructArray.from_arrays([broken], ["k"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    (record,) = stream_prompts(tmp_path / "p.parquet", keep=("times", "years", "bytes", "text"))
    times, *others = record.kept
    assert times == '{"t": ["2020-09-13 12:26:40.000000001"]}'
    assert others == ['["29349-01-26"]', '["ok"]', '{"k": "\ufffdo"}']
