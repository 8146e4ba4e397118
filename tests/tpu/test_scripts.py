"""Every launch script: linted, printed by --dry-run, and run against stand-ins that know which arguments are right."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import fake_commands
import pytest

TPU = Path(__file__).parents[2] / "tpu"
SCRIPTS = sorted(path.name for path in TPU.glob("*.sh") if path.name != "settings.sh")
DETECT = ["--prompts", "gs://bucket/a file.txt", "--out", "gs://bucket/scores"]
ARGUMENTS = {"run.sh": DETECT, "gke.sh": DETECT, "slurm.sh": DETECT, "worker.sh": DETECT}
STORE = {"STORE": "gs://bucket/store"}


def start(script: str, *arguments: str, environment: dict[str, str], **streams) -> subprocess.Popen:
    return subprocess.Popen(["bash", TPU / script, *arguments], env=environment, text=True, **streams)


def run(script: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = ["bash", TPU / script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    return fake_commands.install(tmp_path / "bin", FAKE_DESCRIBE="10.0.0.2", HOME=str(tmp_path)) | STORE


def gcloud(environment: dict[str, str]) -> list[list[str]]:
    return [call["arguments"] for call in fake_commands.calls(environment) if call["name"] == "gcloud"]


def test_shellcheck():
    subprocess.run(["shellcheck", "--external-sources", "--source-path", TPU, *TPU.glob("*.sh")], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_and_does_nothing(script, environment, tmp_path):
    done = run(script, *ARGUMENTS.get(script, ()), "--dry-run", environment=environment)
    assert done.returncode == 0, done.stderr
    assert fake_commands.calls(environment) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    if script == "gke.sh":
        assert "kind: JobSet" in done.stdout
    else:
        assert done.stdout.startswith("+ ")
    assert (TPU / script).stat().st_mode & 0o111


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(script, environment):
    done = run(script, "--help", environment=environment)
    comment = (TPU / script).read_text().splitlines()[1]
    assert done.stdout.splitlines()[0] == comment.removeprefix("# ")
    assert "source" not in done.stdout.split()


@pytest.mark.parametrize("script", ["create.sh", "status.sh", "delete.sh", "setup.sh"])
def test_what_is_no_option_is_refused(script, environment):
    done = run(script, "--dryrun", environment=environment)
    assert done.returncode == 2
    assert "--dryrun" in done.stderr
    assert fake_commands.calls(environment) == []


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e")],
)
def test_create(accelerator, runtime, environment):
    settings = {"NAME": "n", "ZONE": "z", "ACCELERATOR": accelerator, "PROJECT": "p", "VALID_UNTIL": "2h"}
    done = run("create.sh", environment=environment | settings)
    assert done.returncode == 0, done.stderr
    (words,) = gcloud(environment)
    positional, flags = fake_commands.split(words)
    assert positional == ["compute", "tpus", "queued-resources", "create", "n"]
    assert flags == {
        "--node-id": "n",
        "--zone": "z",
        "--project": "p",
        "--accelerator-type": accelerator,
        "--runtime-version": runtime,
        "--valid-until-duration": "2h",
        "--spot": "",
    }


def test_create_on_demand_and_for_a_limited_time(environment):
    assert run("create.sh", environment=environment | {"SPOT": "0"}).returncode == 0
    assert run("create.sh", environment=environment | {"MAX_RUN": "8h"}).returncode == 0
    plain, limited = gcloud(environment)
    assert "--spot" not in plain
    assert limited[0] == "alpha"
    assert {"--provisioning-model=flex-start", "--max-run-duration=8h"} < set(limited)
    assert "--spot" not in limited


@pytest.mark.parametrize("wrong", [{"ACCELERATOR": "tpu7x-8"}, {"ACCELERATOR": "v9"}, {"MAX_RUN": "1h", "SPOT": "1"}])
def test_create_refuses(wrong, environment):
    done = run("create.sh", environment=environment | wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert gcloud(environment) == []


def test_status_waits_for_the_slice(environment):
    environment |= {"POLL": "0", "FAKE_DESCRIBE": "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"}
    done = run("status.sh", "--wait", environment=environment)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("memattn: ")] == [
        "memattn: WAITING_FOR_RESOURCES",
        "memattn: PROVISIONING",
        "memattn: ACTIVE",
    ]
    assert [words[3] for words in gcloud(environment)] == ["describe"] * 3 + ["list"] * 2


def test_status_waits_no_longer_than_there_is_hope(environment):
    environment |= {"POLL": "0", "FAKE_DESCRIBE": "PROVISIONING SUSPENDED ACTIVE"}
    assert run("status.sh", "--wait", environment=environment).returncode == 1


def test_delete(environment):
    assert run("delete.sh", environment=environment | {"NAME": "n"}).returncode == 0
    deleted, *left = gcloud(environment)
    assert deleted[2:5] == ["queued-resources", "delete", "n"]
    assert {"--force", "--quiet"} < set(deleted)
    assert [words[2:4] for words in left] == [["queued-resources", "list"], ["tpu-vm", "list"]]


def test_setup(environment):
    done = run("setup.sh", environment=environment | {"MODEL": "owner/name"})
    assert done.returncode == 0, done.stderr
    copied, installed, published = gcloud(environment)
    assert copied[3] == "scp"
    assert copied[5] == "memattn:memattn.tgz"
    assert "--worker=all" in copied
    assert "--worker=all" in installed
    assert "tpu/install.sh" in installed[-1]
    assert "--worker=0" in published
    assert published[-1].endswith("tpu/model.py publish owner/name gs://bucket/store/models/owner/name")


def test_setup_lets_no_two_workers_download(environment):
    del environment["STORE"]
    done = run("setup.sh", environment=environment | {"MODEL": "owner/name"})
    assert done.returncode == 2
    assert "STORE" in done.stderr


def test_run(environment):
    done = run("run.sh", *DETECT, environment=environment | {"MODEL": "owner/name", "PORT": "8477"})
    assert done.returncode == 0, done.stderr
    asked, ran = gcloud(environment)
    assert asked[3] == "describe"
    assert "--worker=all" in ran
    words = shlex.split(ran[-1].removeprefix("--command="))
    assert words[:4] == ["cd", "memattn", "&&", "env"]
    assert words[4:8] == [
        "PYTHON=.venv/bin/python",
        "COORDINATOR=10.0.0.2:8477",
        "JAX_COMPILATION_CACHE_DIR=gs://bucket/store/compiled",
        "MODEL=gs://bucket/store/models/owner/name",
    ]
    assert words[8:] == ["bash", "tpu/worker.sh", *DETECT]


def test_slurm_submits_itself(environment):
    settings = {"NODES": "2", "GPUS": "4", "TIME": "01:00:00", "PARTITION": "gpu", "ACCOUNT": "me"}
    done = run("slurm.sh", *DETECT, environment=environment | settings)
    assert done.returncode == 0, done.stderr
    (call,) = fake_commands.calls(environment)
    assert call["name"] == "sbatch"
    script = call["arguments"].index(str(TPU / "slurm.sh"))
    assert call["arguments"][script + 1 :] == DETECT
    flags = fake_commands.split(call["arguments"][:script])[1]
    assert flags["--nodes"] == "2"
    assert flags["--ntasks-per-node"] == "4"
    assert flags["--gpus-per-task"] == "1"
    assert flags["--signal"] == "TERM@120"
    assert "--requeue" in flags
    assert flags["--partition"] == "gpu"


def test_slurm_takes_no_model_of_the_hub(environment):
    done = run("slurm.sh", *DETECT, environment=environment | {"MODEL": "owner/name"})
    assert (done.returncode, fake_commands.calls(environment)) == (2, [])
    assert "a model of the hub is --model" in done.stderr


def python_that(folder: Path, body: str) -> str:
    """A stand-in for the environment's Python, which says what it was called with."""
    path = folder / "python"
    path.write_text(f'#!/bin/bash\necho "$@" >> {folder}/ran\n{body}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("status", "queued"), [(0, False), (2, False), (143, True)])
def test_a_slurm_job_starts_its_tasks(status, queued, environment, tmp_path):
    """And goes on in another one if they were asked to stop; sbatch has put a copy of the script elsewhere."""
    copy = tmp_path / "slurm_script"
    copy.write_text((TPU / "slurm.sh").read_text())
    python = python_that(tmp_path, f"exit {status}")
    job = {"SLURM_JOB_ID": "7", "FAKE_WORKERS": "2", "PYTHON": python, "REPOSITORY": str(TPU.parent)}
    done = subprocess.run(["bash", copy, *DETECT], env=environment | job, timeout=300)
    assert done.returncode == status
    expected = "-m memattn_jax.detect --num-processes 2 --process-id {} " + " ".join(DETECT)
    assert sorted((tmp_path / "ran").read_text().splitlines()) == [expected.format(task) for task in range(2)]
    names = [(call["name"], call["arguments"]) for call in fake_commands.calls(environment)]
    assert (("scontrol", ["requeue", "7"]) in names) == queued


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_worker_returns_what_detect_does(status, environment, tmp_path):
    python = python_that(tmp_path, f"exit {status}")
    assert run("worker.sh", *DETECT, environment=environment | {"PYTHON": python}).returncode == status
    assert (tmp_path / "ran").read_text() == f"-m memattn_jax.detect --distributed {' '.join(DETECT)}\n"


@pytest.mark.parametrize(("status", "told"), [(0, 143), (1, 1)])
def test_a_worker_that_was_asked_to_stop_says_so(status, told, environment, tmp_path):
    """Detect, asked to stop, writes and returns 0; whoever restarts must not take it for done."""
    python = python_that(
        tmp_path, f"trap 'exit {status}' TERM; touch {tmp_path}/ready; while true; do sleep 0.05; done"
    )
    process = start("worker.sh", *DETECT, environment=environment | {"PYTHON": python})
    deadline = time.monotonic() + 300
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == told


def test_a_worker_takes_the_model_first(environment, tmp_path):
    python = python_that(tmp_path, "exit 0")
    settings = {"PYTHON": python, "MODEL": "gs://bucket/models/sd14", "COORDINATOR": "host:8476"}
    assert run("worker.sh", *DETECT, environment=environment | settings).returncode == 0
    took, detected = (tmp_path / "ran").read_text().splitlines()
    folder = f"{tmp_path}/.cache/memattn_jax/models/gs___bucket_models_sd14"
    assert took == f"{TPU}/model.py take gs://bucket/models/sd14 {folder}"
    assert detected.startswith(
        f"-m memattn_jax.detect --distributed --coordinator host:8476 --model {folder} --prompts"
    )


def test_gke_gives_the_manifest_to_kubectl(environment):
    done = run("gke.sh", *DETECT, environment=environment | {"IMAGE": "registry/image:1"})
    assert done.returncode == 0, done.stderr
    (call,) = fake_commands.calls(environment)
    assert call["name"] == "kubectl"
    assert f"args: {json.dumps(DETECT)}" in call["input"]
    assert "image: registry/image:1" in call["input"]


@pytest.mark.parametrize("missing", ["IMAGE", "STORE"])
def test_gke_says_what_is_missing(missing, environment):
    complete = environment | {"IMAGE": "image"}
    del complete[missing]
    done = run("gke.sh", *DETECT, environment=complete)
    assert done.returncode == 2
    assert missing in done.stderr


def test_the_stand_ins_refuse_what_gcloud_would():
    for wrong in (
        "compute tpus queued-resources create a --zone=z --node-id=n --accelerator-type=t --runtime-version=r",
        "compute tpus tpu-vm ssh a b --zone=z --worker=all --command=c",
        "compute tpus tpu-vm list --zone=z --sport",
        "compute tpus queue list",
    ):
        with pytest.raises(ValueError, match=r"compute|command"):
            fake_commands.check_gcloud(wrong.split())


def test_no_registry_of_containers_is_named():
    assert not any(word in (TPU / "Dockerfile").read_text() for word in (".io/", ".dev/", ".com/"))
    assert os.access(TPU / "worker.sh", os.X_OK)
