# Sourced after _launch.sh by the recipes of self-play rounds: the steps of a round and their order.
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154 # settings in capitals, what _launch.sh and the recipe set
#
#   read_settings WORDS   settings as NAME=VALUE, which may come from the environment as well, then flags for `launch spin`.
#                         A recipe sets its own defaults before, and the array spin_flags after.
#   run_rounds            what the settings ask for
#
#   MODEL       the fine-tuned model that round 1 starts from (round 0)
#   DATA        training rows; EVAL_DATA  held-out rows (without it HELD_OUT=500 rows of DATA are held out by group or picture)
#   DIRECT      the model before fine-tuning, evaluated for the table (optional)
#   OUT         folder of the chain (runs/spin); IMAGE_ROOT  folder of the pictures (default: that of DATA)
#   ROUND=t     that round only (0: evaluate MODEL), or ROUNDS=N: rounds 0 to N in a row (4)
#   STEP        generate, pairs, train or evaluate (with SYNTH regenerate before them): that step of ROUND only, for job graphs; --shard
#               I/N behind all words
#   SYNTH       plan file of tools/synthesize.py: each round trains on rows that the model of the round before has written again, with
#               the pictures' objects found once (FROZEN=OUT/frozen) and HUMAN_SHARE of DATA's rows among them (0.3); recipes/synth_rounds.sh
#   SYNTH_FLAGS for tools/synthesize.py, e.g. "--max_cost 50"
#   MARGIN      how far the metric may fall in one round before the chain stops (0.02)
#   BETAS LEARNING_RATES   one for each round, the last one stays
#   LAYOUT      name in ds_configs, empty: no DeepSpeed; LORA  rank of an adapter, which all rounds train (default: full)
#   MODEL_FLAGS for training and every generation, e.g. "--max_tiles 3"
#   FREEZE      parts that do not train, e.g. vision_tower (default: none)
#   TEMPERATURE TOP_P MAX_NEW_TOKENS   sampling of the rejected answers (1, 1, 256); GENERATE_FLAGS  e.g. "--batch_size 32"
#   BACKEND=openai BASE_URL            rejected answers from a server, which serves round t-1's model under its path
#   PAIRS_FLAGS      for tools/build_pairs.py, e.g. "--drop_near_duplicates"
#   SCORE METRIC     command with --predictions FILE --json FILE, and the number in that JSON that counts (tools/qa_eval.py, accuracy)
#   EVALUATE_FLAGS   for the answers to the held-out rows (--max_new_tokens 256)
#   JUDGE            flags for tools/judge_arena.py: win rates against round 0, e.g. "--judge_model m --judge_url http://..."
#
# After a kill give the same command again: the chain resumes where it was. A round that was trained with other flags (a trial)
# ends it. OUT/rounds.json holds the state of the chain (tools/rounds.py).

_settings=(MODEL DATA EVAL_DATA HELD_OUT DIRECT OUT IMAGE_ROOT ROUND ROUNDS STEP MARGIN BETAS LEARNING_RATES TEMPERATURE TOP_P MAX_NEW_TOKENS
  GENERATE_FLAGS BACKEND BASE_URL PAIRS_FLAGS SCORE METRIC EVALUATE_FLAGS JUDGE LAYOUT LORA MODEL_FLAGS FREEZE SYNTH SYNTH_FLAGS HUMAN_SHARE FROZEN)

_state() { run python "$DRIVE_VLM_ROOT/tools/rounds.py" "$1" --out "$OUT" "${@:2}"; }

# The model that round $1 leaves behind.
_model_of() { if [ "$1" -eq 0 ]; then echo "$MODEL"; else echo "$OUT/round-$1/model"; fi; }

# Whether step $2 of round $1 is done (0 or 1). Any other code of tools/rounds.py means that the recorded state no longer
# fits the files, and ends the recipe.
_have() {
  local code=0
  [ -z "${DRY_RUN:-}${PLAN:-}" ] || return 1
  _state "done" --round "$1" --step "$2" || code=$?
  [ "$code" -le 1 ] || exit "$code"
  return "$code"
}

# The $1-th word of the rest, or the last one.
_nth() { local words=("${@:2}"); echo "${words[$(($1 <= ${#words[@]} ? $1 : ${#words[@]})) - 1]}"; }

# The training rows of round $1; those that are written again have their pictures below OUT.
_rows_of() { if [ -n "$SYNTH" ]; then echo "$OUT/round-$1/rows.jsonl"; else echo "$_train"; fi; }
_rows_root() { if [ -n "$SYNTH" ]; then echo "$OUT"; else echo "$_root"; fi; }

_synthesize() {
  local more
  read -ra more <<<"$SYNTH_FLAGS"
  run python "$DRIVE_VLM_ROOT/tools/synthesize.py" --plan "$SYNTH" "$@" "${more[@]}"
}

# What a detector and the data base say of the pictures is the same in every round; captions, questions and answers are written again.
# A shard writes, and the call without one joins the shards, gates the rows and mixes human ones in.
_regenerate() {
  local model folder="$OUT/round-$1/synthetic" human=()
  model="$(_model_of $(($1 - 1)))"
  local frozen="${FROZEN:-$OUT/frozen}"
  local written=(--frozen "$frozen" --out "$folder" --model "$model" --round "$1")
  if [ "${#_shard[@]}" -gt 0 ]; then
    _synthesize --steps caption..ask "${written[@]}" "${_shard[@]}"
    return
  fi
  [ "$HUMAN_SHARE" = 0 ] || human=("gate.human=$_train" "gate.human_root=$_root" "gate.human_share=$HUMAN_SHARE" gate.on_few_human=cut)
  _synthesize --steps ..describe --out "$frozen"
  _synthesize --steps caption..gate "${written[@]}" --set "${human[@]}" "gate.decontaminate=$_eval" "gate.decontaminate_root=$_eval_root"
  _state take --round "$1" --model "$model" --synthetic "$folder/gate"
  _state record --round "$1" --step regenerate
}

_generate() {
  local server=() more=() model
  read -ra model <<<"$MODEL_FLAGS"
  [ "$BACKEND" = hf ] || server=(--backend "$BACKEND" --base_url "$BASE_URL")
  read -ra more <<<"$GENERATE_FLAGS"
  launch generate --model "$(_model_of $(($1 - 1)))" "${model[@]}" --data "$(_rows_of "$1")" --image_root "$(_rows_root)" --out "$OUT/round-$1/generated.jsonl" \
    --temperature "$TEMPERATURE" --top_p "$TOP_P" --max_new_tokens "$MAX_NEW_TOKENS" --seed "$1" "${server[@]}" "${more[@]}" "${_shard[@]}"
}

_pairs() {
  local more=()
  read -ra more <<<"$PAIRS_FLAGS"
  _state record --round "$1" --step generate
  run python "$DRIVE_VLM_ROOT/tools/build_pairs.py" --data "$(_rows_of "$1")" --image_root "$(_rows_root)" --predictions "$OUT/round-$1/generated.jsonl" \
    --round "$1" --out "$OUT/round-$1/pairs.jsonl" "${more[@]}"
  _state record --round "$1" --step pairs
}

# As SPIN publishes: from the second round on the pairs of the round before are learned as well.
_train() {
  local pairs=("$OUT/round-$1/pairs.jsonl") betas rates parts model memory=()
  read -ra model <<<"$MODEL_FLAGS"
  [ "$1" -eq 1 ] || pairs+=("$OUT/round-$(($1 - 1))/pairs.jsonl")
  [ -z "$LAYOUT" ] || memory=(--deepspeed "$LAYOUT")
  # Later rounds go on with the adapter that is there, as round 1 does where MODEL is one.
  [ -z "$LORA" ] || [ "$1" -gt 1 ] || [ -f "$MODEL/adapter_config.json" ] || memory+=(--lora_rank "$LORA")
  read -ra betas <<<"$BETAS"
  read -ra rates <<<"$LEARNING_RATES"
  read -ra parts <<<"$FREEZE"
  [ "${#parts[@]}" -eq 0 ] || memory+=(--freeze "${parts[@]}")
  RESUME="${RESUME:-auto}" launch spin --model "$(_model_of $(($1 - 1)))" "${model[@]}" --data "${pairs[@]}" --image_root "$(_rows_root)" \
    --beta "$(_nth "$1" "${betas[@]}")" --learning_rate "$(_nth "$1" "${rates[@]}")" "${memory[@]}" "${spin_flags[@]}" \
    --output_dir "$OUT/round-$1/model" "${_flags[@]}"
}

# $1: a round, or "direct"; $2: its model.
_answers_and_score() {
  local folder="$OUT/round-$1" more model score
  [ "$1" != direct ] || folder="$OUT/direct"
  read -ra more <<<"$EVALUATE_FLAGS"
  read -ra model <<<"$MODEL_FLAGS"
  read -ra score <<<"$SCORE"
  launch generate --model "$2" "${model[@]}" --data "$_eval" --image_root "$_eval_root" --out "$folder/answers.jsonl" "${more[@]}"
  run "${score[@]}" --predictions "$folder/answers.jsonl" --json "$folder/scores.json"
  _state record --round "$1" --step evaluate
}

_evaluate() {
  [ "$1" -eq 0 ] || _state record --round "$1" --step train
  if [ "$1" -eq 0 ] && [ -n "$DIRECT" ] && ! _have direct evaluate; then _answers_and_score direct "$DIRECT"; fi
  _answers_and_score "$1" "$(_model_of "$1")"
}

# A round that was trained with other flags, for example a trial of two steps, must not pass as the real one.
_check_flags() {
  local changed
  changed="$(changed_flags "$OUT/round-$1/model" "${_flags[@]}")"
  [ -z "$changed" ] || _fail "round $1 was trained with other flags: $changed. Train it and those after it again:" \
    "python tools/rounds.py forget --out $OUT --round $1; or keep it: ROUND=$(($1 + 1)) and on, a round at a time."
}

_round() {
  local step
  for step in ${SYNTH:+regenerate} generate pairs train evaluate; do
    [ "$1" -gt 0 ] || [ "$step" = evaluate ] || continue
    [ -z "$STEP" ] || [ "$STEP" = "$step" ] || continue
    if _have "$1" "$step"; then
      [ "$step" != train ] || _check_flags "$1"
      _say "round $1: $step is done"
      continue
    fi
    [ -n "${DRY_RUN:-}${PLAN:-}" ] || printf '\n== round %s: %s\n' "$1" "$step"
    "_$step" "$1"
  done
}

# The table up to round $1, with win rates where there is a judge.
_table() {
  local t answers=("$OUT/round-0/answers.jsonl") judge arena=()
  if [ -n "$JUDGE" ] && [ "$1" -gt 0 ]; then
    for ((t = 1; t <= $1; t++)); do answers+=("$OUT/round-$t/answers.jsonl"); done
    read -ra judge <<<"$JUDGE"
    run python "$DRIVE_VLM_ROOT/tools/judge_arena.py" --predictions "${answers[@]}" --pairs vs-first --image_root "$_eval_root" \
      --out "$OUT/arena.jsonl" --json "$OUT/arena.json" "${judge[@]}"
    arena=(--arena "$OUT/arena.json")
  fi
  _state table "${arena[@]}"
}

# Every node or task of a Slurm step runs this script: only training is made for that, the other steps would write the same
# files several times.
_check_topology() {
  [ -z "${PLAN:-}" ] || return 0
  _read_topology
  [ "$_layout" = local ] || [ "$STEP" = train ] ||
    _fail "rounds: on several nodes or tasks only STEP=train runs. bash slurm/spin_rounds.sh submits each step as a job of its own size."
}

_start_chain() {
  local more=()
  [ -z "$EVAL_DATA" ] || more+=(--eval_data "$EVAL_DATA")
  [ -z "$DIRECT" ] || more+=(--direct "$DIRECT")
  [ -z "$IMAGE_ROOT" ] || more+=(--image_root "$IMAGE_ROOT")
  [ -z "$SYNTH" ] || more+=(--synth "$SYNTH" --human_share "$HUMAN_SHARE")
  _state start --model "$MODEL" --data "$DATA" --held_out "$HELD_OUT" "${more[@]}" --metric "$METRIC" \
    --sampling "$BACKEND, temperature $TEMPERATURE, top_p $TOP_P, $MAX_NEW_TOKENS tokens${GENERATE_FLAGS:+, $GENERATE_FLAGS}"
}

read_settings() {
  local name
  while [[ "${1:-}" =~ ^[A-Z_]+= ]]; do
    name="${1%%=*}"
    [[ " ${_settings[*]} " == *" $name "* ]] || _fail "rounds: $name is not a setting. There are: ${_settings[*]}"
    printf -v "$name" %s "${1#*=}"
    shift
  done
  _shard=() _flags=("$@")
  if [ $# -ge 2 ] && [ "${*: -2:1}" = --shard ]; then _shard=("${@: -2}") _flags=("${@:1:$#-2}"); fi
  _user_words=("${_flags[@]}")
  : "${EVAL_DATA=}" "${DIRECT=}" "${IMAGE_ROOT=}" "${ROUND=}" "${ROUNDS=4}" "${STEP=}" "${GENERATE_FLAGS=}" "${BASE_URL=}" "${PAIRS_FLAGS=}" "${JUDGE=}"
  : "${LAYOUT=}" "${LORA=}" "${MODEL_FLAGS=}" "${FREEZE=}" "${SYNTH=}" "${SYNTH_FLAGS=}" "${HUMAN_SHARE=0.3}" "${FROZEN=}"
  : "${OUT=runs/spin}" "${HELD_OUT=500}" "${MARGIN=0.02}" "${TEMPERATURE=1}" "${TOP_P=1}" "${MAX_NEW_TOKENS=256}" "${BACKEND=hf}"
  : "${SCORE=python $DRIVE_VLM_ROOT/tools/qa_eval.py}" "${METRIC=checkpoints.answers.accuracy}" "${EVALUATE_FLAGS=--max_new_tokens 256}"
}

_check_settings() {
  [ -n "${MODEL:-}" ] && [ -n "${DATA:-}" ] || _fail "rounds: MODEL (the fine-tuned model) and DATA (training rows) are needed, e.g. MODEL=runs/sft DATA=train.jsonl"
  [[ "$ROUND" =~ ^[0-9]*$ ]] && [[ "$ROUNDS" =~ ^[1-9][0-9]*$ ]] || _fail "rounds: ROUND=$ROUND ROUNDS=$ROUNDS: whole numbers are needed."
  case "$STEP" in "" | generate | pairs | train | evaluate) ;;
    regenerate) [ -n "$SYNTH" ] || _fail "rounds: STEP=regenerate needs SYNTH, the plan file of tools/synthesize.py." ;;
    *) _fail "rounds: STEP=$STEP: generate, pairs, train or evaluate, and with SYNTH regenerate." ;;
  esac
  [ -z "$SYNTH" ] || [ -f "$SYNTH" ] || [ -n "${DRY_RUN:-}${PLAN:-}" ] || _fail "rounds: SYNTH=$SYNTH: no such plan file."
  [ -z "$STEP" ] || [ -n "$ROUND" ] || _fail "rounds: STEP=$STEP of which round? Give ROUND."
  [ "$BACKEND" = hf ] || [ -n "$BASE_URL" ] || _fail "rounds: BACKEND=$BACKEND needs BASE_URL, e.g. http://localhost:8000/v1"
  [ "${#_shard[@]}" -eq 0 ] || [ "$STEP" = generate ] || [ "$STEP" = regenerate ] || _fail "rounds: --shard is for STEP=generate and STEP=regenerate."
}

run_rounds() {
  local _train _eval _root _eval_root t stopped=""
  _check_settings
  _check_topology
  _train="$DATA" _eval="$EVAL_DATA"
  [ -n "$EVAL_DATA" ] || _train="$OUT/data/train.jsonl" _eval="$OUT/data/eval.jsonl"
  _root="${IMAGE_ROOT:-$(dirname "$DATA")}" _eval_root="${IMAGE_ROOT:-$(dirname "${EVAL_DATA:-$DATA}")}"
  # Every round has the plan of the first; a model that does not exist yet has the sizes of DIRECT.
  if [ -n "${PLAN:-}" ]; then
    [ -d "$MODEL" ] || [ -z "$DIRECT" ] || MODEL="$DIRECT"
    _train 1
    return
  fi
  [ "$STEP" = train ] || _start_chain
  if [ -z "$STEP" ] && [ "${ROUND:-0}" -gt 1 ]; then _state decide --round $((ROUND - 1)) --margin "$MARGIN"; fi
  for ((t = ${ROUND:-0}; t <= ${ROUND:-$ROUNDS}; t++)); do
    _round "$t"
    case "$STEP" in "" | evaluate) _state decide --round "$t" --margin "$MARGIN" || { stopped=$?; break; } ;; *) return ;; esac
  done
  [ -n "$stopped" ] || t=$((t - 1))
  _table "$t"
  return "${stopped:-0}"
}
