#!/bin/sh
# Creates the virtual environment and installs the package with its development tools, at the pinned versions.
# On a machine with an NVIDIA GPU the default PyTorch build (with CUDA) is installed, elsewhere the CPU build.
set -eu
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed; $PYTHON is $("$PYTHON" -V 2>&1). Use: make PYTHON=python3.12 ..." >&2
    exit 2
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip="$VENV/bin/python -m pip --disable-pip-version-check --quiet"
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    # The CPU build is a tenth of the size. Where PyTorch's own index cannot be reached, the registry's build does as well.
    version=$(sed -n 's/^torch==//p' constraints.txt)
    $pip install "torch==$version" --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 10 -c constraints.txt >/dev/null 2>&1 ||
        $pip install "torch==$version" -c constraints.txt
fi
$pip install -c constraints.txt -e ".[dev]"
