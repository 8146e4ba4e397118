#!/usr/bin/env bash
# Says what has become of the request, and what else is alive in the zone and costs money.
#
#   tpu/status.sh [--wait] [--dry-run]
#
# --wait returns when the slice is there, with 1 when it never will be. POLL=30 seconds between two looks.
source "$(dirname "$0")/settings.sh"
options "$@"
wait=0
for argument in "${rest[@]}"; do
  [[ $argument == --wait ]] || wrong "$argument: no such option; see --help"
  wait=1
done

look=(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" "--format=value(state.state)")
if ((wait && !dry_run)); then
  while true; do
    state=$("${look[@]}")
    echo "$NAME: $state"
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) exit 1 ;;
    esac
    sleep "${POLL:-30}"
  done
else
  run "${look[@]}"
fi
run gcloud compute tpus queued-resources list "${where[@]}"
run gcloud compute tpus tpu-vm list "${where[@]}"
