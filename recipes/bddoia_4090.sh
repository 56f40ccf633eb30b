#!/usr/bin/env bash
# BDD-OIA with SmolVLM, the whole chain on one 24 GB card: rows, SFT, then A2C to describe, to decide and to answer in JSON. Kill it at
# any moment and start it again: finished stages are kept, and a stage resumes from its newest complete checkpoint. A stage that
# finished with other flags (a trial with --max_steps 2) ends the recipe, since all stages of a chain share their flags.
#
# Paper       the seed paper of row D; recipes/bddoia_sft.sh and recipes/bddoia_a2c.sh hold the hyper-parameters
# Hardware    one RTX 4090 (24 GB), by the plan (docs/plan.md); no 24 GB card was at hand
# Memory      at most 17 GiB of the card by the plan (A2C; PLAN=1 bash recipes/bddoia_4090.sh --gpu_memory 24GB); not measured
# Time        not measured
# Result      not measured; recipes/bddoia_synthetic.sh is SFT and A2C at small size on a CPU
# Command     LABELS=data/lastframe bash recipes/bddoia_4090.sh [flags for all four stages, e.g. --report_to none]
#             LABELS   the folder of BDD-OIA's label files; IMAGES (LABELS/data) the folder of its pictures
#             OUT      everything else (runs/bddoia); OUT/text/test.meta.json are the rows to evaluate on
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
# shellcheck source=_stages.sh
source "$(dirname "${BASH_SOURCE[0]}")/_stages.sh"
ensure_environment eval
labels="${LABELS:-data/lastframe}" out="${OUT:-runs/bddoia}"
images="${IMAGES:-$labels/data}"
export NPROC_PER_NODE=1
chain "$out" sft stage1 stage2 stage3
describe="Describe the driving scene in one sentence."
json='Answer with one JSON object with the keys "description" (the scene in one sentence), "action" (what the car may do) and "justification" (why).'

# Rows in folder $1, with flags for the builder. audit.json is written last.
rows() {
  [ -f "$out/$1/audit.json" ] ||
    run python "$DRIVE_VLM_ROOT/tools/build_bddoia.py" --labels "$labels" --image_root "$images" --out "$out/$1" "${@:2}"
}

# Run the stage $1 from the model $2.
stage() {
  local recipe=bddoia_a2c.sh sizes=()
  [ "$1" != sft ] || recipe=bddoia_sft.sh
  if [ -n "${PLAN:-}" ] && [ "$1" != sft ] && ! has_model "$2"; then
    # The plan of an adapter that does not exist yet uses the sizes of the published model.
    sizes=(--model smolvlm --lora_rank 16)
  fi
  STAGE="${1#stage}" run_stage "$1" bash "$(dirname "${BASH_SOURCE[0]}")/$recipe" --model "${@:2}" "${sizes[@]}"
}

check() { check_stage "$1" --model "${@:2}"; }

# $1: what to do with each stage, its model and its flags.
stages() {
  local model=HuggingFaceTB/SmolVLM-Instruct
  [ -z "${PLAN:-}" ] || model=smolvlm
  "$1" sft "$model" --data "$out/text/train.meta.json" "${@:2}"
  "$1" stage1 "$out/sft" --data "$out/describe/train.meta.json" "${@:2}"
  "$1" stage2 "$out/stage1" --data "$out/text/train.meta.json" "${@:2}"
  "$1" stage3 "$out/stage2" --data "$out/json/train.meta.json" "${@:2}"
}

[ -n "${DRY_RUN:-}${PLAN:-}" ] || stages check "$@"
rows text
rows describe --target labels --question "$describe" --splits train
rows json --target labels --question "$json"
stages stage "$@"
