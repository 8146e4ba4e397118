"""Detection by two processes, started as a slice starts them: run.sh, a stand-in for gcloud, worker.sh, the metadata.

JAX finds the slice in the variables that Google's machines have, and is told to believe them without a TPU.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import fake_commands
import model as checkpoints  # of tpu/
import numpy as np
import pyarrow.parquet as pq
import pytest
from quick import xla_flags

from memattn_jax.commands import detect
from memattn_jax.commands.command import parse

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PROMPTS = [f"{word} on the hill {i}" for i in range(6) for word in ("cat", "zebra", "a long line", "x")]
SETTINGS = ["--steps", "4", "--batch-size", "4", "--shard-rows", "6", "--detectors", "entropy_e,noise_norm"]
SETTINGS.append("--no-explain")


def read(out: Path) -> dict[str, list[dict]]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))}


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory) -> str:
    """The small model, published as setup.sh has it done."""
    url = f"file://{tmp_path_factory.mktemp('store')}/models/micro"
    assert checkpoints.publish(str(model), url)
    return url


def test_a_model_is_published_once_and_taken_once(stored, model, tmp_path):
    assert not checkpoints.publish(str(model), stored)
    assert checkpoints.take(stored, tmp_path / "model")
    assert not checkpoints.take(stored, tmp_path / "model")
    for path in (model / "unet").iterdir():
        assert (tmp_path / "model" / "unet" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(FileNotFoundError, match="not whole"):
        checkpoints.take(f"file://{tmp_path}", tmp_path / "other")


def test_what_detectors_know_of_a_model_comes_with_it(tmp_path):
    files = ("memattn_jax.json", "model_index.json")
    folder, url = tmp_path / "model", f"file://{tmp_path}/store"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    assert checkpoints.publish(str(folder), url)
    assert checkpoints.take(url, tmp_path / "taken")
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == list(files)


def test_two_workers_write_what_one_process_writes(stored, model, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "memattn" / ".venv" / "bin").mkdir(parents=True)
    (home / "memattn" / "tpu").symlink_to(REPOSITORY / "tpu")
    python = home / "memattn" / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')  # a link would leave its environment
    python.chmod(0o755)
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(PROMPTS))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = fake_commands.install(tmp_path / "bin", FAKE_WORKERS="2", FAKE_DESCRIBE="localhost", HOME=str(home))
    environment |= {"MODEL": stored, "PORT": port, "XLA_FLAGS": xla_flags(2)}
    words = ["--prompts", str(source), *SETTINGS]
    launched = subprocess.run(
        ["bash", REPOSITORY / "tpu" / "run.sh", *words, "--out", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("by all 2 processes so far") == 2
    monkeypatch.setattr(sys, "argv", ["detect", "--model", str(model), *words, "--out", str(tmp_path / "one")])
    detect.main(parse("detect", detect.Options))

    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert list(two) == list(one)
    assert [row["prompt"] for rows in two.values() for row in rows] == PROMPTS
    for name, rows in two.items():
        for row, other in zip(rows, one[name], strict=True):
            for column in ("entropy_e", "noise_norm"):
                np.testing.assert_allclose(row.pop(column), other.pop(column), rtol=1e-5, err_msg=column)
            assert row == other
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert [shard["file"] for shard in manifest["shards"]] == list(one)
