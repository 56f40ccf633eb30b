"""A stage that adds a module to the model: a head on the hidden states that learns how long the answer is (ADDING.md).

The head runs inside the model's forward, so that DDP, ZeRO-2 and ZeRO-3 meet it as they meet every other module.
"""

from typing import TYPE_CHECKING, Any

from drive_vlm.stages.engine.stage import StageFlags

if TYPE_CHECKING:
    from drive_vlm.models.family import Family
    from drive_vlm.stages.sft_trainer import SFTTrainer


def add_length_head(family: "Family") -> None:
    """Add `length_head`, a linear layer float[B, D] -> float[B, 1], and its squared error to the model's loss."""
    import torch

    from drive_vlm.config import IGNORE_INDEX

    model: Any = family.model
    model.length_head = torch.nn.Linear(model.get_input_embeddings().embedding_dim, 1)
    own_forward, hidden = model.forward, []
    # The hidden states float[B, T, D]: with labels the model returns the loss alone (training_forward.py).
    model.model.register_forward_hook(lambda body, args, output: hidden.append(output[0]))

    def forward(*args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        hidden.clear()
        output = own_forward(*args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
        if labels is not None:
            lengths = (labels != IGNORE_INDEX).sum(1)
            # Asked for at each call: peft puts a wrapper in its place.
            errors = model.length_head(hidden[-1].mean(1)).squeeze(1) - lengths.log1p()
            output.loss = output.loss + errors.square().sum() / (num_items_in_batch or lengths.sum())
        return output

    model.forward = forward


def prepare(flags: StageFlags) -> tuple["SFTTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it."""
    from transformers import TrainingArguments, set_seed

    from drive_vlm.data.collate import EncodedRows
    from drive_vlm.stages.engine.build import build_parts
    from drive_vlm.stages.engine.training_arguments import training_arguments
    from drive_vlm.stages.sft_trainer import SFTTrainer

    args, resume = training_arguments(TrainingArguments, flags)
    # Before the model: a new head begins with random weights.
    set_seed(args.seed)
    parts = build_parts(flags, args, resume, extend=add_length_head)
    trainer = SFTTrainer(
        parts=parts,
        model=parts.family.model,
        args=args,
        train_dataset=EncodedRows(parts.tables["train"], parts.encoder),
        eval_dataset=EncodedRows(parts.tables["eval"], parts.encoder) if "eval" in parts.tables else None,
        data_collator=parts.collator,
        processing_class=parts.family.processor,
    )
    return trainer, parts.facts(args)
