"""recipes/drive_vlm_synthetic.sh for a moment: every command of the chain runs and hands on what the next one reads."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CLAIMS = 8


@pytest.mark.slow
def test_the_three_stages_run_one_after_the_other(run: Callable, tmp_path: Path, spacy_model: str) -> None:
    """So short a training teaches nothing: the last step may say that not every claim holds."""
    out = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"OUT": str(out), "SIZE": "smoke", "SPACY": spacy_model, "VIRTUAL_ENV": sys.prefix, "PATH": path}
    done = run(["bash", "recipes/drive_vlm_synthetic.sh"], timeout=800, CUDA_VISIBLE_DEVICES="", **env)
    assert "Drive-VLM at small size: 2 ranks, ZeRO-2" in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.returncode == 0 or "Not every claim holds." in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["claims"]) == CLAIMS
    for stage in (1, 2, 3):
        assert json.loads((out / f"stage{stage}/run.json").read_text())["state"] == "finished"
    trained = {n: json.loads((out / f"stage{n}/run.json").read_text())["parameters"] for n in (1, 2, 3)}
    assert {part for part, count in trained[1].items() if count["trainable"]} == {
        "temporal_embeddings",
        "projector",
        "all",
    }
    for stage in (2, 3):
        assert {part for part, count in trained[stage].items() if count["trainable"]} == {
            "projector",
            "language_model",
            "all",
        }
    said = [json.loads(line) for line in (out / "stage3/samples.jsonl").read_text().splitlines()]
    assert said and {"object", "temporal", "detail", "hallucination"} <= said[0]["terms"]["physics"].keys()
