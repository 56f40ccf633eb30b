#!/usr/bin/env bash
# Collects the wheels that a GPU machine without a package index may lack, for `gpu.sh --wheels FOLDER`: those that are missing there count.
#   bash tools/bench/gpu_wheels.sh [FOLDER]                          # default: wheels (ignored by git)
#   PYTHON_VERSION=3.12 bash tools/bench/gpu_wheels.sh               # the Python of that machine (the default)
# torch, torchvision, transformers, accelerate and peft are the machine's own, with all that these need. So is pyarrow, whose wheel alone is
# 52 MiB: on a machine without it the cases that use TRL are skipped, and say so. A folder of more than 55 MiB is refused.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
folder="${1:-wheels}"
version="${PYTHON_VERSION:-3.12}"
# The range that setup.py allows.
range() { grep -oE "\"$1>=[^\"]+\"" "$root/setup.py" | tr -d '"'; }
packages=("$(range trl)" "$(range datasets)" dill multiprocess xxhash pandas python-dateutil tzdata "$(range rich)" markdown-it-py mdurl pygments
  hjson py-cpuinfo msgpack einops "$(range num2words)" docopt)
mkdir -p "$folder"
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
failed=()
pip() { python3 -m pip --quiet --disable-pip-version-check "$@"; }
binary() { pip download --only-binary=:all: --python-version "$version" --dest "$fresh" "$@"; }
# deepspeed ships as source: its wheel is built here and holds no compiled op, since DeepSpeed compiles those where it runs.
DS_BUILD_OPS=0 pip wheel --no-deps --wheel-dir "$fresh" "$(range deepspeed)" || failed+=(deepspeed)
# With its own requirements: it takes one version of pydantic-core alone.
binary pydantic || failed+=(pydantic)
for package in "${packages[@]}"; do
  # docopt ships as source, and is pure Python.
  binary --no-deps "$package" 2>/dev/null || pip wheel --no-deps --wheel-dir "$fresh" "$package" || failed+=("$package")
done
# A second version of a package next to the first would be mixed with it.
for wheel in "$fresh"/*.whl; do
  name="$(basename "$wheel")"
  rm -f "$folder/${name%%-*}"-*.whl
  mv "$wheel" "$folder"
done
bytes="$(cat "$folder"/*.whl | wc -c)"
echo "$folder: $(find "$folder" -maxdepth 1 -name '*.whl' | wc -l) wheels for Python $version, $((bytes >> 20)) MiB"
bound="$(find "$folder" -maxdepth 1 -name '*.whl' ! -name '*-none-any.whl' ! -name '*-abi3-*.whl' -printf '%f\n' | cut -d- -f1 | sort | paste -sd ' ')"
[ -z "$bound" ] || echo "for Python $version on $(uname -m) alone: $bound"
[ "${#failed[@]}" -eq 0 ] || echo "not found: ${failed[*]}"
[ "$bytes" -le $((55 << 20)) ] || { echo "more than 55 MiB: remove what the machine has already" >&2; exit 1; }
