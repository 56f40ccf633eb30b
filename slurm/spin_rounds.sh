#!/usr/bin/env bash
# Submits a whole chain of self-play rounds to Slurm: for each round an array that answers the training rows, then jobs that make the
# pairs, train and evaluate, each after the one before has succeeded; with --regenerate first an array that writes the rows again and a
# job that gates and mixes them. docs/slurm.md describes the jobs themselves.
set -euo pipefail
# shellcheck source=../recipes/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipes/_environment.sh"
# shellcheck source=_graph.sh
source "$(dirname "${BASH_SOURCE[0]}")/_graph.sh"

usage() {
  cat <<'TEXT'
usage: bash slurm/spin_rounds.sh --rounds N --shards S --time T [options] -- SETTINGS [flags of spin]

  --rounds N          rounds of the chain
  --shards S          shards of each generation; --at-once K runs at most K of them at a time
  --recipe FILE       (default recipes/spin_rounds.sh)
  --regenerate        each round writes its rows again (setting SYNTH), in as many shards
  --time T            of a training job; --generate-time T  --evaluate-time T  --pairs-time T  --regenerate-time T (default: T)
  --nodes N           nodes of a training job (default 1); every other job takes one node
  --dry-run           print the table and submit nothing
  any other option    as for slurm/submit.sh, for every job: --gpus-per-node, --partition, --account, --setup, --mem ...

SETTINGS are those of recipes/_rounds.sh: MODEL=runs/sft DATA=train.jsonl OUT=runs/spin MARGIN=0.02 ...
A round whose evaluation falls by more than MARGIN fails its evaluate job, and Slurm takes the rest of the chain out of the queue. Submitted
again the chain goes on: steps that are done end at once, and of a generation only the shards that are missing are made.
TEXT
}

rounds="" recipe="recipes/spin_rounds.sh" nodes=1 generate_time="" evaluate_time="" pairs_time="" regenerate_time="" regenerate=""
own=(--array --after --dependency --name --parsable) behind="Settings and flags of the recipe stand behind --."
declare -A switches=([--dry-run]=dry [--regenerate]=regenerate)
declare -A variable=([--rounds]=rounds [--shards]=shards [--at-once]=at_once [--recipe]=recipe [--time]=time [--nodes]=nodes
  [--generate-time]=generate_time [--evaluate-time]=evaluate_time [--pairs-time]=pairs_time
  [--regenerate-time]=regenerate_time)

check_arguments() {
  require_counts rounds shards nodes
  require_limits "a training job"
  [ -n "$regenerate" ] || [[ " ${words[*]}" != *" SYNTH="?* ]] || _fail "spin_rounds.sh: SYNTH is given: --regenerate makes its jobs."
  generate_time="${generate_time:-$time}" regenerate_time="${regenerate_time:-$time}" evaluate_time="${evaluate_time:-$time}" pairs_time="${pairs_time:-$time}"
  [ "${#words[@]}" -gt 0 ] || _fail "spin_rounds.sh: settings of the recipe are missing, e.g. -- MODEL=runs/sft DATA=train.jsonl"
}

# One line a job: name, round, step, nodes, array, time, name of the job before.
print_graph() {
  local t before="round0-evaluate"
  echo "round0-evaluate 0 evaluate 1 - $evaluate_time -"
  for ((t = 1; t <= rounds; t++)); do
    if [ -n "$regenerate" ]; then
      echo "round$t-write $t regenerate 1 $(shard_range) $regenerate_time $before"
      echo "round$t-regenerate $t regenerate 1 - $regenerate_time round$t-write"
      before="round$t-regenerate"
    fi
    echo "round$t-generate $t generate 1 $(shard_range) $generate_time $before"
    echo "round$t-pairs $t pairs 1 - $pairs_time round$t-generate"
    echo "round$t-train $t train $nodes - $time round$t-pairs"
    echo "round$t-evaluate $t evaluate 1 - $evaluate_time round$t-train"
    before="round$t-evaluate"
  done
}

print_table() { { echo "job round step nodes array time after"; echo "$1"; } | awk '{ printf "%-18s %5s  %-10s %5s  %-10s %-12s %s\n", $1, $2, $3, $4, $5, $6, $7 }'; }

# submit_job NAME ROUND STEP NODES ARRAY TIME BEFORE: sets id.
submit_job() {
  local more=(--no-plan)
  [ "$5" = - ] || more+=(--array "$5" --shards "$shards")
  [ "$7" = - ] || more+=(--after "${job[$7]}")
  id="$(bash "$DRIVE_VLM_ROOT/slurm/submit.sh" "$recipe" --parsable --name "$1" --nodes "$4" --time "$6" "${options[@]}" "${more[@]}" -- ROUND="$2" STEP="$3" "${words[@]}" </dev/null)"
}

submit_graph() {
  local line
  # Check the plan before anything is submitted: a chain that fails in the middle would leave jobs in the queue.
  read -r -a line <<<"$(grep '^round1-train ' <<<"$1")"
  bash "$DRIVE_VLM_ROOT/slurm/submit.sh" "$recipe" --dry-run --nodes "${line[3]}" --time "${line[5]}" "${options[@]}" \
    -- ROUND=1 STEP=train "${words[@]}" </dev/null >/dev/null
  submit_lines "$1"
}

read_arguments "$@"
check_arguments
graph="$(print_graph)"
print_table "$graph"
if [ -z "$dry" ]; then submit_graph "$graph"; fi
