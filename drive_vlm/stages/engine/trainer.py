"""What every stage's Trainer shares: its share of the data, ids of the running batch, bad rows, throughput, logs."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.order import FixedOrder, ShardedBatchSampler
from drive_vlm.data.samples import BadRow
from drive_vlm.data.table import save_audit
from drive_vlm.launch.checkpoint import cut_metrics, read_complete, set_aside_later
from drive_vlm.launch.stop import StopRequested
from drive_vlm.models.host_copies import to_device
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.engine.cursor import DataCursor
from drive_vlm.stages.engine.faults import StepLosses, spare_loader_worker
from drive_vlm.stages.engine.gradients import FirstGradients
from drive_vlm.stages.engine.heartbeat import Heartbeat, rows_of_step
from drive_vlm.stages.engine.progress import show_progress
from drive_vlm.stages.engine.saving import CheckpointMixin
from drive_vlm.stages.engine.scores import ScoreMixin, cut_answers
from drive_vlm.store.cache import finite, read_json
from drive_vlm.store.keyed_lines import append_line

_BAD_ROWS = "bad_rows.json"


class Loader(DataLoader):
    """A DataLoader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


def _read_bad_rows(path: Path) -> list[BadRow]:
    """The rows that failed before a checkpoint. Raises ValueError for a damaged file."""
    rows = read_json(path)
    whole = isinstance(rows, list) and all(isinstance(row, list) and len(row) == 4 for row in rows)
    if not whole or not all(isinstance(word, str) for row in rows for word in row):
        raise ValueError(f"{path}: not the bad rows of a run. Resume from another checkpoint.")
    return [BadRow(*words) for words in rows]


def num_tiles(vision: Mapping[str, Any]) -> int:
    """Tiles among the vision tensors of a row or a batch: the length of pixel_values, or of cached vision_features."""
    pictures = next((vision[name] for name in ("pixel_values", "vision_features") if name in vision), None)
    return 0 if pictures is None else len(pictures)


class DriveTrainerMixin(ScoreMixin, CheckpointMixin):
    """What every stage's Trainer does in our way; stands before a transformers or TRL Trainer in its bases.

    Built from RunParts (build.py) and the Trainer's own arguments; nothing is set on it afterwards. One optimizer step:

    1. `get_batch_samples` draws this rank's micro-batches from our sampler; the time it waits counts as waiting for data.
    2. `_get_num_items_in_batch` sums labelled tokens over all ranks: here a rank that has its batches waits for the others.
    3. `training_step` for each micro-batch: `begin_batch` takes what the model does not take (ids, bad rows, counts) from
       it, `compute_loss` runs the model's forward, which returns the loss, then follows the backward pass.
    4. The losses and ids of the step go to StepLosses; faults.StopOnRequest looks at them one step later, without waiting.
    5. `log` adds throughput and writes a line of metrics.jsonl; `_save_checkpoint` (saving.py) writes a checkpoint.

    The order of the bases matters: this class must stand before the Trainer, whose methods it calls through super().
    """

    sample_ids: list[str]
    # Any: each stage has its own kind of data set; transformers declares unions that none of them fits.
    train_dataset: Any
    eval_dataset: Any
    # Files of a line a step, "step" in each: what lies behind a resumed checkpoint is cut off.
    log_files: tuple[str, ...] = ("metrics.jsonl",)

    def __init__(self, parts: RunParts, **kwargs: Any) -> None:
        # Before the Trainer's own constructor: methods that it calls may ask for them.
        self.parts = parts
        self.heartbeat = Heartbeat()
        self.losses = StepLosses()
        self.bad_rows: list[BadRow] = []
        self.sample_ids = []
        self._step_flops = 0.0
        self._begun_at = 0
        self.scores = {}
        # The Trainer evaluates only where it has rows for it.
        scores_only = parts.held_out is not None and kwargs.get("eval_dataset") is None
        super().__init__(**kwargs | ({"eval_dataset": kwargs["train_dataset"]} if scores_only else {}))
        if scores_only:
            self.eval_dataset = None
        self._every_weight_learns = FirstGradients(self.model)
        show_progress(self)

    def _send_telemetry(self) -> None:
        """Disable TRL's usage telemetry (trl 1.16, _BaseTrainer), which reports every training to its makers."""

    # data

    def get_train_dataloader(self) -> DataLoader:
        """Our own sharding: accelerate would repeat rows to make the last batch even."""
        if self.parts.sampler is None:
            return super().get_train_dataloader()
        return self._loader(self.train_dataset, self.parts.sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All evaluation rows once, in the order of their file, dealt to the ranks."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        args = self.args
        sampler = ShardedBatchSampler(
            FixedOrder(len(dataset)), args.per_device_eval_batch_size, 1, args.process_index, args.world_size
        )
        return self._loader(dataset, sampler)

    def _loader(self, dataset: "Dataset", sampler: ShardedBatchSampler) -> DataLoader:
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

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        self.heartbeat.beat("data", self.ids_of_this_step)
        started = time.perf_counter()
        result = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.parts.throughput.waited += time.perf_counter() - started
        return result

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """Trainer._get_num_items_in_batch (transformers 5.23), without its copy to the device, which waits. Summed over all ranks:
        here a rank that has its batches waits for one that still reads."""
        if self.heartbeat.now.phase == "data":
            self.heartbeat.beat("communication")
        if not (batch_samples and "labels" in batch_samples[0] and self.model_accepts_loss_kwargs):
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batch_samples)
        # Filled on the device: a copy of the host's number would wait for it.
        items = torch.full((), count, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return items.float()

    def _prepare_input(self, data: Any) -> Any:
        """Trainer._prepare_input (transformers 5.23), whose copies wait for the device. What the host knows of a batch stays known
        (models/host_copies.py); DeepSpeed's dtype is made on the device."""
        if isinstance(data, Mapping):
            vision = self.parts.family.vision
            kept = vision.read_by_host if vision is not None else ()
            return type(data)({k: v if k in kept else self._prepare_input(v) for k, v in data.items()})  # type: ignore[call-arg]
        if not isinstance(data, torch.Tensor):
            return super()._prepare_input(data)
        return super()._prepare_input(to_device(data, self.args.device))

    def ids_of_this_step(self) -> list[str]:
        """Rows that this rank reads for the running step; [] where the Trainer samples for itself."""
        if self.parts.sampler is None:
            return []
        return rows_of_step(self.parts.sampler, self.parts.tables["train"], self.state.global_step)

    def take_ids(self, inputs: dict[str, Any]) -> None:
        """Move ids and bad rows from the batch to the trainer; with on_bad_row "error" the first bad row is raised."""
        self.sample_ids = inputs.pop("sample_ids")
        bad = inputs.pop("bad_rows", [])
        if bad and self.parts.on_bad_row == "error":
            raise bad[0]
        self.bad_rows.extend(bad)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        self.begin_batch(inputs)
        with self._every_weight_learns:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.add(loss, self.sample_ids)
        return loss

    def begin_batch(self, inputs: dict[str, Any]) -> None:
        """Take from a micro-batch what the model does not take, and count it.

        A batch without `sample_ids` is one whose rows are known later, such as GRPO's; its trainer calls `count_batch`
        itself. `num_tokens` (default: the size of input_ids) and `labels` (default: none) are used where they are there.
        """
        if "sample_ids" not in inputs:
            return
        self.take_ids(inputs)
        tokens = inputs.pop("num_tokens", None)
        labels = inputs.get("labels")
        self.count_batch(
            inputs["input_ids"].numel() if tokens is None else tokens,
            0 if labels is None else int((labels != IGNORE_INDEX).sum()),
            num_tiles(inputs),
        )

    def count_batch(self, tokens: int, labels: int, tiles: int) -> None:
        """The forward pass of the rows `sample_ids` begins: throughput, FLOPs, heartbeat."""
        self._step_flops = self.parts.flops(tokens, labels, tiles)
        self.parts.throughput.add(len(self.sample_ids), tokens, self._step_flops)
        self.heartbeat.beat("forward", self.sample_ids)

    def may_save(self) -> bool:
        """Whether a checkpoint written now holds all that a resumed run needs."""
        return True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            self.heartbeat.beat("backward")
        return loss

    # evaluation

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Trainer._maybe_log_save_evaluate (transformers 5.23), which evaluates before it saves: an evaluation that a request has
        ended (faults.StopOnRequest, on all ranks at the same batch) is left out, and the checkpoint is written at once."""
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except StopRequested as stop:
            if self.args.should_save:
                print(f"the evaluation of step {self.state.global_step} is left out: {stop.request.why}", flush=True)
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _run_epoch(self, model: torch.nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        """Trainer._run_epoch (transformers 5.23), which a request ends in the middle of a step where that may be left
        (StopOnRequest.after_generation): the rest of the epoch is left out, and the checkpoint of the step before is written."""
        try:
            super()._run_epoch(model, epoch, *args, **kwargs)
        except StopRequested as stop:
            if not self.control.should_training_stop:
                raise
            if self.args.should_save:
                print(f"step {self.state.global_step + 1} is left out: {stop.request.why}", flush=True)
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            started: Any = None
            self._maybe_log_save_evaluate(self._tr_loss, None, model, None, epoch, None, started)

    def evaluation_batches(self, dataloader: DataLoader) -> Iterator[dict[str, Any]]:
        """Each batch of this rank, on its device, with the model in evaluation mode; for a stage's `evaluation_loop`."""
        self.model_wrapped.eval()
        for batch in dataloader:
            self.take_ids(batch)
            # Ranks may have unequally many batches, so this is a sign of life within the phase and not a phase.
            self.heartbeat.touch(self.sample_ids)
            batch.pop("num_tokens", None)
            yield self._prepare_inputs(batch)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        # All batches are done; a rank that has not reached this beat is the one that the others wait for.
        self.heartbeat.beat("evaluation")

    def evaluation_output(self, dataloader: DataLoader, metrics: dict[str, float]) -> EvalLoopOutput:
        """What an `evaluation_loop` returns: metrics, and no predictions, which would be gathered on every rank."""
        rows: Any = dataloader.dataset
        nothing: Any = None
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics | self.scores, num_samples=len(rows))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of the micro-batch that was just trained, by our own count."""
        return int(self._step_flops)

    # what a checkpoint says of the data

    def cursor(self) -> DataCursor | None:
        """Where the run stands now; None where the stage draws its own batches."""
        if self.parts.sampler is None:
            return None
        return DataCursor.at(self.state.global_step, self.parts.sampler, self.parts.tables["train"].content_hash)

    def check_resume(self) -> None:
        """Before train(): refuse a checkpoint of other data, another order or other trained parameters (ValueError).

        Does nothing for a new run. A stage that keeps a state of its own checks and takes it over here as well.
        """
        if self.parts.resume is None:
            return
        checkpoint = self.parts.resume.checkpoint
        self.check_code(checkpoint)
        self.check_trained(checkpoint)
        if self.parts.sampler is not None:
            step = read_complete(checkpoint).step
            DataCursor.load(checkpoint).check(step, self.parts.sampler, self.parts.tables["train"].content_hash)
        if self.args.should_save:
            self.bad_rows[:] = _read_bad_rows(checkpoint / _BAD_ROWS)

    def steps_of_the_run(self) -> int:
        """The number of its last step, by --max_steps or --num_train_epochs."""
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def begin_files(self) -> None:
        """Before train(), after check_resume: set aside what comes after a checkpoint that --resume names, cut the logs behind it
        off (all of them in a new run), write the audit."""
        step = read_complete(self.parts.resume.checkpoint).step if self.parts.resume else -1
        self._begun_at = max(step, 0)
        if self.args.should_save:
            # A launcher that starts all ranks again gives the same words: what it finds then is of this very run.
            again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            if self.parts.resume and self.parts.flags.run.resume not in ("auto", None) and not again:
                set_aside_later(self.out, self.parts.resume.checkpoint, step)
            for name in self.log_files:
                cut_metrics(self.out / name, step)
            cut_answers(self.out, step)
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
            save_audit(self.out / "data_audit.json", self.parts.audited, bad)
        return bad

    # logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput to the training logs; every log also becomes a line of metrics.jsonl."""
        if "loss" in logs:
            logs.update(self.parts.throughput.report(self.args.device))
        if "train_loss" in logs:
            trained = self.state.global_step - self._begun_at
            if not trained:
                # A mean over no step is no loss.
                del logs["train_loss"]
            elif not hasattr(self, "_initial_global_step"):
                # transformers 5.17 divides the sum over this run's steps by the number of all, those before the checkpoint included.
                logs["train_loss"] *= self.state.global_step / trained
        super().log(logs, start_time)
        if self.args.should_save:
            append_line(self.out / "metrics.jsonl", finite({"step": self.state.global_step, **logs}))
