"""What starts detection on several GPU machines: the job fits Kubernetes' schema, and each machine has its number."""

import os
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import tyro
import yaml

from memattn_jax.commands.detect import Options

GPU = Path(__file__).parents[2] / "gpu"


@pytest.fixture
def job() -> dict:
    return yaml.safe_load((GPU / "job.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def task() -> dict:
    return yaml.safe_load((GPU / "sky.yaml").read_text(encoding="utf-8"))


def test_the_job_is_one_of_kubernetes(job):
    kubernetes_validate.validate(job, "1.34", strict=True)
    job["spec"]["backoffLimitPerIndex"] = "five"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.34", strict=True)


def words_of(script: str, folder: Path, **variables: str) -> list[str]:
    """What Bash, run in the repository, gives to Python."""
    python = folder / "python"
    python.write_text('#!/bin/bash\nprintf "%q " "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    environment = os.environ | variables | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "-euc", script]
    done = subprocess.run(command, env=environment, cwd=GPU.parent, capture_output=True, text=True, check=True)
    flag, module, *words = shlex.split(done.stdout)
    assert (flag, module) == ("-m", "memattn_jax.detect")
    return words


def test_each_pod_of_the_job_has_its_part(job, tmp_path):
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    script = shlex.join(["bash", "tpu/worker.sh", *container["args"]])  # the image's entry point
    options = tyro.cli(Options, args=words_of(script, tmp_path, JOB_COMPLETION_INDEX="3", **variables))
    assert spec["completionMode"] == "Indexed"
    assert (options.process_id, options.num_processes, options.distributed) == (3, spec["completions"], False)
    assert spec["parallelism"] == spec["completions"]
    _, stopped = spec["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["containerName"] == container["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy needs it


def test_each_machine_of_the_task_has_its_part(task, tmp_path):
    """SkyPilot runs `run` with Bash on every machine, and sets rank and number."""
    variables = dict.fromkeys(task["envs"], "s3://a bucket/x")
    ranks = {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "2"}
    options = tyro.cli(Options, args=words_of(task["run"], tmp_path, **variables, **ranks))
    assert (options.process_id, options.num_processes, options.distributed) == (2, 4, False)
    assert options.prompts == options.model == options.out == "s3://a bucket/x"
