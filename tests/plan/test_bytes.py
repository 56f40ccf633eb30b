"""The arithmetic of ZeRO by numbers that one can check by hand."""

import dataclasses

import pytest

from drive_vlm.launch.deepspeed import load_deepspeed_config
from drive_vlm.plan.bytes import CONTEXT, FRAGMENTATION, Layout, TrainingSetup, WeightSize, layout_of, peak, static

# 100 weights that train (one of 60, one of 40) and 50 that are frozen
SIZES = [WeightSize(60, True), WeightSize(40, True), WeightSize(50, False)]
BF16 = TrainingSetup(world_size=4, weight_bytes=2, optim="adamw_torch_fused")


def figures(layout: Layout, setup: TrainingSetup = BF16) -> tuple[float, ...]:
    fixed = static(SIZES, layout, setup)
    return fixed.weights, fixed.gradients, fixed.master, fixed.optimizer, fixed.buffers, fixed.step, fixed.cpu


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        # weights 150 x 2; gradients 100 x 2; master 4 x 100 / 4; moments 8 x 100 / 4; two buckets of 10 x 2
        (Layout("zero1", 1, reduce_bucket=10, overlap=True), (300, 200, 100, 200, 40, 100, 0)),
        (Layout("zero2", 2, reduce_bucket=10), (300, 50, 100, 200, 20, 100, 0)),
        # everything a quarter; weights below 45 stay gathered (40), of the rest (60 + 50) at most 20 + the largest live
        (Layout("zero3", 3, reduce_bucket=10, persistence=45, max_live=20, sub_group=15), (75, 50, 100, 200, 80 + 160 + 20, 60, 0)),
        # master, moments, fp32 gradient and a bf16 copy in host memory: (4 + 8 + 4 + 2) x 25; one gradient and its buffer on the GPU
        (Layout("zero2_offload", 2, offload_optimizer=True, reduce_bucket=10), (300, 120, 0, 0, 20 + 120, 0, 450)),
    ],
    ids=lambda value: value.name if isinstance(value, Layout) else "",
)  # fmt: skip
def test_bytes_of_each_stage(layout: Layout, expected: tuple[float, ...]) -> None:
    assert figures(layout) == expected


def test_without_deepspeed_weights_are_fp32_and_ddp_holds_gradients_twice() -> None:
    assert figures(Layout("ddp"), TrainingSetup(1, 4, optim="adamw_torch_fused")) == (600, 400, 0, 800, 0, 0, 0)
    assert figures(Layout("ddp"), TrainingSetup(2, 4, optim="adamw_torch_fused")) == (600, 400, 0, 800, 400, 0, 0)
    assert figures(Layout("ddp"), TrainingSetup(2, 4, autocast=True))[4] == 400 + 200


def test_accumulation_keeps_one_more_share_under_zero2_only() -> None:
    accumulating = TrainingSetup(4, 2, accumulation=3)
    assert figures(Layout("zero2", 2), accumulating)[1] == 2 * figures(Layout("zero2", 2))[1]
    assert figures(Layout("zero1", 1), accumulating)[1] == figures(Layout("zero1", 1))[1]


def test_one_rank_under_zero3_gathers_nothing() -> None:
    assert figures(Layout("zero3", 3, persistence=45, max_live=20), TrainingSetup(1, 2))[4] == 0


def test_an_unfused_adam_works_next_to_its_state() -> None:
    plain = dataclasses.replace(BF16, optim="adamw_torch")
    assert figures(Layout("zero2", 2), plain)[5] == (4 + 8) * 25
    assert figures(Layout("ddp"), TrainingSetup(1, 4))[5] == 8 * 60


def test_optimizers_have_their_own_bytes() -> None:
    assert figures(Layout("ddp"), TrainingSetup(1, 4, optim="sgd"))[3] == 0
    assert figures(Layout("ddp"), TrainingSetup(1, 4, optim="rmsprop"))[3] == 400


def test_four_bit_weights_keep_their_own_bytes() -> None:
    assert static([WeightSize(100, False, 0.5), WeightSize(10, True)], Layout("zero2", 2), BF16).weights == 50 + 20


def test_the_peak_is_the_fuller_end_of_the_backward_pass_or_the_step() -> None:
    fixed = static(SIZES, Layout("zero2", 2, reduce_bucket=10), BF16)
    full = peak(fixed, kept=1000, work=100, logits=300)
    assert full.peak == 600 + 20 + 1000 + 300  # gradients come while activations go
    assert full.needed == full.peak * (1 + FRAGMENTATION) + CONTEXT
    assert peak(fixed, 0, 0, 0).peak == 600 + 50 + 100  # the step's fp32 gradients are more than the bucket
    accumulated = static(SIZES, Layout("zero1", 1), dataclasses.replace(BF16, accumulation=2))
    assert peak(accumulated, kept=1000, work=100, logits=300).peak == 600 + 200 + 1300


def test_layouts_read_the_committed_configurations() -> None:
    zero3 = layout_of("zero3", load_deepspeed_config("zero3", cpu=False))
    assert (zero3.stage, zero3.reduce_bucket, zero3.persistence, zero3.overlap) == (3, 10**9, 10**7, True)
    offload = layout_of("zero3_offload", load_deepspeed_config("zero3_offload", cpu=False))
    assert offload.offload_optimizer and offload.offload_param
    assert layout_of("ddp", None) == Layout("ddp")
