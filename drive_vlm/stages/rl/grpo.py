"""GRPO: groups of answers to a prompt, rewards for each, and a policy that moves towards the better ones of a group.

TRL's GRPOTrainer on DeepSpeed or DDP. The KL term (--beta) holds the policy to the one that the run began with: --model as
it is, with its adapter where it is one. Prompts are all turns of a row but the last answer, which becomes the reward's
column `reference`.
"""

from typing import TYPE_CHECKING, Any

from drive_vlm.config import RunConfig
from drive_vlm.launch.topology import accumulation_steps
from drive_vlm.stages.engine.stage import StageFlags
from drive_vlm.stages.rl.flag_checks import check_weights, refuse
from drive_vlm.stages.rl.generation import GenerationBatch
from drive_vlm.stages.rl.reward_flags import RewardFlags, rewards_of

if TYPE_CHECKING:
    import trl

    from drive_vlm.data.table import RowTable
    from drive_vlm.stages.rl.grpo_trainer import GRPOTrainer

EXAMPLES = """
python -m drive_vlm grpo --model runs/stage2 --data train.jsonl --rewards physics --physics_detections detections.jsonl --bf16
python -m drive_vlm grpo --model DIR --data train.jsonl --rewards my_reward.py:build --num_generations 8 --max_completion_length 128
python -m drive_vlm grpo --model runs/sft --data bddoia.jsonl --rewards clip action_reason structure --reward_weights 1 1 0.5 --clip_text justification
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

# What a resumed run must have as the run before had it, next to prompts, rewards and reference (Rollouts.facts).
SAME_WHEN_RESUMED = (
    "num_iterations",
    "beta",
    "reward_weights",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_completion_length",
    "loss_type",
    "scale_rewards",
)


def check_flags(flags: StageFlags, world_size: int) -> dict[str, Any]:
    """The flags for GRPOConfig with this project's defaults. Raises ValueError for flags that GRPO cannot obey, before
    anything is loaded, and as `generation_batch` does."""
    data, rewards, extra = flags.data, flags.of(RewardFlags).rewards, DEFAULTS | flags.training
    check_weights(extra.get("reward_weights"), rewards)
    refused = {
        "--packing": (data.packing, "prompts are padded to the left, not packed"),
        "--sync_ref_model": (
            extra.get("sync_ref_model"),
            "the reference stays what the run began with; start a new run from the newer policy",
        ),
        "--temperature 0": (extra.get("temperature", 1.0) <= 0, "the completions of a group must differ"),
        "--use_liger_kernel": (extra.get("use_liger_kernel"), "its fused loss does not take these models"),
    }
    refuse("grpo", flags, extra, refused)
    generation_batch(flags.run, extra, world_size)
    return extra


def generation_batch(run: RunConfig, extra: dict[str, Any], ranks: int) -> int:
    """Completions of a generation batch over all processes. Raises ValueError with all numbers when groups do not divide it."""
    micro = extra.get("per_device_train_batch_size", 8)
    accumulation = accumulation_steps(run.global_batch_size, micro, ranks)
    size, words = extra.get("generation_batch_size"), "--generation_batch_size"
    if size is None:
        steps = extra.get("steps_per_generation") or accumulation
        size, words = micro * ranks * steps, f"{micro} x {ranks} processes x {steps} micro-batches"
    elif size % (micro * ranks):
        raise ValueError(
            f"--generation_batch_size {size} is not a multiple of --per_device_train_batch_size {micro} x {ranks} processes = "
            f"{micro * ranks}. Change one of them."
        )
    count = extra.get("num_generations", 8)
    if size % count:
        near = [str(n) for n in (size // count * count, -(-size // count) * count) if n]
        raise ValueError(
            f"a generation batch of {size} completions ({words}) is not a multiple of --num_generations {count}. Make it "
            f"{' or '.join(near)} (--per_device_train_batch_size, --global_batch_size), or change --num_generations."
        )
    return size


def generation_of(flags: StageFlags, world_size: int) -> GenerationBatch:
    """The generation batch of all flags, defaults included. Raises ValueError as `generation_batch` does."""
    training = flags.training
    micro = int(training["per_device_train_batch_size"])
    size = generation_batch(flags.run, training, world_size)
    steps, iterations = size // (micro * world_size), int(training["num_iterations"])
    accumulation = accumulation_steps(flags.run.global_batch_size, micro, world_size)
    fresh = accumulation % (steps * iterations) == 0
    return GenerationBatch(
        prompts=size // int(training["num_generations"]),
        generations=int(training["num_generations"]),
        length=int(training["max_completion_length"]),
        rows=size // world_size,
        steps=steps,
        iterations=iterations,
        passes=(not fresh) + bool(training["beta"]),
        inside=accumulation > steps * iterations or not fresh,
        whole=bool(training["ds3_gather_for_generation"]),
        reference=bool(training["beta"]),
    )


def prepare(flags: StageFlags) -> tuple["GRPOTrainer", dict[str, Any]]:
    """The Trainer, ready to run, and what run.json says of it. Raises ValueError for what a user can fix."""
    import trl
    from datasets import Dataset
    from transformers import set_seed

    from drive_vlm.stages.engine.build import build_parts, show_parts
    from drive_vlm.stages.engine.training_arguments import training_arguments
    from drive_vlm.stages.rl.grpo_trainer import GRPOTrainer
    from drive_vlm.stages.rl.prompts import PromptEncoder
    from drive_vlm.stages.rl.rollouts import build_rollouts, build_scorers, check_prompts, reward_facts, run_facts
    from drive_vlm.store.fingerprint import model_fingerprint

    rewards = rewards_of(flags)
    args, resume = training_arguments(trl.GRPOConfig, flags)
    # Before the model: a new adapter begins with random weights.
    set_seed(args.seed)

    # Rewards before the model: a reward that cannot be built is known after a second, not after the weights are loaded.
    scorers = build_scorers(rewards)

    # Model and data
    parts = build_parts(flags, args, resume, PromptEncoder, own_batches=True)
    check_pictures(parts.tables["train"], args)
    check_prompts(parts, scorers, args)
    assert args.generation_batch_size and args.num_generations and args.steps_per_generation, "GRPOConfig fills them in"
    rollouts = build_rollouts(
        parts,
        args,
        scorers,
        args.generation_batch_size,
        args.num_generations,
        reuse=args.steps_per_generation * args.num_iterations,
        shuffle=bool(args.shuffle_dataset),
    )
    rollouts.facts |= reward_facts(rewards) | {name: getattr(args, name) for name in SAME_WHEN_RESUMED}
    if args.beta:
        rollouts.facts["reference"] = model_fingerprint(flags.model.model).get("weights", flags.model.model)

    # Training
    trainer = GRPOTrainer(
        parts,
        rollouts,
        model=parts.family.model,
        reward_funcs=list(scorers),
        args=args,
        train_dataset=Dataset.from_dict({"row": range(len(parts.tables["train"]))}),
        processing_class=parts.family.processor,
    )
    table = parts.tables["train"]
    show_parts(
        parts,
        args,
        f"rows: {len(table):,} used of {table.rows_read:,}; a generation batch is {rollouts.batches.prompts} prompts x "
        f"{args.num_generations} completions; rewards: {', '.join(scorer.__name__ for scorer in scorers)}",
    )
    return trainer, run_facts(parts, args, rollouts, rewards)


def check_pictures(table: "RowTable", args: "trl.GRPOConfig") -> None:
    """Raises ValueError for what vLLM would generate without its pictures."""
    if args.use_vllm and any(sample.images or sample.video for sample, _ in table.media()):
        raise ValueError(
            "--use_vllm takes rows without pictures only: TRL hands vLLM prompts whose image tokens it would expand a second time "
            "(huggingface/trl#6294). Leave --use_vllm out: completions are then generated in process."
        )
