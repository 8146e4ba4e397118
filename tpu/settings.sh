# shellcheck shell=bash
# What the scripts share; they source it. Every setting is an environment variable, and these are the defaults.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export here
export NAME=${NAME:-memattn}                      # of the slice and of its queued resource
export ZONE=${ZONE:-us-west4-a}                   # where your quota is
export ACCELERATOR=${ACCELERATOR:-v5litepod-8}    # v5litepod-N, v5p-N, v6e-N
export PROJECT=${PROJECT:-}                       # of Google Cloud; by default gcloud's own
export STORE=${STORE:-}                           # gs://bucket/folder for weights and compiled programs
export MODEL=${MODEL:-}                           # owner/name on the hub, or a gs:// folder that holds one

# Takes --dry-run and --help away from a script's arguments; `rest` holds the others.
dry_run=0
rest=()
options() {
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run) dry_run=1 ;;
      --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      *) rest+=("$argument") ;;
    esac
  done
}

# Prints a command, and runs it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  if ((!dry_run)); then "$@"; fi
}

# Ends a script for what its user got wrong.
wrong() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Where machines take the model from: MODEL itself, or where setup.sh has one of them put it.
stored_model() {
  case $MODEL in
    *://*) printf '%s' "$MODEL" ;;
    ?*) printf '%s' "$STORE/models/$MODEL" ;;
  esac
}

where=(--zone="$ZONE")
if [[ -n $PROJECT ]]; then where+=(--project="$PROJECT"); fi
