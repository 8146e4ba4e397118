"""Stand-ins for the programs that launch scripts start: they write down their calls, and refuse what is wrong.

A fake is this file under another name. FAKE_LOG receives a JSON line a call: name, arguments, standard input.
`gcloud … describe` prints FAKE_DESCRIBE, its words one a call. With FAKE_WORKERS, `gcloud … ssh --worker=all` runs its
command in as many local processes, each of which finds a TPU slice's metadata in its environment, and srun as many
tasks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

WHERE = {"--zone", "--project"}
# Command, its positional arguments, flags that must be there, flags that may; from `gcloud COMMAND --help`
GCLOUD = {
    "compute tpus queued-resources create": (
        1,
        {"--zone", "--node-id", "--accelerator-type", "--runtime-version", "--valid-until-duration"},
        {"--project", "--spot"},
    ),
    "alpha compute tpus queued-resources create": (
        1,
        {
            "--zone",
            "--node-id",
            "--accelerator-type",
            "--runtime-version",
            "--provisioning-model",
            "--max-run-duration",
        },
        {"--project", "--valid-until-duration"},
    ),
    "compute tpus queued-resources describe": (1, {"--zone", "--format"}, {"--project"}),
    "compute tpus queued-resources list": (0, {"--zone"}, {"--project"}),
    "compute tpus queued-resources delete": (1, {"--zone", "--force", "--quiet"}, {"--project"}),
    "compute tpus tpu-vm describe": (1, {"--zone", "--format"}, {"--project"}),
    "compute tpus tpu-vm list": (0, {"--zone"}, {"--project"}),
    "compute tpus tpu-vm scp": (2, {"--zone", "--worker"}, {"--project"}),
    "compute tpus tpu-vm ssh": (1, {"--zone", "--worker", "--command"}, {"--project"}),
}
SBATCH = {"--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-task", "--cpus-per-task", "--time", "--requeue"}
SBATCH |= {"--signal", "--open-mode"}


def install(folder: Path, **settings: str) -> dict[str, str]:
    """Puts the fakes into a folder, alone with what scripts need besides; the environment that has them found."""
    folder.mkdir(exist_ok=True)
    for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol"):
        fake = folder / name
        fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        fake.chmod(0o755)
    kept = {
        name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG", "JAX_COMPILATION_CACHE_DIR") if name in os.environ
    }
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    return kept | {"PATH": path, "FAKE_LOG": str(folder / "log"), "HF_HUB_OFFLINE": "1"} | settings


def calls(environment: dict[str, str]) -> list[dict]:
    """What was called."""
    log = Path(environment["FAKE_LOG"])
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def split(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Positional arguments and flags."""
    flags = dict(word.split("=", 1) if "=" in word else (word, "") for word in words if word.startswith("--"))
    return [word for word in words if not word.startswith("--")], flags


def check_gcloud(words: list[str]) -> tuple[str, dict[str, str]]:
    """The command and its flags; raises ValueError for what gcloud would refuse."""
    positional, flags = split(words)
    for command, (count, needed, allowed) in GCLOUD.items():
        parts = command.split()
        if positional[: len(parts)] == parts:
            if len(positional) != len(parts) + count:
                raise ValueError(f"{command}: positional arguments {positional[len(parts) :]}")
            if missing := needed - set(flags):
                raise ValueError(f"{command}: lacks {missing}")
            if unknown := set(flags) - needed - allowed:
                raise ValueError(f"{command}: unknown {unknown}")
            return command, flags
    raise ValueError(f"no command {positional}")


def check_sbatch(words: list[str]) -> None:
    """Raises ValueError for what sbatch would refuse."""
    script = next(i for i, word in enumerate(words) if not word.startswith("-"))
    flags = split(words[:script])[1]
    if unknown := set(flags) - SBATCH - {"--partition", "--account"}:
        raise ValueError(f"sbatch: unknown {unknown}")
    if not Path(words[script]).read_text().startswith("#!"):
        raise ValueError(f"sbatch: {words[script]} is no script")


def together(command: list[str], environments: list[dict[str, str]]) -> int:
    """Runs a command once in each environment, at the same time; the first exit status that is not 0."""
    running = [subprocess.Popen(command, env=os.environ | environment) for environment in environments]
    statuses = [process.wait() for process in running]  # of all: one that fails leaves the others at work
    return next(filter(None, statuses), 0)


def slice_of(workers: int) -> list[dict[str, str]]:
    """What GKE and TPU VMs tell each worker of a slice, and JAX's way to believe it without a TPU."""
    hosts = ",".join(["localhost"] * workers)
    metadata = {"JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": hosts}
    metadata |= {"MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
    return [metadata | {"TPU_WORKER_ID": str(worker)} for worker in range(workers)]


def main(name: str, words: list[str]) -> int:
    """One call of a fake."""
    given = sys.stdin.read() if name == "kubectl" else ""
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write(json.dumps({"name": name, "arguments": words, "input": given}) + "\n")
    workers = int(os.environ.get("FAKE_WORKERS", "0"))
    if name == "gcloud":
        command, flags = check_gcloud(words)
        if command.endswith("describe"):
            answers = os.environ["FAKE_DESCRIBE"].split()
            asked = sum("describe" in call["arguments"] for call in calls(dict(os.environ)))
            print(answers[min(asked, len(answers)) - 1])
        if command.endswith("ssh") and workers:
            everywhere = slice_of(workers)[: None if flags["--worker"] == "all" else 1]
            return together(["bash", "-c", f"cd && {flags['--command']}"], everywhere)
    if name == "sbatch":
        check_sbatch(words)
    if name == "srun":
        tasks = [{"SLURM_PROCID": str(task), "SLURM_NTASKS": str(workers)} for task in range(workers)]
        return together([word for word in words if word != "--kill-on-bad-exit=0"], tasks)
    if name == "kubectl" and words != ["apply", "--filename", "-"]:
        raise ValueError(f"kubectl: {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
