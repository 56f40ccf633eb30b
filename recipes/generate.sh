#!/usr/bin/env bash
# Answers of a model for the rows of a file, on all GPUs of a machine; as a job array each task answers one shard.
#
# Hardware    any; a row is answered by one process, so more processes or shards are that many times faster
# Measured    not measured
# Command     bash recipes/generate.sh --model runs/sft --data test.jsonl --out predictions.jsonl [any flag]
#             bash slurm/submit.sh recipes/generate.sh --array 0-7%4 --time 1:00:00 -- --model runs/sft --data test.jsonl --out predictions.jsonl
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment video

launch generate "$@"
