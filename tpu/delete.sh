#!/usr/bin/env bash
# Deletes the slice and its request, whatever runs there, and lists what is left in the zone: nothing should be.
#
#   NAME=memattn ZONE=us-west4-a tpu/delete.sh [--dry-run]
source "$(dirname "$0")/settings.sh"
options "$@"
((${#rest[@]} == 0)) || wrong "${rest[*]}: no such option; see --help"

run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
run gcloud compute tpus queued-resources list "${where[@]}"
run gcloud compute tpus tpu-vm list "${where[@]}"
