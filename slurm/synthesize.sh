#!/usr/bin/env bash
# Submits the steps of a synthesis plan to Slurm: an array of shards for each step that goes picture by picture, one job for the others,
# each after what it reads has succeeded. docs/slurm.md describes the jobs themselves, docs/synthesis.md the plan.
set -euo pipefail
# shellcheck source=../recipes/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipes/_environment.sh"
# shellcheck source=_graph.sh
source "$(dirname "${BASH_SOURCE[0]}")/_graph.sh"

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

plan="" steps="" own=(--array --after --dependency --name --parsable --nodes) behind="Flags of tools/synthesize.py stand behind --."
declare -A switches=([--dry-run]=dry)
declare -A variable=([--plan]=plan [--shards]=shards [--at-once]=at_once [--steps]=steps [--time]=time)

check_arguments() {
  [ -n "$plan" ] || _fail "synthesize.sh: --plan is missing: the plan file of tools/synthesize.py."
  require_counts shards
  require_limits "a job"
}

# One line a job: step, array, time, the steps that it waits for. What the plan and the flags do not allow ends here, before a job.
print_graph() {
  local step kind reads
  python "$DRIVE_VLM_ROOT/tools/synthesize.py" --plan "$plan" --graph ${steps:+--steps "$steps"} "${words[@]}" |
    while read -r step kind reads; do
      if [ "$kind" = shards ]; then echo "$step $(shard_range) $time $reads"; else echo "$step 0 $time $reads"; fi
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

read_arguments "$@"
check_arguments
graph="$(print_graph)"
{ echo "step array time after"; echo "$graph"; } | awk '{ printf "%-12s %-10s %-12s %s\n", $1, $2, $3, $4 }'
if [ -z "$dry" ]; then submit_lines "$graph"; fi
