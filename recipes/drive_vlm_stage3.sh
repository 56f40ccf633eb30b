#!/usr/bin/env bash
# Drive-VLM, stage 3: GRPO with the physics-aware reward, from the policy of stage 2, which is also the reference of the KL term.
#
# Paper       Drive-VLM: R = .4 objects + .25 temporal + .20 detail + .15 no hallucination; groups of 2, 3 epochs, lr 1e-6, KL .04,
#             temperature .9, 256 tokens as in its public code
# Precision   ZeRO-2 holds fp32 masters of what trains. The forward pass, the samples and the saved adapter are bf16, where a rate of
#             1e-6 shows after tens of steps only (after 30 steps of a tiny adapter 3 % of its numbers had moved, after 300 about 40 %)
# Hardware    one 24 GB GPU: PLAN=1 bash recipes/drive_vlm_stage3.sh --model siglip2_qwen3_4b --lora_rank 32 --gpu_memory 24GB
# Memory      about 19 GiB by the plan (docs/drive_vlm.md); not measured
# Time        not measured
# Result      not measured; recipes/drive_vlm_synthetic.sh runs the same stage at small size on a CPU
# Command     bash recipes/drive_vlm_stage3.sh --data split_entry_train.jsonl --physics_detections detections.jsonl [any flag]
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
ensure_environment video,trl,reward

launch grpo \
  --model runs/drive_vlm/stage2 \
  --freeze vision_tower temporal_embeddings \
  --rewards physics \
  --num_frames 16 \
  --max_length 2048 \
  --deepspeed zero2 \
  --num_generations 2 \
  --per_device_train_batch_size 2 \
  --global_batch_size 16 \
  --beta 0.04 \
  --temperature 0.9 \
  --max_completion_length 256 \
  --learning_rate 1e-6 \
  --num_train_epochs 3 \
  --bf16 \
  --gradient_checkpointing \
  --output_dir runs/drive_vlm/stage3 \
  "$@"
