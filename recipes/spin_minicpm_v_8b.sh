#!/usr/bin/env bash
# MiniCPM-Llama3-V 2.5 (8B), five rounds of self-play after recipes/minicpm_v_8b_sft.sh. The vision tower trains as well.
#
# Paper       OpenDriver: N = 5 rounds; bf16, 2,048 tokens, 5 epochs, 4 pairs a GPU, no accumulation, lr 1e-6, weight decay 0.1,
#             beta2 0.95, warmup 0.01, cosine, ZeRO-2, 9 slices. It does not name beta: 0.1 as in SPIN. 500 rows are held out by
#             picture
# Hardware    8 GPUs of 80 GB (PLAN=1); LAYOUT=zero3 shards the weights as well; 4 GPUs of 24 GB with LORA=64 and
#             --per_device_train_batch_size 1 --global_batch_size 32
# Memory      about 46 GiB a GPU by the plan on 8 GPUs, 40 GiB with LAYOUT=zero3 (docs/rounds.md); not measured
# Time        not measured
# Result      not measured; the tests train the same stage on a CPU with a tiny model of the same classes
# Command     bash recipes/spin_minicpm_v_8b.sh DATA=train.jsonl [MODEL=runs/minicpm_v_8b_sft] [ROUND=1] [FREEZE=vision_tower] [any flag of spin]
#             bash slurm/spin_rounds.sh --recipe recipes/spin_minicpm_v_8b.sh --rounds 5 --shards 8 ... -- DATA=train.jsonl
#             LAYOUT=zero3 or LORA=64 (every round trains the same adapter) in front or as words; all settings: recipes/_rounds.sh
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
# shellcheck source=_rounds.sh
source "$(dirname "${BASH_SOURCE[0]}")/_rounds.sh"
ensure_environment eval,trl

: "${MODEL=runs/minicpm_v_8b_sft}" "${DIRECT=openbmb/MiniCPM-Llama3-V-2_5}" "${OUT=runs/spin_minicpm_v_8b}" "${ROUNDS=5}"
: "${BETAS=0.1}" "${LEARNING_RATES=1e-6}" "${LAYOUT=zero2}"
read_settings "$@"
# shellcheck disable=SC2034
spin_flags=(
  --per_device_train_batch_size 4
  --weight_decay 0.1
  --adam_beta2 0.95
  --lr_scheduler_type cosine
  --warmup_steps 0.01
  --num_train_epochs 5
  --max_length 2048
  --bf16
  --gradient_checkpointing
  --dataloader_num_workers 4
)
run_rounds
