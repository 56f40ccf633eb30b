#!/usr/bin/env bash
# Qwen3-VL-4B, supervised fine-tuning on driving rows: the vision tower is frozen, the projector and the language model train.
#
# Paper       QwenLM/Qwen3-VL, qwen-vl-finetune/scripts/sft_qwen3_4b.sh: lr 1e-5, cosine, warmup 0.03, weight decay 0, half an epoch, 4 rows a GPU,
#             accumulation 4, 8,192 tokens, 784 to 50,176 pixels a picture, ZeRO-3. A road sign needs more: raise --max_pixels
# Hardware    8 GPUs x 4 rows x accumulation 4; any number of GPUs, the global batch stays 128
# Memory      PLAN=1 bash recipes/qwen3_vl_sft.sh --data train.jsonl says it for the GPU at hand; not measured
# Time        not measured
# Result      not measured; the tests run the same stage on a CPU with a tiny model of the real class
# Command     bash recipes/qwen3_vl_sft.sh --data train.jsonl [--eval_data val.jsonl] [--model DIR] [any flag]
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

launch sft \
  --model Qwen/Qwen3-VL-4B-Instruct \
  --freeze vision_tower \
  --deepspeed zero3 \
  --global_batch_size 128 \
  --per_device_train_batch_size 4 \
  --learning_rate 1e-5 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.03 \
  --weight_decay 0 \
  --max_grad_norm 1 \
  --num_train_epochs 0.5 \
  --max_length 8192 \
  --min_pixels 784 \
  --max_pixels 50176 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/qwen3_vl_sft \
  "$@"
