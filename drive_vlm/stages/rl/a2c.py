"""A2C: a policy with a value head learns from its own answers, token by token, and stays near the policy it began with.

Each step samples a batch of completions, scores their beginnings (--reward_shape increments) or the whole texts (terminal),
and learns from them once: the tokens that did better than the value head expected become likelier. Several --rewards are added
up with --reward_weights. Prompts are all turns of a row but the last answer, which becomes the reward's column `reference`.
The model that is saved holds the value head; another a2c run goes on with it, generate and merge leave it out.
"""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from drive_vlm.launch.topology import accumulation_steps
from drive_vlm.stages.engine.stage import StageFlags
from drive_vlm.stages.rl.a2c_flags import A2CFlags
from drive_vlm.stages.rl.flag_checks import check_weights, refuse
from drive_vlm.stages.rl.generation import GenerationBatch
from drive_vlm.stages.rl.reward_flags import RewardFlags, rewards_of

if TYPE_CHECKING:
    from drive_vlm.stages.rl.a2c_trainer import A2CTrainer

EXAMPLES = """
python -m drive_vlm a2c --model runs/sft --data train.jsonl --rewards my_reward.py:build --global_batch_size 32 --bf16 --output_dir runs/a2c
python -m drive_vlm a2c --model runs/sft --data train.jsonl --rewards physics --physics_detections detections.jsonl --lora_rank 16 --gae_lambda 0.95
torchrun --nproc_per_node 8 -m drive_vlm a2c --config a2c.yaml --deepspeed zero3 --reward_weights 1 1 0.5 --resume auto
"""


# What a resumed run may change.
_FREE = ("value_learning_rate", "collapse_entropy")


def check_flags(flags: StageFlags, world_size: int) -> dict[str, Any]:
    """The flags for TrainingArguments with this stage's defaults. Raises ValueError for flags that it cannot obey, before anything
    is loaded."""
    own, data, extra = flags.of(A2CFlags), flags.data, flags.training
    check_weights(own.reward_weights, flags.of(RewardFlags).rewards)
    refused = {
        "--packing": (data.packing, "completions stand in rows of their own"),
        "--lora_dropout": (flags.model.lora_dropout, "the policy that learns must be the one that sampled"),
    }
    refuse("a2c", flags, extra, refused)
    adapted = flags.model.lora_rank or os.path.isfile(os.path.join(flags.model.model, "adapter_config.json"))
    defaults: dict[str, Any] = {"learning_rate": 1e-5 if adapted else 1e-6}
    if "lr_scheduler_type" not in extra:
        defaults |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
        defaults["warmup_steps"] = 0.03
    batch_size(flags, defaults | extra, world_size)
    return defaults | extra


def batch_size(flags: StageFlags, training: dict[str, Any], world_size: int) -> int:
    """Completions of a step, over all processes. Raises ValueError where the completions of a prompt do not divide it."""
    # Less than one is refused later, with the other flags of the Trainer.
    micro, count = max(1, int(training.get("per_device_train_batch_size", 8))), flags.of(A2CFlags).num_generations
    size = micro * world_size * accumulation_steps(flags.run.global_batch_size, micro, world_size)
    if size % count:
        raise ValueError(
            f"a step of {size} completions is not a multiple of --num_generations {count}. Change --global_batch_size or "
            "--num_generations."
        )
    return size


def generation_of(flags: StageFlags, world_size: int) -> GenerationBatch:
    """The generation batch of all flags, defaults included."""
    own, training = flags.of(A2CFlags), flags.training
    size = batch_size(flags, training, world_size)
    steps = size // world_size // int(training["per_device_train_batch_size"])
    return GenerationBatch(
        prompts=size // own.num_generations,
        generations=own.num_generations,
        length=own.max_completion_length,
        rows=size // world_size,
        steps=steps,
        iterations=1,
        # By the start, and for the values of all micro-batches before the first of them learns.
        passes=bool(own.kl_coef) + (steps > 1),
        inside=False,
        whole=True,
        # A new adapter is switched off for it.
        reference=bool(own.kl_coef) and not flags.model.lora_rank,
        value_head=own.value_hidden,
        chunked=True,
    )


def prepare(flags: StageFlags) -> tuple["A2CTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it. Raises ValueError for what a user can fix."""
    import functools

    from transformers import TrainingArguments, set_seed

    from drive_vlm.models.value_head import add_value_head
    from drive_vlm.stages.engine.build import build_parts, show_parts
    from drive_vlm.stages.engine.training_arguments import training_arguments
    from drive_vlm.stages.rl.a2c_trainer import A2CTrainer, rows_of
    from drive_vlm.stages.rl.completions import Earning
    from drive_vlm.stages.rl.prompts import PromptEncoder
    from drive_vlm.stages.rl.rollouts import build_rollouts, build_scorers, check_prompts, reward_facts, run_facts
    from drive_vlm.store.fingerprint import model_fingerprint

    own, rewards = flags.of(A2CFlags), rewards_of(flags)
    args, resume = training_arguments(TrainingArguments, flags)
    # Before the model: a new adapter begins with random weights.
    set_seed(args.seed)

    # Rewards before the model: a reward that cannot be built is known after a second, not after the weights are loaded.
    scorers = build_scorers(rewards)

    # Model and data
    extend = functools.partial(add_value_head, inner=own.value_hidden, seed=args.seed)
    parts = build_parts(flags, args, resume, PromptEncoder, own_batches=True, extend=extend)
    check_prompts(parts, scorers, args)
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rollouts = build_rollouts(parts, args, scorers, size, own.num_generations, reuse=args.gradient_accumulation_steps)
    settings = {name: value for name, value in dataclasses.asdict(own).items() if name not in _FREE}
    rollouts.facts |= reward_facts(rewards) | settings
    if own.kl_coef:
        rollouts.facts["reference"] = model_fingerprint(flags.model.model).get("weights", flags.model.model)

    # Training
    weights = own.reward_weights or [1.0] * len(scorers)
    trainer = A2CTrainer(
        parts,
        rollouts,
        own,
        Earning(weights, own.reward_shape, own.reward_every, own.gamma, own.missing_eos_penalty),
        model=parts.family.model,
        args=args,
        train_dataset=range(len(parts.tables["train"])),
        data_collator=rows_of,
        processing_class=parts.family.processor,
    )
    table = parts.tables["train"]
    show_parts(
        parts,
        args,
        f"rows: {len(table):,} used of {table.rows_read:,}; a step is {rollouts.batches.prompts} prompts x "
        f"{own.num_generations} completions; rewards: {', '.join(scorer.__name__ for scorer in scorers)}",
    )
    return trainer, run_facts(parts, args, rollouts, rewards, a2c=own)
