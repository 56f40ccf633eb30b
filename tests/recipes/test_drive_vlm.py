"""recipes/drive_vlm_synthetic.sh at its smaller size: what the three stages are to teach is found on held-out clips."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLAIMS = 8


@pytest.mark.slow
def test_what_each_of_the_three_stages_teaches(run: Callable, tmp_path: Path, spacy_model: str) -> None:
    """The recipe itself fails when a claim does not hold: see claims() in tools/drive_vlm_summary.py."""
    out = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"OUT": str(out), "SIZE": "small", "SPACY": spacy_model, "VIRTUAL_ENV": sys.prefix, "PATH": path}
    done = run(["bash", "recipes/drive_vlm_synthetic.sh"], timeout=2400, CUDA_VISIBLE_DEVICES="", **env)
    assert "Drive-VLM at small size: 2 ranks, ZeRO-2" in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.returncode == 0, done.stdout[-1500:]
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["claims"]) == CLAIMS and all(claim["holds"] for claim in summary["claims"])
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
    before, after = (load_file(out / name / "model.safetensors") for name in ("base", "stage1"))
    assert before.keys() == after.keys()  # the tied embeddings once
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("projector" in name or "temporal_embeddings" in name for name in moved)
    said = [json.loads(line) for line in (out / "stage3/samples.jsonl").read_text().splitlines()]
    assert said and {"object", "temporal", "detail", "hallucination"} <= said[0]["terms"]["physics"].keys()
