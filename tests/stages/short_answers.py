"""The worked example of drive_vlm/stages/ADDING.md: supervised fine-tuning where the loss of answers that are short counts more."""

from typing import TYPE_CHECKING, Any

from drive_vlm.stages.engine.stage import StageFlags

if TYPE_CHECKING:
    from drive_vlm.stages.sft_trainer import SFTTrainer

EXAMPLES = """
python -m drive_vlm {stage} --model DIR --data train.jsonl --output_dir runs/{stage}
"""


def prepare(flags: StageFlags) -> tuple["SFTTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it."""
    import torch
    from transformers import TrainingArguments, set_seed

    from drive_vlm.data.collate import Collator, EncodedRows
    from drive_vlm.stages.engine.build import build_parts
    from drive_vlm.stages.engine.training_arguments import training_arguments
    from drive_vlm.stages.sft_trainer import SFTTrainer

    class ShortAnswersTrainer(SFTTrainer):
        """The mean loss of each micro-batch, larger for micro-batches with fewer answer tokens."""

        def compute_loss(
            self,
            model: torch.nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # labels int64[B, T]; IGNORE_INDEX is negative.
            return loss * (1 + 8 / (inputs["labels"] >= 0).sum().clamp(min=1))

    # First of all: under ZeRO-3 this decides how weights are loaded.
    args, resume = training_arguments(TrainingArguments, flags.run, flags.training)
    set_seed(args.seed)

    # Model and data
    parts = build_parts(flags, args, resume)

    # Training
    trainer = ShortAnswersTrainer(
        parts=parts,
        model=parts.family.model,
        args=args,
        train_dataset=EncodedRows(parts.tables["train"], parts.encoder),
        data_collator=Collator(parts.family.tokenizer.pad_token_id, parts.family.vision, flags.data.packing),
        processing_class=parts.family.processor,
    )
    return trainer, parts.facts(args)
