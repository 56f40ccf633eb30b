"""Real pairs and real weights: the 392 chosen and rejected answers of CODA-LM's texts train SmolLM2-135M by DPO.

The kit has no picture of CODA-LM, so the pairs are text rows and the model is the language model alone. What is proved is
that real answers of real lengths come through and that the reward margin rises; a few steps teach nothing more.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAIRS = "noncommercial/codalm_text/codalm_pairs.jsonl"
STEPS, BATCH = 5, 2

pytestmark = [pytest.mark.slow, pytest.mark.kit]


@pytest.fixture
def pairs(kit: Path, tmp_path: Path) -> Path:
    rows = []
    for pair in map(json.loads, (kit / PAIRS).read_text().splitlines()):
        turns = [{"from": "human", "value": pair["prompt"]}, {"from": "gpt", "value": pair["chosen"]}]
        rows.append({"id": pair["id"], "group": pair["image"], "conversations": turns, "chosen": pair["chosen"], "rejected": pair["rejected"]})  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.supports("llama dpo lora optional")
def test_dpo_on_real_answers_raises_the_margin(run: Callable, pairs: Path, smollm2: Path, tmp_path: Path) -> None:
    """The reference is the model with its adapter off, so that the answers of these steps are read twice, not all 392."""
    out = tmp_path / "run"
    words = (
        "--model", smollm2, "--data", pairs, "--output_dir", out, "--lora_rank", 16, "--reference", "live", "--beta", 0.1, "--learning_rate", 5e-4,
        "--lr_scheduler_type", "constant", "--max_steps", STEPS, "--global_batch_size", BATCH, "--per_device_train_batch_size", BATCH,
        "--logging_steps", 1, "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none",
    )  # fmt: skip
    done = run([sys.executable, "-m", "drive_vlm", "dpo", *words], timeout=500, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    audit = json.loads((out / "data_audit.json").read_text())["train"]
    assert audit["rows_used"] == audit["rows_read"] == 392 and audit["bad_rows"]["total"] == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps: list[dict[str, Any]] = [line for line in lines if "rewards/margins" in line]
    assert len(steps) == STEPS
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)  # the policy begins as its reference
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    late = steps[STEPS // 2 :]
    assert sum(step["rewards/margins"] for step in late) / len(late) > 0.1, steps
    assert sum(step["loss"] for step in late) / len(late) < math.log(2)
