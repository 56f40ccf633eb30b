"""The command line of a stage: its dataclasses, a YAML file next to flags, and every flag of TrainingArguments."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, nearest
from drive_vlm.launch.deepspeed import load_deepspeed_config
from drive_vlm.stages.engine.stage import Stage, StageFlags
from drive_vlm.stages.engine.training_flags import OWNED_ELSEWHERE, refusal

# Flags of TrainingArguments that take several words, though HfArgumentParser (transformers 5.23) reads one.
SEVERAL = ("report_to",)
# (parser of our own flags, name of the TrainingArguments class, words that the parser does not know) -> {flag: value}
ParseTraining = Callable[[CommandParser, str, list[str]], dict[str, Any]]


def parse_stage(
    name: str,
    stage: Stage,
    words: Sequence[str],
    *,
    prog: str | None = None,
    description: str | None = None,
    examples: str | None = None,
    more_configs: Sequence[type] = (),
    needed: Collection[str] | None = None,
    parse_training: ParseTraining | None = None,
) -> StageFlags:
    """Parse `words` into an instance of each of the stage's dataclasses, and the rest for its TrainingArguments class.

    That class is imported only when a flag needs it, so that `--help` is instant. The stage's own refusals come later, from
    `StageFlags.checked`. Exits with 2 and the nearest known name for a flag that neither side knows. Raises ValueError where
    the stage's `more_configs` does, and for a wrong memory layout.

    The plan parses with these as well: `prog`, `description` and `examples` of its own help, `more_configs` behind those of
    the stage, `needed`, the only flags that stay required, and `parse_training`, which reads the flags of
    TrainingArguments without importing transformers.
    """
    parse_training = parse_training or parse_training_flags
    parser = CommandParser(
        prog=prog or f"python -m drive_vlm {name}",
        description=(stage.description if description is None else description)
        + f"\n\nEvery flag of {stage.training_arguments} is accepted as well (--learning_rate, --num_train_epochs, --bf16 ...).",
        examples=stage.examples(name) if examples is None else examples,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="flags as `name: value` lines; flags on the command line win"
    )
    classes = [*stage.config_classes(words), *more_configs]
    for cls in classes:
        try:
            add_dataclass(parser, cls)
        except argparse.ArgumentError as error:
            raise ValueError(
                f"{cls.__module__}.{cls.__name__}: one of its flags is taken already ({error})."
            ) from error
    for action in parser._actions:
        if needed is not None and action.required and action.dest not in needed:
            action.required, action.default = False, []
    try:
        from_file = _yaml_words(parser, words, stage.training_arguments)
        namespace, rest = parser.parse_known_args([*from_file, *words])
    except ValueError as error:
        parser.error(str(error))
    # Before the training flags, which import torch, and long before the model is loaded.
    if getattr(namespace, "deepspeed", None):
        load_deepspeed_config(namespace.deepspeed, cpu=False)
    try:
        training = parse_training(parser, stage.training_arguments, rest) if rest else {}
        configs = tuple(from_namespace(cls, namespace) for cls in classes)
    except ValueError as error:
        parser.error(str(error))
    return StageFlags(name, configs, training, tuple(from_file))


def _yaml_words(parser: CommandParser, words: Sequence[str], training_class: str) -> list[str]:
    """The YAML file's content as flags, to stand before those of the command line."""
    path, values = yaml_values(words)
    known = {action.dest for action in parser._actions}
    training: set[str] | None = None
    flags: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            training = training or _training_fields(training_class)
            if name not in training:
                raise ValueError(f"{path}: unknown key {key!r}.{nearest(name, [*known, *training])}")
        if value is not None:
            flags += [f"--{name}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return flags


def yaml_values(words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The path after --config and what the file says; (None, {}) without one. Raises ValueError."""
    import yaml

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    path = early.parse_known_args(list(words))[0].config
    if path is None:
        return None, {}
    if not os.path.isfile(path):
        raise ValueError(f"--config {path}: no such file.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    # RecursionError: brackets nested thousands deep.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"--config {path}: not readable as YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `flag: value` lines, got {type(values).__name__}.")
    for key, value in values.items():
        if any(isinstance(one, (dict, list)) for one in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path}: {key}: expected a value or a list of values.")
    return path, values


def _training_class(path: str) -> Any:
    import importlib

    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _training_fields(path: str) -> set[str]:
    return {item.name for item in dataclasses.fields(_training_class(path)) if item.init}


def parse_training_flags(parser: CommandParser, training_class: str, words: list[str]) -> dict[str, Any]:
    """Flags of the TrainingArguments class as a dict of those that were given."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    fields = _training_fields(training_class)
    ours = {action.dest for action in parser._actions}
    for word in words:
        name = word[2:].split("=")[0]
        if word.startswith("--") and name in OWNED_ELSEWHERE:
            raise ValueError(refusal(name))
        if word.startswith("--") and name not in fields:
            raise ValueError(f"unknown argument --{name}.{nearest(name, [*ours, *fields])}")
    if not words[0].startswith("--"):
        raise ValueError(f"unexpected word {words[0]!r}; flags begin with --")
    given = {word[2:].split("=")[0] for word in words if word.startswith("--")}
    hf_parser = HfArgumentParser([_training_class(training_class)], allow_abbrev=False, exit_on_error=False)
    for action in hf_parser._actions:
        # Only the given flags are wanted. The dataclass itself is built later (training_arguments.py), with what the project fixes.
        action.required = False
        # HfArgumentParser (transformers 5.23) gives `bool` an optional word but not `bool | None`, such as TRL's --bf16.
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True
        if action.dest in SEVERAL:
            action.nargs = "+"
    try:
        namespace, left = hf_parser.parse_known_args([*words])
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if left:
        raise ValueError(f"unexpected words after the flags: {' '.join(left)}")
    return {name: getattr(namespace, name) for name in given}
