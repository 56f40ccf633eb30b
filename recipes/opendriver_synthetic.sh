#!/usr/bin/env bash
# OpenDriver at small size on a plain CPU, two ranks with ZeRO-2: scenes whose truth is known, a detector that misses and invents, names
# by retrieval from crops of other scenes, questions that a tiny InternVL answers, gates; SFT on what passed, next to SFT on the same
# number of rows as they came and to the human rows alone; then one round of self-play on rows that the new model writes again, next to
# a round on the rows as they are.
#
# Paper       OpenDriver: retrieval-augmented synthetic rows, SFT, rounds that regenerate them; recipes/opendriver.sh has its sizes
# Hardware    two CPU cores; no GPU, no hub
# Memory      4 GB
# Time        not measured on quiet cores
# Result      docs/synthesis.md; the recipe ends with its claims and fails when one does not hold
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
  full) scenes=2400 others=2000 tower=250 clip=250 base=700 human=150 sft=400 spin=40 log=20 ;;
  small) scenes=500 others=500 tower=60 clip=120 base=40 human=20 sft=10 spin=2 log=2 ;;
  smoke) scenes=120 others=150 tower=2 clip=10 base=2 human=2 sft=2 spin=2 log=1 ;;
  *) _fail "opendriver_synthetic: SIZE=$SIZE: full, small or smoke." ;;
esac
start_over "$out"
export NPROC_PER_NODE=2 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
world="$out/world" other="$out/other" synth="$out/synthetic"
plan="$out/plan.json"
pictures=(--size 64 --image_format png --questions_per_scene 0)
# What is asked about: what a model this small can begin to see. The data base and the detector know more names.
asked=(bus truck "traffic light")
questions=(--names "${asked[@]}" --present 3 --absent 3 --count 0 --position 3)
shared=(--deepspeed zero2 --per_device_train_batch_size 16 --global_batch_size 32 --lr_scheduler_type cosine --warmup_steps 0.05
  --save_strategy no --logging_steps "$log")
answer=(--max_new_tokens 12 --batch_size 128)
gates=(--can_see recipes/opendriver_synthetic_names.txt --rouge 0.9)

step "1/8  a world: a few labelled scenes, many unlabelled ones, a test; another world for what is trained before"
run python tools/build_synthetic.py --out "$world" --scenes "$scenes" "${pictures[@]}" --splits human:0.05 pool:0.75 test:0.2
run python tools/build_object_rows.py --data "$world" "${questions[@]}"
run python tools/build_synthetic.py --out "$other" --scenes "$others" --seed 1 "${pictures[@]}" --splits train:0.9 test:0.1
run python tools/build_object_rows.py --data "$other" "${questions[@]}" --crops

step "2/8  an encoder of crops; a tiny InternVL whose tower sees, and that can talk about the other world"
run python tools/train_clip.py --data "$other/crops/captions.jsonl" --out "$out/clip" --image_size 32 --patch_size 8 --width 64 --layers 2 --max_steps "$clip"
run python tools/build_tiny_model.py --out "$out/blank" --corpus "$other/objects_train.jsonl" --image_size 64 --patch_size 16 \
  --hidden_size 64 --vision_layers 2 --text_layers 2 --max_tiles 1
run python tools/train_tower.py --data "$other" --model "$out/blank" --out "$out/seeing" --max_steps "$tower"
launch sft --model "$out/seeing" --data "$other/objects_train.jsonl" "${shared[@]}" --learning_rate 3e-3 --max_steps "$base" --output_dir "$out/base"

step "3/8  Model^0: the human rows alone"
launch sft --model "$out/base" --data "$world/objects_human.jsonl" "${shared[@]}" --learning_rate 5e-4 --max_steps "$human" --output_dir "$out/model_0"

step "4/8  the unlabelled scenes: boxes with 10 % misses and 5 % false hits, names by retrieval, answers of Model^0, gates"
run bash -c "sed 's|OUT/|$out/|' recipes/opendriver_synthetic.json >'$plan'"
run python tools/synthesize.py --plan "$plan" --out "$synth" --model "$out/model_0" --round 0 --set "gate.decontaminate=$world/objects_test.jsonl" \
  "gate.human=$world/objects_human.jsonl" gate.human_share=0.15 gate.on_few_human=cut

step "5/8  the same rows as they came, and both without retrieval"
run python tools/synth_gate.py --data "$synth/ask.jsonl" --out "$out/ungated" --gates none --page_pictures 0 --human "$world/objects_human.jsonl" \
  --human_share 0.15 --on_few_human cut
run python tools/synth_ask.py --data "$synth/truth.jsonl" --out "$out/detector/ask.jsonl" --backend hf --model "$out/model_0" --local_batch 128 \
  "${questions[@]}" --temperature 1 --attempts 1
run python tools/synth_gate.py --data "$out/detector/ask.jsonl" --out "$out/detector/gate" "${gates[@]}" --page_pictures 0

step "6/8  SFT from the same model: human rows, and with them as many rows that passed as rows that were not looked at"
for name in human gated ungated; do
  case "$name" in human) data="$world/objects_human.jsonl" ;; gated) data="$synth/gate/rows.jsonl" ;; ungated) data="$out/ungated/rows.jsonl" ;; esac
  launch sft --model "$out/base" --data "$data" "${shared[@]}" --learning_rate 1e-3 --max_steps "$sft" --output_dir "$out/sft_$name"
  launch generate --model "$out/sft_$name" --data "$world/objects_test.jsonl" "${answer[@]}" --out "$out/$name.jsonl"
done

step "7/8  one round of self-play: on rows that the model of SFT writes again, and on the rows as they are"
flags=(--optim adamw_torch --global_batch_size 32 --per_device_train_batch_size 16 --max_steps "$spin" --max_length 512 --loss_type sigmoid sft
  --loss_weights 1 0.3 --bf16 false --gradient_checkpointing false --dataloader_num_workers 0 --warmup_steps 0.05 --logging_steps "$log" --save_strategy no)
settings=(MODEL="$out/sft_gated" EVAL_DATA="$world/objects_test.jsonl" ROUNDS=1 MARGIN=1 LEARNING_RATES=2e-4 BETAS=0.5 LAYOUT=zero2
  MAX_NEW_TOKENS=12 GENERATE_FLAGS="--batch_size 128" EVALUATE_FLAGS="--max_new_tokens 12 --batch_size 128")
run bash recipes/synth_rounds.sh SYNTH="$plan" DATA="$world/objects_human.jsonl" OUT="$out/regenerated" FROZEN="$synth" HUMAN_SHARE=0.15 \
  "${settings[@]}" "${flags[@]}"
run bash recipes/spin_rounds.sh DATA="$synth/gate/rows.jsonl" OUT="$out/static" "${settings[@]}" "${flags[@]}"

step "8/8  scores"
run python tools/qa_eval.py --predictions "$out/human.jsonl" "$out/ungated.jsonl" "$out/gated.jsonl" --train "$world/objects_human.jsonl" --json "$out/accuracy.json"
run python tools/opendriver_summary.py --run "$out" --claims "${SIZE:-full}" --seconds $((SECONDS - started))
