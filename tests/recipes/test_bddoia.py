"""Recipes of BDD-OIA: the three stages of A2C, the chain on one card, and the claims of the demonstration."""

import copy
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drive_vlm.evaluation.oia_labels import json_answer

RISE = {"first": 0.5, "second": 0.6, "value": 0.1, "low": 0.05, "high": 0.15}
KEPT = {"value": 0.0, "low": -0.01, "high": 0.01}
GOOD: dict[str, Any] = {
    "sampled": {"a2c": {"reward": dict(RISE), "valid_json": dict(RISE)}},
    "action": {"a2c": {"F1_all": {"value": 0.7, "low": 0.67}, "mF1": {"value": 0.6}}},
    "baselines": {"prior": {"value": 0.45}, "commonest labels": {"value": 0.6}},
    "over_blank_pictures": dict(RISE),
    "action_change": {"a2c": {"F1_all": dict(KEPT), "mF1": dict(KEPT)}},
    "rows": 800,
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
        (("action_change", "a2c", "F1_all", "low"), -0.021),
        (("action_change", "a2c", "mF1", "low"), -0.021),
        (("explained_variance", "low"), 0.0),
        (("action", "a2c", "F1_all", "low"), 0.6),
        (("over_blank_pictures", "low"), 0.0),
        (("sampled_tokens", "grpo"), 700.0),
    ],
)
def test_each_claim_fails_on_its_own(summary_tool: ModuleType, place: tuple[str, ...], value: Any) -> None:
    assert [holds for _, holds in summary_tool.claims(GOOD)] == [True] * 8
    bad = copy.deepcopy(GOOD)
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert [holds for _, holds in summary_tool.claims(bad)].count(False) == 1


@pytest.mark.parametrize("score", ["F1_all", "mF1"])
def test_few_scenes_must_not_show_that_f1_fell(summary_tool: ModuleType, score: str) -> None:
    few = copy.deepcopy(GOOD) | {"rows": 200}
    few["action_change"]["a2c"][score] = {"value": -0.03, "low": -0.07, "high": 0.01}
    assert [holds for _, holds in summary_tool.claims(few)] == [True] * 6
    few["action_change"]["a2c"][score]["high"] = -0.021
    assert [holds for _, holds in summary_tool.claims(few)].count(False) == 1


def test_summary_of_answers_that_improve(run: Callable, tmp_path: Path) -> None:
    """The tool on what the recipe leaves behind: SFT writes half of its answers in broken JSON, A2C none, GRPO a tenth."""
    run_folder = tmp_path / "run"
    whole = [
        json_answer("A car brakes ahead.", ["stop/slow down"], ["obstacle: car"]),
        json_answer("A free lane ahead.", ["move forward"], ["road is clear"]),
    ]
    labels = [([0, 1, 0, 0], [int(i == 3) for i in range(21)]), ([1, 0, 0, 0], [int(i == 1) for i in range(21)])]
    for name, broken_share in (("sft", 2), ("grpo", 10), ("a2c", 1000)):
        rows = []
        for i in range(40):
            answer = whole[i % 2] if (i + 1) % broken_share else "{ " + whole[i % 2][:30]
            columns = {
                "group": f"scene-{i}",
                "actions": labels[i % 2][0],
                "reason": labels[i % 2][1],
                "image": f"{i}.png",
            }
            rows.append({"id": str(i), "dataset": "d", "prediction": answer, "reference": whole[i % 2], **columns})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        for file in (run_folder / f"{name}.jsonl", run_folder / "sampled" / f"{name}.jsonl"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    for name in ("a2c", "grpo"):
        (run_folder / name).mkdir()
        steps = [{"step": i, "explained_variance": 0.1 + i / 100, "completions/mean_length": 30.0} for i in range(8)]
        (run_folder / name / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    rewards = [["action_reason", {"action_reason_mode": "labels"}], ["structure", {}]]
    config = {"a2c": {"reward_weights": [1.0, 0.5]}, "rewards": rewards, "run": {"global_batch_size": 64}}
    facts = {"config": config, "world_size": 2, "zero_stage": 2}
    (run_folder / "a2c" / "run.json").write_text(json.dumps(facts))
    files = [run_folder / f"{name}.jsonl" for name in ("sft", "grpo", "a2c")]
    blind = ("--blind_predictions", files[0])
    done = run(
        [sys.executable, "tools/oia_eval.py", "--predictions", *files, *blind, "--json", run_folder / "scores.json"]
    )
    assert done.returncode == 0, done.stderr
    done = run([sys.executable, "tools/bddoia_summary.py", "--run", run_folder, "--seconds", 1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        done.stdout.count("holds ") == 6
        and "F1_all of the likeliest actions: sft 0.500, grpo 0.900, a2c 1.000" in done.stdout
    )
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["sampled"]["a2c"]["valid_json"]["value"] == pytest.approx(0.5)
    # A whole answer earns R2 = 1 and all of R3 but what its description leaves out; a broken one nothing.
    assert summary["sampled"]["a2c"]["action_reason"]["value"] == pytest.approx(0.5)
    assert summary["sampled_tokens"] == {"a2c": 8 * 30 * 64, "grpo": 8 * 30 * 64}
    steps = [{"explained_variance": -0.1, "completions/mean_length": 30.0}] * 8
    (run_folder / "a2c" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    done = run([sys.executable, "tools/bddoia_summary.py", "--run", run_folder, "--seconds", 1])
    assert done.returncode == 1 and "Not every claim holds." in done.stderr and done.stdout.count("FAILS") == 1


# Three trainings at small size: minutes on quiet cores, several times that where others use them.
@pytest.mark.timeout(2400)
@pytest.mark.slow
@pytest.mark.supports("siglip_qwen sft zero2", "siglip_qwen a2c zero2", "siglip_qwen grpo zero2")
def test_what_a2c_teaches_on_held_out_scenes(run: Callable, tmp_path: Path) -> None:
    """The recipe itself fails when a claim does not hold: see claims() in tools/bddoia_summary.py."""
    out = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"OUT": str(out), "SIZE": "small", "VIRTUAL_ENV": sys.prefix, "PATH": path, "SLURM_JOB_ID": "7"}
    done = run(["bash", "recipes/bddoia_synthetic.sh"], timeout=2400, CUDA_VISIBLE_DEVICES="", **env)
    print(done.stdout[-4000:])
    assert "BDD-OIA at small size: " in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.returncode == 0, done.stdout[-3000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == 2 and summary["zero_stage"] == 2
    assert len(summary["claims"]) == 6 and all(claim["holds"] for claim in summary["claims"])
    assert set(summary["sampled"]["a2c"]) == {"reward", "clip", "action_reason", "structure", "valid_json"}
    for folder in ("sft", "a2c", "grpo"):
        manifest = json.loads((out / folder / "run.json").read_text())
        assert (manifest["state"], manifest["world_size"], manifest["zero_stage"]) == ("finished", 2, 2)
    assert (out / "f1.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "report.html").stat().st_size > 100_000


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
