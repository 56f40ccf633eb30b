#!/usr/bin/env bash
# Drive-VLM whole, on one 24 GB card: caches, then the three stages with the paper's hyper-parameters. Killed at any moment and
# started again it goes on: finished caches and stages are kept, a stage goes on from its newest complete checkpoint.
#
# Source      Drive-VLM; recipes/drive_vlm_stage{1,2,3}.sh hold the hyper-parameters of each stage
# Hardware    one RTX 4090 (24 GB), 32 GB of memory, 40 GB of disk: what the plan says (docs/plan.md); no 24 GB card was at hand
# Measured    not measured; recipes/drive_vlm_synthetic.sh is the same chain at small size on a CPU, and is
# Command     DATA=data/bdd bash recipes/drive_vlm_4090.sh [flags for all three stages, e.g. --report_to none]
#             --quantize nf4 is for stages 2 and 3: stage 1 has no adapters and saves the whole model, which 4 bits would spoil
#             DATA is what tools/build_bdd_captions.py writes: its .meta.json files name the folder of videos. Without them the .jsonl
#             files are read, with the videos beside them. OUT (runs/drive_vlm) takes everything else
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment video,yolo,trl,reward
data="${DATA:-data/bdd}" out="${OUT:-runs/drive_vlm}"
export NPROC_PER_NODE=1 RESUME=auto

rows() { if [ -f "$data/$1.meta.json" ]; then echo "$data/$1.meta.json"; else echo "$data/$1.jsonl"; fi; }
captions="$(rows raw_captions_train)" entries="$(rows split_entry_train)"

# A stage whose run.json says finished is not run again; one that was asked to stop ends the chain.
stage() {
  if grep -qs '"state": "finished"' "$out/stage$1/run.json"; then
    echo "stage $1: finished before"
    return
  fi
  local before="$out/stage$(($1 - 1))" sizes=()
  [ "$1" -gt 1 ] || before="$out/base"
  if [ -n "${PLAN:-}" ] && [ ! -d "$before" ]; then # what is not there yet has the sizes of the published models
    sizes=(--model siglip2_qwen3_4b)
    [ "$1" -lt 3 ] || sizes+=(--lora_rank 32)
  fi
  bash "$(dirname "${BASH_SOURCE[0]}")/drive_vlm_stage$1.sh" "${@:2}" "${sizes[@]}" --output_dir "$out/stage$1"
  [ -n "${DRY_RUN:-}${PLAN:-}" ] || grep -qs '"state": "finished"' "$out/stage$1/run.json" || { echo "stage $1 stopped before its end"; exit 0; }
}

[ -f "$out/base/config.json" ] ||
  run python "$DRIVE_VLM_ROOT/tools/build_siglip_qwen.py" --vision google/siglip2-so400m-patch14-384 --language Qwen/Qwen3-4B-Instruct-2507 --out "$out/base"
run python "$DRIVE_VLM_ROOT/tools/cache_features.py" --model "$out/base" --data "$captions" "$entries" \
  --num_frames 16 --out "$out/features"
run python "$DRIVE_VLM_ROOT/tools/cache_detections.py" --data "$entries" --num_frames 16 --weights yolov8x.pt --imgsz 640 --conf 0.3 \
  --out "$out/detections.jsonl"
case " $*" in *" --quantize"*) _say "stage 1: the language model stays in bfloat16 (--quantize none); --quantize is for stages 2 and 3" ;; esac
stage 1 --model "$out/base" --data "$captions" --feature_cache "$out/features" "$@" --quantize none
stage 2 --model "$out/stage1" --data "$entries" --feature_cache "$out/features" "$@"
stage 3 --model "$out/stage2" --data "$entries" --feature_cache "$out/features" --physics_detections "$out/detections.jsonl" "$@"
