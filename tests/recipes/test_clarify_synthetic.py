"""recipes/clarify_synthetic.sh: each claim of its summary fails on its own; two steps of everything; the whole of it when asked for."""

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

ROOT = Path(__file__).parents[2]
RISE = {"value": 0.05, "low": 0.01, "high": 0.09}
STILL = {"value": 0.0, "low": -0.04, "high": 0.04}
CLAIMS = 6
GOOD: dict[str, Any] = {
    "likeliest": {"sft": {"youden_J": dict(RISE)}},
    "sft_over_base": {"youden_J": dict(RISE)},
    "grpo_over_sft": {
        "sampled": {
            name: dict(found)
            for name, found in (
                ("reward", RISE),
                ("youden_J", RISE),
                ("final_utility", STILL),
                ("over_asking", STILL),
            )
        },
        "likeliest": {name: dict(STILL) for name in ("youden_J", "final_utility", "over_asking")},
    },
}


@pytest.fixture(scope="module")
def claims() -> Callable[[dict[str, Any]], list[tuple[str, bool]]]:
    spec = importlib.util.spec_from_file_location("clarify_summary", ROOT / "tools" / "clarify_summary.py")
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.claims


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("likeliest", "sft", "youden_J", "low"), 0.0),
        (("likeliest", "sft", "youden_J", "low"), None),
        (("sft_over_base", "youden_J", "low"), -0.001),
        (("grpo_over_sft", "sampled", "reward", "low"), -0.001),
        (("grpo_over_sft", "sampled", "youden_J", "low"), -0.001),
        (("grpo_over_sft", "sampled", "over_asking", "low"), 0.001),
        (("grpo_over_sft", "sampled", "over_asking", "value"), 0.031),
        (("grpo_over_sft", "likeliest", "over_asking", "value"), 0.031),
        (("grpo_over_sft", "likeliest", "youden_J", "value"), -0.031),
        (("grpo_over_sft", "likeliest", "final_utility", "value"), None),
    ],
)
def test_each_claim_fails_on_its_own(claims: Callable, place: tuple[str, ...], value: float | None) -> None:
    assert [holds for _, holds in claims(GOOD)] == [True] * CLAIMS
    bad = copy.deepcopy(GOOD)
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert [holds for _, holds in claims(bad)].count(False) == 1


def test_utility_may_rise_in_place_of_j(claims: Callable) -> None:
    other = copy.deepcopy(GOOD)
    moved = other["grpo_over_sft"]["sampled"]
    moved["youden_J"], moved["final_utility"] = moved["final_utility"], moved["youden_J"]
    assert all(holds for _, holds in claims(other))


@pytest.fixture
def demonstration(run: Callable, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any], Path]]:
    """`demonstration(SIZE, seconds)`: (how the recipe ended, its summary, its folder)."""

    def start(size: str, seconds: int) -> tuple[Any, dict[str, Any], Path]:
        out = tmp_path / "run"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"OUT": str(out), "SIZE": size, "VIRTUAL_ENV": sys.prefix, "PATH": path}
        done = run(["bash", "recipes/clarify_synthetic.sh"], timeout=seconds, CUDA_VISIBLE_DEVICES="", **env)
        print(done.stdout[-4000:])
        assert "ClarifyVLM at small size: " in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["ranks"], summary["zero_stage"], len(summary["claims"])) == (2, 2, CLAIMS)
        return done, summary, out

    return start


# Minutes on quiet cores, several times that where others use them.
@pytest.mark.timeout(3600)
@pytest.mark.slow
@pytest.mark.demonstration
def test_what_sft_and_grpo_teach_on_held_out_scenes(demonstration: Callable) -> None:
    """The recipe itself fails when a claim does not hold: see claims() in tools/clarify_summary.py."""
    done, summary, _ = demonstration("full", 3600)
    assert done.returncode == 0 and all(claim["holds"] for claim in summary["claims"]), done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.supports("qwen3_vl sft zero2", "qwen3_vl grpo zero2")
def test_two_steps_of_everything_go_through_and_claim_nothing(demonstration: Callable) -> None:
    done, summary, out = demonstration("smoke", 600)
    assert done.returncode == 1 and "Not every claim holds." in done.stderr
    assert {"base", "sft", "grpo", "always ask", "never ask"} == set(summary["likeliest"])
    for folder in ("sft", "grpo"):
        manifest = json.loads((out / folder / "run.json").read_text())
        assert (manifest["state"], manifest["world_size"], manifest["zero_stage"]) == ("finished", 2, 2)
        assert manifest["parameters"]["vision_tower"]["trainable"] == 0
    assert (out / "plots" / "asking.png").read_bytes().startswith(b"\x89PNG") and (out / "failures.html").is_file()
    assert (out / "report.html").stat().st_size > 100_000
    # The reward's replies that must earn nothing, before and after the training.
    probes = [json.loads(line) for line in (out / "grpo" / "probes.jsonl").read_text().splitlines()]
    assert len(probes) >= 2
