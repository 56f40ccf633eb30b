#!/usr/bin/env bash
# CogVLM2-19B (Llama 3 with visual experts), supervised fine-tuning on driving rows: round 0 of recipes/spin_cogvlm2_19b.sh. All parts train.
#
# Paper       OpenDriver: bf16, 5 epochs, 4 rows a GPU, no accumulation, lr 1e-6, weight decay 0.1, beta2 0.95, warmup 0.01, cosine.
#             Its 2,048 tokens cannot hold: a picture alone is 2,306, so rows may have 3,328. Its ZeRO-2 does not hold all weights of
#             19.5 B on 80 GB, so they are sharded (LAYOUT=zero3); with LORA=64 LAYOUT=zero2 holds as well (docs/rounds.md)
# Hardware    8 GPUs of 80 GB (PLAN=1), or fewer with LORA=64
# Memory      by the plan, not measured: docs/rounds.md
# Time        not measured
# Result      not measured; the tests run the same stage on a CPU with a tiny model of the real class
# Command     bash recipes/cogvlm2_19b_sft.sh --data train.jsonl [--eval_data eval.jsonl] [--freeze vision_tower] [any flag]
#             LORA=8 bash recipes/cogvlm2_19b_sft.sh --freeze vision_tower projector --lora_targets '.*vision_expert_query_key_value' ...
#             is what its authors published, who call ZeRO-3 unsupported: it works here
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

adapter=()
[ -z "${LORA:-}" ] || adapter=(--lora_rank "$LORA")
launch sft \
  --model THUDM/cogvlm2-llama3-chat-19B \
  --deepspeed "${LAYOUT:-zero3}" \
  "${adapter[@]}" \
  --per_device_train_batch_size 4 \
  --learning_rate 1e-6 \
  --weight_decay 0.1 \
  --adam_beta2 0.95 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.01 \
  --num_train_epochs 5 \
  --max_length 3328 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/cogvlm2_19b_sft \
  "$@"
