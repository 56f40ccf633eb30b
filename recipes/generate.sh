#!/usr/bin/env bash
# Answers of a model to the rows of a file, on all GPUs of a machine. In a job array each task answers one shard.
#
# Paper       none: every system's evaluation starts with it
# Hardware    any. One process answers a row, so more processes or shards are that many times faster
# Memory      the weights and the keys and values of --batch_size rows; not measured
# Time        not measured
# Result      a predictions file, complete when it has its final name
# Command     bash recipes/generate.sh --model runs/sft --data test.jsonl --out predictions.jsonl [any flag]
#             bash slurm/submit.sh recipes/generate.sh --array 0-7%4 --time 1:00:00 -- --model runs/sft --data test.jsonl --out predictions.jsonl
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment video

launch generate "$@"
