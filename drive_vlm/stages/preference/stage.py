"""Preference training on pairs of a chosen and a rejected answer: DPO, and SPIN, whose rejected answers are the model's own of
the round before. TRL's DPOTrainer on DeepSpeed or DDP, with pictures. Without --learning_rate dpo begins at TRL's 1e-6, spin at
5e-7, as its paper does."""

import dataclasses
from pathlib import Path
from typing import Any

from drive_vlm.config import DataConfig, ModelConfig, RunConfig, field, nearest
from drive_vlm.stages.engine.stage import StageFlags

EXAMPLES = """
python -m drive_vlm {stage} --model runs/sft --data pairs.jsonl --beta 0.1 --output_dir runs/{stage}
torchrun --nproc_per_node 8 -m drive_vlm {stage} --model runs/sft --data round1.jsonl round0.jsonl --deepspeed zero3 --bf16 --output_dir runs/{stage}
python -m drive_vlm {stage} --model runs/sft --data pairs.jsonl --lora_rank 64 --freeze vision_tower --loss_type sigmoid sft --loss_weights 1 0.1
python -m drive_vlm {stage} --model runs/sft --data pairs.jsonl --reference_cache reference --optim rmsprop
"""

# Flags of TRL's DPOConfig that would not do here what they do there.
_NOT_OFFERED = {
    "precompute_ref_log_probs": "Use --reference cached (the default) or live.",
    "precompute_ref_batch_size": "It is --per_device_train_batch_size, or --batch_size of `python -m drive_vlm reference`.",
    "truncation_mode": "A pair is never cut: one longer than --max_length is a bad row.",
    "padding_free": "Use --packing.",
    "pad_to_multiple_of": "Batches are padded to multiples of 8.",
    "pad_token": "It is the tokenizer's.",
    "model_init_kwargs": "Use --dtype and --attn_implementation.",
    "sync_ref_model": "The reference stays as it is for the whole run.",
    "ref_model_mixup_alpha": "The reference stays as it is for the whole run.",
    "ref_model_sync_steps": "The reference stays as it is for the whole run.",
    "dataset_num_proc": "Rows are read by --dataloader_num_workers processes.",
    "ld_alpha": "Log-probabilities are summed over the whole answer.",
    "f_divergence_type": "The loss is that of the reverse KL divergence.",
    "f_alpha_divergence_coef": "The loss is that of the reverse KL divergence.",
    "label_smoothing": "None of the losses that are offered has it.",
    "use_weighting": "Pairs count alike.",
    "discopop_tau": "--loss_type discopop is not offered.",
    "router_aux_loss_coef": "Mixtures of experts are not offered.",
    "use_liger_kernel": "The head's loss is computed in chunks already (--chunk_tokens).",
}
# Chen et al. 2024, appendix: what differs from DPOConfig's defaults in every round.
_SPIN = {"learning_rate": 5e-7}


@dataclasses.dataclass
class ReferenceFlags:
    """The frozen model that the policy is compared with: the one given by --model."""

    reference: str = field(
        "cached",
        help="cached: its log-probabilities are computed once, before training, and no second model is held; live: by a second "
        "model in every step (with LoRA by the same model, its adapter off)",
        choices=("cached", "live"),
    )
    reference_cache: str | None = field(
        None,
        help="directory made by `python -m drive_vlm reference` (default: computed at the start, into OUTPUT_DIR/reference)",
    )


def check_flags(flags: StageFlags, world_size: int) -> dict[str, Any]:
    """The flags for DPOConfig with this project's defaults. Raises ValueError for those that are not offered."""
    data, reference, extra = flags.data, flags.of(ReferenceFlags), flags.training
    for name in extra:
        if name in _NOT_OFFERED:
            raise ValueError(f"--{name} is not taken. {_NOT_OFFERED[name]}")
    if data.feature_cache is not None:
        raise ValueError("--feature_cache: preference training takes pictures. Leave it out.")
    if reference.reference == "live" and reference.reference_cache is not None:
        raise ValueError("--reference_cache with --reference live: the cache would not be used. Leave one of them out.")
    known = ("sigmoid", "sft") if flags.stage == "spin" else ("sigmoid", "hinge", "ipo", "bco_pair", "sft")
    kinds = extra.get("loss_type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"--loss_type {kind} is not offered (known: {', '.join(known)}).{nearest(kind, known)}")
    if kinds == ["sft"]:
        raise ValueError("--loss_type sft alone compares nothing: `python -m drive_vlm sft` trains on answers.")
    # TRL's own defaults are bf16 and checkpointing; here, as in every stage, both are asked for.
    defaults = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    return {**defaults, **(_SPIN if flags.stage == "spin" else {}), **extra}


def prepare(flags: StageFlags) -> tuple[Any, dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it."""
    from transformers import set_seed
    from trl import DPOConfig

    from drive_vlm.data.preference.pair_encoding import PairEncoder
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import count_parameters, parameter_table
    from drive_vlm.stages.engine.run import (
        check_attention,
        evaluation_defaults,
        model_dtype,
        training_arguments,
    )
    from drive_vlm.stages.rl.policy import load_policy
    from drive_vlm.stages.sft import measure_rows

    model, data, run, compared = flags.model, flags.data, flags.run, flags.of(ReferenceFlags)
    args = training_arguments(DPOConfig, run, evaluation_defaults(flags.training, bool(data.eval_data)))
    check_attention(model, args)
    set_seed(args.seed)
    family = load_policy(model, run, args)
    parameters = count_parameters(family.model, family.parts)
    tables, encoder = measure_rows(family, data, args, encoder_class=PairEncoder)
    second = None
    if compared.reference == "live" and not hasattr(family.model, "peft_config"):
        dtype = model_dtype(model, args)
        second = load_family(model, dtype, for_training=True, chunk_tokens=run.chunk_tokens).model.requires_grad_(False)
    trainer = build_trainer(family, tables, encoder, model, data, run, args, compared, second)
    reference = use_reference(trainer, model, data, compared, encoder)
    facts = {
        "stage": flags.stage,
        "config": {"model": model, "data": data, "run": run, "reference": compared, "training": args.to_dict()},
        "parameters": parameters,
        "data": {name: table.audit()["files"] for name, table in tables.items()},
        "reference": reference,
        "order_hash": trainer.batch_sampler.order.digest(0),
    }
    if args.should_save:
        print(parameter_table(parameters), flush=True)
        print(f"pairs: {len(tables['train']):,} used of {tables['train'].rows_read:,}; reference {compared.reference}")
    return trainer, facts


def build_trainer(
    family: Any,
    tables: dict[str, Any],
    encoder: Any,
    model: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    args: Any,
    flags: ReferenceFlags,
    second: Any,
) -> Any:
    """The Trainer with its share of the pairs; `second` is the reference model where one is held."""
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator
    from drive_vlm.stages.preference.trainer import PreferenceTrainer
    from drive_vlm.stages.sft import equip

    trains = {name for name, parameter in family.model.named_parameters() if parameter.requires_grad}
    flatten = data.packing and model.attn_implementation == "flash"
    trainer = PreferenceTrainer(
        EncodedPairs(tables["train"], encoder),
        EncodedPairs(tables["eval"], encoder) if "eval" in tables else None,
        PairCollator(Collator(family.tokenizer.pad_token_id, family.vision, data.packing, flatten)),
        live=flags.reference == "live",
        model=family.model,
        ref_model=second,
        args=args,
        processing_class=family.processor,
    )
    # TRL copies every adapter as "ref". A new one is as good switched off, and a cached reference needs neither.
    if "ref" in getattr(trainer.model, "peft_config", {}) and (flags.reference == "cached" or model.lora_rank):
        trainer.model.delete_adapter("ref")
    for (
        name,
        parameter,
    ) in trainer.model.named_parameters():  # peft turns on what was frozen whenever adapters come or go
        parameter.requires_grad_(name in trains)
    equip(trainer, family, tables, data, run)
    return trainer


def use_reference(trainer: Any, model: ModelConfig, data: DataConfig, flags: ReferenceFlags, encoder: Any) -> Any:
    """Give the pairs their reference log-probabilities; what run.json says of the reference.

    Raises ValueError when a resumed run would compare with another reference than it began with, and when a given cache
    does not hold every pair (with on_bad_row skip: every pair that can be read).
    """
    from drive_vlm.data.caches.reference_cache import ReferenceCache, keys_of, reference_settings
    from drive_vlm.stages.preference.reference import fill_in_process, missing, model_fingerprints

    args = trainer.args
    kind = "bfloat16" if args.bf16 else str(trainer.model.dtype).removeprefix("torch.")
    settings = reference_settings(model_fingerprints(model.model), kind, encoder)
    directory = Path(flags.reference_cache or Path(args.output_dir) / "reference")
    if flags.reference_cache and not directory.is_dir():
        raise ValueError(
            f"--reference_cache {directory}: no such directory. Make it with `python -m drive_vlm reference`."
        )
    with args.main_process_first(local=False, desc="reference"):
        cache = ReferenceCache.start(directory, settings)
    facts = {"kind": flags.reference, "directory": str(directory), **settings}
    if flags.reference == "live":
        return facts
    keys = {name: keys_of(table, data.num_frames) for name, table in trainer.tables.items()}
    lacking = sum(missing(cache.lookup(part)) for part in keys.values())
    if lacking and (flags.reference_cache or args.resume_from_checkpoint):
        files = " ".join([*data.data, *data.eval_data])
        if data.on_bad_row == "error" or not _all_bad(trainer, cache, keys):
            raise ValueError(
                f"{directory}: {lacking:,} of {sum(map(len, keys.values())):,} pairs are not in the reference cache. Add them: "
                f"python -m drive_vlm reference --model {model.model} --data {files} --out {directory} --dtype {kind}"
            )
    elif lacking:
        fill_in_process(trainer, cache, trainer.tables, keys)
        lacking = sum(missing(cache.lookup(part)) for part in keys.values())
        if lacking and data.on_bad_row == "error":
            raise ValueError(
                f"{directory}: {lacking:,} pairs are not there after all ranks wrote theirs. Do all nodes see it?"
            )
    trainer.train_dataset.reference = cache.lookup(keys["train"])
    if trainer.eval_dataset is not None:
        trainer.eval_dataset.reference = cache.lookup(keys["eval"])
    return facts | {"pairs": len(cache)}


def _all_bad(trainer: Any, cache: Any, keys: dict[str, list[str]]) -> bool:
    """Whether none of the pairs that `cache` lacks can be read: those can never be added to it."""
    from drive_vlm.data.samples import BadRow

    pairs = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    lacking = ((name, i) for name, part in keys.items() for i, key in enumerate(part) if key not in cache.entries)
    return all(isinstance(pairs[name][(i,)][0], BadRow) for name, i in lacking)
