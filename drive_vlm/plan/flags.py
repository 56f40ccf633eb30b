"""The flags of a planned stage: parsed without importing transformers, each value with its origin."""

import ast
import dataclasses
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import (
    CommandParser,
    DataConfig,
    ModelConfig,
    RunConfig,
    add_dataclass,
    field,
    from_namespace,
    nearest,
)
from drive_vlm.plan.architecture import load_architecture

if TYPE_CHECKING:
    from drive_vlm.plan.groups import Groups

# What _launch.sh exports: how many of the last words are the user's own, the rest being the recipe's.
USER_WORDS = "DRIVE_VLM_USER_WORDS"
PAIR_STAGES = ("dpo", "spin")
_CLASSES = {
    "sft": "transformers.TrainingArguments",
    "dpo": "trl.DPOConfig",
    "spin": "trl.DPOConfig",
    "grpo": "trl.GRPOConfig",
}
# Defaults of training_arguments() in stages/engine/run.py, which differ from transformers' own.
ENGINE_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "output_dir": "runs/sft",
    "save_strategy": "epoch",
    "logging_steps": 10,
}


@dataclasses.dataclass
class PlanConfig:
    """What only the plan knows."""

    world_size: int = field(1, help="processes of the run over all nodes")
    local_world_size: int | None = field(None, help="processes of one node (default: all, at most 8)")
    gpu_memory: str = field("80GB", help="memory of one GPU, such as 24GB; 1 GB is taken as 2^30 bytes")
    gpu: str | None = field(
        None, help="GPU whose peak FLOPS counts, such as H100 (default: the usual one of --gpu_memory)"
    )
    mfu: float = field(0.35, help="share of the peak FLOPS that the run is expected to reach")
    rows: int | None = field(None, help="training rows (default: counted in --data)")
    row_tokens: int | None = field(
        None, help="tokens of a typical row (default: from --data, else a picture and 256 tokens)"
    )
    json: bool = field(False, help="print the plan as JSON")


@dataclasses.dataclass(frozen=True)
class Flags:
    """The parsed flags, those of TrainingArguments, and {name: (value, origin)} of everything that was resolved.

    `sides` rows make a sequence: 2 for preference pairs. The `reference` of a pair is "cached" or "live", that of grpo "live"
    (None without one). `groups` are those of grpo.
    """

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    plan: PlanConfig
    training: dict[str, Any]
    resolved: dict[str, tuple[Any, str]]
    reference: str | None = None
    sides: int = 1
    groups: "Groups | None" = None


def parse(command: str, examples: str, words: Sequence[str], description: str) -> Flags:
    """Parse the words after `plan sft`. Exits with 2 and one line for what the stage itself would refuse."""
    from drive_vlm.stages import STAGES
    from drive_vlm.stages.engine.arguments import NOT_FOR_USERS, _yaml_words

    known = training_fields() | _own_fields(command)
    parser = CommandParser(prog=f"python -m drive_vlm plan {command}", description=description, examples=examples)
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="flags as `name: value` lines; flags on the command line win"
    )
    try:
        classes: tuple[Any, ...] = (ModelConfig, DataConfig, RunConfig, PlanConfig)
        classes += tuple(cls for cls in STAGES[command].config_classes(words) if cls not in classes)
        for cls in classes:
            add_dataclass(parser, cls)
        for (
            action
        ) in parser._actions:  # a model's sizes can be planned before there are rows, rewards and what these need
            if action.required and action.dest != "model":
                action.required, action.default = False, []
        from_file = _yaml_words(parser, words, _CLASSES[command])
        namespace, rest = parser.parse_known_args([*from_file, *words])
        given = _training_flags(rest, known, NOT_FOR_USERS, {action.dest for action in parser._actions})
        model, data, run, plan, *own = (from_namespace(cls, namespace) for cls in classes)
        given_model, model = model, trained_adapter(model)
        checked, reference, groups = _checked(command, model, data, run, plan, own, given)
    except ValueError as error:
        parser.error(str(error))
    training = known | ENGINE_DEFAULTS | checked
    values = training | {k: v for item in (model, data, run, plan, *own) for k, v in dataclasses.asdict(item).items()}
    origin = origins(from_file, words)
    adapter = {name: "adapter" for name, value in vars(model).items() if value != getattr(given_model, name)}
    resolved = {name: (value, (origin | adapter).get(name, "default")) for name, value in values.items()}
    return Flags(model, data, run, plan, training, resolved, reference, 1 + (command in PAIR_STAGES), groups)


def _checked(
    command: str,
    model: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    plan: PlanConfig,
    own: list[Any],
    given: dict[str, Any],
) -> tuple[dict[str, Any], str | None, "Groups | None"]:
    """(training flags with the stage's own defaults, reference, groups). Raises ValueError for what the stage refuses."""
    from drive_vlm.stages import STAGES
    from drive_vlm.stages.engine.stage import StageFlags

    stage = STAGES[command]
    training = StageFlags(command, (model, data, run, *own), given).checked(stage, plan.world_size).training
    if stage.kind == "pairs":
        return training, own[0].reference, None
    if stage.kind == "prompts":
        from drive_vlm.plan.groups import groups_of

        groups = groups_of(run, training_fields() | _own_fields(command) | ENGINE_DEFAULTS | training, plan.world_size)
        return training, "live" if training["beta"] else None, groups
    return training, None, None


def trained_adapter(model: ModelConfig) -> ModelConfig:
    """An adapter directory as the flags that would make its adapter anew; any other model as it is."""
    path = Path(model.model) / "adapter_config.json"
    if model.lora_rank or not path.is_file():
        return model
    made = json.loads(path.read_text())
    targets, copies = made["target_modules"], made.get("modules_to_save") or ()
    if not isinstance(targets, str):
        targets = rf".*\.({'|'.join(targets)})"
    parts = load_architecture(model.model).parts.items()
    still = [part for part, (first, *_) in parts if part != "language_model" and first.rsplit(".", 1)[-1] not in copies]
    freeze = [*model.freeze, *(part for part in still if part not in model.freeze)]
    return dataclasses.replace(
        model, freeze=freeze, lora_rank=made["r"], lora_alpha=made["lora_alpha"], lora_targets=targets
    )


def training_fields() -> dict[str, Any]:
    """{field: default} of transformers.TrainingArguments, read from its source: importing it would take seconds.

    A default that is no literal is None.
    """
    fields = _fields_of("transformers", "training_args.py", "TrainingArguments")
    return fields | {"optim": "adamw_torch_fused"}  # a constant in the source


def _own_fields(command: str) -> dict[str, Any]:
    """What the TRL configuration of a stage adds to them, and changes."""
    package, _, name = _CLASSES[command].partition(".")
    if package != "trl":
        return {}
    file = f"trainer/{name.removesuffix('Config').lower()}_config.py"
    return _fields_of("trl", "trainer/base_config.py", "_BaseConfig") | _fields_of("trl", file, name)


def _fields_of(package: str, file: str, name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{package} is not installed. Install the project: pip install -e .")
    tree = ast.parse((Path(spec.origin).parent / file).read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        item.target.id: _default(item.value)
        for item in body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _training_flags(words: list[str], known: dict[str, Any], refused: dict[str, str], ours: set[str]) -> dict[str, Any]:
    given: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = [value] if equals else []
            if name in refused:
                raise ValueError(f"--{name} is not taken. {refused[name]}")
            if name not in known:
                raise ValueError(f"unknown argument --{name}.{nearest(name, [*ours, *known])}")
        elif not name:
            raise ValueError(f"unexpected word {word!r}; flags begin with --")
        else:
            given[name].append(word)
    return {name: _value(values, known[name], name) for name, values in given.items()}


def _value(words: list[str], default: Any, name: str) -> Any:
    """The words of one flag as the kind of its default. Raises ValueError where a number is no number."""
    if not words:
        return True
    if len(words) > 1:
        return words
    (word,) = words
    if isinstance(default, bool) or word.lower() in ("true", "false"):
        return word.lower() in ("true", "1", "yes")
    try:
        number = float(word)
    except ValueError as error:
        if isinstance(default, (int, float)):
            raise ValueError(f"--{name} {word}: expected a number.") from error
        return word
    return int(number) if number.is_integer() and "." not in word and "e" not in word.lower() else number


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


def memory_bytes(text: str) -> int:
    """'24GB' as bytes, a GB being 2^30. Raises ValueError for anything else."""
    number = text.upper().removesuffix("IB").removesuffix("B").removesuffix("G")
    try:
        return int(float(number) * 2**30)
    except ValueError as error:
        raise ValueError(f"--gpu_memory {text}: give it as 24GB.") from error


def local_world_size(plan: PlanConfig) -> int:
    """Processes of a node. Raises ValueError when they do not divide the world."""
    local = plan.local_world_size or min(plan.world_size, 8)
    if plan.world_size < 1 or local < 1 or plan.world_size % local:
        raise ValueError(f"--world_size {plan.world_size} is no multiple of --local_world_size {local}.")
    return local
