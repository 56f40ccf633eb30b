"""Supervised fine-tuning: next-token loss on the assistant's words, through a transformers Trainer on DeepSpeed or DDP."""

from typing import Any

from drive_vlm.config import DataConfig, ModelConfig, RunConfig
from drive_vlm.stages.engine.stage import StageFlags

EXAMPLES = """
python -m drive_vlm sft --model OpenGVLab/InternVL3-1B-hf --data train.jsonl --freeze vision_tower --bf16 --output_dir runs/sft
torchrun --nproc_per_node 2 -m drive_vlm sft --model DIR --data train.jsonl --deepspeed zero2 --packing --max_length 4096
python -m drive_vlm sft --config sft.yaml --learning_rate 2e-5
"""


def prepare(flags: StageFlags) -> tuple[Any, dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it."""
    from transformers import TrainingArguments, set_seed

    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import count_parameters, freeze, parameter_table
    from drive_vlm.models.lora import apply_lora
    from drive_vlm.sampling.features import open_features
    from drive_vlm.stages.engine.run import (
        check_attention,
        evaluation_defaults,
        model_dtype,
        training_arguments,
        weights_to_load,
    )

    model, data, run = flags.model, flags.data, flags.run
    args = training_arguments(TrainingArguments, run, evaluation_defaults(flags.training, bool(data.eval_data)))
    check_attention(model, args)
    set_seed(args.seed)
    source = weights_to_load(model, args.resume_from_checkpoint)
    family = load_family(source, model_dtype(model, args), for_training=True, chunk_tokens=run.chunk_tokens)
    freeze(family.model, family.parts, model.freeze)
    if model.lora_rank:
        family.model = apply_lora(family, model, model.freeze)
    parameters = count_parameters(family.model, family.parts)
    features, tower = open_features(family, model, data, args)
    tables, encoder = measure_rows(family, data, args, features)
    trainer = build_trainer(family, tables, encoder, model, data, run, args)
    trainer.detached = tower
    facts = {
        "stage": "sft",
        "config": {"model": model, "data": data, "run": run, "training": args.to_dict()},
        "parameters": parameters,
        "data": {name: table.audit()["files"] for name, table in tables.items()},
        "features": features.facts() if features else None,
        "order_hash": trainer.batch_sampler.order.digest(0),
    }
    if args.should_save:
        print(parameter_table(parameters), flush=True)
        print(
            f"rows: {len(tables['train']):,} used of {tables['train'].rows_read:,}; {trainer.batch_sampler.order.num_sequences:,} sequences an epoch"
        )
    return trainer, facts


def measure_rows(
    family: Any, data: DataConfig, args: Any, features: Any = None, encoder_class: Any = None
) -> tuple[dict[str, Any], Any]:
    """Row tables of the training and evaluation data, and the encoder (Encoder, or `encoder_class`).

    The first process of a node measures, the others read its cache.
    """
    from rich.progress import track

    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table

    encoder = (encoder_class or Encoder)(
        family.tokenizer, family.template, family.vision, data.num_frames, data.max_length, features=features
    )

    def progress(blocks: Any, total: int) -> Any:
        return track(blocks, "measuring rows", total, disable=not args.should_log or args.disable_tqdm, transient=True)

    tables = {}
    with args.main_process_first(local=True, desc="measuring rows"):
        for name, paths in (("train", data.data), ("eval", data.eval_data)):
            if paths:
                sources = open_sources(paths, data.image_root)
                tables[name] = build_table(
                    sources,
                    encoder,
                    data.on_bad_row,
                    data.max_length,
                    args.seed,
                    need_answer=encoder.need_answer,
                    progress=progress,
                )
                if features is not None and args.local_process_index == 0:
                    features.check(tables[name].media())
    return tables, encoder


def build_trainer(
    family: Any, tables: dict[str, Any], encoder: Any, model: ModelConfig, data: DataConfig, run: RunConfig, args: Any
) -> Any:
    """The Trainer with its share of the rows."""
    from drive_vlm.data.collate import Collator, EncodedRows
    from drive_vlm.stages.sft_trainer import SFTTrainer

    trainer = SFTTrainer(
        model=family.model,
        args=args,
        train_dataset=EncodedRows(tables["train"], encoder),
        eval_dataset=EncodedRows(tables["eval"], encoder) if "eval" in tables else None,
        data_collator=Collator(
            family.tokenizer.pad_token_id,
            family.vision,
            data.packing,
            flatten=data.packing and model.attn_implementation == "flash",
        ),
        processing_class=family.processor,
    )
    equip(trainer, family, tables, data, run)
    return trainer


def equip(trainer: Any, family: Any, tables: dict[str, Any], data: DataConfig, run: RunConfig) -> None:
    """Give a Trainer of rows what the mixin asks of a stage (trainer.py), and its way of showing itself."""
    from drive_vlm.data.order import EpochOrder, ShardedBatchSampler
    from drive_vlm.models.flops import train_flops
    from drive_vlm.stages.engine.progress import show_progress
    from drive_vlm.stages.engine.throughput import Throughput, device_peak_flops

    args = trainer.args
    global_batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    order = EpochOrder(
        tables["train"].length,
        args.data_seed if args.data_seed is not None else args.seed,
        data.max_length if data.packing else None,
        group_by_length=args.train_sampling_strategy == "group_by_length",
        global_batch=global_batch,
    )
    trainer.batch_sampler = ShardedBatchSampler(
        order, args.per_device_train_batch_size, args.gradient_accumulation_steps, args.process_index, args.world_size
    )
    trainer.throughput = Throughput(device_peak_flops(run.peak_flops))
    trainer.flops = train_flops(family)
    trainer.tables, trainer.on_bad_row, trainer.keep = tables, data.on_bad_row, run.keep
    show_progress(trainer)
