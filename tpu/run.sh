#!/usr/bin/env bash
# Detects on all workers of the slice at once, and goes on where a run stopped: the same command again.
#
#   STORE=gs://bucket/folder tpu/run.sh --prompts gs://bucket/prompts.parquet --out gs://bucket/scores [--dry-run]
#
# Arguments are those of `python -m memattn_jax.detect`; MODEL and STORE as for setup.sh.
# Returns 0 when all rows are there, 143 when workers were asked to stop, and something else when one died.
# PORT=8476: where workers meet. The firewall rule that comes with a slice opens it, but not JAX's own 8482.
source "$(dirname "$0")/settings.sh"
options "$@"
((${#rest[@]})) || wrong "--prompts and --out are needed; see --help"

address=ADDRESS_OF_WORKER_0
look=(gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" "--format=value(networkEndpoints[0].ipAddress)")
if ((dry_run)); then run "${look[@]}"; else address=$("${look[@]}"); fi

worker=(PYTHON=.venv/bin/python COORDINATOR="$address:${PORT:-8476}")
if [[ -n $STORE ]]; then worker+=(JAX_COMPILATION_CACHE_DIR="$STORE/compiled"); fi
if [[ -n $MODEL ]]; then worker+=(MODEL="$(stored_model)"); fi
worker+=(bash tpu/worker.sh)
command="cd memattn && env$(printf ' %q' "${worker[@]}" "${rest[@]}")"
run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$command"
