#!/usr/bin/env bash
# Drive-VLM, the whole chain on one 24 GB card: caches, then the three stages with the paper's hyper-parameters. Kill it at any
# moment and start it again: finished caches and stages are kept, and a stage resumes from its newest complete checkpoint. A stage
# that finished with other flags (a trial with --max_steps 2) ends the recipe, since all stages of a chain share their flags.
#
# Paper       Drive-VLM; recipes/drive_vlm_stage{1,2,3}.sh hold the hyper-parameters of each stage
# Hardware    one RTX 4090 (24 GB), 32 GB of memory, by the plan (docs/plan.md); no 24 GB card was at hand
# Memory      at most 19 GiB of the card by the plan (stage 3). Disk 60 GB: by the plan 24 GiB for the stages, 8 for their base, 11 for the
#             features of 446 videos, and the two published models; not measured
# Time        not measured
# Result      not measured; recipes/drive_vlm_synthetic.sh is the same chain at small size on a CPU, and is measured
# Command     DATA=data/bdd bash recipes/drive_vlm_4090.sh [flags for all three stages, e.g. --report_to none]
#             --quantize nf4 is for stages 2 and 3: stage 1 has no adapters and saves the whole model, which 4 bits would spoil
#             DATA     the folder that tools/build_bdd_captions.py wrote: its .meta.json files name the folder of videos. Without
#                      them the .jsonl files are read, and the videos lie next to them
#             OUT      everything else (runs/drive_vlm)
#             NUM_FRAMES (16) is for caches and stages alike
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
# shellcheck source=_stages.sh
source "$(dirname "${BASH_SOURCE[0]}")/_stages.sh"
ensure_environment video,yolo,trl,reward
data="${DATA:-data/bdd}" out="${OUT:-runs/drive_vlm}" frames="${NUM_FRAMES:-16}"
export NPROC_PER_NODE=1
chain "$out" stage1 stage2 stage3

rows() { if [ -f "$data/$1.meta.json" ]; then echo "$data/$1.meta.json"; else echo "$data/$1.jsonl"; fi; }
captions="$(rows raw_captions_train)" entries="$(rows split_entry_train)"

# Run the stage $1 from the model $2.
stage() {
  local sizes=()
  if [ -n "${PLAN:-}" ] && ! has_model "$2"; then
    # The plan of a model that does not exist yet uses the sizes of the published models.
    sizes=(--model siglip2_qwen3_4b)
    [ "$1" != stage3 ] || sizes+=(--lora_rank 32)
  fi
  run_stage "$1" bash "$(dirname "${BASH_SOURCE[0]}")/drive_vlm_$1.sh" --model "${@:2}" "${sizes[@]}"
}

check() { check_stage "$1" --model "${@:2}"; }

# $1: what to do with each stage, its model and its flags.
stages() {
  local cached=(--feature_cache "$out/features" --num_frames "$frames")
  "$1" stage1 "$out/base" --data "$captions" "${cached[@]}" "${@:2}" --quantize none
  "$1" stage2 "$out/stage1" --data "$entries" "${cached[@]}" "${@:2}"
  "$1" stage3 "$out/stage2" --data "$entries" "${cached[@]}" --physics_detections "$out/detections.jsonl" "${@:2}"
}

case " $* " in *" --num_frames "* | *" --num_frames="*) _fail "--num_frames: give NUM_FRAMES=N in front, which the caches take as well." ;; esac
[[ "$frames" =~ ^([1-9]|1[0-6])$ ]] || _fail "NUM_FRAMES=$frames: 1 to 16 frames, as many as the model has temporal embeddings."
case " $*" in *" --quantize"*) _say "stage 1: the language model stays in bfloat16 (--quantize none); --quantize is for stages 2 and 3" ;; esac
[ -n "${DRY_RUN:-}${PLAN:-}" ] || stages check "$@"
[ -f "$out/base/config.json" ] ||
  run python "$DRIVE_VLM_ROOT/tools/build_siglip_qwen.py" --vision_tower google/siglip2-so400m-patch14-384 --language_model Qwen/Qwen3-4B-Instruct-2507 --out "$out/base"
run python "$DRIVE_VLM_ROOT/tools/cache_features.py" --model "$out/base" --data "$captions" "$entries" \
  --num_frames "$frames" --out "$out/features"
run python "$DRIVE_VLM_ROOT/tools/cache_detections.py" --data "$entries" --num_frames "$frames" --weights yolov8x.pt --imgsz 640 --conf 0.3 \
  --out "$out/detections.jsonl"
stages stage "$@"
