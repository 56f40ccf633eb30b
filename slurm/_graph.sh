# Sourced by the scripts that submit a graph of jobs to Slurm: their flags, and the order in which the jobs are submitted.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what the script that sources this reads and sets
#
#   read_arguments WORDS    Values go to the variables that `variable` names, options of slurm/submit.sh to the array options, what stands
#                           behind -- to the array words. The script sets before:
#     variable   array by name: --flag to the name of the variable that takes its value
#     switches   array by name: --flag without a value to the name of the variable that becomes 1
#     own        array: options of submit.sh that the graph gives itself
#     behind     what stands behind --, for messages
#                and defines usage.
#   require_counts NAMES    ends the script where --NAME is not a whole number from 1 on
#   require_limits WHAT     checks --at-once, which may be empty, and --time, the time of WHAT
#   shard_range             the array of a step of $shards shards, in Slurm's words
#   submit_lines GRAPH      Each line of GRAPH is one job, its first word the job's name. The script's `submit_job WORDS OF THE LINE` sets id and
#                           finds the ids of the jobs before in the array by name `job`.
#
# Every script takes --shards, --at-once, --time and --dry-run.

_graph="$(basename "$0")"
dry="" shards="" at_once="" time="" options=() words=()

read_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --) words=("${@:2}"); return ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
      --no-plan | --force) options+=("$1") ;;
      --*)
        [[ " ${own[*]} " != *" $1 "* ]] || _fail "$_graph: $1 is the graph's own."
        if [ -n "${switches[$1]:-}" ]; then
          printf -v "${switches[$1]}" 1
        else
          [ $# -ge 2 ] && [ -n "$2" ] && [[ "$2" != --* ]] || _fail "$_graph: $1 needs a value."
          if [ -n "${variable[$1]:-}" ]; then printf -v "${variable[$1]}" %s "$2"; else options+=("$1" "$2"); fi
          shift
        fi ;;
      *) _fail "$_graph: unexpected word $1. $behind" ;;
    esac
    shift
  done
}

require_counts() {
  local name
  for name; do [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || _fail "$_graph: --$name ${!name:-is missing}: a whole number from 1 on is needed."; done
}

require_limits() {
  [[ "$at_once" =~ ^([1-9][0-9]*)?$ ]] || _fail "$_graph: --at-once $at_once: a whole number from 1 on is needed."
  [ -n "$time" ] || _fail "$_graph: --time is missing: how long $1 may run, e.g. --time 12:00:00."
}

shard_range() { echo "0-$((shards - 1))${at_once:+%$at_once}"; }

submit_lines() {
  local line id
  declare -A job=()
  while read -r -a line; do
    submit_job "${line[@]}" || { _say "$_graph: ${line[0]} was not submitted. Cancel the others: scancel ${job[*]}"; exit 2; }
    job["${line[0]}"]="$id"
    echo "${line[0]} $id"
  done <<<"$1"
  echo "cancel all: scancel ${job[*]}"
}
