#!/usr/bin/env bash
# OpenDriver at small size on a plain CPU, two ranks with ZeRO-2: scenes whose truth is known, a detector that misses and invents, names
# by retrieval from crops of other scenes, questions that a tiny InternVL answers, gates; SFT on what passed, next to SFT on the same
# number of rows as they came and to the human rows alone; then one round of self-play on rows that the new model writes again, next to
# a round on the rows as they are. The human rows are few and ask about half of the names. So small a model learns from rows which answer
# to a question is likely, and hardly to look: what gates are worth shows all the same.
#
# Paper       OpenDriver: retrieval-augmented synthetic rows, SFT, rounds that regenerate them; recipes/opendriver.sh has its sizes
# Hardware    two CPU cores; no GPU, no hub
# Memory      4 GB
# Time        335 s on two quiet CPU cores
# Result      SFT on rows that passed the gates against as many rows as they came: 62.5 % against 54.6 %, +7.9 points [+7.1, +8.7];
#             hallucinated objects 28.8 -> 0.9 % (docs/synthesis.md). It ends with its claims and fails when one does not hold
# Command     bash recipes/opendriver_synthetic.sh      results in runs/opendriver_synthetic/ (summary.json, synthetic/gate/sample.html)
#             SIZE=small: the claims about rows, and training that is too short to claim anything; SIZE=smoke: two steps of everything
#             OUT: another folder for the results
set -euo pipefail
# shellcheck source=_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
demonstration "$@"
cd "$DRIVE_VLM_ROOT"
started=$SECONDS
ensure_environment eval,judge,trl,reward
out="${OUT:-runs/opendriver_synthetic}"
case "${SIZE:-full}" in
  full) scenes=1500 others=800 clip=250 human=100 sft=250 spin=30 log=25 ;;
  small) scenes=450 others=200 clip=120 human=60 sft=60 spin=2 log=20 ;;
  smoke) scenes=120 others=150 clip=10 human=2 sft=2 spin=2 log=1 ;;
  *) _fail "opendriver_synthetic: SIZE=$SIZE: full, small or smoke." ;;
esac
start_over "$out"
export NPROC_PER_NODE=2 RANK_THREADS=1 HF_HUB_OFFLINE=1
world="$out/world" other="$out/other" synth="$out/synthetic" human_rows="$out/world/labelled_human.jsonl"
plan="$out/plan.json"
pictures=(--size 64 --image_format png --questions_per_scene 0)
questions=(--present 2 --absent 2 --count 0 --position 2)
shared=(--deepspeed zero2 --freeze vision_tower --per_device_train_batch_size 16 --global_batch_size 32 --lr_scheduler_type cosine
  --warmup_steps 0.05 --learning_rate 3e-3 --save_strategy no --logging_steps "$log")
answer=(--max_new_tokens 12 --batch_size 128)
names=recipes/opendriver_synthetic_names.txt

step "1/8  a world: a few scenes that people have labelled, many unlabelled ones, a test; crops of another world"
run python tools/build_synthetic.py --out "$world" --scenes "$scenes" "${pictures[@]}" --splits human:0.04 pool:0.66 test:0.3
run python tools/build_object_rows.py --data "$world" "${questions[@]}"
run python tools/build_object_rows.py --data "$world" "${questions[@]}" --names bus car truck "traffic light" --prefix labelled
run python tools/build_synthetic.py --out "$other" --scenes "$others" --seed 1 "${pictures[@]}" --splits train:0.9 test:0.1
run python tools/build_object_rows.py --data "$other" "${questions[@]}" --crops

step "2/8  an encoder of crops; a tiny InternVL with random weights"
run python tools/train_clip.py --data "$other/crops/captions.jsonl" --out "$out/clip" --image_size 32 --patch_size 8 --width 64 --layers 2 --max_steps "$clip"
run python tools/build_tiny_model.py --out "$out/base" --corpus "$other/objects_train.jsonl" --image_size 64 --patch_size 16 \
  --hidden_size 64 --vision_layers 2 --text_layers 2 --max_tiles 1

step "3/8  Model^0: the human rows alone"
launch sft --model "$out/base" --data "$human_rows" "${shared[@]}" --max_steps "$human" --output_dir "$out/model_0"

step "4/8  the unlabelled scenes: boxes with 10 % misses and 5 % false hits, names by retrieval, answers of Model^0, gates"
run bash -c "sed 's|OUT/|$out/|' recipes/opendriver_synthetic.json >'$plan'"
run python tools/synthesize.py --plan "$plan" --out "$synth" --model "$out/model_0" --round 0 --set "gate.decontaminate=$world/objects_test.jsonl" \
  "gate.human=$human_rows" gate.human_share=0.1 gate.on_few_human=cut

step "5/8  the same rows as they came, and both without retrieval"
run python tools/synth_gate.py --data "$synth/ask.jsonl" --out "$out/ungated" --gates none --page_pictures 0 --human "$human_rows" \
  --human_share 0.1 --on_few_human cut
run python tools/synth_ask.py --data "$synth/truth.jsonl" --out "$out/detector/ask.jsonl" --backend hf --model "$out/model_0" --local_batch 128 \
  --names "$names" "${questions[@]}" --temperature 1 --attempts 1 --max_tokens 16
run python tools/synth_gate.py --data "$out/detector/ask.jsonl" --out "$out/detector/gate" --can_see "$names" --page_pictures 0

step "6/8  SFT from the same model: human rows, and with them as many rows that passed as rows that were not looked at"
for name in human gated ungated; do
  case "$name" in human) data="$human_rows" ;; gated) data="$synth/gate/rows.jsonl" ;; ungated) data="$out/ungated/rows.jsonl" ;; esac
  launch sft --model "$out/base" --data "$data" "${shared[@]}" --max_steps "$sft" --output_dir "$out/sft_$name"
  launch generate --model "$out/sft_$name" --data "$world/objects_test.jsonl" "${answer[@]}" --out "$out/$name.jsonl"
done

step "7/8  one round of self-play: on rows that the model of SFT writes again, and on the rows as they are"
flags=(--optim adamw_torch --global_batch_size 32 --per_device_train_batch_size 16 --max_steps "$spin" --max_length 512 --loss_type sigmoid sft
  --loss_weights 1 0.3 --bf16 false --gradient_checkpointing false --dataloader_num_workers 0 --warmup_steps 0.05 --logging_steps "$log" --save_strategy no)
settings=(MODEL="$out/sft_gated" EVAL_DATA="$world/objects_test.jsonl" ROUNDS=1 MARGIN=1 LEARNING_RATES=2e-4 BETAS=0.5 LAYOUT=zero2
  MAX_NEW_TOKENS=12 GENERATE_FLAGS="--batch_size 128" EVALUATE_FLAGS="--max_new_tokens 12 --batch_size 128")
run bash recipes/synth_rounds.sh SYNTH="$plan" DATA="$human_rows" OUT="$out/regenerated" FROZEN="$synth" HUMAN_SHARE=0.1 \
  "${settings[@]}" "${flags[@]}"
run bash recipes/spin_rounds.sh DATA="$synth/gate/rows.jsonl" OUT="$out/static" "${settings[@]}" "${flags[@]}"

step "8/8  scores"
run python tools/qa_eval.py --predictions "$out/human.jsonl" "$out/ungated.jsonl" "$out/gated.jsonl" --train "$human_rows" --json "$out/accuracy.json"
run python tools/opendriver_summary.py --run "$out" --claims "${SIZE:-full}" --seconds $((SECONDS - started))
