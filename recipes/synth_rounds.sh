#!/usr/bin/env bash
# Self-play in rounds that regenerate their rows: in each round the model of the round before writes captions, questions and answers of
# the plan's pictures again, next to a detector, retrieval and a judge that stay as they were. What passes the gates, with a fixed share
# of human rows, is the chosen side of the pairs; what the model answers without help is the rejected one. The chain stops at a round
# that lowers the metric by more than MARGIN.
#
# Paper       OpenDriver: N = 5 rounds, the data written again in each; the share of human rows (HUMAN_SHARE=0.3) is ours
# Hardware    that of RECIPE, and what the plan's servers need
# Memory      that of RECIPE: PLAN=1 in front prints it; not measured
# Time        not measured
# Result      not measured; recipes/opendriver_synthetic.sh does the same at small size
# Command     bash recipes/synth_rounds.sh SYNTH=plan.yaml MODEL=runs/sft DATA=human.jsonl IMAGE_ROOT=data [ROUNDS=5] [HUMAN_SHARE=0.3]
#             RECIPE=spin_llava_next_8b (a recipe of rounds, default spin_rounds), as a word or in front; all other words go to it
#             bash slurm/spin_rounds.sh --regenerate --recipe recipes/synth_rounds.sh --rounds 5 --shards 8 ... -- SYNTH=plan.yaml ...
#             docs/synthesis.md shows a plan file; tools/synthesize.py --estimate says what a round asks of its servers
set -euo pipefail
# shellcheck source=_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

words=()
for word in "$@"; do
  case "$word" in
    RECIPE=*) RECIPE="${word#RECIPE=}" ;;
    SYNTH=*) SYNTH="${word#SYNTH=}" ;;
    *) words+=("$word") ;;
  esac
done
RECIPE="${RECIPE:-spin_rounds}"
[ -n "${SYNTH:-}" ] || _fail "synth_rounds: SYNTH is missing: the plan file of tools/synthesize.py, e.g. SYNTH=plan.yaml (docs/synthesis.md)."
recipe="$DRIVE_VLM_ROOT/recipes/$RECIPE.sh"
grep -qs '^run_rounds$' "$recipe" ||
  _fail "synth_rounds: RECIPE=$RECIPE is no recipe of rounds. There are: $(cd "$DRIVE_VLM_ROOT/recipes" && grep -l '^run_rounds$' ./*.sh | sed 's|^\./||; s|\.sh$||' | paste -sd ' ')"
export ROUNDS="${ROUNDS:-5}"
exec bash "$recipe" SYNTH="$SYNTH" "${words[@]}"
