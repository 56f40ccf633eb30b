#!/usr/bin/env bash
# Submits a recipe to Slurm after checking that it can run. docs/slurm.md shows it in use.
set -euo pipefail
# shellcheck source=../recipes/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipes/_environment.sh"

usage() {
  cat <<'TEXT'
usage: bash slurm/submit.sh RECIPE --time T [options] [-- flags of the recipe]

  --nodes N                nodes (default 1)
  --gpus-per-node G        GPUs on each node (default 1; 0 trains on CPUs)
  --gpu-type TYPE          as the cluster calls it, e.g. a100
  --procs-per-node P       processes on each node (default: one a GPU, at least 1)
  --time T                 30 (minutes), 4:00:00, 2-00:00:00: training is saved and requeued when it is up
  --partition P  --account A  --qos Q  --constraint X  --mem M  --cpus-per-task C
                           as for sbatch; CPUs default to 8 a process, or what a node has
  --requeue-margin S       seconds before the time limit at which the ranks are asked to save (default 300)
  --max-restarts K         how often the ranks start again in place after one has died (default 0)
  --launcher L             torchrun (default) or deepspeed
  --after JOB[,JOB]        start when these jobs have succeeded; when one fails this job is cancelled
  --dependency D           any dependency of sbatch, e.g. singleton
  --array 0-7%4            shards 0 to 7, at most 4 at a time; each task is given --shard I/8
  --shards N               number of shards when the array holds only some of them, e.g. --array 3 --shards 8
  --name NAME              job name (default: the recipe's)
  --log-dir DIR            (default runs/slurm)
  --setup FILE             a script that the job sources first: module load, conda activate ...
  --gpu-memory 80GB        refuse when the plan does not fit into GPUs of this size
  --force                  submit although it does not fit
  --no-plan                do not make the plan (PLAN=1), which finds wrong flags before the job waits its turn
  --dry-run                print the script and submit nothing
  --parsable               print the job id and nothing else, for chains
TEXT
}

nodes=1 gpus=1 gpu_type="" procs="" time="" partition="" account="" qos="" constraint="" mem="" cpus="" margin=300 restarts=0 launcher="torchrun"
after="" dependency="" array="" shards="" name="" log_dir="runs/slurm" setup="" gpu_memory="" plan=1 force="" dry="" parsable="" recipe="" words=()

declare -A variable=([--nodes]=nodes [--gpus-per-node]=gpus [--gpu-type]=gpu_type [--procs-per-node]=procs [--time]=time [--partition]=partition
  [--account]=account [--qos]=qos [--constraint]=constraint [--mem]=mem [--cpus-per-task]=cpus [--requeue-margin]=margin [--max-restarts]=restarts
  [--launcher]=launcher [--after]=after [--dependency]=dependency [--array]=array [--shards]=shards [--name]=name [--log-dir]=log_dir [--setup]=setup
  [--gpu-memory]=gpu_memory)

read_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --dry-run) dry=1 ;;
      --no-plan) plan="" ;;
      --force) force=1 ;;
      --parsable) parsable=1 ;;
      --) words=("${@:2}"); return ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
      --*)
        [ -n "${variable[$1]:-}" ] || _fail "submit.sh: unknown option $1. Flags of the recipe stand behind --; see bash slurm/submit.sh --help."
        [ $# -ge 2 ] && [ -n "$2" ] && [[ "$2" != --* ]] || _fail "submit.sh: $1 needs a value."
        [[ "$2" != *$'\n'* ]] || _fail "submit.sh: $1: one line only."
        printf -v "${variable[$1]}" %s "$2"
        shift ;;
      *)
        [ -z "$recipe" ] || _fail "submit.sh: unexpected word $1. Flags of the recipe stand behind --."
        recipe="$1" ;;
    esac
    shift
  done
}

whole() { [[ "${!2}" =~ ^[0-9]+$ ]] && [ "${!2}" -ge "$3" ] || _fail "submit.sh: $1 ${!2}: a whole number from $3 on is needed."; }

# Seconds of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Nothing for anything else.
seconds_of() {
  local days=0 rest="$1" a b c
  [[ "$1" =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || return 0
  if [[ "$1" == *-* ]]; then
    days="${1%%-*}" rest="${1#*-}"
    IFS=: read -r a b c <<<"$rest"
  else
    IFS=: read -r a b c <<<"$rest"
    case "$rest" in *:*:*) ;; *) c="${b:-0}" b="$a" a=0 ;; esac
  fi
  echo $((10#$days * 86400 + 10#$a * 3600 + 10#${b:-0} * 60 + 10#${c:-0}))
}

check_arguments() {
  local seconds
  [ -n "$recipe" ] || { usage >&2; exit 2; }
  [ -f "$recipe" ] || [ -f "$DRIVE_VLM_ROOT/$recipe" ] || _fail "submit.sh: no such recipe: $recipe. There are: $(cd "$DRIVE_VLM_ROOT" && echo recipes/[!_]*.sh)"
  whole --nodes nodes 1
  whole --gpus-per-node gpus 0
  procs="${procs:-$((gpus > 0 ? gpus : 1))}"
  whole --procs-per-node procs 1
  whole --requeue-margin margin 30
  whole --max-restarts restarts 0
  [ -z "$cpus" ] || whole --cpus-per-task cpus 1
  [ -n "$time" ] || _fail "submit.sh: --time is missing: how long the job may run, e.g. --time 4:00:00."
  seconds="$(seconds_of "$time")"
  [ -n "$seconds" ] && [ "$seconds" -gt 0 ] || _fail "submit.sh: --time $time: write 30 (minutes), 4:00:00 or 2-00:00:00."
  [ -n "$array" ] || [ "$seconds" -gt "$margin" ] ||
    _fail "submit.sh: --time $time is not longer than --requeue-margin $margin seconds: the job would be asked to save as soon as it starts."
  [ "$launcher" = torchrun ] || [ "$launcher" = deepspeed ] || _fail "submit.sh: --launcher $launcher: torchrun or deepspeed."
  [ "$launcher" = torchrun ] || [ "$restarts" -eq 0 ] || _fail "submit.sh: --max-restarts needs --launcher torchrun."
  name="${name:-$(basename "${recipe%.*}")}"
  [[ "$name" =~ ^[A-Za-z0-9_.-]+$ ]] || _fail "submit.sh: --name $name: letters, digits, _ . and - only."
  [[ "$after" =~ ^([0-9]+(_[0-9]+)?(,[0-9]+(_[0-9]+)?)*)?$ ]] || _fail "submit.sh: --after $after: job ids with commas between."
  [ -z "$setup" ] || [ -f "$setup" ] || _fail "submit.sh: --setup $setup: no such file."
  [ -z "$array" ] || check_array
}

check_array() {
  local last
  [[ "$array" =~ ^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*(%[1-9][0-9]*)?$ ]] || _fail "submit.sh: --array $array: write 0-7, 0-7%4 (four at a time) or 3,5."
  [ "$nodes" -eq 1 ] || _fail "submit.sh: --array: a shard runs on one node, not on $nodes."
  last="$(tr ',%-' '\n' <<<"${array%\%*}" | sort -n | tail -n 1)"
  if [ -z "$shards" ]; then
    [[ "${array%\%*}" == "0-$last" ]] || _fail "submit.sh: --array $array holds some shards only: of how many? Give --shards."
    shards=$((last + 1))
  fi
  whole --shards shards 1
  [ "$last" -lt "$shards" ] || _fail "submit.sh: --array $array: there is no shard $last of $shards, they count from 0."
}

# Refuse what Slurm would leave pending for ever, or reject without naming what the cluster has.
check_cluster() {
  local limits limit seconds have=0 most=0 per_node count longest=""
  if ! sinfo -h >/dev/null 2>&1; then
    [ -n "$dry" ] || _fail "submit.sh: Slurm does not answer here (sinfo). On another machine --dry-run prints the script."
    cpus="${cpus:-$((8 * procs))}"
    return
  fi
  limits="$(sinfo -h ${partition:+-p "$partition"} -o '%P|%l|%c|%D' 2>/dev/null)" || limits=""
  [ -n "$partition" ] || limits="$(grep '^[^|]*\*|' <<<"$limits" || true)"
  [ -n "$limits" ] || _fail "submit.sh: --partition ${partition:-(none given, and the cluster has no default)}: there are $(sinfo -h -o %R | sort -u | tr '\n' ' ')"
  while IFS='|' read -r _ limit per_node count; do
    have=$((have + count)) longest="$limit"
    per_node="${per_node%+}"
    [ "$per_node" -le "$most" ] || most="$per_node"
  done <<<"$limits"
  [ "$nodes" -le "$have" ] || _fail "submit.sh: --nodes $nodes: partition ${partition:-default} has $have."
  seconds="$(seconds_of "$longest")"
  [ -z "$seconds" ] || [ "$(seconds_of "$time")" -le "$seconds" ] || _fail "submit.sh: --time $time is longer than the partition allows ($longest): the job would wait for ever."
  cpus="${cpus:-$((8 * procs < most ? 8 * procs : most))}"
}

# Refuse what would end the job after it has waited its turn: contradicting flags, a batch that does not divide, too little memory.
check_plan() {
  local text verdict
  [ -n "$plan" ] && [ -z "$array" ] && grep -q '_launch\.sh' "$(recipe_path)" || return 0
  text="$(env -u DRY_RUN -u SLURM_STEP_ID PLAN=1 NNODES="$nodes" NPROC_PER_NODE="$procs" LAUNCHER="$launcher" \
    bash "$(recipe_path)" "${words[@]}" --json ${gpu_memory:+--gpu_memory "$gpu_memory"})" ||
    _fail "submit.sh: the plan of $recipe failed (see above): the job would fail as well. --no-plan submits without it."
  [ -n "$text" ] && [ -n "$gpu_memory" ] || return 0
  verdict="$(read_verdict <<<"$text")" || {
    [ -n "$force" ] || _fail "submit.sh: plan for $gpu_memory: $verdict --force submits all the same."
  }
  _say "submit.sh: plan for $gpu_memory: $verdict"
}

# Print the advice of every plan on stdin; return 1 when one of them does not fit.
read_verdict() {
  python -c '
import json, sys
text, fits = sys.stdin.read().strip(), True
while text:
    plan, end = json.JSONDecoder().raw_decode(text)
    memory, text = plan["memory"], text[end:].strip()
    print(memory["advice"])
    fits = fits and memory["layouts"][memory["chosen"]]["fits"]
sys.exit(not fits)'
}

recipe_path() { if [ -f "$recipe" ]; then realpath "$recipe"; else echo "$DRIVE_VLM_ROOT/$recipe"; fi; }

directive() { [ -z "$2" ] || echo "#SBATCH --$1=$2"; }

print_script() {
  local body="$DRIVE_VLM_ROOT/slurm/train.sbatch" log="%x-%j.out" ids
  [ -z "$array" ] || body="$DRIVE_VLM_ROOT/slurm/array.sbatch" log="%x-%A_%a.out"
  ids="${after:+afterok:${after//,/:}}"
  echo "#!/usr/bin/env bash"
  grep '^#SBATCH' "$body" | grep -vE -- '--(signal|output|nodes)='
  directive job-name "$name"
  directive nodes "$nodes"
  directive gres "$([ "$gpus" -eq 0 ] || echo "gpu:${gpu_type:+$gpu_type:}$gpus")"
  directive cpus-per-task "$cpus"
  directive mem "$mem"
  directive time "$time"
  directive partition "$partition"
  directive account "$account"
  directive qos "$qos"
  directive constraint "$constraint"
  directive array "$array"
  directive dependency "$ids${ids:+${dependency:+,}}$dependency"
  directive kill-on-invalid-dep "$([ -z "$ids$dependency" ] || echo yes)"
  directive signal "$([ -n "$array" ] || echo "B:USR1@$margin")"
  directive chdir "\"$PWD\""
  directive output "\"$(realpath -m "$log_dir")/$log\""
  [ -z "$setup" ] || printf 'source %q\n' "$(realpath "$setup")"
  printf 'export DRIVE_VLM_ROOT=%q NPROC_PER_NODE=%q LAUNCHER=%q MAX_RESTARTS=%q\n' "$DRIVE_VLM_ROOT" "$procs" "$launcher" "$restarts"
  [ -z "$array" ] || printf 'export SHARDS=%q\n' "$shards"
  printf 'exec bash %q %q' "$body" "$(recipe_path)"
  [ "${#words[@]}" -eq 0 ] || printf ' %q' "${words[@]}"
  printf '\n'
}

submit() {
  local id log
  # Slurm does not make the folder, and a job that cannot open its log fails without a word.
  mkdir -p "$log_dir"
  id="$(print_script | sbatch --parsable)"
  id="${id%%;*}"
  if [ -n "$parsable" ]; then echo "$id"; return; fi
  log="$(realpath "$log_dir")/$name-$id$([ -z "$array" ] || echo '_*').out"
  cat <<TEXT
job      $id
log      $log
follow   tail -F $log
state    squeue -j $id; scontrol show job $id
cancel   scancel $id
TEXT
  if [ -z "$array" ]; then
    echo "save     scancel --batch --signal=USR1 $id    saves now and requeues; $PWD/runs/slurm/control/$id/status.json holds the state of the run"
  fi
}

read_arguments "$@"
check_arguments
check_cluster
check_plan
if [ -n "$dry" ]; then print_script; else submit; fi
