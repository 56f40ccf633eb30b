"""What every stage's Trainer shares: data cursor, ids of the running batch, bad rows, checkpoint hooks, throughput."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.order import ShardedBatchSampler
from drive_vlm.data.samples import BadRow
from drive_vlm.data.table import RowTable, save_audit
from drive_vlm.stages.throughput import Throughput

CURSOR = "data_cursor.json"


@dataclasses.dataclass(frozen=True)
class DataCursor:
    """Where a run stands in its data, independent of how many ranks read it: epoch and sequences consumed."""

    epoch: int
    sequences: int
    num_sequences: int
    global_batch: int
    seed: int
    order_hash: str

    def save(self, directory: str | Path) -> None:
        (Path(directory) / CURSOR).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(directory: str | Path) -> "DataCursor":
        return DataCursor(**json.loads((Path(directory) / CURSOR).read_text()))


class Loader(DataLoader):
    """A DataLoader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class DriveTrainerMixin:
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

    # data

    def get_train_dataloader(self) -> DataLoader:
        """Our own sharding: accelerate would repeat rows to make the last batch even."""
        if self.batch_sampler is None:
            return super().get_train_dataloader()  # type: ignore[misc]
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
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> Any:
        started = time.perf_counter()
        result = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self.throughput.waited += time.perf_counter() - started
        return result

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

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.take_ids(inputs)
        labels = inputs["labels"]
        tokens = inputs.pop("num_tokens")
        tiles = inputs["pixel_values"].shape[0] if inputs.get("pixel_values") is not None else 0
        step_flops = self.flops(tokens, int((labels != IGNORE_INDEX).sum()), tiles)
        self.throughput.add(len(self.sample_ids), tokens, step_flops)
        self._step_flops = step_flops
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """FLOPs of the micro-batch that was just trained, by our own count."""
        return self._step_flops

    # checkpoints

    def cursor(self) -> DataCursor | None:
        """Where the run stands now; None where the Trainer samples for itself."""
        sampler = self.batch_sampler
        if sampler is None:
            return None
        epoch, step = divmod(self.state.global_step, sampler.steps)
        return DataCursor(
            epoch=epoch,
            sequences=step * sampler.global_batch,
            num_sequences=sampler.order.num_sequences,
            global_batch=sampler.global_batch,
            seed=sampler.order.seed,
            order_hash=sampler.order.digest(epoch),
        )

    def check_cursor(self, checkpoint: str) -> None:
        """Refuse to resume on other data or another order: ValueError with both hashes."""
        if self.batch_sampler is None:
            return
        saved = DataCursor.load(checkpoint)
        order = self.batch_sampler.order
        now = dataclasses.replace(
            saved,
            num_sequences=order.num_sequences,
            global_batch=self.batch_sampler.global_batch,
            seed=order.seed,
            order_hash=order.digest(saved.epoch),
        )
        for name in ("num_sequences", "global_batch", "seed", "order_hash"):
            if getattr(saved, name) != getattr(now, name):
                raise ValueError(
                    f"{checkpoint}: the run was saved with {name} {getattr(saved, name)}, it is {getattr(now, name)} now. Resume with the same "
                    "data, --seed, --max_length and --global_batch_size, or start anew in another --output_dir."
                )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model  # type: ignore[attr-defined]
        if isinstance(model, PreTrainedModel):
            load_saved_weights(model, resume_from_checkpoint)
        else:  # peft: an adapter's names are the same on disk
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel) and not self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            load_saved_weights(self.model, self.state.best_model_checkpoint)  # type: ignore[attr-defined]
        else:
            super()._load_best_model()  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.save_data_state(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def save_data_state(self, directory: Path) -> None:
        """Cursor beside the checkpoint; data_audit.json of the run brought up to date from all ranks."""
        bad = self._gather(self.bad_rows)
        if not self.args.should_save:
            return
        cursor = self.cursor()
        if cursor is not None and directory.is_dir():
            cursor.save(directory)
        save_audit(Path(self.args.output_dir) / "data_audit.json", self.tables, bad)

    def _gather(self, rows: list[BadRow]) -> list[BadRow]:
        import torch.distributed as dist

        if not dist.is_initialized():
            return rows
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, rows)
        return [row for part in gathered for row in part]

    # logs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add throughput to the training logs; every log also becomes a line of metrics.jsonl."""
        if "loss" in logs:
            logs.update(self.throughput.report(self.args.device))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
        if self.args.should_save:
            with open(Path(self.args.output_dir) / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")


def load_saved_weights(model: PreTrainedModel, directory: str) -> None:
    """Load the weights of a save_pretrained directory into `model`.

    The Trainer's own loading compares names as they stand on disk. Those of InternVL and LLaVA differ from the module's:
    it would load not one tensor, warn, and go on from the weights the run began with. Raises ValueError for a missing tensor.
    """
    saved, info = type(model).from_pretrained(
        directory, config=model.config, dtype=model.dtype, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{directory}: {len(info['missing_keys'])} tensors are missing, such as {min(info['missing_keys'])}. Resume from another checkpoint."
        )
    model.load_state_dict(saved.state_dict())


class ProgressBar(ProgressCallback):
    """The Trainer's bar with the figures of the last log beside it, in place of a dict a line."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "eval_loss" in logs:
            self.training_bar.write(f"step {state.global_step}: evaluation loss {logs['eval_loss']:.4f}")
        if "loss" in logs:
            shown = {
                "loss": f"{logs['loss']:.4f}",
                "samples/s": f"{logs['samples_per_second']:.1f}",
                "tokens/s": f"{logs['tokens_per_second']:.0f}",
            }
            if "mfu" in logs:
                shown["MFU"] = f"{logs['mfu']:.1%}"
            self.training_bar.set_postfix(shown | {"data wait": f"{logs['data_wait_share']:.0%}"})


def use_progress_bar(trainer: Any) -> None:
    """Put our bar in the place of the Trainer's own; with --disable_tqdm its printer stays."""
    if not any(isinstance(callback, PrinterCallback) for callback in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressBar())


class StopOnNan(TrainerCallback):
    """Ends a run whose loss is no number any more, instead of training on noise."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and loss != loss:
            raise ValueError(
                f"The loss is NaN at step {state.global_step}. Lower --learning_rate, or look at the rows of this step."
            )
