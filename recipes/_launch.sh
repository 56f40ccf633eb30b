# Sourced by every recipe: starts `python -m drive_vlm ...` on one process, several, several nodes, or inside a Slurm step.
# shellcheck shell=bash
# The one place with a torchrun or deepspeed line.
#
#   ensure_environment [EXTRAS]   see _environment.sh
#   launch COMMAND [flags]        e.g. launch sft --model ... "$@"
#   run WORDS                     any other command of a recipe; DRY_RUN=1 prints it
#
# Topology comes from the environment; inside a Slurm step (srun) Slurm's own variables win:
#   NPROC_PER_NODE   processes on this node (default: number of GPUs, at least 1)
#   OMP_NUM_THREADS  threads of every process; without it a command of one process takes all cores that the recipe may use (those of the
#                    Slurm task, or of its affinity), and ranks without GPUs divide them. RANK_THREADS=N gives each of several ranks N
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT   several nodes without Slurm
#   LAUNCHER         torchrun (default) or deepspeed
#   MAX_RESTARTS     how often torchrun starts all ranks again after one has died (default 0)
#   DRY_RUN=1        print the command, one flag a line, and run nothing
#   PLAN=1           print the plan of the run instead
#   RESUME=auto      training commands go on from the newest complete checkpoint (slurm/train.sbatch sets it)

# shellcheck source=_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
# shellcheck source=_status.sh
source "$(dirname "${BASH_SOURCE[0]}")/_status.sh"
_recipe="$(cd "$(dirname "${BASH_SOURCE[1]:-$0}")" && pwd)/$(basename "${BASH_SOURCE[1]:-$0}")"
_user_words=("$@") # `source` without words shows the recipe's own
_launches=0

# --- topology

_free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Batch scripts and interactive shells of Slurm carry step ids from 0xfffffff0 on; they are not a step of several tasks.
_in_slurm_step() { [ -n "${SLURM_PROCID:-}" ] && [ "${SLURM_STEP_ID:-4294967295}" -lt 4294967280 ]; }

# The name of a node where it resolves, else its address as Slurm knows it: an unknown name would be tried for two minutes.
_slurm_address() {
  if getent hosts "$1" >/dev/null 2>&1; then echo "$1"; return; fi
  local address
  address="$(scontrol -o show node "$1" 2>/dev/null | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')"
  [ -n "$address" ] || _fail "$(hostname): no address for node $1: it does not resolve and scontrol does not answer. Set MASTER_ADDR."
  echo "$address"
}

_slurm_head() {
  if [ -n "${MASTER_ADDR:-}" ]; then echo "$MASTER_ADDR"; return; fi
  local nodes
  nodes="$(scontrol show hostnames "${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}}")" ||
    _fail "$(hostname): scontrol cannot be run here (a container?). Set MASTER_ADDR to the address of the job's first node."
  _slurm_address "${nodes%%$'\n'*}"
}

# One port for each job, step and launch: a shared one would join two runs into one.
_slurm_port() { echo $((15000 + (SLURM_JOB_ID + 1000 * SLURM_STEP_ID + _launches) % 10000)); }

# Sets _nodes, _procs (ranks on each node) and _layout: local, nodes, slurm_nodes (a task a node) or slurm_ranks (a task a rank).
_read_topology() {
  case "${LAUNCHER:-torchrun}" in torchrun | deepspeed) ;; *) _fail "LAUNCHER=$LAUNCHER is not known. Use torchrun or deepspeed." ;; esac
  [[ "${MAX_RESTARTS:-0}" =~ ^[0-9]+$ ]] || _fail "MAX_RESTARTS=$MAX_RESTARTS is not a number."
  _layout="local" _nodes="${NNODES:-1}" _procs="${NPROC_PER_NODE:-}"
  if _in_slurm_step; then
    local tasks="${SLURM_STEP_NUM_TASKS:-${SLURM_NTASKS:-1}}"
    _nodes="${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}}"
    if [ "$tasks" -gt "$_nodes" ]; then
      _layout="slurm_ranks"
      [[ "${SLURM_STEP_TASKS_PER_NODE:-}" != *,* ]] && [ $((tasks % _nodes)) -eq 0 ] ||
        _fail "srun started $tasks tasks on $_nodes nodes (${SLURM_STEP_TASKS_PER_NODE:-unevenly}). Every node needs the same number: --ntasks-per-node."
      [ "${_procs:-$((tasks / _nodes))}" -eq $((tasks / _nodes)) ] ||
        _fail "srun started $((tasks / _nodes)) tasks a node, but NPROC_PER_NODE=$_procs. Start one task a node, or unset NPROC_PER_NODE."
      _procs=$((tasks / _nodes))
    elif [ "$_nodes" -gt 1 ]; then
      _layout="slurm_nodes"
    fi
  elif [ "$_nodes" -gt 1 ]; then
    _layout="nodes"
    local name
    for name in NODE_RANK MASTER_ADDR MASTER_PORT; do
      [ -n "${!name:-}${PLAN:-}" ] || _fail "NNODES=$_nodes needs $name. Set on every node: NODE_RANK (0 to $((_nodes - 1))), MASTER_ADDR (address of node 0) and" \
        "MASTER_PORT (free on node 0, and its own for every run)."
    done
  fi
  if [ -z "$_procs" ]; then
    _procs="$(_gpu_count)"
    [ "$_procs" -gt 0 ] || _procs=1
  fi
}

# Cores that the recipe may use. nproc counts those of its affinity, and would obey OMP_NUM_THREADS as well.
_cores() { echo "${SLURM_CPUS_PER_TASK:-$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)}"; }

# --- the command: _environment (NAME=VALUE words) and _command

_set() { _environment+=("$1=$2"); }

_torchrun() {
  local layout="$_layout"
  _command=(torchrun --nnodes "$_nodes" --nproc_per_node "$_procs")
  if [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    # A store that outlives a restart hands the addresses of dead ranks to the new ones (pytorch issue 135712): a new store for each.
    # The static rendezvous knows no other store, so that nodes without Slurm meet through c10d as well.
    _set TORCH_DISABLE_SHARE_RDZV_TCP_STORE 1
    _command+=(--max_restarts "$MAX_RESTARTS")
    [ "$layout" != nodes ] || layout="nodes_restarted"
  fi
  case "$layout" in
    # The store takes a free port itself and the ranks use the same store: two runs cannot meet.
    local) _command+=(--rdzv_backend c10d --rdzv_endpoint "127.0.0.1:${MASTER_PORT:-0}" --local_addr 127.0.0.1) ;;
    nodes) _command+=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT") ;;
    nodes_restarted) _command+=(--rdzv_backend c10d --rdzv_id drive_vlm --rdzv_endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv_conf "$(_is_host "$NODE_RANK")") ;;
    slurm_nodes)
      local head here
      head="$(_slurm_head)"
      here="$(_slurm_address "$SLURMD_NODENAME")"
      _command+=(--rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$SLURM_STEP_ID.$_launches"
        --rdzv_endpoint "$head:$(_slurm_port)" --rdzv_conf "$(_is_host "$SLURM_NODEID")" --local_addr "$here") ;;
  esac
  _command+=(-m drive_vlm)
}

# torchrun would compare host names to find out which node holds the store.
_is_host() { if [ "$1" -eq 0 ]; then echo is_host=true; else echo is_host=false; fi; }

_deepspeed() {
  [ "${MAX_RESTARTS:-0}" -eq 0 ] || _fail "LAUNCHER=deepspeed restarts nothing. Use LAUNCHER=torchrun for MAX_RESTARTS=$MAX_RESTARTS."
  local visible="${CUDA_VISIBLE_DEVICES:-}"
  _command=(deepspeed)
  if [ "$_nodes" -eq 1 ]; then
    if [ -n "$visible" ] && [ "$(_gpu_count)" -gt 0 ]; then # --num_accelerators would take the machine's first GPUs instead
      [[ "$visible" =~ ^[0-9]+(,[0-9]+)*$ ]] || _fail "LAUNCHER=deepspeed takes GPU numbers only, not CUDA_VISIBLE_DEVICES=$visible. Use LAUNCHER=torchrun."
      _command+=(--include "localhost:$(cut -d, -f"1-$_procs" <<<"$visible")")
    else
      _command+=(--num_accelerators "$_procs")
    fi
    _command+=(--master_port "${MASTER_PORT:-$(_free_port)}")
  else
    [ -z "$visible" ] || [ "$visible" = "$(seq -s, 0 $((_procs - 1)))" ] ||
      _fail "LAUNCHER=deepspeed numbers the GPUs of several nodes from 0, but CUDA_VISIBLE_DEVICES=$visible. Use LAUNCHER=torchrun."
    local rank="${NODE_RANK:-}" head="${MASTER_ADDR:-}" port="${MASTER_PORT:-}"
    [ "$_layout" = nodes ] || { rank="$SLURM_NODEID" head="$(_slurm_head)" port="$(_slurm_port)"; }
    _hostfile="${TMPDIR:-/tmp}/drive_vlm_$UID/nodes_${_nodes}x$_procs"
    _command+=(--hostfile "$_hostfile" --no_ssh --node_rank "$rank" --master_addr "$head" --master_port "$port")
    _set LOCAL_WORLD_SIZE "$_procs"
  fi
  _command+=(--module drive_vlm)
}

# Every task is a rank already. Where Slurm shows each task one GPU only, that GPU is number 0 for each of them.
_slurm_rank() {
  local head
  head="$(_slurm_head)"
  _set RANK "$SLURM_PROCID"
  _set WORLD_SIZE "$((_nodes * _procs))"
  _set LOCAL_RANK "$([ "$(_gpu_count)" -eq 1 ] && echo 0 || echo "$SLURM_LOCALID")"
  _set LOCAL_WORLD_SIZE "$_procs"
  _set MASTER_ADDR "$head"
  _set MASTER_PORT "$(_slurm_port)"
  _command=(python -m drive_vlm)
}

_build_command() {
  local gpus threads
  _environment=() _hostfile=""
  gpus="$(_gpu_count)"
  if [ "$gpus" -eq 0 ]; then
    threads="$(_cores)"
    [ "$_layout" = slurm_ranks ] || threads=$(((threads + _procs - 1) / _procs))
    [ "$((_nodes * _procs))" -eq 1 ] || threads="${RANK_THREADS:-$threads}"
    _set DS_ACCELERATOR cpu
    _set OMP_NUM_THREADS "${OMP_NUM_THREADS:-$threads}"
  fi
  _set TOKENIZERS_PARALLELISM "${TOKENIZERS_PARALLELISM:-false}"
  _set DRIVE_VLM_RECIPE "${_recipe#"$DRIVE_VLM_ROOT"/}"
  _set DRIVE_VLM_USER_WORDS "$_user_count"
  if [ -n "${PLAN:-}" ]; then
    _command=(python -m drive_vlm plan)
  elif [ "$_layout" = slurm_ranks ]; then
    [ "${MAX_RESTARTS:-0}" -eq 0 ] || _fail "MAX_RESTARTS needs torchrun: start one task a node (--ntasks-per-node=1)."
    _slurm_rank
  elif [ "${LAUNCHER:-torchrun}" = deepspeed ]; then
    _deepspeed
  elif [ "$((_nodes * _procs))" -eq 1 ] && [ "${MAX_RESTARTS:-0}" -eq 0 ]; then
    _command=(python -m drive_vlm)
  else
    _torchrun
  fi
}

# The user's own words come last in the command, or this launch does not take them at all.
_count_user_words() {
  local given="${#_user_words[@]}" i
  _user_count=0
  [ "$given" -le $# ] || return 0
  local last=("${@:$#-given+1}")
  for ((i = 0; i < given; i++)); do [ "${last[i]}" = "${_user_words[i]}" ] || return 0; done
  _user_count="$given"
}

_print_command() {
  local word words=("$@")
  [ -z "$_hostfile" ] || printf 'mkdir -p %q && printf "node%%d slots=%d\\n" {0..%d} > %q\n' "$(dirname "$_hostfile")" "$_procs" "$((_nodes - 1))" "$_hostfile"
  for word in "${_environment[@]}"; do printf '%s=%q \\\n' "${word%%=*}" "${word#*=}"; done
  printf '%q' "$1"
  [ "$2" != -m ] || { printf ' -m'; words=("${@:2}"); }
  for word in "${words[@]:1}"; do
    if [[ "$word" == --* ]] || [ "$word" = -m ]; then printf ' \\\n  %q' "$word"; else printf ' %q' "$word"; fi
  done
  printf '\n'
}

# Whether $1 is a stage. The table in drive_vlm/stages/__init__.py is asked, which takes a tenth of a second and no torch, and
# only where the answer matters: a plain DRY_RUN=1 never asks.
_is_training() {
  local names
  names="$(cd "$DRIVE_VLM_ROOT" && python -m drive_vlm stages)" || _fail "$DRIVE_VLM_ROOT: python -m drive_vlm stages does not answer."
  grep -qxF -- "$1" <<<"$names"
}

# Ends the recipe where a request to stop came since the command before: the next one would take it for an old one. A training is
# let begin: it saves at its first step.
_ask_before() {
  local file="${DRIVE_VLM_CONTROL_DIR:-}/stop"
  [ -n "${DRIVE_VLM_CONTROL_DIR:-}" ] && [ -e "$file" ] || return 0
  ! _is_training "$1" || return 0
  _say "stopped on request ($(head -c 200 "$file")) before $*: give the same command again to go on."
  rm -f "$file"
  exit 1
}

# "$@"; with a trap bash outlives SIGTERM until its child has saved: without one the Slurm step would end with the shell.
_patiently() {
  local terminated="" code=0
  trap 'terminated=1' TERM
  "$@" || code=$?
  trap - TERM
  [ -z "$terminated" ] || exit 143
  return "$code"
}

launch() {
  local name="$1" word
  shift
  _count_user_words "$@"
  local words=("${@:1:$#-_user_count}") user=("${@:$#-_user_count+1}") resume=()
  if [ -n "${PLAN:-}" ]; then
    _is_training "$name" || { _say "plan: $name is not planned"; return 0; }
  fi
  _read_topology
  # A node whose ranks did not die themselves counts no restart when torchrun starts them again: only --resume makes all go on alike.
  if { [ -n "${RESUME:-}" ] || [ "$((_nodes > 1 && ${MAX_RESTARTS:-0} > 0))" -eq 1 ]; } && _is_training "$name"; then
    resume=(--resume "${RESUME:-auto}")
    for word in "$@"; do case "$word" in --resume | --resume=*) resume=() ;; esac; done
  fi
  _build_command
  _command+=("$name")
  [ -z "${PLAN:-}" ] || _command+=(--world_size "$((_nodes * _procs))" --local_world_size "$_procs")
  _command+=("${words[@]}" "${resume[@]}" "${user[@]}")
  _launches=$((_launches + 1))
  if [ -n "${DRY_RUN:-}" ]; then
    _print_command "${_command[@]}"
    return
  fi
  if [ -n "$_hostfile" ]; then
    mkdir -p "$(dirname "$_hostfile")"
    local i
    for ((i = 0; i < _nodes; i++)); do echo "node$i slots=$_procs"; done >"$_hostfile"
  fi
  _ask_before "$name"
  _patiently env "${_environment[@]}" "${_command[@]}"
  case "$(_status state)" in
    saved | preempted) if _is_training "$name"; then _say "$name stopped on request; the rest of the recipe is left out."; exit 0; fi ;;
  esac
}

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    _environment=() _hostfile=""
    _print_command "$@"
  elif [ -z "${PLAN:-}" ]; then
    _ask_before "$@"
    # Another recipe divides the cores itself. Threads sleep while they wait: on a machine that others use they would take its cores.
    local threads=()
    [ "$1" != python ] || threads=(OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(_cores)}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}")
    _patiently env "${threads[@]}" "$@"
  fi
}

# How a recipe's own words to the run in folder $1, as its run.json has them, differ from those of now: "then ...; now ...", or nothing.
changed_flags() {
  python - "$1/run.json" "${@:2}" <<'PYTHON'
import json, shlex, sys
from drive_vlm.store.secrets import hide_words
def flags(words):
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    return {words[i]: words[i:end] for i, end in zip(starts, [*starts[1:], None])}
run = json.load(open(sys.argv[1]))
own = len(run["words"]) - int(run["environment"].get("DRIVE_VLM_USER_WORDS", 0))
then, now = flags(run["words"][own:]), flags(hide_words(sys.argv[2:]))
def only(one, other):
    return " ".join(shlex.join(words) for name, words in one.items() if other.get(name) != words) or "without"
if then != now:
    print(f"then {only(then, now)}; now {only(now, then)}")
PYTHON
}

# For recipes that are a whole demonstration: their header says what can be set, and their models are made on the way.
demonstration() {
  local name
  name="$(basename "$0" .sh)"
  [ $# -eq 0 ] || _fail "$name takes no words ($*): it is one whole demonstration. What can be set is in its header."
  [ -z "${PLAN:-}" ] || _fail "$name: PLAN=1: its models are made on the way and cannot be planned before. DRY_RUN=1 prints its commands."
}
step() { printf '\n== %s\n' "$*"; }

# Empty folder $1 of a recipe's earlier run; a folder that the recipe has not made is left alone.
start_over() {
  local name
  name="$(basename "$0" .sh)"
  [ ! -e "$1" ] || [ -n "${DRY_RUN:-}" ] || [ -f "$1/.$name" ] ||
    _fail "$name: $1 is there and is not one of this recipe's runs, which start from nothing each time. Give another OUT."
  run rm -rf "$1"
  run mkdir -p "$1"
  run touch "$1/.$name"
}
