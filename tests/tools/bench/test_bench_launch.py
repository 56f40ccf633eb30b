"""tools/bench/bench_launch.py with tiny settings: all parts run and their figures fit each other; no time is asserted."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[3] / "tools" / "bench"
TOOL = TOOLS / "bench_launch.py"
TINY = (
    "--rows", 24, "--batch_size", 2, "--repeats", 1, "--hidden_size", 32, "--layers", 1, "--save_hidden_size", 48,
    "--save_layers", 2, "--saves", 2, "--steps", 24, "--large_steps", 12, "--switch_every", 3,
)  # fmt: skip


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_parts(run, tmp_path):
    out = tmp_path / "bench.json"
    done = run([sys.executable, TOOL, *TINY, "--processes", 1, "--json", out, "--work", tmp_path / "work"], timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    start, save, resume = (result[name]["1"] for name in ("start", "save", "resume"))
    for sides, ours in ((start, "warm"), (start, "cold"), (resume, "ours")):
        told = sides["ratio"] if ours == "ours" else sides["ratio"][ours]
        for name in ("seconds", "cpu_seconds"):
            assert told[name] == pytest.approx(sides[ours][name] / sides["peer"][name])
        for side in (ours, "peer"):
            (timed,) = sides[side]["runs"]
            assert 0 < timed["seconds"] < timed["seconds_to_the_end"] and timed["cpu_seconds"] > 0
    assert save["ratio"] == pytest.approx(save["ours"]["seconds"] / save["peer"]["seconds"])
    assert len(save["ours"]["runs"]) == len(save["peer"]["runs"]) == 2
    assert 0 < save["ours"]["of_it_flush_and_rename"] < max(save["ours"]["runs"])
    ours = save["ours"]["bytes_on_disk"]
    assert ours["added"] < ours["whole"]  # the frozen vision tower is linked
    assert save["peer"]["bytes_on_disk"]["added"] == save["peer"]["bytes_on_disk"]["whole"]
    for model, steps in (("small", 24), ("large", 12)):
        found = result["overhead"]["1"][model]
        assert found["steps"] == steps / 2 - 2  # half of the blocks, without the warm-up at their beginning
        wall = sum(part["wall_us"] for part in found["parts"].values())
        assert found["wall"]["total_us"] == pytest.approx(wall)
        assert found["wall"]["share"] == pytest.approx(wall / 1e3 / found["wall"]["step_ms"])
        measured = {name for name, part in found["parts"].items() if part["cpu_us"] > 0}
        assert {"audit of rows", "heartbeats", "stop agreement and broken losses", "throughput and FLOPs"} <= measured
        assert len(found["once"]["start_manifest"]) == len(found["once"]["complete_manifest"]) == 1
    assert result["parameters"]["small"] != result["parameters"]["large"]
    assert {"machine", "versions", "settings", "load_average"} <= set(result)


def test_clock_leaves_out_every_other_block():
    """Blocks of two steps: the first two count for warm-up, of 4 .. 7 only the block that is on is counted."""
    probe = load("bench_launch_probe")
    clock, called = probe.Clock(switch_every=2), []
    inner = clock.counted(lambda: called.append("inner"), "inner")
    outer = clock.counted(lambda: (called.append("outer"), inner()), "outer", off="nothing")
    told = []
    for step in range(8):
        clock.begin_step(step)
        told.append(outer())
    assert [answer == "nothing" for answer in told] == [False, False, True, True] * 2
    assert called == ["outer", "inner"] * 4
    result = clock.result()
    assert set(result["parts"]) == {"outer", "watchdog's threads"}  # a part inside another is not counted twice
    assert result["counted"] == 2 and [step["on"] for step in result["steps"]] == [False, False, True, True, False]


def test_user_errors(run):
    for words, text in (
        (("--repeats", 0), "--repeats: at least 1"),
        (("--steps", 12, "--switch_every", 4), "at least four blocks"),
        (("--deepspeed", "zero9"), "no such configuration"),
    ):
        done = run([sys.executable, TOOL, *words])
        assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr
