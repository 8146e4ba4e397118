#!/usr/bin/env bash
# Asks for a TPU slice, as a queued resource: it waits until there is one, and costs nothing until then.
#
#   NAME=memattn ZONE=us-west4-a ACCELERATOR=v5litepod-8 tpu/create.sh [--dry-run]
#
# SPOT=1 (the default) takes spare capacity, which may be taken away again: runs go on where they stopped.
# VALID_UNTIL=6h: after this time in the queue the request expires, so that no slice starts when nobody looks.
# MAX_RUN=8h: the slice is deleted after this time, whatever runs on it (flex-start, not with SPOT=1).
source "$(dirname "$0")/settings.sh"
options "$@"
((${#rest[@]} == 0)) || wrong "${rest[*]}: no such option; see --help"

case $ACCELERATOR in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  tpu7x*) wrong "$ACCELERATOR: Ironwood is to be had on GKE alone; see gke.sh" ;;
  *) wrong "ACCELERATOR=$ACCELERATOR: v5litepod-N, v5p-N or v6e-N is needed" ;;
esac

spot=${SPOT:-1} limit=${MAX_RUN:-}
track=() more=()
if [[ -n $limit ]]; then
  [[ ${SPOT:-0} != 1 ]] || wrong "MAX_RUN and SPOT=1 exclude each other: a slice is flex-start or spot"
  track=(alpha) more=(--provisioning-model=flex-start --max-run-duration="$limit")
elif [[ $spot == 1 ]]; then
  more=(--spot)
fi

run gcloud "${track[@]}" compute tpus queued-resources create "$NAME" \
  --node-id="$NAME" "${where[@]}" \
  --accelerator-type="$ACCELERATOR" --runtime-version="${RUNTIME:-$runtime}" \
  --valid-until-duration="${VALID_UNTIL:-6h}" "${more[@]}"
