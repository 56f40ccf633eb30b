"""GRPO: groups of answers to a prompt, rewards for each, and a policy that moves towards the better ones of a group.

TRL's GRPOTrainer on DeepSpeed or DDP. The KL term (--beta) holds the policy to the one that the run began with: --model as
it is, with its adapter where it is one. Prompts are all turns of a row but the last answer, which becomes the reward's
column `reference`.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import DataConfig, RunConfig, field, plain
from drive_vlm.rewards import build_reward, chosen_rewards, config_class, reward_name
from drive_vlm.stages.engine.arguments import yaml_values
from drive_vlm.stages.engine.stage import StageFlags
from drive_vlm.stages.rl.alarms import AlarmConfig
from drive_vlm.stages.rl.samples_file import SampleConfig

EXAMPLES = """
python -m drive_vlm grpo --model runs/stage2 --data train.jsonl --rewards physics --physics_detections detections.jsonl --bf16
python -m drive_vlm grpo --model DIR --data train.jsonl --rewards my_reward.py:build --num_generations 8 --max_completion_length 128
torchrun --nproc_per_node 8 -m drive_vlm grpo --config grpo.yaml --deepspeed zero2 --global_batch_size 64 --resume auto
"""
# TRL's defaults that differ from those of the other stages, or from the paper's code (beta). With dropout the policy would be
# away from its own reference (KL) and from what it has sampled (ratio) before it has learned anything.
DEFAULTS = {
    "beta": 0.04,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_dropout": True,
}


@dataclasses.dataclass
class GRPOStageConfig:
    """What is rewarded. Weights: --reward_weights, a number for each (default: 1)."""

    rewards: list[str] = field(
        help="rewards by name (physics), or your own as FILE.py:builder or module:builder; each brings its own flags"
    )


def reward_configs(words: Sequence[str]) -> list[type]:
    """The dataclasses of the flags that the rewards of --rewards bring. Raises ValueError for a reward that is not there."""
    return [cls for cls in map(config_class, reward_names(words)) if cls is not None]


def reward_names(words: Sequence[str]) -> list[str]:
    """The rewards of --rewards, from the words or the --config file among them, before anything else is parsed."""
    named = yaml_values(words)[1].get("rewards", [])
    return chosen_rewards(words, default=named if isinstance(named, list) else [named])


def rewards_of(flags: StageFlags) -> list[tuple[str, Any]]:
    """(name, its own flags; None where it has none) of each reward."""
    classes = [(name, config_class(name)) for name in flags.of(GRPOStageConfig).rewards]
    return [(name, flags.of(cls) if cls else None) for name, cls in classes]


def check_flags(flags: StageFlags, world_size: int) -> dict[str, Any]:
    """The flags for GRPOConfig with this project's defaults. Raises ValueError for flags that GRPO cannot obey, before
    anything is loaded, and as `generation_batch` does."""
    data, rewards, extra = flags.data, flags.of(GRPOStageConfig).rewards, DEFAULTS | flags.training
    weights = extra.get("reward_weights")
    if weights is not None and len(weights) != len(rewards):
        names = " ".join(map(reward_name, rewards))
        raise ValueError(
            f"--reward_weights has {len(weights)} numbers, --rewards {len(rewards)} ({names}). Give one for each."
        )
    refused = {
        "--packing": (data.packing, "prompts are padded to the left, not packed"),
        "--eval_data": (data.eval_data, "score held-out rows with `generate` and the evaluation tools"),
        "--sync_ref_model": (
            extra.get("sync_ref_model"),
            "the reference stays what the run began with; start a new run from the newer policy",
        ),
        "--temperature 0": (extra.get("temperature", 1.0) <= 0, "the completions of a group must differ"),
        "--use_liger_kernel": (extra.get("use_liger_kernel"), "its fused loss does not take these models"),
        "--train_sampling_strategy": (
            extra.get("train_sampling_strategy", "random") != "random",
            "prompts come in a seeded random order",
        ),
    }
    for flag, (given, why) in refused.items():
        if given:
            raise ValueError(f"{flag} has no place in grpo: {why}. Leave it out.")
    generation_batch(flags.run, extra, world_size)
    return extra


def generation_batch(run: RunConfig, extra: dict[str, Any], ranks: int) -> int:
    """Completions of a generation batch over all processes. Raises ValueError with all numbers when groups do not divide it."""
    from drive_vlm.launch.topology import accumulation_steps

    micro = extra.get("per_device_train_batch_size", 8)
    accumulation = accumulation_steps(run.global_batch_size, micro, ranks)
    size, words = extra.get("generation_batch_size"), "--generation_batch_size"
    if size is None:
        steps = extra.get("steps_per_generation") or accumulation
        size, words = micro * ranks * steps, f"{micro} x {ranks} processes x {steps} micro-batches"
    elif size % (micro * ranks):
        raise ValueError(
            f"--generation_batch_size {size} is no multiple of --per_device_train_batch_size {micro} x {ranks} processes = "
            f"{micro * ranks}. Change one of them."
        )
    count = extra.get("num_generations", 8)
    if size % count:
        near = [str(n) for n in (size // count * count, -(-size // count) * count) if n]
        raise ValueError(
            f"a generation batch of {size} completions ({words}) is no multiple of --num_generations {count}. Make it "
            f"{' or '.join(near)} (--per_device_train_batch_size, --global_batch_size), or change --num_generations."
        )
    return size


def prepare(flags: StageFlags) -> tuple[Any, dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it."""
    import trl
    from transformers import set_seed

    from drive_vlm.models.freezing import count_parameters, parameter_table
    from drive_vlm.sampling.features import open_features
    from drive_vlm.stages.engine.run import check_attention, training_arguments
    from drive_vlm.stages.rl.alarms import Alarms
    from drive_vlm.stages.rl.policy import attach_reference, load_policy
    from drive_vlm.stages.rl.prompts import PromptEncoder, without_undecodable
    from drive_vlm.stages.rl.reward_rows import check_rows
    from drive_vlm.stages.rl.scorers import Scorer
    from drive_vlm.stages.sft import measure_rows

    model, data, run = flags.model, flags.data, flags.run
    sampling, alarms, rewards = flags.of(SampleConfig), flags.of(AlarmConfig), rewards_of(flags)
    args = training_arguments(trl.GRPOConfig, run, flags.training)
    check_attention(model, args)
    set_seed(args.seed)
    scorers = [Scorer(reward_name(name), build_reward(name, config)) for name, config in rewards]
    family = load_policy(model, run, args)
    parameters = count_parameters(family.model, family.parts)
    features, tower = open_features(family, model, data, args)
    tables, encoder = measure_rows(family, data, args, features, PromptEncoder)
    if data.on_bad_row == "skip":
        tables["train"] = without_undecodable(tables["train"], encoder, args.process_index, args.world_size)
    check_pictures(tables["train"], args)
    check_rows(tables["train"], scorers, data.num_frames, features, args.process_index, args.world_size)
    trainer = build_trainer(family, tables, encoder, scorers, data, run, args)
    trainer.facts |= objective(rewards, args)
    trainer.sampling, trainer.alarms = sampling, Alarms(alarms, speaks=args.should_save)
    trainer.detached = tower
    attach_reference(trainer, model, args, features)
    facts = {
        "stage": "grpo",
        "config": {
            "model": model,
            "data": data,
            "sampling": sampling,
            "alarms": alarms,
            "run": run,
            "rewards": rewards,
            "extra": flags.training,
            "training": args.to_dict(),
        },
        "parameters": parameters,
        "data": {name: table.audit()["files"] for name, table in tables.items()},
        "features": features.facts() if features else None,
        "order": trainer.facts,
    }
    if args.should_save:
        print(parameter_table(parameters), flush=True)
        print(
            f"rows: {len(tables['train']):,} used of {tables['train'].rows_read:,}; a generation batch is "
            f"{trainer.batches.prompts} prompts x {args.num_generations} completions; rewards: {', '.join(s.__name__ for s in scorers)}",
            flush=True,
        )
    return trainer, facts


def objective(rewards: Sequence[tuple[str, Any]], args: Any) -> dict[str, Any]:
    """What a run is rewarded for and how it samples: a resumed run goes on with the same. Files count by their content."""
    from drive_vlm.store.fingerprint import content_hash

    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [told(item) for item in value]
        return content_hash(value) if isinstance(value, str) and os.path.isfile(value) else value

    found: dict[str, Any] = {"rewards": [reward_name(name) for name, _ in rewards]}
    found["reward_weights"] = args.reward_weights
    for _, config in rewards:
        found |= {name: told(value) for name, value in (plain(config) if config else {}).items()}
    sampling = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")
    return found | {name: getattr(args, name) for name in (*sampling, "loss_type", "scale_rewards")}


def check_pictures(table: Any, args: Any) -> None:
    """Raises ValueError for what vLLM would generate without its pictures."""
    if args.use_vllm and any(sample.images or sample.video for sample, _ in table.media()):
        raise ValueError(
            "--use_vllm takes rows without pictures only: TRL hands vLLM prompts whose image tokens it would expand a second time "
            "(huggingface/trl#6294). Leave --use_vllm out: completions are then generated in process."
        )


def build_trainer(
    family: Any,
    tables: dict[str, Any],
    encoder: Any,
    scorers: list[Any],
    data: DataConfig,
    run: RunConfig,
    args: Any,
) -> Any:
    """The Trainer with its prompts, rewards and tower memo; `args.beta` is put back by policy.attach_reference."""
    from datasets import Dataset

    from drive_vlm.data.order import EpochOrder, FixedOrder
    from drive_vlm.models.flops import train_flops
    from drive_vlm.sampling.vision import install_memo, vision_taker
    from drive_vlm.stages.engine.progress import show_progress
    from drive_vlm.stages.engine.throughput import Throughput, device_peak_flops
    from drive_vlm.stages.rl.grpo_trainer import GRPOTrainer
    from drive_vlm.stages.rl.policy import without_own_reference
    from drive_vlm.stages.rl.prompts import PromptBatches, Prompts

    table = tables["train"]
    memo = install_memo(family, data)
    with without_own_reference(family.model, args):
        trainer = GRPOTrainer(
            model=family.model,
            reward_funcs=list(scorers),
            args=args,
            train_dataset=Dataset.from_dict({"row": range(len(table))}),
            processing_class=family.processor,
        )
    seed = args.data_seed if args.data_seed is not None else args.seed
    order = EpochOrder(table.length, seed) if args.shuffle_dataset else FixedOrder(len(table))
    trainer.batches = PromptBatches(
        order,
        args.generation_batch_size // args.num_generations,
        args.num_generations,
        args.steps_per_generation * args.num_iterations,
        args.process_index,
        args.world_size,
    )
    trainer.prompts, trainer.scorers, trainer.memo = Prompts(table, encoder), scorers, memo
    trainer.take_vision, trainer.without_pictures = vision_taker(family, data)
    trainer.throughput = Throughput(device_peak_flops(run.peak_flops))
    trainer.flops = train_flops(family)
    trainer.tables, trainer.on_bad_row, trainer.keep = tables, data.on_bad_row, run.keep
    trainer.facts = {
        "rows": len(table),
        "content_hash": table.content_hash,
        "seed": seed,
        "shuffle_dataset": args.shuffle_dataset,
        "global_batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "generation_batch_size": args.generation_batch_size,
        "num_generations": args.num_generations,
        "num_iterations": args.num_iterations,
        "num_frames": data.num_frames,
        "beta": args.beta,
    }
    show_progress(trainer)
    return trainer
