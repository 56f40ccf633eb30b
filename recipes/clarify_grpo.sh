#!/usr/bin/env bash
# ClarifyVLM, second step: GRPO from the SFT checkpoint. The reward asks first whether the model asked back where it should, and only
# then how well: by the boxes of the row, or by a judge that sees the picture.
#
# Paper       Ahn-Jeongmin/DL_Final_Project_ABL: lr 5e-6, KL .01, 200 tokens, judge's strategy 1-4 -> 0, .6, .8, 1, less .3 for a wrong fact. It
#             draws 2 answers a question and starts from the base model; here 8 answers, so that fewer groups agree, and the SFT checkpoint
# Hardware    one 24 GB GPU, or any number of GPUs that divides 8; the global batch stays 64 answers to 8 questions
# Memory      about 21 GiB of one card by the plan (--model qwen3_vl_2b --lora_rank 8 --gpu_memory 24GB), the most while it samples; not measured
# Time        not measured
# Result      not measured; recipes/clarify_synthetic.sh runs the same commands at small size on a CPU
# Command     bash recipes/clarify_grpo.sh --data data/clarify/train.meta.json [any flag]
#             JUDGE    flags of a judge, which then rates what passes the gate: JUDGE="--judge_model Qwen/Qwen3-VL-32B-Instruct --judge_url http://localhost:8000/v1"
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment eval,trl

judge=()
if [ -n "${JUDGE:-}" ]; then
  read -ra judge <<<"--clarify_mode judge $JUDGE"
fi

launch grpo \
  --model runs/clarify/sft \
  --freeze vision_tower projector \
  --rewards clarify \
  "${judge[@]}" \
  --deepspeed zero2 \
  --num_generations 8 \
  --global_batch_size 64 \
  --per_device_train_batch_size 8 \
  --max_completion_length 200 \
  --temperature 1 \
  --beta 0.01 \
  --learning_rate 5e-6 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.03 \
  --num_train_epochs 1 \
  --max_length 1280 \
  --max_pixels 921600 \
  --bf16 \
  --gradient_checkpointing \
  --output_dir runs/clarify/grpo \
  "$@"
