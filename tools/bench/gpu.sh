#!/usr/bin/env bash
# One command that measures the project on a GPU in about ten minutes, the most valuable part first; what is done is kept when it is killed.
# Without a GPU it runs the same code at toy size on the CPU, and says so. All flags: tools/bench/gpu.py --help
#   bash tools/bench/gpu.sh --minutes 9 --out gpu.json
#   bash tools/bench/gpu.sh --out gpu.json --resume                  # goes on where the last run stopped
#   bash tools/bench/gpu.sh --parts c,d --out gpu.json --resume
#   bash tools/bench/gpu.sh --wheels wheels --out gpu.json           # wheels of tools/bench/gpu_wheels.sh, for a machine without an index
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
words=() wheels=""
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) [ $# -gt 1 ] || { echo "gpu.sh: --wheels needs a folder." >&2; exit 2; }; wheels="$2"; shift 2 ;;
    --wheels=*) wheels="${1#*=}"; shift ;;
    *) words+=("$1"); shift ;;
  esac
done
if [ -n "$wheels" ]; then
  [ -d "$wheels" ] || { echo "gpu.sh: --wheels $wheels: no such folder. Make it with tools/bench/gpu_wheels.sh." >&2; exit 2; }
  ls "$wheels"/*.whl >/dev/null 2>&1 || { echo "gpu.sh: --wheels $wheels holds no wheel. Make it with tools/bench/gpu_wheels.sh." >&2; exit 2; }
  # Unpacked, since packages look for their data files next to their code; anew when the wheels are others, so that no two versions mix.
  unpacked="$(cd "$wheels" && pwd)/unpacked"
  list="$(cd "$wheels" && ls -1 -- *.whl)"
  if [ "$list" != "$(cat "$unpacked/.wheels" 2>/dev/null)" ]; then
    rm -rf "$unpacked"
    mkdir "$unpacked"
    for wheel in "$wheels"/*.whl; do "${PYTHON:-python3}" -m zipfile -e "$wheel" "$unpacked/$(basename "$wheel" .whl)"; done
    echo "$list" >"$unpacked/.wheels"
  fi
  # Behind what the machine has: only what is missing there comes from the wheels.
  export GPU_BENCH_WHEELS="$unpacked"
fi
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
# torch then asks the driver how many GPUs there are and does not start CUDA: a process that has started it cannot be forked.
export PYTORCH_NVML_BASED_CUDA_CHECK=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" "$here/gpu.py" ${words[@]+"${words[@]}"}
