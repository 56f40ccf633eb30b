#!/usr/bin/env bash
# Drive-VLM, stage 2: LoRA on the language model and the projector learn to describe a drive in detail and concisely. The tower
# and the temporal embeddings are frozen.
#
# Paper       Drive-VLM: split-entry rows (detailed and concise), LoRA r32 alpha 64 on all linear layers, AdamW 5e-5, cosine,
#             2 videos x accumulation 16, 20 epochs; dropout 0.05 as in its public code
# Hardware    one 24 GB GPU: PLAN=1 bash recipes/drive_vlm_stage2.sh --model siglip2_qwen3_4b --gpu_memory 24GB
# Memory      about 13 GiB by the plan, 8 GiB with --quantize nf4; not measured
# Time        not measured
# Result      not measured; recipes/drive_vlm_synthetic.sh runs the same stage at small size on a CPU
# Command     bash recipes/drive_vlm_stage2.sh --data split_entry_train.jsonl [--feature_cache DIR] [--model runs/drive_vlm/stage1] [any flag]
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment video

launch sft \
  --model runs/drive_vlm/stage1 \
  --freeze vision_tower temporal_embeddings \
  --lora_rank 32 \
  --lora_alpha 64 \
  --lora_dropout 0.05 \
  --num_frames 16 \
  --deepspeed zero2 \
  --global_batch_size 32 \
  --per_device_train_batch_size 2 \
  --learning_rate 5e-5 \
  --lr_scheduler_type cosine \
  --num_train_epochs 20 \
  --max_length 2048 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/drive_vlm/stage2 \
  "$@"
