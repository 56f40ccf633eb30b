"""Bytes on the wire: worked out by hand for three weights, and in the plan."""

import json
from collections.abc import Callable

import pytest

from drive_vlm.plan.bytes import Layout, WeightSize
from drive_vlm.plan.wire import sent_bytes, wire

# 30 weights train, 10 do not; 2 bytes each.
SIZES = [WeightSize(10, True), WeightSize(20, True), WeightSize(10, False)]


@pytest.mark.parametrize(
    ("stage", "accumulation", "checkpointing", "whole"),
    [
        (0, 1, False, 2 * 60),
        (0, 4, False, 2 * 60),
        (1, 4, False, 60 + 60),
        (2, 1, False, 60 + 60),
        (2, 4, False, 4 * 60 + 60),
        (3, 1, False, 2 * 80 + 60),
        (3, 1, True, 3 * 80 + 60),
        (3, 4, False, 4 * (2 * 80 + 60)),
    ],
)
def test_what_a_ring_of_four_sends(stage: int, accumulation: int, checkpointing: bool, whole: int) -> None:
    sent = sent_bytes(SIZES, Layout("layout", stage), 4, 2, accumulation, checkpointing)
    assert sent == pytest.approx(whole * 3 / 4)
    assert sent_bytes(SIZES, Layout("layout", stage), 1, 2, accumulation, checkpointing) == 0


def test_four_bit_weights_are_gathered_as_they_lie() -> None:
    sizes = [WeightSize(100, False, 0.5), WeightSize(10, True)]
    assert sent_bytes(sizes, Layout("zero3", 3), 2, 2, 1, False) == pytest.approx((2 * (50 + 20) + 20) / 2)


@pytest.mark.parametrize(("world", "link", "seconds"), [(8, "NVLink 4", 1.0), (16, "400 Gb/s", 9.0)])
def test_the_slowest_link_decides(world: int, link: str, seconds: float) -> None:
    found = wire(450e9, world, 8)
    assert (found["link"], found["link_seconds"]) == (link, pytest.approx(seconds))


def test_the_plan_says_it_for_many_gpus(run_here: Callable) -> None:
    words = "--model internvl3_1b --freeze vision_tower --deepspeed zero3 --bf16 --world_size 1024 --local_world_size 8"
    command = ["drive_vlm", "plan", "sft", *words.split(), "--per_device_train_batch_size", "1"]
    layouts = json.loads(run_here(*command, "--json").stdout)["memory"]["layouts"]
    # 634,188,800 weights train, 938,193,024 in all: domain facts of InternVL3-1B.
    assert layouts["zero1"]["sent_a_step"] == pytest.approx(4 * 634_188_800 * 1023 / 1024, rel=0.01)
    assert layouts["zero3"]["sent_a_step"] == pytest.approx((4 * 938_193_024 + 2 * 634_188_800) * 1023 / 1024, rel=0.01)
    assert layouts["zero3"]["link"] == "400 Gb/s"
    said = run_here(*command).stdout
    assert "Wire: one GPU sends in a step: ddp" in said and "over 400 Gb/s with nothing hidden; computing takes" in said
    assert "Wire" not in run_here(*command, "--world_size", "1", "--local_world_size", "1").stdout
