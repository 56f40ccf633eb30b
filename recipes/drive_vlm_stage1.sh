#!/usr/bin/env bash
# Drive-VLM, stage 1: the projector and the temporal embeddings learn on raw captions. SigLIP2 and Qwen3 are frozen.
#
# Paper       Drive-VLM (446 videos of BDD100K with captions, 40 of them held out): 40 epochs. lr 1e-3 and 16 videos a step as in its
#             public code (rosebudtse/Drive-VLM-BDD100k), there 4 x accumulation 4; here 2 at a time, so that up to 8 GPUs share a step
# Hardware    one 24 GB GPU: PLAN=1 bash recipes/drive_vlm_stage1.sh --model siglip2_qwen3_4b --gpu_memory 24GB
# Memory      about 12 GiB by the plan; not measured
# Time        not measured
# Result      not measured; recipes/drive_vlm_synthetic.sh runs the same stage at small size on a CPU
# Command     bash recipes/drive_vlm_stage1.sh --data raw_captions_train.jsonl [--feature_cache DIR] [--model DIR] [any flag]
#             tools/build_siglip_qwen.py writes the model of --model
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment video

launch sft \
  --model runs/drive_vlm/base \
  --freeze vision_tower language_model \
  --num_frames 16 \
  --deepspeed zero2 \
  --global_batch_size 16 \
  --per_device_train_batch_size 2 \
  --learning_rate 1e-3 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.03 \
  --num_train_epochs 40 \
  --max_length 2048 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/drive_vlm/stage1 \
  "$@"
