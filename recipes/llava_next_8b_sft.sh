#!/usr/bin/env bash
# LLaVA-NeXT 8B (Llama 3), supervised fine-tuning on driving rows: round 0 of recipes/spin_llava_next_8b.sh. All parts train.
#
# Paper       OpenDriver: bf16, 2,048 tokens, 5 epochs, 4 rows a GPU, no accumulation, lr 1e-6, weight decay 0.1, beta2 0.95,
#             warmup 0.01, cosine, ZeRO-2. A picture has at most 2 crops next to the whole (--max_tiles 3), at most
#             1,776 tokens: the model's own 5 crops would not fit into 2,048
# Hardware    8 GPUs of 80 GB (PLAN=1); LAYOUT=zero3 shards the weights as well; 4 GPUs of 24 GB with LORA=64 and
#             --per_device_train_batch_size 1 --global_batch_size 32
# Memory      about 36 GiB a GPU by the plan on 8 GPUs, 29 GiB with LAYOUT=zero3; not measured
# Time        not measured
# Result      not measured; the tests run the same stage on a CPU with a tiny model of the real class
# Command     bash recipes/llava_next_8b_sft.sh --data train.jsonl [--eval_data eval.jsonl] [--freeze vision_tower] [any flag]
#             LAYOUT=zero3 bash recipes/llava_next_8b_sft.sh ...        LORA=64 bash recipes/llava_next_8b_sft.sh --learning_rate 1e-5 ...
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

adapter=()
[ -z "${LORA:-}" ] || adapter=(--lora_rank "$LORA")
launch sft \
  --model llava-hf/llama3-llava-next-8b-hf \
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
  --max_tiles 3 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/llava_next_8b_sft \
  "$@"
