#!/usr/bin/env bash
# OpenDriver from end to end: CODA-LM and synthetic rows -> SFT -> N rounds of self-play, each on rows that the model of the round before
# has written again. CODA-LM's Test is held out of everything and scores every round.
#
# Paper       OpenDriver: LLaVA-NeXT 8B, MiniCPM-V 8B or CogVLM2-19B; SFT on CODA-LM and CODA-VQA-200k, N = 5 rounds. By its counts it
#             trained on CODA-LM's Train and Val, and drew its evaluation rows from them; here Test is held out (docs/synthesis.md)
# Hardware    that of recipes/FAMILY_sft.sh and recipes/spin_FAMILY.sh, and what the plan's servers need
# Memory      PLAN=1 in front prints the plan of SFT, that of a round, and what the synthesis takes; not measured
# Time        not measured
# Result      not measured; recipes/opendriver_synthetic.sh is the same chain at small size
# Command     bash recipes/opendriver.sh FAMILY=llava_next_8b CODA=data/CODA SYNTH=plan.yaml JUDGE_FLAGS="--judge_model m --judge_url http://..."
#             FAMILY=llava_next_8b, minicpm_v_8b or cogvlm2_19b   CODA  the folder of CODA-LM's annotations and CODA's pictures, image root of all rows
#             SYNTH   plan of tools/synthesize.py with pictures that are not CODA-LM's, its rows below CODA   SYNTH_FLAGS  e.g. "--max_cost 500"
#             STEP=rows, sft or rounds: that part only   ROUNDS=5   OUT=runs/opendriver_FAMILY   BASE  the model that writes round 0 where the plan says {model}
#             HUMAN_SHARE=0.16  of CODA-LM's rows in SFT and in each round: the paper's 39k next to 200k
#             JUDGE_FLAGS  the judge of CODA-LM's score, which is neither the model nor the plan's teacher   MARGIN=1 (points of 100)
#             other settings of recipes/_rounds.sh from the environment; flags behind the settings go to SFT and to each round
#             on Slurm: STEP=rows here, then slurm/submit.sh with STEP=sft, then slurm/spin_rounds.sh --regenerate (docs/synthesis.md)
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"

while [[ "${1:-}" =~ ^(FAMILY|CODA|SYNTH|SYNTH_FLAGS|STEP|ROUNDS|HUMAN_SHARE|OUT|JUDGE_FLAGS|BASE)= ]]; do
  printf -v "${1%%=*}" %s "${1#*=}"
  shift
done
[[ "${1:-}" != [A-Z]*=* ]] || _fail "opendriver: ${1%%=*} is not a setting of this recipe; see its header."
case "${FAMILY:-}" in
  llava_next_8b) base=llava-hf/llama3-llava-next-8b-hf ;;
  minicpm_v_8b) base=openbmb/MiniCPM-Llama3-V-2_5 ;;
  cogvlm2_19b) base=THUDM/cogvlm2-llama3-chat-19B ;;
  *) _fail "opendriver: FAMILY=${FAMILY:-} is not known: llava_next_8b, minicpm_v_8b or cogvlm2_19b." ;;
esac
case "${STEP:-}" in "" | rows | sft | rounds) ;; *) _fail "opendriver: STEP=$STEP: rows, sft or rounds." ;; esac
: "${CODA=data/CODA}" "${SYNTH=}" "${SYNTH_FLAGS=}" "${STEP=}" "${OUT=runs/opendriver_$FAMILY}" "${JUDGE_FLAGS=}" "${BASE=$base}"
[ -n "$SYNTH" ] || _fail "opendriver: SYNTH is missing: the plan file of tools/synthesize.py (docs/synthesis.md)."
export ROUNDS="${ROUNDS:-5}" HUMAN_SHARE="${HUMAN_SHARE:-0.16}"
read -ra synth_flags <<<"$SYNTH_FLAGS"
rows="$OUT/rows" synthetic="$OUT/synthetic/gate"

# Another recipe, with its plan where that is asked for.
recipe() { if [ -n "${PLAN:-}" ]; then bash "$@"; else run bash "$@"; fi; }
wanted() { [ -z "$STEP" ] || [ "$STEP" = "$1" ]; }

if wanted rows; then
  if [ -n "${PLAN:-}" ] && [ -f "$SYNTH" ]; then
    python "$DRIVE_VLM_ROOT/tools/synthesize.py" --plan "$SYNTH" --out "$OUT/synthetic" --estimate --pictures 30000 --model "$BASE"
  fi
  run python "$DRIVE_VLM_ROOT/tools/build_codalm.py" --image_root "$CODA" --out "$rows" --splits Train Val Test --on_bad_row skip
  run bash -c "cat '$rows/Train.jsonl' '$rows/Val.jsonl' >'$rows/human.jsonl'"
  # Round 0: no model of ours has written yet, so {model} in the plan is BASE. The gate mixes CODA-LM's rows in.
  run python "$DRIVE_VLM_ROOT/tools/synthesize.py" --plan "$SYNTH" --out "$OUT/synthetic" --model "$BASE" --round 0 \
    --set "gate.human=$rows/human.jsonl" "gate.human_root=$CODA" "gate.human_share=$HUMAN_SHARE" gate.on_few_human=cut \
    "gate.decontaminate=$rows/Test.jsonl" "gate.decontaminate_root=$CODA" "${synth_flags[@]}"
fi
if wanted sft; then
  recipe "$DRIVE_VLM_ROOT/recipes/${FAMILY}_sft.sh" --data "$synthetic/rows.jsonl" --image_root "$synthetic" --output_dir "$OUT/sft" "$@"
fi
if wanted rounds; then
  [ -n "$JUDGE_FLAGS" ] || [ -n "${PLAN:-}${DRY_RUN:-}" ] || _fail "opendriver: JUDGE_FLAGS is missing: the judge of CODA-LM's score, e.g. \"--judge_model m --judge_url http://...\""
  export SCORE="python $DRIVE_VLM_ROOT/tools/codalm_eval.py --out $OUT/ratings.jsonl $JUDGE_FLAGS" METRIC="final.score" MARGIN="${MARGIN:-1}"
  recipe "$DRIVE_VLM_ROOT/recipes/synth_rounds.sh" RECIPE="spin_$FAMILY" SYNTH="$SYNTH" MODEL="$OUT/sft" DATA="$rows/human.jsonl" EVAL_DATA="$rows/Test.jsonl" \
    IMAGE_ROOT="$CODA" OUT="$OUT/rounds" SYNTH_FLAGS="$SYNTH_FLAGS" "$@"
fi
