"""Recipes of BDD-OIA: the three stages of A2C, the chain on one card, and the claims of the demonstration."""

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RISE = {"first": 0.5, "second": 0.6, "value": 0.1, "low": 0.05, "high": 0.15}
KEPT = {"value": 0.0, "low": -0.03, "high": 0.03}
GOOD: dict[str, Any] = {
    "sampled": {"a2c": {"reward": dict(RISE), "valid_json": dict(RISE)}},
    "action": {"a2c": {"F1_all": {"value": 0.7}, "mF1": {"value": 0.6}}},
    "action_change": {"a2c": {"F1_all": dict(KEPT), "mF1": dict(KEPT)}},
    "explained_variance": {"value": 0.3, "low": 0.2, "high": 0.4},
    "sampled_tokens": {"a2c": 1000.0, "grpo": 900.0},
}


@pytest.fixture(scope="module")
def summary_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bddoia_summary", Path(__file__).parents[2] / "tools" / "bddoia_summary.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sampled", "a2c", "reward", "low"), -0.001),
        (("sampled", "a2c", "valid_json", "low"), None),
        (("action_change", "a2c", "F1_all", "value"), -0.021),
        (("action_change", "a2c", "mF1", "value"), -0.021),
        (("explained_variance", "low"), 0.0),
        (("sampled_tokens", "grpo"), 700.0),
    ],
)
def test_each_claim_fails_on_its_own(summary_tool: ModuleType, place: tuple[str, ...], value: Any) -> None:
    assert [holds for _, holds in summary_tool.claims(GOOD)] == [True] * 6
    bad = copy.deepcopy(GOOD)
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert [holds for _, holds in summary_tool.claims(bad)].count(False) == 1


@pytest.mark.parametrize(
    ("stage", "model", "rewards", "last"),
    [
        ("1", "runs/bddoia/sft", ["clip"], "--clip_text whole"),
        ("2", "runs/bddoia/stage1", ["clip", "action_reason"], "--action_reason_mode labels"),
        ("3", "runs/bddoia/stage2", ["clip", "action_reason", "structure"], "--reward_weights 1 1 0.5"),
    ],
)
def test_stages_of_a2c(dry: Callable, stage: str, model: str, rewards: list[str], last: str) -> None:
    done = dry("recipes/bddoia_a2c.sh", STAGE=stage)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.replace("\\\n", "").split())
    assert f"--model {model} " in words and f"--rewards {' '.join(rewards)} --" in words and last in words
    assert words.endswith(f"--output_dir runs/bddoia/stage{stage}")


def test_other_stages_and_sizes_are_refused(dry: Callable) -> None:
    done = dry("recipes/bddoia_a2c.sh", STAGE="4")
    assert done.returncode == 2 and "STAGE=4: 1 (description), 2 (decision) or 3 (JSON)" in done.stderr
    done = dry("recipes/bddoia_synthetic.sh", SIZE="huge")
    assert done.returncode == 2 and "SIZE=huge: full, small or smoke" in done.stderr


def test_the_chain_hands_on_models_and_rows(dry: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dry("recipes/bddoia_4090.sh", "--report_to", "none", OUT=str(out), LABELS="labels")
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in done.stdout.replace("\\\n", "").splitlines()]
    trained = [words for words in commands if "drive_vlm" in words]

    def last(words: list[str], flag: str) -> str:
        return words[len(words) - words[::-1].index(flag)].removeprefix(f"{out}/")

    assert [last(words, "--model") for words in trained] == [
        "HuggingFaceTB/SmolVLM-Instruct",
        "sft",
        "stage1",
        "stage2",
    ]
    assert [last(words, "--output_dir") for words in trained] == ["sft", "stage1", "stage2", "stage3"]
    rows = [last(words, "--data") for words in trained]
    assert rows == [f"{name}/train.meta.json" for name in ("text", "describe", "text", "json")]
    built = [last(words, "--out") for words in commands if words[1].endswith("build_bddoia.py")]
    assert built == ["text", "describe", "json"]
    assert all(last(words, "--resume") == "auto" and last(words, "--report_to") == "none" for words in trained)
    # Rows that were built are not built again: their bytes are a part of what a resumed run checks.
    (out / "text").mkdir(parents=True)
    (out / "text" / "audit.json").write_text(json.dumps({}))
    assert dry("recipes/bddoia_4090.sh", OUT=str(out)).stdout.count("build_bddoia.py") == 2
