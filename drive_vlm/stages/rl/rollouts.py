"""What a stage of reinforcement learning has next to the RunParts of every stage: prompts, rewards, alarms, tower memo."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.config import plain
from drive_vlm.data.order import EpochOrder, FixedOrder
from drive_vlm.rewards import build_reward, reward_name
from drive_vlm.sampling.tower_memo import TowerMemo
from drive_vlm.sampling.vision import install_memo, vision_taker
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.rl.alarms import AlarmConfig, Alarms
from drive_vlm.stages.rl.prompts import PromptBatches, Prompts, without_undecodable
from drive_vlm.stages.rl.reward_rows import check_rows
from drive_vlm.stages.rl.samples_file import SampleConfig
from drive_vlm.stages.rl.scorers import Scorer
from drive_vlm.store.fingerprint import content_hash

if TYPE_CHECKING:
    from transformers import TrainingArguments

# (name, its own flags; None where it has none) of each reward of --rewards.
Rewards = Sequence[tuple[str, Any]]


@dataclasses.dataclass
class Rollouts:
    """Where completions come from and what they are worth.

    Attributes:
        prompts: the rows of --data as prompts, pictures decoded when they are asked for.
        batches: which prompts stand in which generation batch.
        scorers: the rewards, counted and checked.
        take_vision: vision tensors of rows -> those of a batch.
        without_pictures: what a forward pass gets in a batch without any picture.
        memo: runs a frozen tower once for each picture; None where it cannot.
        alarms: the ways in which a run fails while its loss looks fine.
        samples: how much of samples.jsonl is written.
        facts: what must be equal in a resumed run.
    """

    prompts: Prompts
    batches: PromptBatches
    scorers: Sequence[Scorer]
    take_vision: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    without_pictures: dict[str, Any]
    memo: TowerMemo | None
    alarms: Alarms
    samples: SampleConfig
    facts: dict[str, Any]


def check_prompts(parts: RunParts, scorers: Sequence[Scorer], args: "TrainingArguments") -> None:
    """Before the training starts: leave undecodable rows out (--on_bad_row skip) and ask the rewards about every row.

    Raises ValueError with file:line for rows that a reward cannot score.
    """
    rank, world_size = args.process_index, args.world_size
    # First what cannot be decoded goes, so that no reward is asked about it.
    if parts.on_bad_row == "skip":
        parts.tables["train"] = without_undecodable(parts.tables["train"], parts.encoder, rank, world_size)
    check_rows(parts.tables["train"], scorers, parts.flags.data.num_frames, parts.features, rank, world_size)


def build_scorers(rewards: Rewards) -> list[Scorer]:
    """The rewards, ready to be called. Raises ValueError for flags that a reward refuses."""
    return [Scorer(reward_name(name), build_reward(name, config)) for name, config in rewards]


def build_rollouts(
    parts: RunParts,
    args: "TrainingArguments",
    scorers: Sequence[Scorer],
    generation_batch: int,
    num_generations: int = 1,
    reuse: int = 1,
    shuffle: bool = True,
) -> Rollouts:
    """Rollouts of `generation_batch` completions over all processes, `num_generations` a prompt, each batch read `reuse`
    times. Call it after check_prompts, and before a trainer is built: a trainer that adds an adapter would have its copy of
    the tower memoised too."""
    flags, table = parts.flags, parts.tables["train"]
    seed = args.data_seed if args.data_seed is not None else args.seed
    order = EpochOrder(table.length, seed) if shuffle else FixedOrder(len(table))
    take_vision, without_pictures = vision_taker(parts.family, flags.data)
    return Rollouts(
        prompts=Prompts(table, parts.encoder),
        batches=PromptBatches(
            order, generation_batch // num_generations, num_generations, reuse, args.process_index, args.world_size
        ),
        scorers=scorers,
        take_vision=take_vision,
        without_pictures=without_pictures,
        memo=install_memo(parts.family, flags.data),
        alarms=Alarms(
            flags.of(AlarmConfig), args.should_save, [alarm for scorer in scorers for alarm in scorer.alarms]
        ),
        samples=flags.of(SampleConfig),
        facts={
            "rows": len(table),
            "content_hash": table.content_hash,
            "seed": seed,
            "shuffle_dataset": shuffle,
            "global_batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "generation_batch_size": generation_batch,
            "num_generations": num_generations,
            "num_frames": flags.data.num_frames,
        },
    )


def run_facts(
    parts: RunParts, args: "TrainingArguments", rollouts: Rollouts, rewards: Rewards, **own: object
) -> dict[str, Any]:
    """What run.json says of a run on rollouts. `own`: flags of the stage alone, under the names that they have there."""
    flags = parts.flags
    facts = parts.facts(args)
    facts["config"] |= own | {
        "sampling": flags.of(SampleConfig),
        "alarms": flags.of(AlarmConfig),
        "rewards": rewards,
        "extra": flags.training,
    }
    return facts | {"features": parts.features.facts() if parts.features else None, "order": rollouts.facts}


def reward_facts(rewards: Rewards) -> dict[str, Any]:
    """What a run is rewarded for, as a resumed run must have it. Files count by their content."""
    found: dict[str, Any] = {"rewards": [reward_name(name) for name, _ in rewards]}
    for _, config in rewards:
        values = plain(config) if config else {}
        may_change = getattr(config, "MAY_CHANGE", ())
        found |= {name: _by_content(value) for name, value in values.items() if name not in may_change}
    return found


def _by_content(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_content(item) for item in value]
    return content_hash(value) if isinstance(value, str) and os.path.isfile(value) else value
