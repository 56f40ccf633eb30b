#!/usr/bin/env bash
# Submits the steps of a synthesis plan to Slurm: an array of shards for each step that goes picture by picture, one job for the others,
# each after what it reads has succeeded. docs/slurm.md describes the jobs themselves, docs/synthesis.md the plan.
set -euo pipefail
# shellcheck source=../recipes/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipes/_environment.sh"

usage() {
  cat <<'TEXT'
usage: bash slurm/synthesize.sh --plan FILE --shards S --time T [options] [-- flags of tools/synthesize.py]

  --plan FILE         plan of tools/synthesize.py
  --shards S          shards of each step; --at-once K runs at most K of them at a time
  --steps A..B        some steps only, e.g. those that need a GPU
  --time T            of each job
  --dry-run           print the table and submit nothing
  any other option    as for slurm/submit.sh, for every job: --gpus-per-node, --partition, --account, --setup, --mem ...

Submitted again the synthesis goes on: shards and steps that are done end at once, and no reply is paid twice.
TEXT
}

plan="" shards="" at_once="" steps="" time="" dry="" options=() words=()

declare -A variable=([--plan]=plan [--shards]=shards [--at-once]=at_once [--steps]=steps [--time]=time)

read_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --dry-run) dry=1 ;;
      --) words=("${@:2}"); return ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
      --array | --after | --dependency | --name | --parsable | --nodes) _fail "synthesize.sh: $1 is the graph's own." ;;
      --no-plan | --force) options+=("$1") ;;
      --*)
        [ $# -ge 2 ] && [ -n "$2" ] && [[ "$2" != --* ]] || _fail "synthesize.sh: $1 needs a value."
        if [ -n "${variable[$1]:-}" ]; then printf -v "${variable[$1]}" %s "$2"; else options+=("$1" "$2"); fi
        shift ;;
      *) _fail "synthesize.sh: unexpected word $1. Flags of tools/synthesize.py stand behind --." ;;
    esac
    shift
  done
}

check_arguments() {
  [ -n "$plan" ] || _fail "synthesize.sh: --plan is missing: the plan file of tools/synthesize.py."
  [[ "$shards" =~ ^[1-9][0-9]*$ ]] || _fail "synthesize.sh: --shards ${shards:-is missing}: a whole number from 1 on is needed."
  [[ "$at_once" =~ ^([1-9][0-9]*)?$ ]] || _fail "synthesize.sh: --at-once $at_once: a whole number from 1 on is needed."
  [ -n "$time" ] || _fail "synthesize.sh: --time is missing: how long a job may run, e.g. --time 12:00:00."
}

# One line a job: step, array, time, the steps that it waits for. What the plan and the flags do not allow ends here, before a job.
print_graph() {
  local step kind reads
  python "$DRIVE_VLM_ROOT/tools/synthesize.py" --plan "$plan" --graph ${steps:+--steps "$steps"} "${words[@]}" |
    while read -r step kind reads; do
      if [ "$kind" = shards ]; then echo "$step 0-$((shards - 1))${at_once:+%$at_once} $time $reads"; else echo "$step 0 $time $reads"; fi
    done
}

# submit_job STEP ARRAY TIME BEFORE: sets id.
submit_job() {
  local name after="" count="$shards"
  [ "$2" != 0 ] || count=1
  for name in ${4//,/ }; do [ "$name" = - ] || after+="${after:+,}${job[$name]}"; done
  id="$(bash "$DRIVE_VLM_ROOT/slurm/submit.sh" tools/synthesize.py --parsable --name "synth-$1" --time "$3" --array "$2" --shards "$count" \
    "${options[@]}" ${after:+--after "$after"} -- --plan "$plan" --steps "$1" "${words[@]}" </dev/null)"
}

submit_graph() {
  local line id
  declare -A job=()
  while read -r -a line; do
    submit_job "${line[@]}" || { _say "synthesize.sh: ${line[0]} was not submitted. Cancel the others: scancel ${job[*]}"; exit 2; }
    job["${line[0]}"]="$id"
    echo "${line[0]} $id"
  done <<<"$1"
  echo "cancel all: scancel ${job[*]}"
}

read_arguments "$@"
check_arguments
graph="$(print_graph)"
{ echo "step array time after"; echo "$graph"; } | awk '{ printf "%-12s %-10s %-12s %s\n", $1, $2, $3, $4 }'
if [ -z "$dry" ]; then submit_graph "$graph"; fi
