"""The flags of a planned stage, each value with its origin: the stage's own parser and `check`, without importing transformers."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import DataConfig, ModelConfig, RunConfig, field
from drive_vlm.models import family_spec
from drive_vlm.models.loading import model_type
from drive_vlm.models.lora import base_of
from drive_vlm.plan.training_fields import training_defaults, training_flags
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.engine.stage import load
from drive_vlm.stages.engine.training_arguments import TRAINING_DEFAULTS
from drive_vlm.stages.rl.generation import GenerationBatch
from drive_vlm.store.forms import part, read_object

# What _launch.sh exports: how many of the last words are the user's own, the rest being the recipe's.
USER_WORDS = "DRIVE_VLM_USER_WORDS"


@dataclasses.dataclass
class PlanConfig:
    """What only the plan knows."""

    world_size: int = field(1, help="processes of the run over all nodes")
    local_world_size: int | None = field(None, help="processes of one node (default: all, at most 8)", least=1)
    gpu_memory: str = field("80GB", help="memory of one GPU, such as 24GB; 1 GB is taken as 2^30 bytes")
    cpu_memory: str | None = field(
        None,
        help="memory of the machine that trains on its CPU, such as 32GB (default: this one's, as its container limits it)",
    )
    gpu: str | None = field(
        None, help="GPU whose peak FLOPS counts, such as H100 (default: the usual one of --gpu_memory)"
    )
    mfu: float = field(0.35, help="share of the peak FLOPS that the run is expected to reach", least=0.001, most=1)
    rows: int | None = field(None, help="training rows (default: counted in --data)", least=1)
    row_tokens: int | None = field(
        None, help="tokens of a typical row (default: from --data, else a picture and 256 tokens)", least=1
    )
    json: bool = field(False, help="print the plan as JSON")


@dataclasses.dataclass(frozen=True)
class PlanFlags:
    """The parsed flags, those of TrainingArguments, and {name: (value, origin)} of everything that was resolved.

    `sides` rows make a sequence: 2 for preference pairs. The `reference` of a pair is "cached" or "live", that of a stage
    that samples "live" (None without one). `groups` is the generation batch of such a stage.
    """

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    plan: PlanConfig
    training: dict[str, Any]
    resolved: dict[str, tuple[Any, str]]
    reference: str | None = None
    sides: int = 1
    groups: GenerationBatch | None = None


def parse(name: str, examples: str, words: Sequence[str], description: str) -> PlanFlags:
    """Parse the words after `plan sft`. Exits with 2 for words that no flag takes. Raises ValueError as the stage itself does."""
    stage = STAGES[name]
    given = parse_stage(
        name,
        stage,
        words,
        prog=f"python -m drive_vlm plan {name}",
        description=description,
        examples=examples,
        more_configs=(PlanConfig,),
        # A model's sizes can be planned before there are rows, rewards and what these need.
        needed=("model",),
        parse_training=training_flags,
    )
    plan = given.of(PlanConfig)
    flags = given.checked(stage, plan.world_size)
    training = {**training_defaults(stage.training_arguments), **TRAINING_DEFAULTS, **flags.training}
    model = trained_adapter(flags.model)
    configs = [model if config is flags.model else config for config in flags.configs]
    origin = origins(given.from_file, words)
    adapter = {key: "adapter" for key, value in vars(model).items() if value != getattr(flags.model, key)}
    values = training | {key: value for config in configs for key, value in dataclasses.asdict(config).items()}
    resolved = {key: (value, (origin | adapter).get(key, "default")) for key, value in values.items()}
    groups, reference = None, values.get("reference") if stage.kind == "pairs" else None
    if stage.generation:
        groups = load(stage.generation)(dataclasses.replace(flags, training=training), plan.world_size)
        reference = "live" if groups.reference else None
    return PlanFlags(
        model, flags.data, flags.run, plan, training, resolved, reference, 1 + (stage.kind == "pairs"), groups
    )


def trained_adapter(model: ModelConfig) -> ModelConfig:
    """If --model is a LoRA directory, return the ModelConfig that would recreate it; otherwise return it unchanged."""
    path = Path(model.model) / "adapter_config.json"
    if model.lora_rank or not path.is_file():
        return model
    made = read_object(path)
    copies = part({"modules_to_save": None} | made, "modules_to_save", list[str] | None, path) or ()
    targets = made.get("target_modules")
    if not isinstance(targets, str):
        targets = part(made, "target_modules", list[str], path)
        targets = rf".*\.({'|'.join(targets)})"
    parts = family_spec(model_type(base_of(path.parent))).parts.items()
    still = [part for part, (first, *_) in parts if part != "language_model" and first.rsplit(".", 1)[-1] not in copies]
    freeze = [*model.freeze, *(part for part in still if part not in model.freeze)]
    return dataclasses.replace(
        model,
        freeze=freeze,
        lora_rank=part(made, "r", int, path),
        lora_alpha=part(made, "lora_alpha", int, path),
        lora_targets=targets,
        lora_embeddings="embed_tokens" in copies,
    )


def origins(from_file: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """{flag name: "file", "launcher", "recipe" or "flag"}; the last one given wins, as in argparse.

    Behind a recipe _launch.sh exports the number of the user's own words; without it all words are the user's.
    """
    count = os.environ.get(USER_WORDS)
    first = 0 if count is None else len(words) - int(count)
    found = {_name(word): "file" for word in from_file if word.startswith("--")}
    for i, word in enumerate(words):
        if word.startswith("--"):
            launcher = count is not None and _name(word) in ("world_size", "local_world_size")
            found[_name(word)] = "flag" if i >= first else "launcher" if launcher else "recipe"
    return found


def _name(word: str) -> str:
    return word[2:].split("=")[0].replace("-", "_")


def memory_bytes(text: str, flag: str = "--gpu_memory") -> int:
    """'24GB' as bytes, a GB being 2^30. Raises ValueError for anything else."""
    number = text.upper().removesuffix("IB").removesuffix("B").removesuffix("G")
    try:
        size = int(float(number) * 2**30)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{flag} {text}: give it as 24GB.") from error
    if size <= 0:
        raise ValueError(f"{flag} {text}: give it as 24GB.")
    return size


def local_world_size(plan: PlanConfig) -> int:
    """Processes of a node. Raises ValueError when they do not divide the world."""
    local = plan.local_world_size or min(plan.world_size, 8)
    if plan.world_size < 1 or local < 1 or plan.world_size % local:
        raise ValueError(f"--world_size {plan.world_size} is not a multiple of --local_world_size {local}.")
    return local
