"""The order of training: every row exactly once an epoch, packs within their limit, the same steps however it is sharded."""

import time
from itertools import chain
from typing import Any

import numpy as np
import pytest

from drive_vlm.data.order import EpochOrder, FixedOrder, ShardedBatchSampler, pack


def random_cases(count: int = 40) -> list[tuple[np.ndarray, int]]:
    """(lengths, max_length) of many shapes: equal lengths, all distinct, as long as the limit, a single row."""
    random = np.random.default_rng(7)
    cases: list[tuple[np.ndarray, int]] = [
        (np.array([5]), 5),
        (np.full(9, 4), 4),
        (np.full(9, 4), 7),
        (np.arange(1, 30), 29),
    ]
    for _ in range(count):
        limit = int(random.integers(1, 300))
        cases.append((random.integers(1, limit + 1, int(random.integers(1, 200))), limit))
    return cases


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_exactly_once_an_epoch(packing: bool, grouped: bool) -> None:
    for lengths, limit in random_cases():
        order = EpochOrder(
            lengths, seed=3, max_length=limit if packing else None, group_by_length=grouped, global_batch=4
        )
        for epoch in range(3):
            sequences = order(epoch)
            assert sorted(chain.from_iterable(sequences)) == list(range(len(lengths)))
            assert len(sequences) == order.num_sequences
            assert all(lengths[list(sequence)].sum() <= limit for sequence in sequences) or not packing


def test_packs_are_close_to_full() -> None:
    """Best-fit-decreasing needs at most 11/9 of the best possible number of packs, plus one (Johnson 1973)."""
    for lengths, limit in random_cases():
        assert len(pack(lengths, limit)) <= 11 / 9 * np.ceil(lengths.sum() / limit) + 1 or lengths.mean() > limit / 3
    lengths = np.random.default_rng(0).integers(20, 400, 5000)
    packs = pack(lengths, 4096)
    assert lengths.sum() / (len(packs) * 4096) > 0.99


def test_epochs_differ_and_repeat_exactly() -> None:
    lengths = np.random.default_rng(0).integers(5, 50, 300)
    for arguments in ({}, {"max_length": 120}, {"group_by_length": True, "global_batch": 8}):
        order, again = (EpochOrder(lengths, 5, **arguments) for _ in range(2))
        assert order(0) == again(0) and order(7) == again(7) and order(0) != order(1)
        assert order(0) != EpochOrder(lengths, 6, **arguments)(0)
        assert order.digest(2) == again.digest(2) != order.digest(3)
    assert EpochOrder(lengths + 1, 5).digest(0) != EpochOrder(lengths, 5).digest(0)


def test_packed_rows_meet_new_neighbours_each_epoch() -> None:
    lengths = np.repeat([10, 20, 30], 50)
    order = EpochOrder(lengths, 1, max_length=60)
    neighbours = [{frozenset(sequence) for sequence in order(epoch) if len(sequence) > 1} for epoch in range(2)]
    assert len(neighbours[0] & neighbours[1]) < len(neighbours[0]) / 2


def test_group_by_length_puts_like_beside_like() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 1003)

    def spread(order: EpochOrder) -> float:
        """Mean difference of longest and shortest row within a global batch of 10."""
        rows = [row for (row,) in order(0)]
        batches = [lengths[rows[i : i + 10]] for i in range(0, 1000, 10)]
        return float(np.mean([batch.max() - batch.min() for batch in batches]))

    grouped = EpochOrder(lengths, 1, group_by_length=True, global_batch=10)
    assert spread(grouped) < spread(EpochOrder(lengths, 1)) / 10
    assert len(grouped(0)) == 1003


LAYOUTS = [
    (1, 1, 12),
    (2, 1, 6),
    (1, 3, 4),
    (2, 2, 3),
    (3, 2, 2),
    (4, 3, 1),
]  # (world, accumulation, micro batch): 12 a step


def steps_of(order: Any, world: int, accumulation: int, micro: int, epoch: int = 0) -> list[list[tuple[int, ...]]]:
    """Sequences of each optimizer step, over all ranks; checks that ranks stay in step."""
    samplers = [ShardedBatchSampler(order, micro, accumulation, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {samplers[0].steps * accumulation}
    assert all(len(batch) <= micro for share in shares for batch in share)
    return [
        [
            sequence
            for share in shares
            for batch in share[step * accumulation : (step + 1) * accumulation]
            for sequence in batch
        ]
        for step in range(samplers[0].steps)
    ]


@pytest.mark.parametrize("rows", [1, 5, 11, 12, 13, 100, 144])
@pytest.mark.parametrize("limit", [None, 40])
def test_steps_hold_the_same_rows_however_they_are_sharded(rows: int, limit: int | None) -> None:
    order = EpochOrder(np.random.default_rng(rows).integers(3, 40, rows), 2, limit)
    reference = [sorted(step) for step in steps_of(order, *LAYOUTS[0], epoch=1)]
    assert sorted(chain.from_iterable(chain.from_iterable(reference))) == list(range(rows))
    assert [len(step) for step in reference[:-1]] == [12] * (len(reference) - 1) and len(reference[-1]) > 0
    for layout in LAYOUTS[1:]:
        assert [sorted(step) for step in steps_of(order, *layout, epoch=1)] == reference


def test_evaluation_reads_every_row_once_in_the_order_of_the_file() -> None:
    steps = steps_of(FixedOrder(7), 2, 1, 2)
    assert [sorted(step) for step in steps] == [[(0,), (1,), (2,), (3,)], [(4,), (5,), (6,)]]


@pytest.mark.slow
def test_an_order_of_200_000_rows() -> None:
    """A sanity check that prints seconds; quadratic packing would run into the time limit of the test."""
    lengths = np.random.default_rng(0).integers(50, 4000, 200_000)
    started = time.perf_counter()
    order = EpochOrder(lengths, 0, 4096)
    packed = time.perf_counter()
    sequences = order(0)
    print(
        f"packing {packed - started:.2f} s, an epoch's order {time.perf_counter() - packed:.2f} s, {len(sequences):,} packs"
    )
    assert sum(map(len, sequences)) == 200_000
