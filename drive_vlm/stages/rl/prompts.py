"""The prompts of a stage that samples: which ones stand in which generation batch, and how a row becomes one."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from torch.utils.data import Sampler

from drive_vlm.data.chat import to_messages
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.order import EpochOrder, FixedOrder
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.table import RowTable

# Arguments of a reward that are no columns of a row.
_RESERVED = {"prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra", "environments"}
_THREADS = 8


class PromptEncoder(Encoder):
    """Rows as prompts: their last answer is not measured and may be missing."""

    need_answer = False


class PromptBatches(Sampler[list[int]]):
    """Row numbers of this rank, a list for each micro-batch: every prompt `num_generations` times, a group next to each other.

    The prompts are one stream, epoch after epoch of `order`, cut into generation batches of `prompts` each. A pure function
    of (seed, number of rows, batch): any run, on any number of processes with the same generation batch, reads the same
    prompts in the same order, and one that is resumed goes on in the middle of the stream. No prompt is dropped or repeated
    where the rows do not divide: the batch that ends one pass over them begins the next.

    A trainer reads a generation batch once for each of its `reuse` micro-batches and samples at the first.
    """

    def __init__(
        self,
        order: EpochOrder | FixedOrder,
        prompts: int,
        num_generations: int,
        reuse: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order, self.prompts, self.num_generations, self.reuse = order, prompts, num_generations, reuse
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        # Generation batches an epoch.
        self.batches = -(-order.num_sequences // prompts)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.reuse

    def prompts_of(self, batch: int) -> list[int]:
        """Row numbers of the prompts of generation batch `batch`, counted from the beginning of the run."""
        places = range(batch * self.prompts, (batch + 1) * self.prompts)
        found = (divmod(place, self.order.num_sequences) for place in places)
        return [self._pass(number)[place][0] for number, place in found]

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one sampler lives as long as its run
    def _pass(self, number: int) -> list[tuple[int, ...]]:
        return self.order(number)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.epoch * self.batches, (self.epoch + 1) * self.batches):
            rows = [row for row in self.prompts_of(batch) for _ in range(self.num_generations)]
            share = len(rows) // self.world_size
            for _ in range(self.reuse):
                yield rows[self.rank * share : (self.rank + 1) * share]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A row as a stage that samples needs it.

    Attributes:
        id: the row's.
        messages: the prompt's turns, with placeholders for pictures; what a reward is given as its prompt.
        input_ids: the same as `generate` and SFT make of these turns, image tokens written out.
        vision: the family's vision tensors, or cached features; {} without pictures.
        columns: for the rewards: id, reference, video, image, files, mode, group and the row's own columns.
    """

    id: str
    messages: list[dict[str, Any]]
    input_ids: list[int]
    vision: dict[str, Any]
    columns: dict[str, Any]

    @property
    def features(self) -> dict[str, Any]:
        """`input_ids int64[T]` and vision tensors as Encoder.encode gives them, for sampling/local.left_padded."""
        return {"input_ids": np.array(self.input_ids), "vision": self.vision}

    @property
    def text(self) -> str:
        """The last user turn in words."""
        return "".join(part.get("text", "") for part in self.messages[-1]["content"])


class Prompts:
    """The rows of a table as prompts; pictures are decoded when a generation batch asks for them, each row once."""

    def __init__(self, table: RowTable, encoder: Encoder) -> None:
        self.table, self.encoder = table, encoder

    def load(self, rows: Sequence[int]) -> list[Prompt]:
        """Raises BadRow for a picture that cannot be decoded; the generations of a prompt share its tensors."""
        made = {row: self._load(row) for row in dict.fromkeys(rows)}
        return [made[row] for row in rows]

    def _load(self, row: int) -> Prompt:
        source = self.table.sources[self.table.source[row]]
        sample = self.table.sample(row, need_answer=False)
        features = self.encoder.encode(sample, source.max_tiles, prompt=True)
        return Prompt(
            id=sample.id,
            messages=to_messages(sample.prompt_turns()),
            input_ids=features["input_ids"].tolist(),
            vision=features["vision"],
            columns=columns_of(sample, source.root),
        )


def columns_of(sample: Sample, root: str) -> dict[str, Any]:
    """What rewards are given of a row. `video` and `image` are as the row gives them, `files` where they lie.

    Raises BadRow for a row's column that would hide an argument of the rewards.
    """
    hidden = sorted(_RESERVED & sample.columns.keys())
    if hidden:
        problem = f"the column {hidden[0]!r} has the name of an argument of every reward"
        raise BadRow("unsupported_column", sample.where, problem, "Rename it")
    images = [os.path.relpath(path, root) for path in sample.images]
    known = {
        "id": sample.id,
        "reference": sample.reference,
        "group": sample.group,
        "image": images[0] if len(images) == 1 else images or None,
        "video": os.path.relpath(sample.video, root) if sample.video else None,
        "files": [sample.video] if sample.video else list(sample.images),
    }
    return {"mode": None} | sample.columns | known


def same_keys(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns with every key in each of them, None where a row has none: a reward gets one list a column."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def without_undecodable(table: RowTable, encoder: Encoder, rank: int, world_size: int) -> RowTable:
    """The table without the rows whose pictures cannot be decoded, which join `bad`: every row is decoded once, before the
    training starts, since a group cannot lose its prompt half way. The ranks share the work and agree on the result."""

    def decode(row: int) -> BadRow | None:
        try:
            sample, source = table.sample(row, need_answer=False), table.sources[table.source[row]]
            columns_of(sample, source.root)
            encoder.load_vision(sample, source.max_tiles)
        except BadRow as error:
            return error
        return None

    mine = range(rank, len(table), world_size)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = {row: error for row, error in zip(mine, threads.map(decode, mine), strict=True) if error is not None}
    bad = {row: error for part in gather_object([found]) for row, error in part.items()}
    if len(bad) == len(table):
        raise ValueError(f"no row can be decoded; the first: {bad[min(bad)]}")
    kept = np.setdiff1d(np.arange(len(table)), list(bad))
    # A repeated row counts once.
    once = {error.where: error for _, error in sorted(bad.items())}
    return dataclasses.replace(
        table,
        source=table.source[kept],
        row=table.row[kept],
        length=table.length[kept],
        bad=[*table.bad, *once.values()],
    )
