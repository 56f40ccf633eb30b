"""tools/bench/bench_launch.py with tiny settings: all parts run and their figures fit each other; no time is asserted."""

import pytest

TINY = (
    "--rows", 24, "--batch_size", 2, "--repeats", 1, "--hidden_size", 32, "--layers", 1, "--save_hidden_size", 48,
    "--save_layers", 2, "--saves", 2, "--steps", 12, "--large_steps", 6,
)  # fmt: skip


@pytest.mark.slow
def test_all_parts(bench):
    result, text = bench("bench_launch", *TINY, "--processes", 1, timeout=850)
    start, save, resume = result["start"]["1"], result["save"]["1"]["save"], result["save"]["1"]["resume"]
    for sides, ours in ((start, "warm"), (start, "cold"), (resume, "ours"), (save, "ours")):
        ratio = sides[ours]["seconds"] / sides["peer"]["seconds"]
        assert sides[ours]["ratio"]["seconds"] == pytest.approx(ratio)
    for sides, ours in ((start, "warm"), (start, "cold"), (resume, "ours")):
        for side in (ours, "peer"):
            (timed,) = sides[side]["runs"]
            assert 0 < timed["seconds"] < timed["seconds_to_the_end"]
    assert len(save["ours"]["runs"]) == len(save["peer"]["runs"]) == 2
    assert 0 < save["ours"]["of_it_flush_and_rename"] < max(run["seconds"] for run in save["ours"]["runs"])
    ours = save["ours"]["bytes_on_disk"]
    assert ours["added"] < ours["whole"]  # the frozen vision tower is linked
    assert save["peer"]["bytes_on_disk"]["added"] == save["peer"]["bytes_on_disk"]["whole"]
    for model, steps in (("small", 12), ("large", 6)):
        found = result["overhead"]["1"][model]
        # The two steps of the warm-up do not count, and the last one has no end.
        assert found["steps"] == steps - 3
        assert found["total_us"] == pytest.approx(sum(found["parts_us"].values()))
        assert found["share"] == pytest.approx(found["total_us"] / 1e3 / found["step_ms"])
        measured = {name for name, spent in found["parts_us"].items() if spent > 0}
        assert {"audit of rows", "heartbeats", "stop agreement and broken losses", "throughput and FLOPs"} <= measured
    assert result["parameters"]["small"] != result["parameters"]["large"]
    assert "bare torchrun script" in text


def test_clock_counts_parts_of_steps_after_the_warm_up(load):
    clock = load("bench_launch").Clock()
    inner = clock.part(lambda: "inner", "inner")
    outer = clock.part(inner, "outer")
    for step in range(5):
        clock.steps.append(float(step))
        assert outer() == "inner"
    result = clock.result()
    # A part inside another is not counted twice.
    assert set(result["parts"]) == {"outer"} and result["parts"]["outer"] > 0
    assert result["steps"] == [1.0, 1.0]


def test_user_errors(refused):
    for words, text in (
        (("--repeats", 0), "--repeats: must be at least 1"),
        (("--steps", 3), "--steps: must be at least 4"),
        (("--deepspeed", "zero9"), "no such configuration"),
    ):
        assert text in refused("bench_launch", *words)
