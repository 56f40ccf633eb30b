# The Python environment of the recipes: made and filled once, only checked on the nodes of a job.
# shellcheck shell=bash
#
#   bash recipes/_environment.sh [EXTRAS]    makes and fills it, and does nothing else: for the login node of a cluster
#   source recipes/_environment.sh           defines ensure_environment [EXTRAS]

DRIVE_VLM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export DRIVE_VLM_ROOT

_say() { printf '%s\n' "$*" >&2; }
_fail() { _say "$@"; exit 2; }

# GPUs that this process may use: CUDA_VISIBLE_DEVICES first, then what Slurm gave, then what the machine has.
_gpu_count() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    case "$CUDA_VISIBLE_DEVICES" in "" | -1* | NoDevFiles) echo 0 ;; *) tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . ;; esac
  elif [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
    echo "$SLURM_GPUS_ON_NODE"
  elif command -v nvidia-smi >/dev/null 2>&1; then
    # MIG slices are listed below their GPU, indented: only whole GPUs count.
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

# Print the packages that drive-vlm (with extras $1) requires and this Python lacks, on one line; nothing when all are installed.
_missing_packages() {
  python - "$1" <<'PYTHON' 2>/dev/null || echo "drive-vlm"
import importlib.metadata as metadata, re, sys
wanted = {"drive-vlm"}
for line in metadata.requires("drive-vlm") or []:
    extra = re.search(r"extra == ['\"](.+?)['\"]", line)
    if extra is None or extra.group(1) in sys.argv[1].split(","):
        wanted.add(re.match(r"[\w.-]+", line).group())
have = {re.sub(r"[-_.]+", "-", dist.metadata["Name"] or "").lower() for dist in metadata.distributions()}
print(" ".join(sorted(name for name in wanted if re.sub(r"[-_.]+", "-", name).lower() not in have)))
PYTHON
}

_activate() {
  # shellcheck disable=SC1091
  source "$DRIVE_VLM_ROOT/.venv/bin/activate"
}

_environment_is_active() { [ -n "${VIRTUAL_ENV:-}" ] || [ -n "${CONDA_PREFIX:-}" ]; }

# Make and activate the environment with the given extras (none: the core). Compute nodes install nothing: they often have no
# network, and many of them would write into one folder. The lock keeps two recipes of one machine from installing at once.
ensure_environment() {
  local extras="${1:-}" lock
  [ -z "${DRY_RUN:-}" ] || return 0
  # A plan needs no extras.
  [ -z "${PLAN:-}" ] || extras=""
  if [ -n "${SLURM_JOB_ID:-}" ] || [ "${NNODES:-1}" -gt 1 ]; then
    _check_environment "$extras"
    return
  fi
  if command -v flock >/dev/null 2>&1; then
    exec {lock}<"$DRIVE_VLM_ROOT"
    flock "$lock"
    _install_environment "$extras"
    exec {lock}<&-
  else
    _install_environment "$extras"
  fi
}

_check_environment() {
  local missing
  missing="$(_missing_packages "$1")"
  if [ -n "$missing" ] && ! _environment_is_active && [ -x "$DRIVE_VLM_ROOT/.venv/bin/python" ]; then
    _activate
    missing="$(_missing_packages "$1")"
  fi
  [ -z "$missing" ] || _fail "$(hostname): $(command -v python || echo 'no python') lacks: $missing. Nodes of a job install nothing: activate the environment before" \
    "you submit, or make it once where there is a network, seen by all nodes: bash $DRIVE_VLM_ROOT/recipes/_environment.sh${1:+ $1}"
}

_install_environment() {
  local extras="$1" state stamp constraint
  if ! _environment_is_active; then
    [ -x "$DRIVE_VLM_ROOT/.venv/bin/python" ] || _make_venv
    _activate
  fi
  state="$(cat "$DRIVE_VLM_ROOT/setup.py" "$DRIVE_VLM_ROOT"/constraints/*.txt | cksum | cut -d' ' -f1)"
  stamp="${VIRTUAL_ENV:-$CONDA_PREFIX}/.drive_vlm_${extras//,/_}_$state"
  # The extra "dev" holds all others.
  [ ! -f "$stamp" ] && [ ! -f "${VIRTUAL_ENV:-$CONDA_PREFIX}/.drive_vlm_dev_$state" ] || return 0
  constraint="$DRIVE_VLM_ROOT/constraints/cpu.txt"
  [ "$(_gpu_count)" -eq 0 ] || constraint="$DRIVE_VLM_ROOT/constraints/cuda.txt"
  # tests/oldest.sh asks for the oldest versions.
  constraint="${DRIVE_VLM_CONSTRAINT:-$constraint}"
  _say "Installing drive-vlm${extras:+[$extras]} into ${VIRTUAL_ENV:-$CONDA_PREFIX} with $(basename "$constraint") (minutes the first time, once)"
  python -m pip install --quiet --disable-pip-version-check -c "$constraint" -e "$DRIVE_VLM_ROOT${extras:+[$extras]}"
  touch "$stamp"
}

_make_venv() {
  local candidate
  for candidate in python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      _say "Making $DRIVE_VLM_ROOT/.venv with $("$candidate" --version)"
      "$candidate" -m venv "$DRIVE_VLM_ROOT/.venv"
      return
    fi
  done
  _fail "No Python 3.11 or 3.12 found. Install one (e.g. apt install python3.11 python3.11-venv), then run this again."
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  ensure_environment "${1:-}"
fi
