"""Preference training on pairs of a chosen and a rejected answer: DPO, and SPIN, whose rejected answers are the model's own of
the round before. TRL's DPOTrainer on DeepSpeed or DDP, with pictures. Without --learning_rate dpo begins at TRL's 1e-6, spin at
5e-7, as its paper does."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import field, nearest
from drive_vlm.stages.engine.stage import StageFlags

if TYPE_CHECKING:
    from drive_vlm.data.caches.reference_cache import ReferenceCache
    from drive_vlm.stages.preference.trainer import PreferenceTrainer

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
    if data.feature_cache is not None and reference.reference_cache is not None:
        raise ValueError(
            "--reference_cache with --feature_cache: its log-probabilities were computed from the pictures. Leave --reference_cache "
            "out, and they are computed from the features at the start."
        )
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


def prepare(flags: StageFlags) -> tuple["PreferenceTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it. Raises ValueError for what a user can fix."""
    from transformers import set_seed
    from trl import DPOConfig

    from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator, PairEncoder
    from drive_vlm.models import load_family
    from drive_vlm.models.vision_features import detach_tower
    from drive_vlm.stages.engine.build import build_parts, show_parts
    from drive_vlm.stages.engine.training_arguments import model_dtype, training_arguments
    from drive_vlm.stages.preference.trainer import PreferenceTrainer

    model, run, compared = flags.model, flags.run, flags.of(ReferenceFlags)
    args, resume = training_arguments(DPOConfig, flags)
    # Before the model: a new adapter begins with random weights.
    set_seed(args.seed)

    # Model and data
    parts = build_parts(flags, args, resume, PairEncoder)
    family, tables, encoder = parts.family, parts.tables, parts.encoder
    second = None
    if compared.reference == "live" and not hasattr(family.model, "peft_config"):
        dtype = model_dtype(model, args)
        again = load_family(model, dtype, for_training=True, chunk_tokens=run.chunk_tokens)
        if parts.features is not None:
            detach_tower(again, parts.features.feature_shape, keep=False)
        second = again.model.requires_grad_(False)

    # Training
    trainer = PreferenceTrainer(
        parts,
        pairs=EncodedPairs(tables["train"], encoder),
        eval_pairs=EncodedPairs(tables["eval"], encoder) if "eval" in tables else None,
        collator=PairCollator(parts.collator),
        live=compared.reference == "live",
        model=family.model,
        ref_model=second,
        args=args,
        processing_class=family.processor,
    )
    reference = use_reference(trainer, compared)
    pairs = f"{len(tables['train']):,} used of {tables['train'].rows_read:,}"
    show_parts(parts, args, f"pairs: {pairs}; reference {compared.reference}")
    facts = parts.facts(args)
    facts["config"]["reference"] = compared
    return trainer, facts | {"reference": reference}


def use_reference(trainer: "PreferenceTrainer", flags: ReferenceFlags) -> dict[str, Any]:
    """Give the pairs their reference log-probabilities; return what run.json says of the reference.

    1. Open the cache, which refuses log-probabilities of another model, dtype or encoding.
    2. Look every pair up. What lacks is computed with the trainer's model as it stands before its first step, unless the
       cache was given or the run is resumed: then the model is no longer the reference.
    3. Hand the log-probabilities to the data sets.

    Raises ValueError when a resumed run would compare with another reference than it began with, and when a given cache
    does not hold every pair (with on_bad_row skip: every pair that can be read).
    """
    from drive_vlm.data.caches.reference_cache import ReferenceCache, keys_of, reference_settings
    from drive_vlm.stages.preference.reference import fill_in_process, missing, model_fingerprints

    parts, args = trainer.parts, trainer.args
    model, data = parts.flags.model, parts.flags.data
    kind = "bfloat16" if args.bf16 else str(trainer.model.dtype).removeprefix("torch.")
    settings = reference_settings(model_fingerprints(model.model), kind, parts.encoder)
    directory = Path(flags.reference_cache or trainer.out / "reference")
    if flags.reference_cache and not directory.is_dir():
        raise ValueError(
            f"--reference_cache {directory}: no such directory. Make it with `python -m drive_vlm reference`."
        )
    with args.main_process_first(local=False, desc="reference"):
        cache = ReferenceCache.start(directory, settings)
    facts = {"kind": flags.reference, "directory": str(directory), **settings}
    if flags.reference == "live":
        return facts
    keys = {name: keys_of(table, data.num_frames) for name, table in parts.tables.items()}
    lacking = sum(missing(cache.lookup(part)) for part in keys.values())
    if lacking and (flags.reference_cache or args.resume_from_checkpoint):
        files = " ".join([*data.data, *data.eval_data])
        if data.on_bad_row == "error" or not _all_bad(trainer, cache, keys):
            raise ValueError(
                f"{directory}: {lacking:,} of {sum(map(len, keys.values())):,} pairs are not in the reference cache. Add them: "
                f"python -m drive_vlm reference --model {model.model} --data {files} --out {directory} --dtype {kind}"
            )
    elif lacking:
        fill_in_process(trainer, cache, keys)
        lacking = sum(missing(cache.lookup(part)) for part in keys.values())
        if lacking and data.on_bad_row == "error":
            raise ValueError(
                f"{directory}: {lacking:,} pairs are not there after all ranks wrote theirs. Do all nodes see it?"
            )
    trainer.train_dataset.reference = cache.lookup(keys["train"])
    if trainer.eval_dataset is not None:
        trainer.eval_dataset.reference = cache.lookup(keys["eval"])
    return facts | {"pairs": len(cache)}


def _all_bad(trainer: "PreferenceTrainer", cache: "ReferenceCache", keys: dict[str, list[str]]) -> bool:
    """Whether none of the pairs that `cache` lacks can be read: those can never be added to it."""
    from drive_vlm.data.samples import BadRow

    pairs = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    lacking = ((name, i) for name, part in keys.items() for i, key in enumerate(part) if key not in cache.entries)
    return all(isinstance(pairs[name][(i,)][0], BadRow) for name, i in lacking)
