"""From flags to what a stage's trainer is made of: family, tables, encoder, sampler, throughput, FLOPs, as one RunParts.

The order is that in which things happen: model, data, training. Every stage's `prepare` calls

    args, resume = training_arguments(...)
    parts = build_parts(flags, args, resume)
    trainer = SomeTrainer(parts=parts, ...)

and sets nothing on the trainer afterwards. training_arguments comes first of all: under ZeRO-3 it decides how weights are
loaded.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drive_vlm.builders.same_pictures import leaks_of
from drive_vlm.config import DataConfig, ModelConfig, RunConfig
from drive_vlm.data.caches.feature_cache import FeatureCache
from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.order import EpochOrder, ShardedBatchSampler
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import RowTable, build_table
from drive_vlm.models import load_family, model_on_meta
from drive_vlm.models.family import Family
from drive_vlm.models.flops import TrainFlops, train_flops
from drive_vlm.models.freezing import count_parameters, freeze, parameter_table
from drive_vlm.models.loading import Extend
from drive_vlm.models.lora import apply_lora
from drive_vlm.sampling.features import open_features
from drive_vlm.stages.engine.held_out import HeldOut, open_held_out
from drive_vlm.stages.engine.stage import StageFlags
from drive_vlm.stages.engine.throughput import Throughput, device_peak_flops
from drive_vlm.stages.engine.training_arguments import Resume, model_dtype

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclasses.dataclass
class RunParts:
    """What a DriveTrainerMixin needs next to the Trainer's own arguments.

    Attributes:
        flags: the run's flags.
        family: the model that trains, frozen and adapted as the flags say, with its processor and picture side.
        parameters: {part: {"total", "trainable"}} of it, counted before any trainer adds copies.
        tables: {"train": rows of --data, "eval": rows of --eval_data where there are any}.
        held_out: the rows of --eval_generate, which are answered at each evaluation; None without.
        encoder: makes a row what the model sees.
        features: the cache of --feature_cache; None without.
        detached: weights of the tower that a feature cache replaces: saved, but not in the model.
        sampler: this rank's share of the training rows; None where the stage draws its own batches.
        resume: the checkpoint that the run goes on from; None for a new run.
        throughput: counts what is done a second.
        flops: (tokens, labels, tiles) -> FLOPs of a training step.
    """

    flags: StageFlags
    family: Family
    parameters: dict[str, dict[str, int]]
    tables: dict[str, RowTable]
    held_out: HeldOut | None
    encoder: Encoder
    features: FeatureCache | None
    detached: dict[str, torch.Tensor]
    sampler: ShardedBatchSampler | None
    resume: Resume | None
    throughput: Throughput
    flops: TrainFlops

    @property
    def collator(self) -> Collator:
        """Joins sequences as the sampler draws them, packed or not."""
        data, kernel = self.flags.data, self.flags.model.attn_implementation
        # Both take packed rows in a batch of one only.
        flatten = data.packing and kernel in ("sdpa", "flash")
        made = Collator(self.family.tokenizer.pad_token_id, self.family.vision, data.packing, flatten)
        if data.packing and kernel == "flex" and data.max_length:
            # flex is compiled, again for each width: all packs have one.
            made.pad_to_multiple_of = data.max_length
        return made

    @property
    def on_bad_row(self) -> str:
        """--on_bad_row: "error" or "skip"."""
        return self.flags.data.on_bad_row

    @property
    def audited(self) -> dict[str, RowTable]:
        """All tables of data_audit.json."""
        return self.tables | ({"eval_generate": self.held_out.table} if self.held_out else {})

    @property
    def keep(self) -> int:
        """Checkpoints to keep besides the best."""
        return self.flags.run.keep

    def facts(self, args: "TrainingArguments") -> dict[str, Any]:
        """What run.json says of every stage's run."""
        flags = self.flags
        found: dict[str, Any] = {
            "stage": flags.stage,
            "config": {
                "model": flags.model,
                "data": flags.data,
                "run": flags.run,
                "scores": flags.scores,
                "training": args.to_dict(),
            },
            "parameters": self.parameters,
            "data": {name: table.audit()["files"] for name, table in self.audited.items()},
        }
        if self.sampler is not None:
            assert isinstance(self.sampler.order, EpochOrder), "training has epochs"
            found["order_hash"] = self.sampler.order.digest(0)
        return found


def build_parts(
    flags: StageFlags,
    args: "TrainingArguments",
    resume: Resume | None,
    encoder_class: type[Encoder] = Encoder,
    own_batches: bool = False,
    extend: Extend | None = None,
) -> RunParts:
    """Load the model, read the data. `own_batches`: the stage draws batches of its own, so no sampler is made.

    `extend(family)` adds modules of the stage's own, such as a value head, to the top of the model. It is called before
    anything is frozen, adapted or counted; each module becomes a part by its name (--freeze, run.json, LoRA's
    modules_to_save), and finds its weights again in a resumed run, or where --model was saved by the stage.
    Raises ValueError for what a user can fix, BadRow with --on_bad_row error.
    """
    family = load_policy(flags.model, flags.run, args, extend)
    parameters = count_parameters(family.model, family.parts)
    # The tower leaves the model once it is settled what trains, and before the lengths are read, which follow the cache.
    features, detached = open_features(family, flags.model, flags.data, args)
    tables, encoder = build_tables(family, flags.data, args, features, encoder_class)
    return RunParts(
        flags=flags,
        family=family,
        parameters=parameters,
        tables=tables,
        held_out=open_held_out(flags, family, features, args, tables["train"]),
        encoder=encoder,
        features=features,
        detached=detached,
        sampler=None if own_batches else build_sampler(tables["train"], flags.data, args),
        resume=resume,
        throughput=Throughput(device_peak_flops(flags.run.peak_flops)),
        flops=train_flops(family),
    )


# model


def load_policy(model: ModelConfig, run: RunConfig, args: "TrainingArguments", extend: Extend | None = None) -> Family:
    """The family that trains: of --model, or of the checkpoint that is resumed. An adapter directory trains on from its adapter.

    Raises ValueError for an adapter with --lora_rank, and for freezing what an adapter is made of.
    """
    source = weights_to_load(model, args.resume_from_checkpoint)
    if extend is None:
        rehearse(source)
    family = load_family(
        source, model_dtype(model, args), for_training=True, chunk_tokens=run.chunk_tokens, extend=extend
    )
    if not hasattr(family.model, "peft_config"):
        freeze(family.model, family.parts, model.freeze)
        if model.lora_rank:
            family.model = apply_lora(family, model, model.freeze)
        return family
    if model.lora_rank:
        raise ValueError(
            f"--model {model.model} is an adapter and trains on as it is: leave --lora_rank out, or merge it first "
            "(python -m drive_vlm merge) to put a new adapter on the result."
        )
    if "language_model" in model.freeze:
        raise ValueError("--freeze language_model: the adapter of --model is all that trains there. Leave it out.")
    freeze(family.model.get_base_model(), family.parts, model.freeze)
    return family


def rehearse(model: ModelConfig) -> None:
    """Freeze and adapt the model without its weights: what --freeze or --lora_targets do not find is known in a second, not
    after the weights are loaded. Raises ValueError as load_policy does."""
    from transformers.integrations import deepspeed

    if not (model.freeze or model.lora_rank) or (Path(model.model) / "adapter_config.json").is_file():
        return
    # Under ZeRO-3 transformers would shard the model as it builds it (its reference is private; transformers 5.23).
    zero3, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        # The run's own random weights must not depend on it.
        with torch.random.fork_rng(devices=[]):
            empty = model_on_meta(model)
            freeze(empty.model, empty.parts, model.freeze)
            if model.lora_rank:
                apply_lora(empty, model, model.freeze)
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = zero3


def weights_to_load(model: ModelConfig, checkpoint: str | None) -> ModelConfig:
    """Where a run takes its weights from: a resumed one from its checkpoint, since DeepSpeed's shards hold what trains only and
    --model may hold other frozen weights by now. With adapters the base is not in the checkpoint: it stays --model."""
    if checkpoint is None or not (Path(checkpoint) / "config.json").is_file():
        return model
    return dataclasses.replace(model, model=checkpoint)


# data


def build_tables(
    family: Family,
    data: DataConfig,
    args: "TrainingArguments",
    features: FeatureCache | None = None,
    encoder_class: type[Encoder] = Encoder,
) -> tuple[dict[str, RowTable], Encoder]:
    """Read, check and measure the data files; return {"train": RowTable, "eval": RowTable} and the encoder.

    The first process of a node measures, the others read its cache.
    """
    from rich.progress import track

    encoder = encoder_class(
        family.tokenizer, family.template, family.vision, data.num_frames, data.max_length, features=features
    )

    def progress(blocks: Iterator[int], total: int) -> Iterator[int]:
        silent = not args.should_log or bool(args.disable_tqdm)
        return iter(track(blocks, "measuring rows", total, disable=silent, transient=True))

    tables = {}
    with args.main_process_first(local=True, desc="measuring rows"):
        for name, paths in (("train", data.data), ("eval", data.eval_data)):
            if paths:
                tables[name] = build_table(
                    open_sources(paths, data.image_root, data.links),
                    encoder,
                    data.on_bad_row,
                    data.max_length,
                    args.seed,
                    need_answer=encoder.need_answer,
                    progress=progress,
                )
                if features is not None and args.local_process_index == 0:
                    features.check(tables[name].media())
    if "eval" in tables and args.should_save:
        warn_of_leaks(tables)
    return tables, encoder


def warn_of_leaks(tables: dict[str, RowTable]) -> None:
    """A line where pictures of --eval_data are those of --data under other names: the evaluation would praise what was learned by heart."""
    if leaks := leaks_of(tables["train"], tables["eval"]):
        print(
            f"warning: {len(leaks):,} pictures of --eval_data are in --data under other names, e.g. {leaks[0]}. The evaluation says less "
            "about new pictures than it seems to. tools/check_data.py lists them.",
            file=sys.stderr,
            flush=True,
        )


def build_sampler(table: RowTable, data: DataConfig, args: "TrainingArguments") -> ShardedBatchSampler:
    """This rank's share of the training rows, in an order that is a function of the seed and the rows alone."""
    accumulation = args.gradient_accumulation_steps
    order = EpochOrder(
        table.length,
        args.data_seed if args.data_seed is not None else args.seed,
        data.max_length if data.packing else None,
        group_by_length=args.train_sampling_strategy == "group_by_length",
        global_batch=args.per_device_train_batch_size * accumulation * args.world_size,
    )
    return ShardedBatchSampler(
        order, args.per_device_train_batch_size, accumulation, args.process_index, args.world_size
    )


def show_parts(parts: RunParts, args: "TrainingArguments", line: str) -> None:
    """Print the table of parameters and a `line` of the stage on the main process."""
    if args.should_save:
        print(parameter_table(parts.parameters), flush=True)
        print(line, flush=True)
