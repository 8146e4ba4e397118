#!/usr/bin/env bash
# One process of a detection run: what each worker of a slice, each pod and each task of Slurm runs.
#
#   tpu/worker.sh [--dry-run] [arguments of python -m memattn_jax.detect]
#
# Processes find each other by themselves, at COORDINATOR=host:port if it is given. With PROCESSES=N they need not: each
# is told its number by PROCESS_ID, or by Kubernetes in an Indexed Job. Those of Slurm know both. MODEL=gs://bucket/folder
# is copied to this machine first.
# Returns 0 when all rows of this process are there, 2 for what its user got wrong and for storage out of reach, and 143
# when it was asked to stop: `detect` writes what it has and returns 0 then, and nobody would know that rows are missing.
source "$(dirname "$0")/settings.sh"
options "$@"

share=(--distributed)
if [[ -n ${PROCESSES:-} ]]; then
  share=(--num-processes "$PROCESSES" --process-id "${PROCESS_ID:-$JOB_COMPLETION_INDEX}")
elif [[ -n ${SLURM_PROCID:-} ]]; then
  share=(--num-processes "$SLURM_NTASKS" --process-id "$SLURM_PROCID")
elif [[ -n ${COORDINATOR:-} ]]; then
  share+=(--coordinator "$COORDINATOR")
fi
python=${PYTHON:-python}
command=("$python" -m memattn_jax.detect "${share[@]}")
if [[ -n $MODEL ]]; then
  folder=${MODEL_FOLDER:-$HOME/.cache/memattn_jax/models/${MODEL//[^A-Za-z0-9._-]/_}}
  run "$python" "$here/model.py" take "$MODEL" "$folder"
  command+=(--model "$folder")
fi
command+=("${rest[@]}")
if ((dry_run)); then
  run "${command[@]}"
  exit 0
fi

export PYTHONUNBUFFERED=1
"${command[@]}" &
child=$!
stopping=0
# shellcheck disable=SC2329 # the trap calls it
stop() {
  stopping=1
  trap '' TERM INT
  kill -TERM "$child" || true
}
trap stop TERM INT

status=0
wait "$child" || status=$?
if ((stopping)); then
  status=0
  wait "$child" || status=$? # the signal had ended the first one
  if ((status == 0)); then status=143; fi
fi
exit "$status"
