#!/usr/bin/env bash
# SmolVLM on BDD-OIA, A2C with a value head, one of the three stages of the seed paper: STAGE=1 learns to describe the scene (R1 alone),
# STAGE=2 to decide and say why (R1 + R2), STAGE=3 the same as JSON with a description (R1 + R2 + .5 R3).
#
# Paper       the seed paper of row D: rewards paid where a word earns them, alpha R1 + beta R2 + delta R3, R1 by CLIP ViT-B/32. It gives no
#             numbers for A2C: weights, 32 answers a step, KL .05, 10 steps in which the value head alone learns and rates
#             are ours or the field's (docs/bddoia.md). R2 here is the F1 of the row's labels; its judge: --action_reason_mode judge
# Hardware    one 24 GB GPU, or any number of GPUs that divides 16; the global batch stays 32
# Memory      PLAN=1 bash recipes/bddoia_a2c.sh --model smolvlm --lora_rank 16 --gpu_memory 24GB; not measured
# Time        not measured
# Result      not measured; recipes/bddoia_synthetic.sh runs the same commands at small size on a CPU
# Command     STAGE=2 bash recipes/bddoia_a2c.sh --data data/bddoia/train.meta.json [any flag]
#             STAGE (2): 1 begins with runs/bddoia/sft, 2 and 3 with the stage before. Rows of 1 and 3 ask for what they are to be answered
#             with (tools/build_bddoia.py --target labels --question ...; recipes/bddoia_4090.sh has the questions); 2 takes those of SFT
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment eval

labels=(--action_reason_mode labels)
case "${STAGE:-2}" in
  # Answers that turn from actions to descriptions would else count as collapsed.
  1) model=runs/bddoia/sft rewards=(--rewards clip --clip_text whole --collapse_entropy 0) ;;
  2) model=runs/bddoia/stage1 rewards=(--rewards clip action_reason "${labels[@]}") ;;
  3) model=runs/bddoia/stage2 rewards=(--rewards clip action_reason structure --reward_weights 1 1 0.5 "${labels[@]}" --max_completion_length 160) ;;
  *) _fail "bddoia_a2c: STAGE=$STAGE: 1 (description), 2 (decision) or 3 (JSON)." ;;
esac

launch a2c \
  --model "$model" \
  --freeze vision_tower \
  "${rewards[@]}" \
  --deepspeed zero2 \
  --global_batch_size 32 \
  --per_device_train_batch_size 2 \
  --num_train_epochs 1 \
  --max_length 2048 \
  --bf16 \
  --gradient_checkpointing \
  --output_dir "runs/bddoia/stage${STAGE:-2}" \
  "$@"
