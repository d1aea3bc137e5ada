#!/usr/bin/env bash
# Make the environment and run the checks and tests:
#
#   bash launch/test.sh             everything
#   bash launch/test.sh --fast      without the tests marked slow
#   bash launch/test.sh --fresh     in a new environment, removed afterwards
#   bash launch/test.sh --peers     with PyTorch, for the twins
#   bash launch/test.sh --thorough  with what is otherwise left out for its length
#
# Other arguments go to pytest, as in: bash launch/test.sh -k margin
set -euo pipefail
cd "$(dirname "$0")/.."
only=()
extras=test
while [ $# -gt 0 ]; do
  case "$1" in
    --fast) only=(-m "not slow") ;;
    --fresh)
      JAXFACE_VENV=$(mktemp -d)/venv
      trap 'rm -rf "$(dirname "$JAXFACE_VENV")"' EXIT
      ;;
    --peers) extras=test,peers ;;
    *) break ;;
  esac
  shift
done
JAXFACE_EXTRAS=$extras
source launch/env.sh

ruff check .
ruff format --check .
mypy
python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal \
  "${only[@]}" "$@"
