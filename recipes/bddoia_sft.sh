#!/usr/bin/env bash
# SmolVLM on BDD-OIA: a picture in, "Action: ...; Reason: ..." out, as the policy that A2C begins with.
#
# Paper       the seed paper of row D: 6 epochs, batch 4 x accumulation 4, lr 1e-4 with a schedule, gradient checkpointing. Ours, since it
#             says nothing: LoRA of rank 16 on the language model and the projector's weights, cosine, warmup .03; the 16 rows of a step are 8 micro-batches of 2
# Hardware    one 24 GB GPU, or any number of GPUs that divides 8; the global batch stays 16
# Memory      about 8 GiB of the card by the plan; not measured
# Time        not measured
# Result      not measured; recipes/bddoia_synthetic.sh runs the same commands at small size on a CPU
# Command     bash recipes/bddoia_sft.sh --data data/bddoia/train.meta.json [any flag]
#             rows: python tools/build_bddoia.py --labels data/lastframe --out data/bddoia (docs/bddoia.md)
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment

launch sft \
  --model HuggingFaceTB/SmolVLM-Instruct \
  --freeze vision_tower \
  --lora_rank 16 \
  --deepspeed zero2 \
  --global_batch_size 16 \
  --per_device_train_batch_size 2 \
  --learning_rate 1e-4 \
  --lr_scheduler_type cosine \
  --warmup_steps 0.03 \
  --num_train_epochs 6 \
  --max_length 2048 \
  --bf16 \
  --gradient_checkpointing \
  --dataloader_num_workers 4 \
  --output_dir runs/bddoia/sft \
  "$@"
