"""The Trainer of supervised fine-tuning."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.stages.engine.trainer import DriveTrainerMixin

if TYPE_CHECKING:
    from drive_vlm.stages.engine.build import RunParts


class SFTTrainer(DriveTrainerMixin, Trainer):
    """Loss per labelled token of the whole step, whatever the number of ranks, accumulation steps or rows in a pack.

    The loss itself is computed inside `model.forward`, which models/training_forward.py replaces: the head runs on labelled
    positions only, in chunks, and the sum is divided by `num_items_in_batch`, which counts all ranks. DDP and DeepSpeed
    average gradients over the ranks; Trainer.compute_loss (transformers 5.23, average_tokens_across_devices) makes up for it:
    it multiplies the loss by the number of processes.
    """

    def __init__(self, parts: "RunParts", **kwargs: Any) -> None:
        super().__init__(parts, **kwargs)
        # The Trainer looks for `**kwargs` in the model's own forward and would scale the loss itself where it finds none.
        self.model_accepts_loss_kwargs = True

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss per labelled token over all rows and ranks; the Trainer's own loop averages batches of unequal size."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in self.evaluation_batches(dataloader):
            labels = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.model_wrapped(**batch).loss
            totals += torch.stack([loss.double() * labels, labels.double()])
        if dist.is_initialized():
            dist.all_reduce(totals)
        loss_per_token = (totals[0] / totals[1].clamp(min=1)).item()
        return self.evaluation_output(dataloader, {f"{metric_key_prefix}_loss": loss_per_token})
