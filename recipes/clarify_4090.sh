#!/usr/bin/env bash
# ClarifyVLM with Qwen3-VL-2B, the whole chain on one 24 GB card: rows from boxes, SFT, then GRPO. Kill it at any moment and start it
# again: finished stages are kept, and a stage resumes from its newest complete checkpoint.
#
# Paper       Ahn-Jeongmin/DL_Final_Project_ABL; recipes/clarify_sft.sh and recipes/clarify_grpo.sh hold the hyper-parameters
# Hardware    one RTX 4090 (24 GB), by the plan (docs/plan.md); no 24 GB card was at hand
# Memory      at most 21 GiB of the card by the plan (GRPO; PLAN=1 bash recipes/clarify_4090.sh --gpu_memory 24GB); not measured
# Time        not measured
# Result      not measured; recipes/clarify_synthetic.sh is SFT and GRPO at small size on a CPU
# Command     SOURCE=bdd100k DATA=labels.json IMAGES=bdd100k/images bash recipes/clarify_4090.sh [flags for both stages, e.g. --report_to none]
#             SOURCE   what DATA is: bdd100k, drivelm, synthetic or detections (tools/build_ambiguity.py --source)
#             SYSTEM   the rows' system turn: rules (the default), accurate, none or a text file
#             JUDGE    flags of a judge for GRPO (recipes/clarify_grpo.sh); without it the boxes judge
#             OUT      everything else (runs/clarify); OUT/rows/val.meta.json are the rows to evaluate on
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
# shellcheck source=_stages.sh
source "$(dirname "${BASH_SOURCE[0]}")/_stages.sh"
ensure_environment eval,trl
out="${OUT:-runs/clarify}" data="${DATA:-data/bdd100k/labels.json}"
images="${IMAGES:-$(dirname "$data")}"
export NPROC_PER_NODE=1
chain "$out" sft grpo

# audit.json is written last.
rows() {
  [ -f "$out/rows/audit.json" ] ||
    run python "$DRIVE_VLM_ROOT/tools/build_ambiguity.py" --source "${SOURCE:-bdd100k}" --data "$data" --image_root "$images" \
      --system_prompt "${SYSTEM:-rules}" --out "$out/rows"
}

# Run the stage $1 from the model $2.
stage() {
  local sizes=()
  if [ -n "${PLAN:-}" ] && [ "$1" != sft ] && ! has_model "$2"; then
    # The plan of an adapter that does not exist yet uses the sizes of the published model.
    sizes=(--model qwen3_vl_2b --lora_rank 8)
  fi
  run_stage "$1" bash "$(dirname "${BASH_SOURCE[0]}")/clarify_$1.sh" --model "${@:2}" "${sizes[@]}"
}

check() { check_stage "$1" --model "${@:2}"; }

# $1: what to do with each stage, its model and its flags.
stages() {
  local model=Qwen/Qwen3-VL-2B-Instruct
  [ -z "${PLAN:-}" ] || model=qwen3_vl_2b
  "$1" sft "$model" --data "$out/rows/train.meta.json" "${@:2}"
  "$1" grpo "$out/sft" --data "$out/rows/train.meta.json" "${@:2}"
}

[ -n "${DRY_RUN:-}${PLAN:-}" ] || stages check "$@"
rows
stages stage "$@"
