"""Supervised fine-tuning: next-token loss on the assistant's words, through a transformers Trainer on DeepSpeed or DDP."""

from typing import TYPE_CHECKING, Any

from drive_vlm.stages.engine.stage import StageFlags

if TYPE_CHECKING:
    from drive_vlm.stages.sft_trainer import SFTTrainer

EXAMPLES = """
python -m drive_vlm sft --model OpenGVLab/InternVL3-1B-hf --data train.jsonl --freeze vision_tower --bf16 --output_dir runs/sft
torchrun --nproc_per_node 2 -m drive_vlm sft --model DIR --data train.jsonl --deepspeed zero2 --packing --max_length 4096
python -m drive_vlm sft --config sft.yaml --learning_rate 2e-5
"""


def prepare(flags: StageFlags) -> tuple["SFTTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it. Raises ValueError for what a user can fix."""
    from transformers import TrainingArguments, set_seed

    from drive_vlm.data.collate import EncodedRows
    from drive_vlm.stages.engine.build import build_parts, show_parts
    from drive_vlm.stages.engine.training_arguments import training_arguments
    from drive_vlm.stages.sft_trainer import SFTTrainer

    # First of all: under ZeRO-3 this decides how weights are loaded.
    args, resume = training_arguments(TrainingArguments, flags)
    # Before the model: a new adapter and a new projector begin with random weights.
    set_seed(args.seed)

    # Model and data
    parts = build_parts(flags, args, resume)

    # Training
    family, tables, encoder = parts.family, parts.tables, parts.encoder
    trainer = SFTTrainer(
        parts=parts,
        model=family.model,
        args=args,
        train_dataset=EncodedRows(tables["train"], encoder),
        eval_dataset=EncodedRows(tables["eval"], encoder) if "eval" in tables else None,
        data_collator=parts.collator,
        processing_class=family.processor,
    )
    assert parts.sampler is not None, "build_parts makes one"
    rows = f"{len(tables['train']):,} used of {tables['train'].rows_read:,}"
    show_parts(parts, args, f"rows: {rows}; {parts.sampler.order.num_sequences:,} sequences an epoch")
    return trainer, parts.facts(args) | {"features": parts.features.facts() if parts.features else None}
