"""Detection over many prompts, as its users start it: killed, stopped and resumed.

tests/tpu/test_processes.py has several processes with several devices each.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from plans import compiled

from memattn_jax import StableDiffusion
from memattn_jax.commands import detect, generate
from memattn_jax.detectors import Scorer
from memattn_jax.detectors.scorer import score_batches
from memattn_jax.runs.table import ShardedTable

pytestmark = pytest.mark.slow

COUNT, SHARD, BATCH = 600, 64, 8
WORDS = ("cat", "hat", "the", "o", "land", "zebra", "x", "line", "and", "7")


def prompts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) + f" {i}" for i in range(count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts(COUNT)]
    lines[9] = "{"  # a prompt that cannot be read
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def arguments(model: Path, source: Path, out: Path, *more: object) -> list[str]:
    fixed = ["--model", model, "--prompts", source, "--out", out, "--steps", 4, "--batch-size", BATCH]
    return [*map(str, [*fixed, "--shard-rows", SHARD, "--detectors", "entropy_e,noise_norm", "--no-explain", *more])]


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "memattn_jax.detect", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read(out: Path) -> dict[str, list[dict]]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))}


def here(model: Path, source: Path, out: Path) -> dict[str, list[dict]]:
    """The whole run in this process."""
    fixed = {
        "steps": 4,
        "batch_size": BATCH,
        "shard_rows": SHARD,
        "detectors": "entropy_e,noise_norm",
        "explain": False,
    }
    detect.main(detect.Options(model=str(model), prompts=str(source), out=str(out), **fixed))
    return read(out)


@pytest.fixture(scope="module")
def undisturbed(model, source, tmp_path_factory) -> dict[str, list[dict]]:
    return here(model, source, tmp_path_factory.mktemp("undisturbed") / "out")


def test_rows_are_what_the_package_scores(undisturbed, model):
    rows = [row for shard in undisturbed.values() for row in shard]
    assert [row["row"] for row in rows] == list(range(COUNT))
    assert rows[9]["source"].endswith("prompts.jsonl: line 10")
    known = {"row": 9, "prompt": "", "error": f"{rows[9]['source']} is not JSON", "source": rows[9]["source"]}
    assert rows[9] == dict.fromkeys(rows[9], None) | known
    del rows[9]
    texts = prompts(COUNT)
    del texts[9]
    assert [row["prompt"] for row in rows] == texts
    scorer = Scorer(StableDiffusion.from_pretrained(model), steps=4)
    parts = list(score_batches(scorer, ((text, 0) for text in texts), BATCH))
    for name in scorer.detectors:
        scores = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose([row[name] for row in rows], scores, rtol=1e-4)


def progress(out: Path) -> int:
    with contextlib.suppress(OSError):
        return len(list(out.glob("*.parquet")))
    return 0


def test_stopped_killed_and_resumed(model, source, undisturbed, tmp_path, monkeypatch, capsys):
    """Each time a few shards further; the files come out the same as if nothing had happened."""
    out = tmp_path / "out"
    command = arguments(model, source, out)
    flush = ShardedTable.flush

    def asking(self: ShardedTable) -> None:
        flush(self)
        if progress(out) == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ShardedTable, "flush", asking)
        made = sum(map(len, here(model, source, out).values()))
    printed, errors = capsys.readouterr()
    last = f"stopped after {made} prompts, all of them written; the same command resumes"
    assert printed.splitlines()[-1] == last
    assert json.loads(errors.splitlines()[-1])["event"] == "stopped"
    assert SHARD <= made < COUNT
    assert made % BATCH == 0

    before = progress(out)  # tests/test_interrupted_runs.py kills at all moments, on a device made of Python
    process = start(*command)
    while process.poll() is None and progress(out) <= before:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for name, rows in read(out).items():
        assert rows == undisturbed[name][: len(rows)]
    assert here(model, source, out) == undisturbed


def test_two_thousand_prompts(model, tmp_path, monkeypatch, capsys):
    """In one program: nothing is compiled after the first batch, and few rows are in memory at a time."""
    from memattn_jax.detectors.scorer import score_first_step

    path = tmp_path / "p.txt"
    path.write_text("\n".join(prompts(2_000)))
    most = 0
    flush = ShardedTable.flush

    def watched(self: ShardedTable) -> None:
        nonlocal most
        most = max(most, sum(map(len, self.growing.values())))
        flush(self)

    monkeypatch.setattr(ShardedTable, "flush", watched)
    programs = compiled(score_first_step)
    monkeypatch.setattr(sys, "argv", ["detect"])
    detect.main(
        detect.Options(
            model=str(model),
            prompts=str(path),
            out=str(tmp_path / "out"),
            steps=4,
            batch_size=64,
            shard_rows=256,
            detectors="entropy_e",
            explain=False,
        )
    )
    assert compiled(score_first_step) == programs + 1
    assert most <= 256 + 64
    found = [row for shard in read(tmp_path / "out").values() for row in shard]
    assert len(found) == 2_000
    assert all(np.isfinite(row["entropy_e"]) for row in found)
    header, *listed, last = capsys.readouterr().out.splitlines()[-52:]
    assert "entropy_e" in header
    assert "50 of 2000" in header
    assert last.startswith("2000 prompts in ")
    highest = sorted((row["entropy_e"] for row in found), reverse=True)[:50]
    np.testing.assert_allclose([float(line.split()[1]) for line in listed], highest, atol=1e-4)
    assert (tmp_path / "out" / "results.jsonl").exists()


def test_generate_goes_on(model, tmp_path, monkeypatch, capsys):
    """Pictures that are there are not made again; a bad prompt gets a row; other settings are refused."""
    path = tmp_path / "p.jsonl"
    path.write_text('"a cat"\n{\n"the hat"\n"zebra"\n"line"\n')
    fixed = {"model": str(model), "out": str(tmp_path / "out"), "steps": 4, "batch_size": 2, "shard_rows": 3}
    options = generate.Options(prompts=str(path), **fixed)
    generate.main(options)
    rows = [row for shard in read(tmp_path / "out").values() for row in shard]
    assert [row["file"] for row in rows] == ["00000.png", None, "00002.png", "00003.png", "00004.png"]
    assert rows[1]["error"].endswith("line 2 is not JSON")
    printed = capsys.readouterr().out
    assert "no image: " in printed
    assert "\n1 row without an image" in printed
    assert "\n4 images, " in printed
    assert len(rows[0]["entropy"]) == 4
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("0*.png")}
    (tmp_path / "out" / "00001.parquet").unlink()
    (tmp_path / "out" / "00004.png").unlink()
    untouched = (tmp_path / "out" / "00000.png").stat().st_mtime_ns
    generate.main(options)
    assert [row for shard in read(tmp_path / "out").values() for row in shard] == rows
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("0*.png")} == pictures
    assert (tmp_path / "out" / "00000.png").stat().st_mtime_ns == untouched
    with Image.open(tmp_path / "out" / "00004.png") as picture:
        assert picture.text["prompt"] == "line"
    with pytest.raises(Exception, match=r"settings\.guidance_scale 7\.5 is now 2\.0.*--out"):
        generate.main(generate.Options(prompts=str(path), guidance_scale=2.0, **fixed))


def test_equal_prompts_have_pictures_of_their_own(model, tmp_path):
    """Sampled once, and written for each row; a picture that is gone when its equal comes is made again."""
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    fixed = {"model": str(model), "prompts": str(path), "out": str(out), "steps": 4, "batch_size": 2}
    path.write_text('{"prompt": "a cat", "id": 7}\n{"prompt": "a cat", "id": 8}\n')
    generate.main(generate.Options(keep="id", **fixed))
    before = (out / "00000.png").read_bytes()
    assert (out / "00001.png").read_bytes() == before
    (out / "00000.png").unlink()
    path.write_text(path.read_text() + '{"prompt": "a cat"}\n{"prompt": "the hat"}\n')
    generate.main(generate.Options(keep="id", **fixed))
    rows = [row for shard in read(out).values() for row in shard]
    assert [(row["row"], row["file"], row["id"]) for row in rows] == [
        (number, f"{number:05d}.png", kept) for number, kept in enumerate(["7", "8", None, None])
    ]
    assert [(out / f"0000{number}.png").read_bytes() == before for number in (1, 2, 3)] == [True, True, False]
    same = {name: value for name, value in rows[0].items() if name not in ("row", "file", "id", "source")}
    assert all(rows[number] == rows[number] | same for number in (1, 2))


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    """Peaks of a process after a short run and a long one, and of another that resumes both.

    The detector needs no device, so the rest has the time.
    """
    for count in (1_000, 60_000):
        lines = (f"a picture of object number {i} on a hill" for i in range(count))
        (tmp_path / f"{count}.txt").write_text("\n".join(lines))
    program = """
import resource, sys
from memattn_jax.commands import detect
for path in sys.argv[1:]:
    detect.main(detect.Options(prompts=path, out=path + ".out", detectors="text_baseline", explain=False,
                               batch_size=256))
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    command = [sys.executable, "-c", program, tmp_path / "1000.txt", tmp_path / "60000.txt"]
    for made in (60_000, 0):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        short, long = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak "))
        assert json.loads(done.stderr.splitlines()[-1])["rows"] == made
        assert long < short + 20e6  # the rows alone would be more as Python objects
