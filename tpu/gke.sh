#!/usr/bin/env bash
# Starts detection on GKE as a JobSet, which Ironwood needs: fills jobset.yaml in and gives it to kubectl.
#
#   IMAGE=… STORE=gs://bucket/folder tpu/gke.sh --prompts gs://… --out gs://… [--dry-run]
#
# ACCELERATOR=tpu7x, tpu-v6e-slice, tpu-v5p-slice or tpu-v5-lite-podslice; TOPOLOGY=2x2x1 of chips on HOSTS=1 machines of
# CHIPS=4 each. SPOT=1 asks for spare capacity. MAX_SECONDS=28800: one try lasts no longer, and is the last then. SERVICE_ACCOUNT=default: whose
# rights on the bucket pods have. MODEL=gs://bucket/folder, as `python tpu/model.py publish` writes it. --dry-run prints the manifest.
ACCELERATOR=${ACCELERATOR:-tpu7x}
source "$(dirname "$0")/settings.sh"
options "$@"
((${#rest[@]})) || wrong "--prompts and --out are needed; see --help"
[[ -n $STORE ]] || wrong "STORE=gs://bucket/folder is needed, for compiled programs"
[[ -z $MODEL || $MODEL == *://* ]] || wrong "MODEL=$MODEL: a folder in storage is needed; see model.py"
((dry_run)) || [[ -n ${IMAGE:-} ]] || wrong "IMAGE is needed: what docker build made of tpu/Dockerfile, in a registry"

quoted() { # a list of words as JSON
  local word list=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+="${list:+, }\"${word//\"/\\\"}\""
  done
  printf '[%s]' "$list"
}

manifest=$(<"$here/jobset.yaml")
fill() {
  manifest=${manifest//"\${$1}"/"$2"} # quoted, as an & would mean what was found
}
fill NAME "$NAME"
fill ACCELERATOR "$ACCELERATOR"
fill TOPOLOGY "${TOPOLOGY:-2x2x1}"
fill HOSTS "${HOSTS:-1}"
fill CHIPS "${CHIPS:-4}"
fill MAX_SECONDS "${MAX_SECONDS:-28800}"
fill SERVICE_ACCOUNT "${SERVICE_ACCOUNT:-default}"
fill IMAGE "${IMAGE:-IMAGE}"
fill MODEL "$MODEL"
fill CACHE "$STORE/compiled"
fill ARGUMENTS "$(quoted "${rest[@]}")"
if [[ ${SPOT:-0} != 1 ]]; then manifest=$(grep -v 'gke-spot: ' <<<"$manifest"); fi

if ((dry_run)); then
  printf '%s\n' "$manifest"
else
  run kubectl apply --filename - <<<"$manifest"
fi
