#!/usr/bin/env bash
# MiniCPM-Llama3-V 2.5 (8B), supervised fine-tuning on driving rows: round 0 of recipes/spin_minicpm_v_8b.sh. All parts train.
#
# Paper       OpenDriver: bf16, 2,048 tokens, 5 epochs, 4 rows a GPU, no accumulation, lr 1e-6, weight decay 0.1, beta2 0.95,
#             warmup 0.01, cosine, ZeRO-2, 9 slices. A picture has at most 9 slices and the whole, 990 tokens: it fits into 2,048.
#             OpenBMB's own script leaves the language model as it is (--freeze language_model) and shards weights (LAYOUT=zero3)
# Hardware    8 GPUs of 80 GB (PLAN=1); 4 GPUs of 24 GB with LORA=64, --freeze vision_tower projector and
#             --per_device_train_batch_size 1 --global_batch_size 32
# Memory      about 38 GiB a GPU by the plan on 8 GPUs, 32 GiB with LAYOUT=zero3; not measured
# Time        not measured
# Result      not measured; the tests run the same stage on a CPU with a tiny model of the same classes
# Command     bash recipes/minicpm_v_8b_sft.sh --data train.jsonl [--eval_data eval.jsonl] [--freeze language_model] [any flag]
#             LORA=64 bash recipes/minicpm_v_8b_sft.sh --learning_rate 1e-5 ...   (adapters on attention, as OpenBMB's script has them;
#             which also trains the word embeddings in full: --lora_embeddings)
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

adapter=()
[ -z "${LORA:-}" ] || adapter=(--lora_rank "$LORA" --lora_alpha "$LORA" --lora_dropout 0.05)
launch sft \
  --model openbmb/MiniCPM-Llama3-V-2_5 \
  --deepspeed "${LAYOUT:-zero2}" \
  "${adapter[@]}" \
  --per_device_train_batch_size 4 \
  --learning_rate 1e-6 \
  --weight_decay 0.1 \
  --adam_beta2 0.95 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.01 \
  --num_train_epochs 5 \
  --max_length 2048 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/minicpm_v_8b_sft \
  "$@"
