#!/usr/bin/env bash
# Collects the wheels that a GPU machine without a package index may lack, for `gpu.sh --wheels FOLDER`: those that are missing there count.
#   bash tools/bench/gpu_wheels.sh [FOLDER]                          # default: wheels (ignored by git)
#   PYTHON_VERSION=3.12 bash tools/bench/gpu_wheels.sh               # the Python of that machine (the default)
# torch, transformers, accelerate and peft are the machine's own. A folder of more than 55 MiB is refused.
set -euo pipefail
folder="${1:-wheels}"
version="${PYTHON_VERSION:-3.12}"
packages=("trl>=1.16,<2" "datasets>=5" "rich>=14" markdown-it-py mdurl pygments hjson py-cpuinfo msgpack einops dill multiprocess xxhash
  num2words docopt)
mkdir -p "$folder"
failed=()
pip() { python3 -m pip --quiet --disable-pip-version-check "$@"; }
# deepspeed ships as source: its wheel is built here and holds no compiled op, since DeepSpeed compiles those where it runs.
DS_BUILD_OPS=0 pip wheel --no-deps --wheel-dir "$folder" "deepspeed>=0.19,<0.20" || failed+=(deepspeed)
for package in "${packages[@]}"; do
  # docopt ships as source, and is pure Python.
  pip download --no-deps --only-binary=:all: --python-version "$version" --dest "$folder" "$package" 2>/dev/null ||
    pip wheel --no-deps --wheel-dir "$folder" "$package" || failed+=("$package")
done
bytes="$(cat "$folder"/*.whl | wc -c)"
echo "$folder: $(find "$folder" -maxdepth 1 -name '*.whl' | wc -l) wheels for Python $version, $((bytes >> 20)) MiB"
[ "${#failed[@]}" -eq 0 ] || echo "not found: ${failed[*]}"
[ "$bytes" -le $((55 << 20)) ] || { echo "more than 55 MiB: remove what the machine has already" >&2; exit 1; }
