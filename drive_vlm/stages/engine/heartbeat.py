"""What the main thread of a rank does now, recorded for the watchdog: step, phase and rows."""

import itertools
from collections.abc import Callable
from copy import copy
from typing import NamedTuple

from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from drive_vlm.data.order import ShardedBatchSampler
from drive_vlm.data.table import RowTable

Ids = list[str] | Callable[[], list[str]]


class Beat(NamedTuple):
    """What the main thread does. `place` counts changes of phase, alike on all ranks: the lower one is behind."""

    place: int
    phase: str
    ids: Ids


class Heartbeat:
    """Written by the main thread in a microsecond, read by the watchdog's."""

    def __init__(self) -> None:
        self.now = Beat(0, "start-up", [])
        # Optimizer steps done.
        self.step = 0
        self.touches = 0
        # Whether a step has been done: from here the limit holds.
        self.warm = False

    def beat(self, phase: str, ids: Ids | None = None) -> None:
        """The main thread begins `phase`; without `ids` those of the phase before stay. Every rank must pass the same phases."""
        self.now = Beat(self.now.place + 1, phase, self.now.ids if ids is None else ids)

    def touch(self, ids: Ids | None = None) -> None:
        """A sign of life within a phase, which ranks may give unequally often (batches of an evaluation)."""
        self.touches += 1
        if ids is not None:
            self.now = self.now._replace(ids=ids)


class Heartbeats(TrainerCallback):
    """The phases that a Trainer reports to its callbacks; data, forward, backward, evaluation and save come from the trainer mixin."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.heartbeat.step = state.global_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.heartbeat.beat("optimizer")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.heartbeat.step, self.heartbeat.warm = state.global_step, True
        self.heartbeat.beat("communication")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.heartbeat.touch()


def rows_of_step(sampler: ShardedBatchSampler, table: RowTable, step: int) -> list[str]:
    """Ids of the rows that this rank reads for optimizer step `step` (from 0), as `sampler` deals them."""
    epoch, step = divmod(step, sampler.steps)
    sampler = copy(sampler)
    sampler.set_epoch(epoch)
    first = step * sampler.accumulation
    micro_batches = itertools.islice(sampler, first, first + sampler.accumulation)
    return [table.sample(i, need_answer=False).id for batch in micro_batches for sequence in batch for i in sequence]
