"""How many prompts a source has, before they are read."""

import gzip
import io
import json
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.prompts import stream_prompts


@pytest.mark.parametrize("suffix", ["txt", "csv", "csv.gz", "jsonl", "json", "parquet"])
def test_the_number_of_prompts_is_known_before_they_are_read(tmp_path, suffix):
    """Exactly of a short source, roughly of a long one, without another reading."""
    for count in (1, 900, 20_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        texts = [f"猫 number {i}" for i in range(count)]
        for name, part in (("a", texts[: count // 4]), ("b", texts[count // 4 :])):
            path = folder / f"{name}.{suffix}"
            lines = "prompt\n" * suffix.startswith("csv") + "\n".join(part)
            text = {"json": json.dumps(part), "jsonl": "\n".join(map(json.dumps, part))}.get(suffix, lines)
            if suffix == "parquet":
                pq.write_table(pa.table({"prompt": pa.array(part, pa.string())}), path)
            elif part:
                path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
        prompts = stream_prompts(folder)
        assert prompts.total() == pytest.approx(count, rel=0.25 if count > 900 else 0)
        found = []
        for prompt in prompts:
            found.append(prompt.text)
            if len(found) % 5_000 == 0:
                assert prompts.total() == pytest.approx(count, rel=0.25)
        assert found == texts
        assert prompts.total() == count


def test_an_error_that_counting_meets_is_raised_in_its_turn(tmp_path):
    path = tmp_path / "p.csv.gz"
    draw = random.Random(0)
    texts = [f"{draw.getrandbits(4000):01000x}" for _ in range(600)]
    path.write_bytes(gzip.compress("\n".join(["prompt", *texts]).encode())[:-4])
    prompts = stream_prompts(path)
    assert prompts.total() is None
    assert [next(prompts).text for _ in range(500)] == texts[:500]
    with pytest.raises(InputError, match="damaged gzip"):
        list(prompts)


def test_a_log_that_begins_with_many_blank_records_is_read(tmp_path):
    """As one does that is sorted by its prompts; of few and all blank there is nothing to read."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": null}\n' * 2_000 + '{"prompt": "a cat"}\n')
    assert [prompt.text for prompt in stream_prompts(path) if prompt.error is None] == ["a cat"]
    path.write_text('{"prompt": null}\n' * 900)
    with pytest.raises(InputError, match="has no prompts"):
        next(stream_prompts(path))


def test_standard_input_is_not_read_ahead(monkeypatch):
    raw = io.BytesIO(b"one\ntwo\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    prompts = stream_prompts("-")
    assert next(prompts).text == "one"
    assert prompts.total() is None
    assert [prompt.text for prompt in prompts] == ["two"]
    assert prompts.total() == 2
