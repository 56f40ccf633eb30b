"""recipes/opendriver_synthetic.sh: each claim of its summary fails on its own; two steps of everything; the whole of it when asked for."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RISE = {"value": 0.05, "low": 0.01, "high": 0.09}
FALL = {"value": -0.05, "low": -0.09, "high": -0.01}
COUNTS = {"human": 30, "synthetic": 270}
GOOD: dict[str, Any] = {
    "boxes": {"change": {"recall": RISE, "precision": RISE}},
    "rows": {"changes": {"gates": FALL, "retrieval": FALL}},
    "row_counts": {"gated": COUNTS, "ungated": COUNTS},
    "held_out": {"gated_over": {"ungated": RISE, "human": RISE}},
}
CLAIMS = {"full": 7, "small": 5, "smoke": 0}


@pytest.fixture(scope="module")
def claims() -> Callable[[dict[str, Any], str], list[tuple[str, bool]]]:
    spec = importlib.util.spec_from_file_location("opendriver_summary", ROOT / "tools" / "opendriver_summary.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.claims


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("boxes", "change", "recall", "low"), 0.0),
        (("boxes", "change", "precision", "low"), None),
        (("rows", "changes", "gates", "high"), 0.001),
        (("rows", "changes", "retrieval", "high"), 0.0),
        (("row_counts", "ungated", "synthetic"), 271),
        (("held_out", "gated_over", "ungated", "low"), -0.001),
        (("held_out", "gated_over", "human", "low"), None),
    ],
)
def test_each_claim_fails_on_its_own(claims: Callable, place: tuple[str, ...], value: float | None) -> None:
    for size, count in CLAIMS.items():
        assert [holds for _, holds in claims(GOOD, size)] == [True] * count
    # Not a copy of copy.deepcopy, in which what is one object stays one.
    bad = json.loads(json.dumps(GOOD))
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert [holds for _, holds in claims(bad, "full")].count(False) == 1
    assert [holds for _, holds in claims(bad, "small")].count(False) == (place[0] != "held_out")


@pytest.fixture
def demonstration(run: Callable, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any], Path]]:
    """`demonstration(SIZE, seconds)`: (how the recipe ended, its summary, its folder)."""

    def start(size: str, seconds: int) -> tuple[Any, dict[str, Any], Path]:
        out = tmp_path / "run"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"OUT": str(out), "SIZE": size, "VIRTUAL_ENV": sys.prefix, "PATH": path, "SLURM_JOB_ID": "7"}
        done = run(["bash", "recipes/opendriver_synthetic.sh"], timeout=seconds, CUDA_VISIBLE_DEVICES="", **env)
        assert "OpenDriver at small size: " in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["ranks"], summary["zero_stage"], len(summary["claims"])) == (2, 2, CLAIMS[size])
        return done, summary, out

    return start


@pytest.mark.timeout(3600)
@pytest.mark.slow
@pytest.mark.demonstration
def test_what_retrieval_and_gates_are_worth(demonstration: Callable) -> None:
    """The recipe itself fails when a claim does not hold: see claims() in tools/opendriver_summary.py."""
    done, summary, _ = demonstration("full", 3600)
    assert done.returncode == 0 and all(claim["holds"] for claim in summary["claims"]), done.stdout[-3000:]


@pytest.mark.timeout(1200)
@pytest.mark.slow
@pytest.mark.supports("internvl sft zero2", "internvl spin zero2")
def test_rows_that_the_model_writes_again_go_through_a_round(demonstration: Callable) -> None:
    """SIZE=small: what is claimed of rows holds, and training only goes through."""
    done, summary, out = demonstration("small", 1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    state = json.loads((out / "regenerated/rounds.json").read_text())
    facts = state["rounds"]["1"]["regenerate"]
    assert (
        abs(facts["human_share"] - 0.1) < 0.01 and facts["gate"]["figures"]["used"]["hallucinated"]["value"] is not None
    )
    assert list(state["rounds"]["1"]) == ["regenerate", "generate", "pairs", "train", "evaluate", "decision"]
    assert {"static", "regenerated"} == set(summary["rounds"])
    assert (out / "synthetic/gate/sample.html").is_file()
