#!/usr/bin/env bash
# CogVLM2-19B (Llama 3 with visual experts), five rounds of self-play after recipes/cogvlm2_19b_sft.sh. The vision tower trains as well.
#
# Paper       OpenDriver: N = 5 rounds; bf16, 5 epochs, 4 pairs a GPU, no accumulation, lr 1e-6, weight decay 0.1, beta2 0.95, warmup
#             0.01, cosine. It does not name beta: 0.1 as in SPIN. 500 rows are held out by picture. Three values cannot hold. A picture
#             alone is 2,306 tokens, so rows may have 3,328, not 2,048. All weights of 19.5 B need LAYOUT=zero3, not ZeRO-2, and 2 pairs
#             a GPU, accumulated to the batch of 32 that 8 GPUs had
# Hardware    8 GPUs of 80 GB (PLAN=1); 4 GPUs of 24 GB with LORA=64 FREEZE="vision_tower projector" and --per_device_train_batch_size 1
# Memory      by the plan, not measured: docs/rounds.md
# Time        not measured
# Result      not measured; the tests run the same chain on a CPU with a tiny model (recipes/spin_rounds.sh)
# Command     bash recipes/spin_cogvlm2_19b.sh DATA=train.jsonl [MODEL=runs/cogvlm2_19b_sft] [ROUND=1] [FREEZE=vision_tower] [any flag of spin]
#             LAYOUT=zero2 or LORA=64 (every round trains the same adapter) in front or as words; all settings: recipes/_rounds.sh
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
# shellcheck source=_rounds.sh
source "$(dirname "${BASH_SOURCE[0]}")/_rounds.sh"
ensure_environment eval,trl

: "${MODEL=runs/cogvlm2_19b_sft}" "${DIRECT=THUDM/cogvlm2-llama3-chat-19B}" "${OUT=runs/spin_cogvlm2_19b}" "${ROUNDS=5}"
: "${BETAS=0.1}" "${LEARNING_RATES=1e-6}" "${LAYOUT=zero3}"
read_settings "$@"
# shellcheck disable=SC2034
spin_flags=(
  --per_device_train_batch_size 2
  --global_batch_size 32
  --weight_decay 0.1
  --adam_beta2 0.95
  --lr_scheduler_type cosine
  --warmup_steps 0.01
  --num_train_epochs 5
  --max_length 3328
  --bf16
  --gradient_checkpointing
  --dataloader_num_workers 4
)
run_rounds
