#!/usr/bin/env bash
# Stands for a training recipe in the fast tests: a task a node, the same stop file, status.json and checkpoints as a real one.
#   pretend.sh --out DIR --steps N [--fails_at STEP] [--never_saves] [--answers N] [--keeps_nothing]
# --answers: N answers after the training, 0.1 s each, as `generate` gives them. --fails_at 0 fails at once; steps take 0.1 s; DIR/steps gets a line "STEP ATTEMPT" for each step of the first node.
set -euo pipefail
# Slurm signals one process of a step after the other: a sleep may be dead before the shell around it has its own signal, and is no error then.
nap() { sleep 0.1 || true; }
out="" steps=10 fails_at=-1 saves=1 answers=0 keeps=1
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out="$2"; shift ;;
    --steps) steps="$2"; shift ;;
    --fails_at) fails_at="$2"; shift ;;
    --never_saves) saves="" ;;
    --answers) answers="$2"; shift ;;
    --keeps_nothing) keeps="" ;;
    *) echo "unknown: $1" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$out"
step="$(cat "$out/saved" 2>/dev/null || echo 0)"
reason=""
end_of() { [ -z "$saves" ] || { echo "$step" >"$out/saved"; checkpoint="\"$out/checkpoint-$step\""; }; }
checkpoint="$([ "$step" -eq 0 ] && echo null || echo "\"$out/checkpoint-$step\"")"
tell() {
  printf '{"state": "%s", "step": %d, "checkpoint": %s, "reason": "%s"}\n' "$1" "$step" "$checkpoint" "$reason" >"$DRIVE_VLM_CONTROL_DIR/.status"
  mv "$DRIVE_VLM_CONTROL_DIR/.status" "$DRIVE_VLM_CONTROL_DIR/status.json"
}
if [ "$SLURM_PROCID" -ne 0 ]; then # the other nodes end when the first has ended
  trap 'exit 0' TERM
  until grep -qsE '"(saved|preempted|finished|failed)"' "$DRIVE_VLM_CONTROL_DIR/status.json"; do nap; done
  exit 0
fi
trap 'end_of; tell preempted; exit 0' TERM
tell running
while [ "$step" -lt "$steps" ]; do
  if [ "$step" -eq "$fails_at" ]; then reason="broken, on purpose"; tell failed; exit 3; fi
  nap
  step=$((step + 1))
  echo "$step ${SLURM_RESTART_COUNT:-0}" >>"$out/steps"
  if [ -e "$DRIVE_VLM_CONTROL_DIR/stop" ]; then rm "$DRIVE_VLM_CONTROL_DIR/stop"; end_of; tell saved; exit 0; fi
done
tell finished
trap - TERM
[ "$answers" -eq 0 ] || exec python - "$out/answers" "$answers" "$keeps" <<'PYTHON'
import os, sys, time
from pathlib import Path
from drive_vlm.launch import stop
path, count, keeps = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with stop.listening():
    done = len(path.read_text().splitlines()) if path.exists() and keeps else 0
    for number in stop.until_stopped(range(done, count), *[] if keeps else ["Nothing is kept."]):
        time.sleep(0.1)
        with path.open("a") as file:
            file.write(f"{number} {os.environ.get('SLURM_RESTART_COUNT', 0)}\n")
PYTHON
