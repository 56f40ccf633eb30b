"""The Trainer of supervised fine-tuning."""

from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.order import FixedOrder, ShardedBatchSampler
from drive_vlm.stages.engine.trainer import DriveTrainerMixin


class SFTTrainer(DriveTrainerMixin, Trainer):
    """Loss per labelled token of the whole step, whatever the number of ranks, accumulation steps or rows in a pack."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # our forward divides by num_items_in_batch (training_forward.py)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        dataset: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        sampler = ShardedBatchSampler(
            FixedOrder(len(dataset)),
            self.args.per_device_eval_batch_size,
            1,
            self.args.process_index,
            self.args.world_size,
        )
        return self._loader(dataset, sampler)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Loss per labelled token over all rows and ranks; the Trainer's own loop averages batches of unequal size."""
        model = self.model_wrapped
        model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            self.take_ids(batch)
            self.heartbeat.touch(self.sample_ids)
            batch.pop("num_tokens", None)
            batch = self._prepare_inputs(batch)
            labels = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = model(**batch).loss
            totals += torch.stack([loss.double() * labels, labels.double()])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.heartbeat.beat("evaluation")  # all batches done: whoever stands before this one is waited for
        if dist.is_initialized():
            dist.all_reduce(totals)
        metrics = {f"{metric_key_prefix}_loss": (totals[0] / totals[1].clamp(min=1)).item()}
        nothing: Any = None  # no predictions are gathered
        rows: Any = dataloader.dataset
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics, num_samples=len(rows))
