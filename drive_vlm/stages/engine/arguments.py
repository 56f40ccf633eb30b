"""The command line of a stage: its dataclasses, a YAML file beside flags, and every flag of TrainingArguments."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, nearest
from drive_vlm.launch.user_error import stop_on_user_error

_NOT_FOR_USERS = {
    "gradient_accumulation_steps": "It follows from --global_batch_size, --per_device_train_batch_size and the number of processes.",
    "save_total_limit": "Use --keep.",
    "resume_from_checkpoint": "Use --resume.",
    "ignore_data_skip": "A resumed run always goes on where it stopped.",
    "save_only_model": "A checkpoint holds what a resume needs; the final model in --output_dir holds no optimizer.",
    "save_on_each_node": "Checkpoints are for all nodes: --output_dir must be a folder that all nodes see.",
    "push_to_hub": "Upload the finished --output_dir with `hf upload`.",
    "dataloader_drop_last": "No row is dropped: the last step of an epoch may be smaller.",
    "auto_find_batch_size": "The batch size is never changed silently.",
}


def parse_stage(
    command: str,
    description: str,
    examples: str,
    dataclasses_: Sequence[type],
    words: Sequence[str],
    training_class: str,
) -> tuple[list[Any], dict[str, Any]]:
    """Parse `words` into one instance of each dataclass, and the remaining flags for the TrainingArguments class.

    `training_class` ("transformers.TrainingArguments", "trl.DPOConfig") is imported only when a flag needs it, so that
    `--help` is instant. Exits with 2 and the nearest known name for a flag that neither side knows.
    """
    parser = CommandParser(
        prog=f"python -m drive_vlm {command}",
        description=f"{description}\n\nEvery flag of {training_class} is accepted as well (--learning_rate, --num_train_epochs, --bf16 ...).",
        examples=examples,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="flags as `name: value` lines; flags on the command line win"
    )
    for cls in dataclasses_:
        add_dataclass(parser, cls)
    try:
        words = [*_yaml_words(parser, words, training_class), *words]
        namespace, rest = parser.parse_known_args(words)
        if getattr(namespace, "deepspeed", None):
            _check_deepspeed(command, namespace.deepspeed)
        extra = _parse_training_flags(parser, training_class, rest) if rest else {}
        return [from_namespace(cls, namespace) for cls in dataclasses_], extra
    except ValueError as error:
        parser.error(str(error))


def _check_deepspeed(command: str, name: str) -> None:
    """A mistake in the memory layout is told before torch is imported, not after the model is loaded."""
    from drive_vlm.launch.deepspeed import load_deepspeed_config

    try:
        load_deepspeed_config(name, cpu=False)
    except ValueError as error:
        stop_on_user_error(command, error)


def _yaml_words(
    parser: CommandParser, words: Sequence[str], training_class: str = "transformers.TrainingArguments"
) -> list[str]:
    """The YAML file's content as flags, to stand before those of the command line."""
    path, values = yaml_values(words)
    known = {action.dest for action in parser._actions}
    training = None
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
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: no such file.")
    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `flag: value` lines, got {type(values).__name__}.")
    return path, values


def _training_class(path: str) -> Any:
    import importlib

    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _training_fields(path: str) -> set[str]:
    return {item.name for item in dataclasses.fields(_training_class(path)) if item.init}


def _parse_training_flags(parser: CommandParser, training_class: str, words: list[str]) -> dict[str, Any]:
    """Flags of the TrainingArguments class as a dict of those that were given."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    fields = _training_fields(training_class)
    ours = {action.dest for action in parser._actions}
    for word in words:
        name = word[2:].split("=")[0]
        if word.startswith("--") and name in _NOT_FOR_USERS:
            raise ValueError(f"--{name} is not taken. {_NOT_FOR_USERS[name]}")
        if word.startswith("--") and name not in fields:
            raise ValueError(f"unknown argument --{name}.{nearest(name, [*ours, *fields])}")
    if not words[0].startswith("--"):
        raise ValueError(f"unexpected word {words[0]!r}; flags begin with --")
    given = {word[2:].split("=")[0] for word in words if word.startswith("--")}
    hf_parser = HfArgumentParser([_training_class(training_class)], allow_abbrev=False)
    for action in hf_parser._actions:  # only what was given is wanted, without building the dataclass
        action.required = False
        if action.type is string_to_bool and action.nargs is None:  # `bool | None`, as TRL's --bf16
            action.nargs, action.const = "?", True
    namespace, left = hf_parser.parse_known_args([*words])
    if left:
        raise ValueError(f"unexpected words after the flags: {' '.join(left)}")
    return {name: getattr(namespace, name) for name in given}
