#!/usr/bin/env bash
# Self-play fine-tuning (SPIN) in rounds. In each round the model answers the training rows, its answers become the rejected ones
# next to the rows' own, it trains on such pairs against its own copy, and it is evaluated on held-out rows. The chain stops at a
# round that lowers the metric by more than MARGIN.
#
# Paper       SPIN (Chen et al. 2024; uclaml/SPIN): RMSProp, batch 64, 3 epochs, linear, warmup 0.1, 1,024 tokens, ZeRO-3; beta 0.1, in the
#             fourth round 5.0; lr 5e-7, from the third round on 1e-7; from the second round on the pairs of the round before as well
# Hardware    8 GPUs x 8 pairs as published; any number of GPUs, the global batch stays 64
# Memory      depends on MODEL: PLAN=1 in front prints it; not measured
# Time        not measured
# Result      not measured; the tests run the same chain on a CPU with a tiny model, recipes/spin_synthetic.sh at small size
# Command     bash recipes/spin_rounds.sh MODEL=runs/sft DATA=train.jsonl ROUNDS=4 [OUT=runs/spin] [any setting of _rounds.sh] [any flag of spin]
#             bash slurm/spin_rounds.sh --rounds 4 --shards 8 ...      the same as a graph of Slurm jobs
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
# shellcheck source=_rounds.sh
source "$(dirname "${BASH_SOURCE[0]}")/_rounds.sh"
ensure_environment eval,trl

: "${BETAS=0.1 0.1 0.1 5.0}" "${LEARNING_RATES=5e-7 5e-7 1e-7 1e-7}" "${LAYOUT=zero3}"
read_settings "$@"
# shellcheck disable=SC2034
spin_flags=(
  --optim rmsprop
  --global_batch_size 64
  --per_device_train_batch_size 8
  --lr_scheduler_type linear
  --warmup_steps 0.1
  --num_train_epochs 3
  --max_length 1024
  --bf16
  --gradient_checkpointing
  --dataloader_num_workers 4
)
run_rounds
