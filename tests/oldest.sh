#!/usr/bin/env bash
# The oldest versions that setup.py allows: makes an environment of constraints/oldest.txt, once, and runs the quick tests and the parts of
# tools/bench/gpu.sh in it. An hour on two quiet cores and 8 GB of disk: CI does not run it; before a bound changes, and before a release.
#   bash tests/oldest.sh                     everything
#   bash tests/oldest.sh tests/models        tests of one folder, without the parts; any words of pytest
#   OLDEST_VENV=/disk/venv bash tests/oldest.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${OLDEST_VENV:-.venv_oldest}"
if [ ! -x "$venv/bin/python" ]; then
  python="$(command -v python3.12)" || { echo "tests/oldest.sh needs python3.12, as the machines of those versions have it." >&2; exit 2; }
  "$python" -m venv "$venv"
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"
export DRIVE_VLM_CONSTRAINT="$PWD/constraints/oldest.txt" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# shellcheck source=../recipes/_launch.sh
source recipes/_launch.sh
ensure_environment dev
python -m pip check
export DS_ACCELERATOR="${DS_ACCELERATOR:-$(if [ "$(_gpu_count)" -gt 0 ]; then echo cuda; else echo cpu; fi)}"
if [ $# -gt 0 ]; then
  exec python -m pytest -n "${PYTEST_WORKERS:-2}" --dist worksteal "$@"
fi
status=0
python -m pytest -n "${PYTEST_WORKERS:-2}" --dist worksteal -m "not slow" || status=$?
out="$(mktemp -d)"
bash tools/bench/gpu.sh --minutes "${OLDEST_MINUTES:-10}" --out "$out/gpu.json" || status=$?
echo "figures and logs: $out"
exit "$status"
