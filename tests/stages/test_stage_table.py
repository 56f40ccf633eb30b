"""A new stage is one file and one line: the command, --help, the plan and the recipes know it, and it trains (ADDING.md)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.stage import load

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# What ADDING.md calls the one line. Python runs sitecustomize before anything else, in every process of the test.
ONE_LINE = """
import sys
sys.path.insert(0, {here!r})
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.stage import Stage
STAGES["short_answers"] = Stage(prepare="short_answers:prepare", help="a stage of the tests", kind="rows")
"""


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose table has the stage of short_answers.py."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(ONE_LINE.format(here=str(HERE)))
    path = os.pathsep.join([str(folder), str(ROOT)])
    first = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": path, "PATH": first, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def answer(words: list[object], env: dict[str, str], timeout: float = 120) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=env, timeout=timeout, check=False, cwd=ROOT
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", STAGES)
def test_what_the_table_names_is_there(name: str) -> None:
    stage = STAGES[name]
    assert callable(load(stage.prepare)) and stage.description and f"drive_vlm {name} " in stage.examples(name)
    assert stage.check is None or callable(load(stage.check))
    assert all(isinstance(load(config), type) for config in stage.configs) and callable(load_class(stage))


def load_class(stage: Any) -> Any:
    module, _, name = stage.training_arguments.rpartition(".")
    return load(f"{module}:{name}")


def test_the_command_the_plan_and_recipes_know_a_new_stage(with_toy: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drive_vlm"]
    assert "short_answers a stage of the tests" in " ".join(answer(command, with_toy).split())
    assert "short_answers" in answer([*command, "stages"], with_toy).split()
    helped = answer([*command, "short_answers", "--help"], with_toy)
    assert "the loss of answers that are short counts more" in helped and "--packing" in helped
    recipe = tmp_path / "one.sh"
    recipe.write_text(
        f'source {ROOT}/recipes/_launch.sh\nlaunch short_answers --data d.jsonl --model internvl3_1b "$@"\n'
    )
    assert "--resume auto" in answer(["bash", recipe], with_toy | {"DRY_RUN": "1", "RESUME": "auto"})
    assert "is not planned" not in answer(["bash", recipe], with_toy | {"DRY_RUN": "1", "PLAN": "1"})
    planned = answer([*command, "plan", "short_answers", "--model", "internvl3_1b", "--json"], with_toy)
    assert json.loads(planned)["batch"]["unit"] == "sequences"
    other = tmp_path / "other.sh"
    other.write_text(f"source {ROOT}/recipes/_launch.sh\nlaunch generate --data d.jsonl\n")
    assert "generate is not planned" in answer(["bash", other], with_toy | {"DRY_RUN": "1", "PLAN": "1"})


def test_a_new_stage_trains_under_zero2_and_resumes(with_toy: dict[str, str], world: Any, tmp_path: Path) -> None:
    """The example of ADDING.md: two steps on one rank, the third after a resume."""
    words = [
        sys.executable, "-m", "drive_vlm", "short_answers", "--model", world.model, "--data", world.train, "--output_dir", tmp_path / "run",
        "--freeze", "vision_tower", "--per_device_train_batch_size", 4, "--logging_steps", 1, "--deepspeed", "zero2", "--use_cpu", "true",
        "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "steps", "--save_steps", 2, "--resume", "auto",
        "--lr_scheduler_type", "constant", "--max_steps",
    ]  # fmt: skip
    answer([*words, 2], with_toy)
    shutil.copy(tmp_path / "run" / "run.json", tmp_path / "first.json")
    answer([*words, 3], with_toy)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2, 3]
    run = json.loads((tmp_path / "first.json").read_text())
    assert run["stage"] == "short_answers" and run["order_hash"]


def test_a_plain_dry_run_asks_nothing(tmp_path: Path, run: Callable) -> None:
    """DRY_RUN=1 without RESUME must stay quick: no Python process for the table."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": "1", "NPROC_PER_NODE": "1"}
    run(["bash", ROOT / "recipes" / "internvl3_1b_sft.sh", "--data", "x.jsonl"], **env)
    asked = tmp_path / "asked"
    assert not asked.is_file() or "stages" not in asked.read_text()
