# Sourced, behind _launch.sh, by recipes of several stages: what is finished is kept, and what was killed goes on.
# shellcheck shell=bash
#
#   chain OUT NAMES             the folders of the stages below OUT, in their order; exports RESUME=auto
#   check_stage NAME flags      a finished stage has these flags; one that is to run has no later one, trained from another model
#   run_stage NAME COMMAND      run it with --output_dir OUT/NAME unless it is finished; asked to stop, it ends the chain with success
#   has_model FOLDER            whether a model or an adapter is there

chain() {
  _out="$1" _stages=("${@:2}")
  export RESUME=auto
}

has_model() { [ -f "$1/config.json" ] || [ -f "$1/adapter_config.json" ]; }

_is_finished() { grep -qs '"state": "finished"' "$_out/$1/run.json"; }
# "stage 1" for stage1
_stage_name() { echo "${1/#stage/stage }"; }

check_stage() {
  local changed later behind=""
  if _is_finished "$1"; then
    changed="$(changed_flags "$_out/$1" "${@:2}" --output_dir "$_out/$1")"
    [ -z "$changed" ] || _fail "$(_stage_name "$1") finished with other flags: $changed. Remove $_out/$1 and the later stages, or give another OUT."
    return
  fi
  for later in "${_stages[@]}"; do
    [ -z "$behind" ] || [ ! -e "$_out/$later" ] ||
      _fail "$(_stage_name "$1") is not finished, but $(_stage_name "$later") is there, trained from another one. Remove $_out/$later, or give another OUT."
    [ "$later" != "$1" ] || behind=1
  done
}

run_stage() {
  if _is_finished "$1" && [ -z "${PLAN:-}" ]; then
    echo "$(_stage_name "$1"): finished before"
    return
  fi
  "${@:2}" --output_dir "$_out/$1"
  [ -n "${DRY_RUN:-}${PLAN:-}" ] || _is_finished "$1" || { echo "$(_stage_name "$1") stopped before its end"; exit 0; }
}
