"""The worked example of drive_vlm/stages/ADDING.md: supervised fine-tuning where the tokens of short answers count more."""

from typing import TYPE_CHECKING, Any

from drive_vlm.stages.engine.stage import StageFlags

if TYPE_CHECKING:
    from drive_vlm.stages.sft_trainer import SFTTrainer

EXAMPLES = """
python -m drive_vlm {stage} --model DIR --data train.jsonl --output_dir runs/{stage}
"""


def check(flags: StageFlags, world_size: int) -> dict[str, Any]:
    """The flags for TrainingArguments. Raises ValueError for what the stage refuses."""
    if flags.data.packing:
        raise ValueError(
            "--packing has no place in short_answers: a row of a batch is taken for one answer. Leave it out."
        )
    return flags.training


def prepare(flags: StageFlags) -> tuple["SFTTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it."""
    import torch
    from transformers import TrainingArguments, set_seed

    from drive_vlm.config import IGNORE_INDEX
    from drive_vlm.data.collate import EncodedRows
    from drive_vlm.stages.engine.build import build_parts
    from drive_vlm.stages.engine.training_arguments import training_arguments
    from drive_vlm.stages.sft_trainer import SFTTrainer

    class ShortAnswersTrainer(SFTTrainer):
        """Loss per labelled token of the whole step; a token of an answer of n tokens weighs 1 + 8 / n."""

        def compute_loss(
            self,
            model: torch.nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> Any:
            # learned bool[B, T - 1]; log_probs float[N] of the N learned tokens, row after row.
            learned = inputs["labels"][:, 1:] != IGNORE_INDEX
            log_probs = model(**inputs, token_log_probs=True).log_probs
            weights = (1 + 8 / learned.sum(1, keepdim=True).clamp(min=1)).expand_as(learned)[learned]
            # By the tokens of the whole step, so that ranks and micro-batches do not matter; times the ranks, over which
            # DeepSpeed and DDP average gradients.
            return -(weights * log_probs).sum() / num_items_in_batch * self.args.world_size

    # First of all: under ZeRO-3 this decides how weights are loaded.
    args, resume = training_arguments(TrainingArguments, flags)
    # Before the model: a new adapter begins with random weights.
    set_seed(args.seed)

    # Model and data
    parts = build_parts(flags, args, resume)

    # Training
    trainer = ShortAnswersTrainer(
        parts=parts,
        model=parts.family.model,
        args=args,
        train_dataset=EncodedRows(parts.tables["train"], parts.encoder),
        eval_dataset=EncodedRows(parts.tables["eval"], parts.encoder) if "eval" in parts.tables else None,
        data_collator=parts.collator,
        processing_class=parts.family.processor,
    )
    return trainer, parts.facts(args)
