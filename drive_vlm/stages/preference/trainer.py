"""The Trainer of preference pairs: TRL's DPOTrainer with our rows, our exact means and our reference."""

from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator
from drive_vlm.models.host_copies import to_device
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.engine.trainer import DriveTrainerMixin
from drive_vlm.stages.engine.training_flags import PAIR_FIGURES
from drive_vlm.stages.preference.loss import Pairs, answer_log_probs, loss_sums, preference_loss


class PairTotals:
    """Sums over pairs since the last log, on the device; the ranks add theirs up when a log is due, not in every batch."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(PAIR_FIGURES) + 1, device=device)

    def add(self, pairs: Pairs, beta: float) -> None:
        with torch.no_grad():
            chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
            won = (chosen > rejected).float()
            rows = (chosen, rejected, chosen - rejected, won, pairs.chosen, pairs.rejected, torch.ones_like(won))
            self._sums += torch.stack([row.sum() for row in rows])

    def report(self) -> dict[str, float]:
        """Means over the pairs of all ranks; the sums begin again."""
        if dist.is_initialized():
            dist.all_reduce(self._sums)
        *sums, count = self._sums.tolist()
        self._sums.zero_()
        return {name: value / max(count, 1) for name, value in zip(PAIR_FIGURES, sums, strict=True)}


class PreferenceTrainer(DriveTrainerMixin, DPOTrainer):
    """Loss per pair of the whole step, whatever the number of ranks, accumulation steps or pairs in a pack.

    TRL prepares policy, reference and adapters. Batches, loss and figures are ours: TRL's are means of micro-batches that
    must be equally full on every rank. Without `live` the pairs carry the reference's log-probabilities.
    """

    # As it was given: transformers declares a union of other collators.
    data_collator: PairCollator
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        parts: RunParts,
        pairs: EncodedPairs,
        eval_pairs: EncodedPairs | None,
        collator: PairCollator,
        live: bool,
        **kwargs: Any,
    ) -> None:
        from datasets import Dataset

        model, adapted = parts.family.model, hasattr(parts.family.model, "peft_config")
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        # precompute_ref_log_probs keeps TRL from loading a second model. With adapters it loads none anyway, and the flag
        # would make it hash every weight.
        kwargs["args"].precompute_ref_log_probs = not live and not adapted
        # TRL takes only a datasets.Dataset; our pairs take its place below, before anything reads it.
        rows = Dataset.from_dict({"row": [0]})
        super().__init__(
            parts, train_dataset=rows, eval_dataset=rows if eval_pairs else None, data_collator=collator, **kwargs
        )
        self.train_dataset = pairs
        self.eval_dataset = eval_pairs
        self.precompute_ref_logps = not live
        assert live or self.ref_model is None, "a cached reference needs no second model"
        self.model_accepts_loss_kwargs = False
        self.totals = PairTotals(self.args.device)
        # TRL copies every adapter as "ref". A new one is as good switched off, and a cached reference needs neither.
        if "ref" in getattr(self.model, "peft_config", {}) and (not live or parts.flags.model.lora_rank):
            self.model.delete_adapter("ref")
        # peft turns on what was frozen whenever adapters come or go.
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trains)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        """Replaces DPOTrainer._prepare_dataset (trl 1.16), which would tokenize the rows: ours are encoded by the data path."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:
        """Replaces DPOTrainer._precompute_ref_logps (trl 1.16): the log-probabilities are in our cache (reference.py)."""
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """int64[2]: pairs and chosen tokens of the step, over all ranks, as `compute_loss` is given them."""
        super()._get_num_items_in_batch(batch_samples, device)
        tokens = torch.cat([batch["answer_tokens"][::2] for batch in batch_samples])
        counts = to_device(torch.tensor([len(tokens), int(tokens.sum())]), device)
        if dist.is_initialized():
            dist.all_reduce(counts)
        return counts

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        # DPOTrainer.compute_loss (trl 1.16) drops the counts before it calls _compute_loss.
        self._counts = num_items_in_batch
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> torch.Tensor:
        """Replaces DPOTrainer._compute_loss (trl 1.16): the loss of loss.py, exact over ranks and micro-batches."""
        pairs = self.pairs_of(model, inputs)
        self.totals.add(pairs, self.beta)
        sums = loss_sums(pairs, self.beta, self.loss_types, self.loss_weights)
        return preference_loss(sums, torch.as_tensor(self._counts, device=sums.device)) * self.accelerator.num_processes

    def pairs_of(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Pairs:
        """Log-probabilities of a batch of PairCollator under policy and reference."""
        inputs = dict(inputs)
        tokens, reference = inputs.pop("answer_tokens"), inputs.pop("reference", None)
        policy = answer_log_probs(model(**inputs, token_log_probs=True).log_probs, tokens)
        if not self.precompute_ref_logps:
            reference = self.reference_log_probs(inputs, tokens).view(-1, 2)
        elif reference is None:
            # A batch without a pair: the last step of an epoch may leave some ranks without one.
            reference = policy.new_zeros(0, 2)
        return Pairs(policy[::2], policy[1::2], reference[:, 0], reference[:, 1], tokens[::2], tokens[1::2])

    @torch.no_grad()
    def reference_log_probs(self, inputs: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
        """float[2 n], without dropout: by the second model; or by this one with its adapter off, or with its starting copy."""
        if self.ref_model is not None:
            return answer_log_probs(self.ref_model(**inputs, token_log_probs=True).log_probs, tokens)
        policy, training = self.accelerator.unwrap_model(self.model), self.model.training
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self.model.eval()
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            found = answer_log_probs(self.model(**inputs, token_log_probs=True).log_probs, tokens)
        # peft has turned on the whole of the adapter, what is frozen in it as well.
        policy.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_()
        self.model.train(training)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._metrics["train"].update({name: [value] for name, value in self.totals.report().items()})
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and figures per pair over all rows and ranks."""
        totals, sums = PairTotals(self.args.device), torch.zeros(2, device=self.args.device)
        counts = torch.zeros(2, dtype=torch.int64, device=self.args.device)
        for batch in self.evaluation_batches(dataloader):
            with torch.no_grad(), self.compute_loss_context_manager():
                pairs = self.pairs_of(self.model_wrapped, batch)
            totals.add(pairs, self.beta)
            sums += loss_sums(pairs, self.beta, self.loss_types, self.loss_weights)
            counts += torch.stack([torch.tensor(len(pairs.chosen), device=counts.device), pairs.chosen_tokens.sum()])
        if dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        figures = {"loss": preference_loss(sums, counts).item(), **totals.report()}
        return self.evaluation_output(
            dataloader, {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        )
