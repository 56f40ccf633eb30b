# Reads status.json, which a training run keeps in its control directory; for recipes/_launch.sh and slurm/train.sbatch.
# shellcheck shell=bash

# The value of a key; nothing where there is no file, or for null.
_status() {
  [ -f "${DRIVE_VLM_CONTROL_DIR:-}/status.json" ] || return 0
  tr -d '\n' <"$DRIVE_VLM_CONTROL_DIR/status.json" |
    sed -nE "s/.*\"$1\": *(\"(([^\"\\\\]|\\\\.)*)\"|([^\",} ]+)).*/\\2\\4/p" | sed 's/^null$//'
}
