#!/usr/bin/env bash
# InternVL3-1B, supervised fine-tuning on driving rows: the vision tower is frozen, the projector and the language model train.
#
# Paper       InternVL3 second-stage fine-tune, 1B, full (OpenGVLab/InternVL, internvl_chat/shell/internvl3.0/2nd_finetune):
#             lr 1e-5, cosine, warmup 0.03, weight decay 0.05, 1 epoch, batch 128, 16,384 tokens, 12 tiles, ZeRO-1, group_by_length
# Hardware    8 GPUs x 4 rows x accumulation 4 as published; any number of GPUs, the global batch stays 128
# Memory      about 21 GiB a GPU by the plan on 8 GPUs; not measured
# Time        not measured
# Result      not measured; the tests run the same command on a CPU with a tiny model of the real class
# Command     bash recipes/internvl3_1b_sft.sh --data train.jsonl [--eval_data val.jsonl] [--model DIR] [any flag]
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

launch sft \
  --model OpenGVLab/InternVL3-1B-hf \
  --freeze vision_tower \
  --deepspeed zero1 \
  --global_batch_size 128 \
  --per_device_train_batch_size 4 \
  --learning_rate 1e-5 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.03 \
  --weight_decay 0.05 \
  --num_train_epochs 1 \
  --max_length 16384 \
  --max_tiles 12 \
  --train_sampling_strategy group_by_length \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/internvl3_1b_sft \
  "$@"
