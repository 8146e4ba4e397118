"""`detect --engine ray` on two nodes of this machine, of which one is killed in the middle."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from memattn_jax.errors import InputError
from memattn_jax.runs.ray_engine import Pending, share_out

ROWS, SHARD = 5_000, 500
COMMAND = [sys.executable, "-m", "memattn_jax.detect", "--detectors", "noise_norm", "--no-explain"]
WAIT = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "log.txt"
    path.write_text("".join(f"a photo of {number} cats\n" for number in range(ROWS)))
    return path


@pytest.fixture
def cluster():
    """Two nodes; see two_nodes.py. Its first line is the address."""
    script = Path(__file__).with_name("two_nodes.py")
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as both:
        yield both
        both.stdin.close()


def command(model: Path, prompts: Path, out: Path, *options: str) -> list[str]:
    common = ["--model", str(model), "--prompts", str(prompts), "--out", str(out)]
    return [*COMMAND, *common, "--batch-size", "50", "--shard-rows", str(SHARD), *options]


def rows(out: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(sorted(out.glob("*.parquet")), columns=["row", "prompt", "noise_norm", "error"])
    return {name: table[name].to_numpy() for name in table.column_names}


def wait_for(what, process: subprocess.Popen) -> None:
    """Until something is so; fails where the run ends before."""
    start = time.monotonic()
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < WAIT
        time.sleep(0.05)


def test_killed_node_and_killed_worker_lose_nothing(sd, model, prompts, cluster, tmp_path):
    out = tmp_path / "ray"
    options = ["--engine", "ray", "--ray-address", cluster.stdout.readline().strip()]
    run = subprocess.Popen(
        command(model, prompts, out, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (out / "00001.parquet").exists(), run)
    worker = subprocess.run(["pkill", "-9", "-o", "-f", "ray::RayWorker"])
    assert worker.returncode == 0
    wait_for(lambda: (out / "00003.parquet").exists(), run)
    print("kill", file=cluster.stdin, flush=True)
    printed, errors = run.communicate(timeout=WAIT)
    assert run.returncode == 0, (printed, errors)
    found, texts = rows(out), prompts.read_text().splitlines()
    assert found["row"].tolist() == list(range(ROWS))
    assert found["prompt"].tolist() == texts
    expected = sd.detect(texts, ["noise_norm"], batch_size=50)["noise_norm"]
    np.testing.assert_allclose(found["noise_norm"], expected, rtol=1e-5)
    assert json.loads((out / "manifest.json").read_text())["complete"]


def test_no_cluster_is_one_line(model, prompts, tmp_path):
    options = ["--engine", "ray", "--ray-address", "127.0.0.1:1"]
    done = subprocess.run(command(model, prompts, tmp_path, *options), capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("--ray-address 127.0.0.1:1: no Ray cluster there")


def test_a_batch_that_kills_every_actor_ends_the_run(monkeypatch):
    """Instead of killing them for ever."""
    import ray
    from ray.exceptions import ActorDiedError

    lost = []

    def died(reference):
        raise ActorDiedError

    monkeypatch.setattr(ray, "get", died)
    actors = SimpleNamespace(submit=lambda texts, seeds: (0, None), lost=lost.append)
    with pytest.raises(InputError, match=r"4 Ray actors died of the same 2 prompts; try a smaller --batch-size"):
        Pending(actors, ["a", "b"], [0, 0]).fetch()
    assert lost == [0, 0, 0]


def test_actors_share_out_what_nodes_have():
    assert share_out([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}]) == (4, {"num_gpus": 1})
    assert share_out([{"CPU": 8.0, "TPU": 4.0}] * 3) == (3, {"resources": {"TPU": 4.0}})
    assert share_out([{"CPU": 2.0}]) == (1, {"num_cpus": 1})
