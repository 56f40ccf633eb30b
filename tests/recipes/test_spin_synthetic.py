"""recipes/spin_synthetic.sh for a moment: every command of the chain runs on two ranks and hands on what the next one reads."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.supports("internvl sft zero2", "internvl spin zero2", "internvl generate ddp")
def test_sft_and_a_round_of_spin_end_in_a_judged_table(run: Callable, tmp_path: Path) -> None:
    """So short a training teaches nothing: the last step may say that the margin has not grown."""
    out = tmp_path / "run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"OUT": str(out), "SIZE": "smoke", "VIRTUAL_ENV": sys.prefix, "PATH": path, "SLURM_JOB_ID": "7"}
    done = run(["bash", "recipes/spin_synthetic.sh"], timeout=600, CUDA_VISIBLE_DEVICES="", **env)
    assert "SPIN: 2 ranks, ZeRO-2, " in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.returncode == 0 or "Not every claim holds." in done.stderr
    assert "round 1: the reward margin grows" in done.stdout
    rows = json.loads((out / "chain/table.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["Direct", "SFT", "round 1"]
    assert 0 <= rows[2]["win_rate"]["low"] <= rows[2]["win_rate"]["rate"] <= rows[2]["win_rate"]["high"] <= 1
    assert rows[2]["pairs"] > 0 and rows[2]["margin"] is not None
    assert (out / "report.html").stat().st_size > 100_000
    assert (out / "chain/table.png").read_bytes().startswith(b"\x89PNG")
    for folder in ("sft", "chain/round-1/model"):
        manifest = json.loads((out / folder / "run.json").read_text())
        assert (manifest["state"], manifest["world_size"], manifest["zero_stage"]) == ("finished", 2, 2)


def test_what_is_not_its_own_is_left_alone(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    env = {
        "SLURM_JOB_ID": "7",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = run(["bash", "recipes/spin_synthetic.sh"], OUT=str(tmp_path), **env)
    assert done.returncode == 2 and "is not one of this recipe's runs" in done.stderr
    assert (tmp_path / "thesis.tex").exists()
    done = run(["bash", "recipes/spin_synthetic.sh"], OUT=str(tmp_path / "new"), SIZE="small", **env)
    assert done.returncode == 2 and "SIZE=small: full or smoke" in done.stderr
