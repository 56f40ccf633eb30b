"""The two sides of the benchmark compute the same thing on a tiny model; no time is asserted."""

import pytest

TINY = ["--layers", "2", "--vision_width", "64", "--text_width", "64", "--image_size", "64", "--threads", "1"]


@pytest.fixture(scope="module")
def clip_eval(load):
    return load("bench_clip_eval")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_converted_weights_give_equal_features(clip_eval, activation):
    import torch

    from drive_vlm.clip.convert import encoder_from_transformers

    hf_model = clip_eval.random_clip(clip_eval.make_parser().parse_args(TINY))
    for config in (hf_model.config.text_config, hf_model.config.vision_config):
        config.hidden_act = activation
    hf_model = type(hf_model)(hf_model.config).eval()
    encoder = encoder_from_transformers(hf_model)
    texts = ["a red car", "the traffic light in front of the ego vehicle is green"]
    pixel_values = torch.randn(3, 3, 64, 64)
    inputs = clip_eval.peer_processor(64)(text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        text = hf_model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        image = hf_model.get_image_features(pixel_values).pooler_output
        assert (encoder.model.encode_text(encoder.tokenizer(texts)) - text).abs().max() < 1e-5
        assert (encoder.model.encode_image(pixel_values) - image).abs().max() < 1e-5


def test_difference_is_seen(clip_eval, monkeypatch):
    """One wrong score, and a comparison that would be empty because everything is clamped to 0."""
    pairs = [("a", "x"), ("a", "y")]
    assert (
        clip_eval.max_difference(pairs, [0.2, 0.4], [0.3], 2, lambda part: [0.2 if part == pairs[:1] else 0.4]) < 1e-9
    )
    wrong = clip_eval.max_difference(pairs, [0.4, 0.2], [0.3], 2, lambda part: [0.2 if part == pairs[:1] else 0.4])
    assert wrong == pytest.approx(0.2)
    with pytest.raises(ValueError, match="clamped"):
        clip_eval.max_difference(pairs, [-0.2, -0.4], [0.0], 2, lambda part: [0.0])


@pytest.mark.slow
def test_command_line(bench):
    result, text = bench("bench_clip_eval", *TINY, "--pictures", 3, "--repeats", 1, "--batch_size", 4)
    assert result["max_abs_difference"] < 1e-4 < result["score_sd"]
    assert result["ours"]["ratio"]["pairs_per_second"] == pytest.approx(
        result["ours"]["pairs_per_second"] / result["peer"]["pairs_per_second"]
    )
    assert result["pairs"] == 18 and result["distinct"]["pictures"] == 3
    assert "torchmetrics 18 of each" in text
