#!/usr/bin/env bash
# make_env.sh FOLDER EXTRAS: a virtual environment with this package, editable, and its extras; does nothing where it is in place.
# What it holds is named by a stamp over setup.cfg, so a changed list of requirements installs again.
set -euo pipefail
folder=$1 extras=$2
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."

stamp=$folder/hpcmr-$(printf '%s' "$extras $PWD" | cat - setup.cfg pyproject.toml | sha256sum | cut -c1-16)
if [ -e "$stamp" ] && "$folder/bin/python" -c '' 2>/dev/null; then
    echo "$folder is in place" >&2
    exit 0
fi
"$python" - <<'PY' || { echo "hpcmr needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY
"$python" -c 'import ensurepip' 2>/dev/null || { echo "python3 -m venv needs ensurepip: apt-get install python3-venv" >&2; exit 1; }
echo "making $folder with hpcmr[$extras]" >&2
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'setuptools>=77'
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
rm -f "$folder"/hpcmr-*
touch "$stamp"
