# Sourced by the other scripts: makes the virtual environment where it is missing
# and puts its Python first. JAXFACE_VENV names another place than .venv, PYTHON
# another interpreter than python3, JAXFACE_EXTRAS the extras wanted.
JAXFACE_VENV=${JAXFACE_VENV:-.venv}
PYTHON=${PYTHON:-python3}
JAXFACE_EXTRAS=${JAXFACE_EXTRAS:-test}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "jaxface needs Python 3.11 or newer; $PYTHON is" \
    "$("$PYTHON" --version 2>&1 || true). Set PYTHON=/path/to/python3.11" >&2
  exit 1
fi

# The stamp says what was asked for when the environment was last completed.
wanted=$(cat pyproject.toml constraints.txt; echo "$JAXFACE_EXTRAS"; pwd)
if [ "$(cat "$JAXFACE_VENV/jaxface.stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing into $JAXFACE_VENV (about a minute and 2.5 GB) ..."
  [ -x "$JAXFACE_VENV/bin/python" ] || "$PYTHON" -m venv "$JAXFACE_VENV"
  "$JAXFACE_VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$JAXFACE_EXTRAS]"
  printf '%s\n' "$wanted" >"$JAXFACE_VENV/jaxface.stamp"
fi
PATH="$(cd "$JAXFACE_VENV/bin" && pwd):$PATH"
export PATH TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
