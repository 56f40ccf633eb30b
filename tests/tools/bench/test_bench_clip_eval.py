"""The two sides of the benchmark compute the same thing on a tiny model; no time is asserted."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "bench" / "bench_clip_eval.py"
TINY = ["--layers", "2", "--vision_width", "64", "--text_width", "64", "--image_size", "64", "--threads", "1"]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_clip_eval", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_converted_weights_give_equal_features(bench, activation):
    import torch

    from drive_vlm.clip.convert import encoder_from_transformers

    hf_model = bench.random_clip(bench.parse().parse_args(TINY))
    for config in (hf_model.config.text_config, hf_model.config.vision_config):
        config.hidden_act = activation
    hf_model = type(hf_model)(hf_model.config).eval()
    encoder = encoder_from_transformers(hf_model)
    texts = ["a red car", "the traffic light in front of the ego vehicle is green"]
    pixel_values = torch.randn(3, 3, 64, 64)
    inputs = bench.peer_processor(64)(text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        text = hf_model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        image = hf_model.get_image_features(pixel_values).pooler_output
        assert (encoder.model.encode_text(encoder.tokenizer(texts)) - text).abs().max() < 1e-5
        assert (encoder.model.encode_image(pixel_values) - image).abs().max() < 1e-5


def test_difference_is_seen(bench, monkeypatch):
    """One wrong score, and a comparison that would be empty because everything is clamped to 0."""
    args = bench.parse().parse_args(["--pictures", "1", "--questions", "2", "--batch_size", "2"])
    pairs = [("a", "x"), ("a", "y")]
    assert bench.max_difference(pairs, [0.2, 0.4], [0.3], args, lambda part: [0.2 if part == pairs[:1] else 0.4]) < 1e-9
    wrong = bench.max_difference(pairs, [0.4, 0.2], [0.3], args, lambda part: [0.2 if part == pairs[:1] else 0.4])
    assert wrong == pytest.approx(0.2)
    with pytest.raises(ValueError, match="clamped"):
        bench.max_difference(pairs, [-0.2, -0.4], [0.0], args, lambda part: [0.0])


@pytest.mark.slow
def test_command_line(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, str(TOOL), *TINY, "--pictures", "3", "--repeats", "1", "--json", str(out)]
    done = subprocess.run([*command, "--batch_size", "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["max_abs_difference"] < 1e-4 < result["score_sd"]
    assert {"ours", "peer", "ratio", "machine", "versions"} <= set(result)
    assert result["ratio"] == pytest.approx(result["ours"] / result["peer"])
    assert result["pairs"] == 18 and result["distinct"]["pictures"] == 3
    assert "torchmetrics 18 of each" in done.stdout
