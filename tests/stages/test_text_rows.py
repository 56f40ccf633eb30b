"""Rows without a picture under ZeRO-3: a rank that left the vision tower out would let the others wait for ever."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drive_vlm.data.order import EpochOrder


@pytest.mark.slow
@pytest.mark.supports("internvl sft zero3")
def test_a_rank_with_text_only_beside_one_with_pictures(sft: Callable, fresh: Callable, world: Any) -> None:
    """Every micro-batch of rank 1 is text only, every one of rank 0 has pictures; two epochs of 8 steps of 2 rows."""
    rows = [json.loads(line) for line in world.train.read_text().splitlines()]
    pictures = [row for row in rows if isinstance(row.get("image"), str)][:8]
    texts = [row for row in rows if "image" not in row][:8]
    path = world.train.with_name("half_text.jsonl")
    seed = 5
    places = EpochOrder(np.ones(16), seed)(0)  # the order depends on the number of rows and the seed alone
    placed: list[Any] = [None] * 16
    for position, (row,) in enumerate(places):
        placed[row] = (texts if position % 2 else pictures)[position // 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in placed))
    flags = ("--data", path, "--global_batch_size", 2, "--seed", seed, "--freeze", "lm_head")  # the tower trains too
    ranks = ("--per_device_train_batch_size", 1, "--deepspeed", world.zero3)
    two = sft(fresh("text_zero3"), *flags, *ranks, launcher="torchrun", timeout=120)
    one = sft(fresh("text_plain"), *flags, "--per_device_train_batch_size", 2)
    assert two.curve() == pytest.approx(one.curve(), abs=1e-4)
