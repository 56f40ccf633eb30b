"""tools/bench/bench_features.py, small: both sides train the same, and the report holds what a reader needs."""

import pytest


@pytest.mark.slow
def test_both_sides_train_the_same(bench):
    flags = ["--clips", 4, "--num_frames", 2, "--steps", 3, "--image_size", 48, "--text_width", 64, "--text_layers", 1]
    flags += ["--tower_width", 64, "--tower_heads", 2, "--tower_layers", 2, "--stored", "float32"]
    result, text = bench("bench_features", *flags)
    rates = {side: result[side]["samples_per_second"] for side in ("pixels", "cache")}
    assert result["cache"]["ratio"]["samples_per_second"] == pytest.approx(rates["cache"] / rates["pixels"])
    assert result["largest_loss_difference"] < 1e-5
    assert result["features"]["bytes"] == 4 * 2 * 9 * 64 * 4, "clips x frames x patches x width x float32"
    assert result["machine"]["cores"] and result["versions"]["torch"] and len(result["cache"]["runs"][0]["losses"]) == 3
    assert "ratio" in text and "patches a frame" in text


def test_too_few_steps_are_refused(refused):
    assert "--steps: must be at least 2" in refused("bench_features", "--steps", 1)
