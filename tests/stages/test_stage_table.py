"""A new stage is one file and one line: the command, --help, the plan and the recipes know it, and it trains (ADDING.md)."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.stage import StageFlags, load

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# What ADDING.md calls the one line, in toy_stages.py. Python runs sitecustomize before anything else, in every process.
ONE_LINE = """
import sys
sys.path.insert(0, {here!r})
from toy_stages import TOYS
from drive_vlm.stages import STAGES
STAGES.update(TOYS)
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


def test_flags_that_the_table_does_not_name_are_missed_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"toy has no flags of Path: name the class in `configs` of its line in STAGES"
    ):
        StageFlags("toy", (), {}).of(Path)


def test_the_command_the_plan_and_recipes_know_a_new_stage(with_toy: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drive_vlm"]
    assert "short_answers a stage of the tests" in " ".join(answer(command, with_toy).split())
    assert "short_answers" in answer([*command, "stages"], with_toy).split()
    helped = answer([*command, "short_answers", "--help"], with_toy)
    assert "the tokens of short answers count more" in helped and "--packing" in helped
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


def words_of(world: Any, stage: str, out: Path, *more: object) -> list[object]:
    return [
        stage, "--model", world.model, "--data", world.train, "--output_dir", out, "--freeze", "vision_tower", "--logging_steps", 1,
        "--per_device_train_batch_size", 4, "--global_batch_size", 8, "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none",
        "--learning_rate", 1e-3, "--lr_scheduler_type", "constant", "--save_strategy", "steps", "--save_steps", 2, *more,
    ]  # fmt: skip


@pytest.fixture
def toys(world: Any, run: Callable) -> Callable[..., None]:
    """`toys(*words, ranks=1)`: toy_stages.py in processes of its own."""

    def start(*words: object, ranks: int = 1) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks] if ranks > 1 else []
        env = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "DRIVE_VLM_CACHE": str(world.root / "cache")}
        done = run([sys.executable, *launcher, HERE / "toy_stages.py", *words], **env)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    return start


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
def test_a_new_stage_trains_under_zero2_and_resumes(toys: Callable, world: Any, tmp_path: Path) -> None:
    """The example of ADDING.md: two steps on one rank and a third after a resume are the three steps of two ranks."""
    two, one = tmp_path / "two", tmp_path / "one"
    toys(*words_of(world, "short_answers", two, "--deepspeed", "zero2", "--max_steps", 3), ranks=2)
    words = words_of(world, "short_answers", one, "--deepspeed", "zero2", "--resume", "auto", "--max_steps")
    toys(*words, 2)
    run = json.loads((one / "run.json").read_text())
    assert run["stage"] == "short_answers" and run["order_hash"]
    toys(*words, 3)
    assert len(losses(one)) == 3 and losses(one) == pytest.approx(losses(two), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero2", "adapted"), [(False, False), (False, True), (True, True)], ids=["whole", "lora", "zero2-lora"]
)
def test_a_module_that_a_stage_adds_is_trained_counted_saved_and_found_again(
    zero2: bool,
    adapted: bool,
    toys: Callable,
    inside: Callable,
    world: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three steps; the third once more from the checkpoint of the second, to the same weights. Others read the model without it."""
    import torch
    from safetensors.torch import load_file

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family

    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setitem(STAGES, "length_head", importlib.import_module("toy_stages").TOYS["length_head"])
    start = toys if zero2 else inside
    out = tmp_path / "run"
    more = (*(("--deepspeed", "zero2") if zero2 else ()), *(("--lora_rank", 4) if adapted else ()))
    words = words_of(world, "length_head", out, *more, "--max_steps", 3)
    start(*words)
    file = out / ("adapter_model.safetensors" if adapted else "model.safetensors")
    name = "base_model.model.length_head.weight" if adapted else "length_head.weight"
    first, curve = load_file(file), losses(out)
    parameters = json.loads((out / "run.json").read_text())["parameters"]
    assert parameters["length_head"]["trainable"] == first[name].numel() + 1
    file.unlink()
    start(*words, "--resume", out / "checkpoint-2")
    again = load_file(file)
    assert again.keys() == first.keys() and losses(out) == pytest.approx(curve, rel=1e-6)
    for key, tensor in first.items():
        torch.testing.assert_close(again[key], tensor, rtol=1e-5, atol=1e-6)
    assert not hasattr(load_family(ModelConfig(model=str(out)), torch.float32).model, "length_head")


def test_a_plain_dry_run_asks_nothing(tmp_path: Path, run: Callable) -> None:
    """DRY_RUN=1 without RESUME must stay quick: no Python process for the table."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": "1", "NPROC_PER_NODE": "1"}
    run(["bash", ROOT / "recipes" / "internvl3_1b_sft.sh", "--data", "x.jsonl"], **env)
    asked = tmp_path / "asked"
    assert not asked.is_file() or "stages" not in asked.read_text()
