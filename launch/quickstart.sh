#!/usr/bin/env bash
# From nothing to a trained, restored and evaluated face model, in a few minutes:
#
#   bash launch/quickstart.sh [WORKDIR] [--config.key=value ...]
#
# Makes .venv where missing, trains on rendered identities, restores the best
# checkpoint, evaluates it on identities never seen in training, and writes
# WORKDIR/report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-quickstart-run}
shift || true
source launch/env.sh

python launch/train.py --config=configs/quickstart.py --workdir="$workdir" "$@"
python launch/evaluate.py --workdir="$workdir" --sets=unseen \
  --report="$workdir/report.html"
