# Sourced by tests/run.sh and .ci/run: how long each part takes, as a table when the first of the two ends.
# shellcheck shell=bash
#   part NAME COMMAND [words]    runs it; tests/conftest.py adds how the part "tests" divides
#   end_parts                    prints the table; for a script with an EXIT trap of its own

_end_part() {
  [ -z "${_part:-}" ] || printf '%s\t%d\n' "$_part" "$((SECONDS - _part_begun))" >>"$TEST_PARTS"
  _part=""
}

part() {
  _part="$1" _part_begun=$SECONDS
  shift
  "$@"
  _end_part
}

end_parts() {
  _end_part # one that failed
  printf '%s\t%d\n' "all" "$SECONDS" >>"$TEST_PARTS"
  printf '\n%-28s %8s\n' "part" "minutes"
  awk -F '\t' '{ printf "%-28s %8.1f\n", $1, $2 / 60 }' "$TEST_PARTS"
  rm -f "$TEST_PARTS"
}

if [ -z "${TEST_PARTS:-}" ]; then
  TEST_PARTS="$(mktemp)"
  export TEST_PARTS
  trap end_parts EXIT
else
  trap _end_part EXIT
fi
