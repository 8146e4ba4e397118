#!/usr/bin/env bash
# Detects on GPUs under Slurm, a task a GPU: submits itself, and in the job starts the tasks.
#
#   NODES=2 GPUS=8 TIME=04:00:00 tpu/slurm.sh --model … --prompts … --out … [--dry-run]
#
# Two minutes before its time is up, or when Slurm preempts it, each task writes what it has; the job then queues itself
# again and goes on. PYTHON names the environment's; PARTITION and ACCOUNT are Slurm's.
# Where sbatch has copied this script to lies nothing beside it
source "${REPOSITORY:-$(cd "$(dirname "$0")/.." && pwd)}/tpu/settings.sh"
export REPOSITORY=${REPOSITORY:-$(dirname "$here")}
options "$@"
((${#rest[@]})) || wrong "--prompts and --out are needed; see --help"

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  [[ -z $MODEL || $MODEL == *://* || -d $MODEL ]] || wrong "MODEL=$MODEL: no such folder; a model of the hub is --model"
  gpus=${GPUS:-8}
  job=(--job-name="$NAME" --nodes="${NODES:-1}" --ntasks-per-node="$gpus" --gpus-per-task=1)
  job+=(--cpus-per-task="${CPUS:-8}" --time="${TIME:-04:00:00}" --requeue --signal=TERM@120 --open-mode=append)
  if [[ -n ${PARTITION:-} ]]; then job+=(--partition="$PARTITION"); fi
  if [[ -n ${ACCOUNT:-} ]]; then job+=(--account="$ACCOUNT"); fi
  run sbatch "${job[@]}" "$here/slurm.sh" "${rest[@]}"
  exit 0
fi

status=0
run srun --kill-on-bad-exit=0 bash "$here/worker.sh" "${rest[@]}" || status=$?
if ((status == 143)); then run scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
