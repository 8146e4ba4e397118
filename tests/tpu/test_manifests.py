"""What Kubernetes and Docker would say: the manifest against the schemas of its objects, the container file linted."""

import copy
import json
import subprocess
from pathlib import Path

import fake_commands
import jsonschema
import kubernetes_validate
import pytest
import yaml

TPU = Path(__file__).parents[2] / "tpu"
KUBERNETES = "1.34"
# The fields of jobset.x-k8s.io/v1alpha2 that jobset.yaml has, with the values that JobSet allows; a job's template is
# Kubernetes' own, and validated as that
SCHEMA = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())


@pytest.fixture
def rendered(tmp_path):
    def render(**settings: str) -> dict:
        environment = fake_commands.install(tmp_path / "bin") | {"STORE": "gs://b/s", "IMAGE": "i:1"} | settings
        words = ["--prompts", "gs://b/p.txt", "--out", 'gs://b/"o"&\\']
        command = ["bash", TPU / "gke.sh", *words, "--dry-run"]
        return yaml.safe_load(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    return render


def validate(manifest: dict) -> None:
    jsonschema.validate(manifest, SCHEMA)
    for replicated in manifest["spec"]["replicatedJobs"]:
        metadata = {"name": replicated["name"]}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata} | replicated["template"]
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def container(manifest: dict) -> dict:
    (found,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_manifest(rendered):
    manifest = rendered(ACCELERATOR="tpu-v6e-slice", TOPOLOGY="4x4", HOSTS="4", SPOT="1", NAME="scores", MODEL="gs://m")
    validate(manifest)
    assert manifest["metadata"]["name"] == "scores"
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container(manifest)["args"] == ["--prompts", "gs://b/p.txt", "--out", 'gs://b/"o"&\\']
    variables = {variable["name"]: variable["value"] for variable in container(manifest)["env"]}
    assert variables == {"JAX_COMPILATION_CACHE_DIR": "gs://b/s/compiled", "MODEL": "gs://m"}


def test_ironwood_is_the_default_and_nothing_is_left_to_fill_in(rendered):
    manifest = rendered()
    validate(manifest)
    selector = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert selector == {
        "cloud.google.com/gke-tpu-accelerator": "tpu7x",
        "cloud.google.com/gke-tpu-topology": "2x2x1",
    }
    assert "${" not in json.dumps(manifest)
    assert container(manifest)["resources"]["limits"] == {"google.com/tpu": 4}


def test_machines_taken_away_restart_it_failures_a_few_times_and_too_long_a_run_never(rendered):
    spec = rendered()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    disrupted, stopped = job["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"] == {"containerName": container(rendered())["name"], "operator": "In", "values": [143]}
    assert {disrupted["action"], stopped["action"]} == {"FailJob"}  # which gives the job the reason PodFailurePolicy
    actions = {rule["onJobFailureReasons"][0]: rule["action"] for rule in spec["failurePolicy"]["rules"]}
    assert actions == {"DeadlineExceeded": "FailJobSet", "PodFailurePolicy": "RestartJobSetAndIgnoreMaxRestarts"}
    assert 0 < spec["failurePolicy"]["maxRestarts"] < 10
    assert job["activeDeadlineSeconds"] > 0
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy needs it


def wrong_manifests():
    yield "unknown field of a JobSet", lambda m: m["spec"].update(maxRestarts=3)
    yield "action that JobSet lacks", lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart")
    yield "text for a number", lambda m: m["spec"]["failurePolicy"].update(maxRestarts="3")
    job = lambda m: m["spec"]["replicatedJobs"][0]["template"]["spec"]  # noqa: E731
    yield "text for a number in a job", lambda m: job(m).update(parallelism="2")
    yield "unknown field of a pod", lambda m: job(m)["template"]["spec"].update(nodeselector={})
    yield "unknown field of a container", lambda m: container(m).update(arguments=[])
    yield "no containers", lambda m: job(m)["template"]["spec"].pop("containers")


@pytest.mark.parametrize(("what", "break_it"), [pytest.param(*case, id=case[0]) for case in wrong_manifests()])
def test_the_schemas_notice(what, break_it, rendered):
    manifest = copy.deepcopy(rendered())
    break_it(manifest)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(manifest)


def test_container_file():
    subprocess.run(["hadolint", "--failure-threshold", "info", TPU / "Dockerfile"], check=True)


def test_what_the_container_file_copies_is_there():
    lines = [line.split() for line in (TPU / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    copied = [name for line in lines for name in line[1:-1]]
    assert {"memattn_jax", "tpu", "pyproject.toml"} <= set(copied)
    assert all((TPU.parent / name).exists() for name in copied)
