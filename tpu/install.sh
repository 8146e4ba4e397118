#!/usr/bin/env bash
# On a worker: Python 3.12, which TPU VMs lack, and this package in an environment of its own. setup.sh starts it.
#
#   tpu/install.sh [--dry-run]
source "$(dirname "$0")/settings.sh"
options "$@"
cd "$here/.."

run python3 -m pip install --quiet --user uv
run "$HOME/.local/bin/uv" venv --quiet --allow-existing --python 3.12 .venv
run "$HOME/.local/bin/uv" pip install --quiet --python .venv/bin/python -e ".[${EXTRAS:-tpu,remote}]"
