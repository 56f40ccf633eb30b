"""Where a run stands in its data, and whether a checkpoint was made on the same data in the same order."""

import dataclasses
import json
from pathlib import Path

from drive_vlm.data.order import EpochOrder, ShardedBatchSampler
from drive_vlm.store.forms import read_dataclass

_FILE = "data_cursor.json"


@dataclasses.dataclass(frozen=True)
class DataCursor:
    """Independent of how many ranks read the data: epoch, sequences and rows consumed in it, which are there for people.

    It only checks that the other fields are the same. What skips the rows already read is transformers' Trainer: it passes over as many batches of our sampler
    as `global_step` x accumulation, without decoding them (the sampler alone is asked).
    """

    epoch: int
    sequences: int
    rows: int
    num_sequences: int
    global_batch: int
    seed: int
    order_hash: str
    content_hash: str

    @staticmethod
    def at(step: int, sampler: ShardedBatchSampler, content_hash: str) -> "DataCursor":
        """The cursor after `step` optimizer steps."""
        order = sampler.order
        assert isinstance(order, EpochOrder), "training has epochs"
        epoch, step_in_epoch = divmod(step, sampler.steps)
        sequences = step_in_epoch * sampler.global_batch
        return DataCursor(
            epoch=epoch,
            sequences=sequences,
            rows=sum(map(len, order(epoch)[:sequences])) if sequences else 0,
            num_sequences=order.num_sequences,
            global_batch=sampler.global_batch,
            seed=order.seed,
            order_hash=order.digest(epoch),
            content_hash=content_hash,
        )

    def save(self, directory: Path) -> None:
        (directory / _FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(directory: Path) -> "DataCursor":
        """Raises ValueError, naming file and field, for a damaged one."""
        return read_dataclass(directory / _FILE, DataCursor, "Resume from another checkpoint.")

    def check(self, step: int, sampler: ShardedBatchSampler, content_hash: str) -> None:
        """Raises ValueError with both values when `sampler` would not go on where this cursor stands."""
        now = DataCursor.at(step, sampler, content_hash)
        for name in ("num_sequences", "global_batch", "seed", "order_hash", "content_hash"):
            if getattr(self, name) != getattr(now, name):
                raise ValueError(
                    f"The checkpoint of step {step} was saved with {name} {getattr(self, name)}, it is {getattr(now, name)} now. Resume with "
                    "the same data, --seed, --max_length and --global_batch_size, or start again in another --output_dir."
                )
