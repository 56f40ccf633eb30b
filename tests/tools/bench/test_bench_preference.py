"""tools/bench/bench_preference.py with tiny settings: every side runs; no time is asserted."""

import json

import pytest

TINY = ("--image_size", 56, "--patch_size", 14, "--hidden_size", 32, "--text_layers", 1, "--vision_layers", 1)


@pytest.mark.slow
def test_every_side_runs(bench, tmp_path):
    result, _ = bench("bench_preference", *TINY, "--pairs", 16, "--batch_size", 4, "--steps", 2, "--repeats", 1)
    assert result["speed_up"]["live"] == 1 and result["speed_up"]["packed"] > 0
    assert result["reference"]["computed"] == 16
    for side in ("live", "cached", "packed"):
        assert result[side]["pairs_per_second"] > 0 and result[side]["peak_memory_gib"] > 0.1
        facts = json.loads((tmp_path / "work" / f"{side}0" / "run.json").read_text())
        assert facts["reference"]["kind"] == ("live" if side == "live" else "cached")
    assert json.loads((tmp_path / "work" / "packed0" / "run.json").read_text())["config"]["data"]["packing"]


def test_model_and_data_belong_together(refused, tmp_path):
    assert "--model and --data belong together" in refused("bench_preference", "--model", tmp_path)
