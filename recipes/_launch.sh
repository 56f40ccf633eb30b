# sourced by every recipe: starts `python -m drive_vlm ...` on one process, several, or several nodes.
# shellcheck shell=bash
# The one place with a torchrun or deepspeed line.
#
#   launch COMMAND [flags]        e.g. launch sft --model ... "$@"
#
# Topology comes from the environment:
#   NPROC_PER_NODE   processes on this node (default: number of GPUs, at least 1)
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT   several nodes
#   LAUNCHER         torchrun (default) or deepspeed
#   DRY_RUN=1        print the command, one flag a line, and run nothing
# Slurm: slurm/ is part of the launcher milestone; see README, status.

DRIVE_VLM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export DRIVE_VLM_ROOT

_say() { printf '%s\n' "$*" >&2; }

_gpu_count() {
  if command -v nvidia-smi >/dev/null 2>&1; then nvidia-smi --list-gpus 2>/dev/null | wc -l; else echo 0; fi
}

_free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Finds Python 3.11 or 3.12, makes .venv when no environment is active, and installs the project with the given extras once.
ensure_environment() {
  local extras="$1" python="" stamp
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$DRIVE_VLM_ROOT/.venv/bin/python" ]; then
      for candidate in python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
          python="$candidate"; break
        fi
      done
      [ -n "$python" ] || { _say "No Python 3.11 or 3.12 found. Install one (e.g. apt install python3.11 python3.11-venv), then run this again."; exit 2; }
      _say "Making $DRIVE_VLM_ROOT/.venv with $($python --version)"
      "$python" -m venv "$DRIVE_VLM_ROOT/.venv"
    fi
    # shellcheck disable=SC1091
    source "$DRIVE_VLM_ROOT/.venv/bin/activate"
  fi
  stamp="${VIRTUAL_ENV:-$CONDA_PREFIX}/.drive_vlm_${extras//,/_}_$(cat "$DRIVE_VLM_ROOT/setup.py" "$DRIVE_VLM_ROOT"/constraints/*.txt | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    local constraint="$DRIVE_VLM_ROOT/constraints/cpu.txt"
    [ "$(_gpu_count)" -gt 0 ] && constraint="$DRIVE_VLM_ROOT/constraints/cuda.txt"
    _say "Installing drive-vlm[$extras] into ${VIRTUAL_ENV:-$CONDA_PREFIX} with $(basename "$constraint") (minutes the first time, once)"
    python -m pip install --quiet --disable-pip-version-check -c "$constraint" -e "${DRIVE_VLM_ROOT}[$extras]"
    touch "$stamp"
  fi
}

launch() {
  local nproc="${NPROC_PER_NODE:-$(_gpu_count)}" nodes="${NNODES:-1}" command
  [ "$nproc" -gt 0 ] || nproc=1
  if [ "$nproc" -eq 1 ] && [ "$nodes" -eq 1 ] && [ "${LAUNCHER:-torchrun}" = torchrun ]; then
    command=(python -m drive_vlm "$@")
  elif [ "${LAUNCHER:-torchrun}" = deepspeed ]; then
    [ "$nodes" -eq 1 ] || { _say "LAUNCHER=deepspeed starts one node here; use LAUNCHER=torchrun for NNODES=$nodes."; exit 2; }
    command=(deepspeed --num_accelerators "$nproc" --master_port "${MASTER_PORT:-$(_free_port)}" --module drive_vlm "$@")
  elif [ "${LAUNCHER:-torchrun}" != torchrun ]; then
    _say "LAUNCHER=$LAUNCHER is not known. Use torchrun or deepspeed."; exit 2
  elif [ "$nodes" -eq 1 ]; then
    command=(torchrun --nnodes 1 --nproc_per_node "$nproc" --master_addr 127.0.0.1 --master_port "${MASTER_PORT:-$(_free_port)}" -m drive_vlm "$@")
  else
    : "${MASTER_ADDR:?set MASTER_ADDR to the address of node 0 for NNODES=$nodes}"
    command=(torchrun --nnodes "$nodes" --nproc_per_node "$nproc" --node_rank "${NODE_RANK:?set NODE_RANK for NNODES=$nodes}"
      --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" -m drive_vlm "$@")
  fi
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q' "${command[0]}"
    local word
    for word in "${command[@]:1}"; do
      if [[ "$word" == --* ]]; then printf ' \\\n  %q' "$word"; else printf ' %q' "$word"; fi
    done
    printf '\n'
    return
  fi
  if [ "$(_gpu_count)" -eq 0 ]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( ($(nproc) + nproc - 1) / nproc ))}"
  fi
  export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
  "${command[@]}"
}
