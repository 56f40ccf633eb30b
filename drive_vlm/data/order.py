"""Step 4 of the flow in data/__init__.py, the order of training: which rows stand together, in which batch, on which rank. A pure function of
(row lengths, seed, epoch; with group_by_length also the global batch): any rank computes the same plan, so a run can be sharded, resumed and compared.

An epoch is a list of *sequences* (one row each, or several rows packed to max_length). `global_batch` sequences make
one optimizer step; every row appears exactly once an epoch, and the last step of an epoch may be smaller: nothing is
repeated or dropped to make it even.
"""

import bisect
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# group_by_length sorts within this many global batches, as transformers does.
_GROUP_BATCHES = 50


def pack(lengths: np.ndarray, max_length: int) -> list[list[int]]:
    """Best-fit-decreasing packing: lists of row indices whose lengths sum to at most `max_length` (int[N] -> packs)."""
    # Distinct free lengths of open packs, ascending.
    room: list[int] = []
    open_packs: dict[int, list[int]] = defaultdict(list)
    packs: list[list[int]] = []
    # Longest first, each into the open pack that it fills best. "stable": every rank must find the same packs.
    for i in np.argsort(-lengths, kind="stable"):
        length = int(lengths[i])
        slot = bisect.bisect_left(room, length)
        if slot == len(room):
            number, left = len(packs), max_length - length
            packs.append([int(i)])
        else:
            number, left = open_packs[room[slot]].pop(), room[slot] - length
            packs[number].append(int(i))
            if not open_packs[room[slot]]:
                del open_packs[room.pop(slot)]
        if left:
            if left not in open_packs:
                bisect.insort(room, left)
            open_packs[left].append(number)
    return packs


class EpochOrder:
    """Sequences of any epoch. `order(epoch) -> list[tuple[int, ...]]` of row indices; its length never changes.

    With packing, the shape of the packs (how many rows of which length stand together) is fixed, and each epoch deals
    rows of equal length to the places again: rows meet different neighbours, and the number of steps stays exact.

    Args:
        lengths: int[N], tokens of each row.
        max_length: pack to this length; None leaves one row a sequence.
        group_by_length: put rows of similar length into the same batch of `global_batch` (unpacked only).
    """

    def __init__(
        self,
        lengths: np.ndarray,
        seed: int,
        max_length: int | None = None,
        group_by_length: bool = False,
        global_batch: int = 1,
    ) -> None:
        self.lengths, self.seed, self.global_batch = np.asarray(lengths), seed, global_batch
        self.group_by_length = group_by_length and max_length is None
        self._packs = pack(self.lengths, max_length) if max_length is not None else None
        self.num_sequences = len(self._packs) if self._packs is not None else len(self.lengths)

    def __call__(self, epoch: int) -> list[tuple[int, ...]]:
        random = np.random.default_rng([self.seed, epoch])
        if self._packs is not None:
            deal = self._deal_equal_lengths(random)
            return [tuple(int(deal[i]) for i in self._packs[p]) for p in random.permutation(len(self._packs))]
        order = random.permutation(len(self.lengths))
        return [(int(i),) for i in (self._grouped(order, random) if self.group_by_length else order)]

    def _deal_equal_lengths(self, random: np.random.Generator) -> np.ndarray:
        """int[N]: which row takes the place of row i; always one of the same length."""
        by_length = np.argsort(self.lengths, kind="stable")
        shuffled = random.permutation(len(self.lengths))
        deal = np.empty(len(self.lengths), dtype=np.int64)
        deal[by_length] = shuffled[np.argsort(self.lengths[shuffled], kind="stable")]
        return deal

    def _grouped(self, order: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """int[N]: sorted by length within spans of a shuffled order, so that a batch pads little and epochs differ."""
        size = self.global_batch * _GROUP_BATCHES
        spans = [order[i : i + size] for i in range(0, len(order), size)]
        ordered = np.concatenate([span[np.argsort(-self.lengths[span], kind="stable")] for span in spans])
        batches = [ordered[i : i + self.global_batch] for i in range(0, len(ordered), self.global_batch)]
        full, rest = batches[: len(ordered) // self.global_batch], batches[len(ordered) // self.global_batch :]
        return np.concatenate([full[i] for i in random.permutation(len(full))] + rest)

    # An order lives as long as its run, so a cache that keeps `self` alive (B019) does no harm.
    @functools.lru_cache(maxsize=2)  # noqa: B019
    def digest(self, epoch: int) -> str:
        """Hash of an epoch's order and of the rows' lengths. Two runs with the same digest deal rows of the same lengths in the same
        order; the content of the rows is compared by RowTable.content_hash."""
        text = ";".join(",".join(map(str, sequence)) for sequence in self(epoch))
        lengths = self.lengths.astype(np.int64).tobytes()
        return hashlib.blake2b(text.encode() + lengths, digest_size=8).hexdigest()


class FixedOrder:
    """Every row once, a sequence each, in the order of the file: for evaluation."""

    def __init__(self, num_sequences: int) -> None:
        self.num_sequences, self.seed = num_sequences, 0

    def __call__(self, epoch: int) -> list[tuple[int, ...]]:
        return [(i,) for i in range(self.num_sequences)]


class ShardedBatchSampler(Sampler[list[tuple[int, ...]]]):
    """This rank's micro-batches: lists of sequences, `accumulation` of them a step, every rank the same number.

    A step's sequences are dealt round-robin to the accumulation * world_size micro-batches, so the set of rows of a step
    depends on the global batch alone. In a short last step some micro-batches hold fewer sequences, or none.
    """

    def __init__(
        self,
        order: EpochOrder | FixedOrder,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order, self.accumulation, self.rank, self.world_size = order, accumulation, rank, world_size
        self.global_batch = micro_batch * accumulation * world_size
        self.epoch = 0

    @property
    def steps(self) -> int:
        return -(-self.order.num_sequences // self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        sequences = self.order(self.epoch)
        for start in range(0, len(sequences), self.global_batch):
            step = sequences[start : start + self.global_batch]
            for micro in range(self.accumulation):
                yield step[micro * self.world_size + self.rank :: self.accumulation * self.world_size]
