#!/usr/bin/env bash
# ClarifyVLM, first step: Qwen3-VL-2B learns to answer what is clear and to ask back where several things fit a question.
#
# Paper       Ahn-Jeongmin/DL_Final_Project_ABL: Qwen3-VL-2B, LoRA of rank 8 and alpha 16, lr 5e-5, 3 epochs, batch 4, ZeRO-2, and three runs
#             with a system prompt each (build_ambiguity.py --system_prompt none, accurate, rules). Ours, since it says nothing: the 16 rows
#             of a step, cosine, warmup .03, a frozen vision tower, pictures of at most 1280 x 720 pixels (900 tokens)
# Hardware    one 24 GB GPU, or any number of GPUs that divides 8; the global batch stays 16
# Memory      about 7 GiB of the card by the plan; not measured
# Time        not measured
# Result      not measured; recipes/clarify_synthetic.sh runs the same commands at small size on a CPU
# Command     bash recipes/clarify_sft.sh --data data/clarify/train.meta.json [any flag]
#             rows: python tools/build_ambiguity.py --source bdd100k --data labels.json --system_prompt rules --out data/clarify (docs/clarify.md)
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

launch sft \
  --model Qwen/Qwen3-VL-2B-Instruct \
  --freeze vision_tower projector \
  --lora_rank 8 \
  --lora_alpha 16 \
  --deepspeed zero2 \
  --global_batch_size 16 \
  --per_device_train_batch_size 2 \
  --learning_rate 5e-5 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.03 \
  --num_train_epochs 3 \
  --max_length 1280 \
  --max_pixels 921600 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/clarify/sft \
  "$@"
