"""Flags of the TrainingArguments classes from a shipped list of their fields, without importing transformers.

training_fields.json is the list of the versions that it names; with others installed the classes are asked, which takes the
seconds of importing torch. A library that is not installed (TRL is an extra) has no class to ask: the list is the best there is.
`python -m drive_vlm plan record` writes it again; tests/plan/test_flags.py compares it with the classes.
"""

import dataclasses
import functools
import importlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, nearest
from drive_vlm.stages.engine.arguments import SEVERAL
from drive_vlm.stages.engine.training_flags import OWNED_ELSEWHERE, refusal

FIELDS = Path(__file__).with_name("training_fields.json")


@functools.cache
def training_fields(training_class: str) -> dict[str, list[Any]]:
    """{field: [its kind, its default]} of a TrainingArguments class that a stage names."""
    shipped = json.loads(FIELDS.read_text())
    unasked = _installed(training_class.partition(".")[0]) is None
    if training_class in shipped and (
        unasked or all(_installed(library) in (known, None) for library, known in shipped["versions"].items())
    ):
        return shipped[training_class]
    return record_fields(training_class)


def _installed(library: str) -> str | None:
    """Its version; None where it is not installed, as TRL is not where only the core of the project is."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def training_defaults(training_class: str) -> dict[str, Any]:
    return {name: default for name, (_, default) in training_fields(training_class).items()}


def training_flags(parser: CommandParser, training_class: str, words: list[str]) -> dict[str, Any]:
    """What `parse_training_flags` of stages/engine/arguments.py gives, from the list of fields. Raises ValueError as it does."""
    fields, ours = training_fields(training_class), {action.dest for action in parser._actions}
    given: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = [value] if equals else []
            if name in OWNED_ELSEWHERE:
                raise ValueError(refusal(name))
            if name not in fields:
                raise ValueError(f"unknown argument --{name}.{nearest(name, [*ours, *fields])}")
        elif not name:
            raise ValueError(f"unexpected word {word!r}; flags begin with --")
        else:
            given[name].append(word)
    return {name: _value(values, fields[name][0], name) for name, values in given.items()}


def _value(words: list[str], kind: str, name: str) -> Any:
    """The words of one flag as its kind. Raises ValueError where a number is expected and none is given."""
    if kind.endswith("+"):
        return [_value([word], kind[:-1], name) for word in words]
    if not words and kind == "bool":
        return True
    if len(words) != 1:
        raise ValueError(f"--{name} {' '.join(words)}: expected one value.")
    (word,) = words
    if kind == "bool" and word.lower() in ("true", "false", "t", "f", "yes", "no", "y", "n", "1", "0"):
        return word.lower() in ("true", "t", "yes", "y", "1")
    if kind in ("int", "float"):
        try:
            return int(word) if kind == "int" else float(word)
        except ValueError as error:
            raise ValueError(f"--{name} {word}: expected a number.") from error
    return word


def record_fields(training_class: str) -> dict[str, list[Any]]:
    """{field: [kind, default]} of a TrainingArguments class, as HfArgumentParser reads its flags.

    The kind is bool, int, float or str, with a "+" behind it for a list. A default that is none of these is None.
    """
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    module, _, name = training_class.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    # Behind a flag that is on by default stands a --no_ of the same name; the flag itself comes first.
    actions = {action.dest: action for action in reversed(HfArgumentParser([cls])._actions)}
    fields: dict[str, list[Any]] = {}
    for item in dataclasses.fields(cls):
        if item.init:
            action = actions[item.name]
            kinds: dict[Any, str] = {string_to_bool: "bool", int: "int", float: "float"}
            default = getattr(action.default, "value", action.default)
            simple = isinstance(default, (bool, int, float, str))
            fields[item.name] = [
                kinds.get(action.type, "str") + "+" * (action.nargs == "+" or item.name in SEVERAL),
                default if simple else None,
            ]
    return fields
