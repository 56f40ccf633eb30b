"""tools/bench/bench_a2c.py with tiny settings: both sides sample as much; no time is asserted."""

import pytest

TINY = (
    "--prompts", 2, "--generations", 2, "--micro_batch", 4, "--tokens", 4, "--steps", 3, "--repeats", 1, "--hidden_size", 32,
    "--vision_layers", 1, "--text_layers", 1, "--vocab_size", 600, "--patch_size", 28,
)  # fmt: skip


@pytest.mark.slow
def test_both_sides_sample_the_same_number_of_tokens(bench):
    result, text = bench("bench_a2c", *TINY)
    for side in ("a2c", "grpo"):
        found = result[side]
        assert 0 < found["sampled_tokens"] <= 2 * 2 * 4 and found["seconds_per_step"] > 0
        assert 0 < found["reward_share"] < 1
        seconds = found["seconds_per_step"] / found["sampled_tokens"]
        assert found["seconds_per_1000_tokens"] == pytest.approx(1000 * seconds)
    assert result["grpo"]["ratio"]["seconds_per_step"] == 1
    assert f"a2c takes {result['a2c']['ratio']['seconds_per_1000_tokens']:.2f} times as long" in text


def test_a_batch_that_does_not_divide_is_refused(refused):
    assert "not a multiple of --micro_batch 3" in refused("bench_a2c", *TINY, "--micro_batch", 3)
