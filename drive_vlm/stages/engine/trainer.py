"""What every stage's Trainer shares: its share of the data, ids of the running batch, bad rows, throughput, logs."""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.order import ShardedBatchSampler
from drive_vlm.data.samples import BadRow
from drive_vlm.data.table import RowTable, save_audit
from drive_vlm.launch.checkpoint import cut_metrics, read_complete
from drive_vlm.stages.engine.cursor import DataCursor
from drive_vlm.stages.engine.faults import StepLosses, spare_loader_worker
from drive_vlm.stages.engine.heartbeat import Heartbeat, rows_of_step
from drive_vlm.stages.engine.saving import CheckpointMixin
from drive_vlm.stages.engine.throughput import Throughput

_BAD_ROWS = "bad_rows.json"


class Loader(DataLoader):
    """A DataLoader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


class DriveTrainerMixin(CheckpointMixin):
    """Stands before a transformers Trainer in the bases of every stage.

    After construction a stage sets `batch_sampler` (this rank's share of the data; None where the Trainer samples for
    itself), `throughput`, `flops` (tokens, labels, tiles -> FLOPs), `tables` and `on_bad_row`.
    """

    batch_sampler: ShardedBatchSampler | None = None
    throughput: Throughput
    flops: Any
    tables: dict[str, RowTable]
    on_bad_row = "error"
    sample_ids: list[str]

    def _send_telemetry(self) -> None:
        """In place of TRL's, which tells its makers of each training: ours tells nobody."""

    @functools.cached_property
    def heartbeat(self) -> Heartbeat:
        """What this rank does now, for the watchdog."""
        return Heartbeat()

    @functools.cached_property
    def losses(self) -> StepLosses:
        """Losses and ids of the running step, for the stop at a loss that is no number."""
        return StepLosses()

    # data

    def get_train_dataloader(self) -> DataLoader:
        """Our own sharding: accelerate would repeat rows to make the last batch even."""
        if self.batch_sampler is None:
            return super().get_train_dataloader()
        return self._loader(self.train_dataset, self.batch_sampler)

    def _loader(self, dataset: Any, sampler: ShardedBatchSampler) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return Loader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=spare_loader_worker,
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> Any:
        self.heartbeat.beat("data", self.ids_of_this_step)
        started = time.perf_counter()
        result = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.throughput.waited += time.perf_counter() - started
        return result

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> Any:
        """Summed over all ranks: here a rank that has its batches waits for one that still reads."""
        if self.heartbeat.now.phase == "data":
            self.heartbeat.beat("communication")
        return super()._get_num_items_in_batch(batch_samples, device)

    def ids_of_this_step(self) -> list[str]:
        """Rows that this rank reads for the running step; [] where the Trainer samples for itself."""
        if self.batch_sampler is None:
            return []
        return rows_of_step(self.batch_sampler, self.tables["train"], self.state.global_step)

    def take_ids(self, inputs: dict[str, Any]) -> None:
        """Move ids and bad rows from the batch to the trainer; with on_bad_row "error" the first bad row is raised."""
        self.sample_ids = inputs.pop("sample_ids")
        bad = inputs.pop("bad_rows")
        if bad and self.on_bad_row == "error":
            raise bad[0]
        self.bad_rows.extend(bad)

    @property
    def bad_rows(self) -> list[BadRow]:
        """Rows of this rank that passed the header check but could not be decoded."""
        return self.__dict__.setdefault("_bad_rows", [])

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.begin_batch(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses.add(loss, self.sample_ids)
        return loss

    def begin_batch(self, inputs: Any) -> None:
        """Take ids, throughput and FLOPs of the micro-batch that is about to be trained."""
        self.take_ids(inputs)
        labels = inputs["labels"]
        tokens = inputs.pop("num_tokens")
        pictures = next((inputs[name] for name in ("pixel_values", "vision_features") if name in inputs), None)
        tiles = 0 if pictures is None else pictures.shape[0]
        step_flops = self.flops(tokens, int((labels != IGNORE_INDEX).sum()), tiles)
        self.throughput.add(len(self.sample_ids), tokens, step_flops)
        self._step_flops = step_flops
        self.heartbeat.beat("forward", self.sample_ids)

    def may_save(self) -> bool:
        """Whether a checkpoint written now holds all that a resumed run needs."""
        return True

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        if model.training:
            self.heartbeat.beat("backward")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.heartbeat.beat("evaluation")
        return super().evaluate(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of the micro-batch that was just trained, by our own count."""
        return int(self._step_flops)

    # what a checkpoint says of the data

    def cursor(self) -> DataCursor | None:
        """Where the run stands now; None where the Trainer samples for itself."""
        if self.batch_sampler is None:
            return None
        return DataCursor.at(self.state.global_step, self.batch_sampler, self.tables["train"].content_hash)

    def prepare_start(self) -> None:
        """Before train(): for a resumed run refuse other data, another order or other trained parameters (ValueError) and take
        over the counted bad rows; of metrics.jsonl only what lies before the checkpoint stays."""
        checkpoint = Path(self.args.resume_from_checkpoint) if self.args.resume_from_checkpoint else None
        step = -1
        if checkpoint:
            self.check_trained(checkpoint)
            step = read_complete(checkpoint).step
            if self.batch_sampler is not None:
                DataCursor.load(checkpoint).check(step, self.batch_sampler, self.tables["train"].content_hash)
            if self.args.should_save:
                self.bad_rows[:] = [BadRow(*words) for words in json.loads((checkpoint / _BAD_ROWS).read_text())]
        if self.args.should_save:
            cut_metrics(self.out / "metrics.jsonl", step)
        self.save_audit()

    def save_data_state(self, directory: Path) -> None:
        """Cursor and the rows that failed so far, into a checkpoint."""
        bad = self.save_audit()
        if not self.args.should_save:
            return
        cursor = self.cursor()
        if cursor is not None:
            cursor.save(directory)
        (directory / _BAD_ROWS).write_text(json.dumps([row.__reduce__()[1] for row in bad], indent=2) + "\n")

    def save_audit(self) -> list[BadRow]:
        """Bring data_audit.json up to date with the failed rows of all ranks, each row once; returns them."""
        gathered: list[Any] = [self.bad_rows]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, self.bad_rows)
        bad = list({row.where: row for part in gathered for row in part}.values())
        if self.args.should_save:
            save_audit(self.out / "data_audit.json", self.tables, bad)
        return bad

    # logs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add throughput to the training logs; every log also becomes a line of metrics.jsonl."""
        if "loss" in logs:
            logs.update(self.throughput.report(self.args.device))
        super().log(logs, *args, **kwargs)
        if self.args.should_save:
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")
