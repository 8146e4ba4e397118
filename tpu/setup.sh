#!/usr/bin/env bash
# Puts this package on every worker of the slice, and the model into STORE; doing it again changes nothing.
#
#   [MODEL=owner/name STORE=gs://bucket/folder] tpu/setup.sh [--dry-run]
#
# A model of the hub is downloaded by one worker, which puts it into STORE; run.sh has all of them take it from there.
source "$(dirname "$0")/settings.sh"
options "$@"
((${#rest[@]} == 0)) || wrong "${rest[*]}: no such option; see --help"
if [[ -n $MODEL && $MODEL != *://* && -z $STORE ]]; then
  wrong "MODEL=$MODEL: STORE=gs://bucket/folder is needed, so that one worker alone downloads it"
fi

on_worker() { # which, and what to do there
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

archive=$(mktemp -d)/memattn.tgz
trap 'rm -rf "$(dirname "$archive")"' EXIT
# 1: something changed meanwhile, such as a folder into which Python puts what it compiles
run tar -czf "$archive" -C "$here/.." --exclude=__pycache__ memattn_jax tpu pyproject.toml README.md LICENSE || (($? == 1))
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:memattn.tgz" "${where[@]}" --worker=all
on_worker all "mkdir -p memattn && tar -xzf memattn.tgz -C memattn && bash memattn/tpu/install.sh"
if [[ -n $MODEL && $MODEL != *://* ]]; then
  on_worker 0 "cd memattn && $(printf ' %q' .venv/bin/python tpu/model.py publish "$MODEL" "$(stored_model)")"
fi
