"""The shipped list of training flags against transformers' and TRL's classes, and the plan's reading of them against the run's."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import drive_vlm  # noqa: F401  before transformers: torchvision beside CPU torch
from drive_vlm.config import CommandParser
from drive_vlm.plan.training_fields import FIELDS, training_defaults, training_fields, training_flags
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_training_flags

ROOT = Path(__file__).parents[2]
CLASSES = sorted({stage.training_arguments for stage in STAGES.values()})


def oldest(installed: dict[str, str]) -> bool:
    """Whether these are the versions of constraints/oldest.txt, which no list is shipped for."""
    lines = (ROOT / "constraints" / "oldest.txt").read_text().splitlines()
    return {f"{name}=={found}" for name, found in installed.items()} <= set(lines)


@pytest.mark.parametrize("name", CLASSES)
def test_the_shipped_list_is_that_of_the_class(name: str) -> None:
    """Every field with its kind and default. Otherwise: python -m drive_vlm plan record."""
    import dataclasses
    import importlib

    from drive_vlm.plan.training_fields import record_fields

    shipped = json.loads(FIELDS.read_text())
    mine = {library: version(library) for library in shipped["versions"]}
    if oldest(mine):
        # With other versions the classes are asked (below): their own defaults are what is left to compare.
        assert training_fields(name) == record_fields(name)
    else:
        assert shipped["versions"] == mine
        assert shipped[name] == record_fields(name)
    module, _, cls = name.rpartition(".")
    fields = {
        item.name: item.default
        for item in dataclasses.fields(getattr(importlib.import_module(module), cls))
        if item.init
    }
    mine = training_defaults(name)
    assert set(mine) == set(fields)
    for field in ("num_train_epochs", "max_steps", "bf16", "gradient_checkpointing", "save_strategy", "optim"):
        value = fields[field] if not hasattr(fields[field], "value") else fields[field].value
        assert mine[field] == value or (mine[field] is None and not value), field


def test_other_versions_are_asked_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    training_fields.cache_clear()
    monkeypatch.setattr("drive_vlm.plan.training_fields.version", lambda library: "0")
    monkeypatch.setattr("drive_vlm.plan.training_fields.record_fields", lambda name: {"asked": [name, None]})
    assert training_fields("trl.DPOConfig") == {"asked": ["trl.DPOConfig", None]}
    training_fields.cache_clear()


@pytest.mark.parametrize("name", CLASSES)
def test_the_core_alone_plans_every_stage(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """TRL is an extra, and PLAN=1 of a recipe installs none. With another transformers, TRL's classes still cannot be asked."""
    shipped = json.loads(FIELDS.read_text())

    installed = {"transformers": shipped["versions"]["transformers"]}

    def core_only(library: str) -> str:
        if library not in installed:
            raise PackageNotFoundError(library)
        return installed[library]

    monkeypatch.setattr("drive_vlm.plan.training_fields.version", core_only)
    monkeypatch.setattr("drive_vlm.plan.training_fields.record_fields", lambda name: {"asked": [name, None]})
    training_fields.cache_clear()
    assert training_fields(name) == shipped[name]
    installed["transformers"] = "0"
    training_fields.cache_clear()
    assert training_fields(name) == (shipped[name] if name.startswith("trl.") else {"asked": [name, None]})
    training_fields.cache_clear()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformers.TrainingArguments", "--learning_rate 1e-5 --bf16 --max_steps=3 --optim adamw_torch --warmup_steps 0.03"),
        ("transformers.TrainingArguments", "--gradient_checkpointing false --report_to wandb tensorboard --save_strategy no --num_train_epochs 1"),
        ("transformers.TrainingArguments", "--lr_scheduler_type cosine --dataloader_pin_memory no --use_cpu 1"),
        ("trl.DPOConfig", "--loss_type sigmoid sft --loss_weights 1 0.1 --beta 0.2 --bf16 --gradient_checkpointing"),
        ("trl.GRPOConfig", "--num_generations 4 --reward_weights 1 2 --beta 0 --gradient_checkpointing --temperature 1 --bf16 true"),
    ],
)  # fmt: skip
def test_flags_are_read_as_the_run_reads_them(name: str, words: str) -> None:
    parser = CommandParser(prog="test", description="")
    assert training_flags(parser, name, words.split()) == parse_training_flags(parser, name, words.split())


@pytest.mark.parametrize("words", ["--learning_rat 1", "--gradient_accumulation_steps 2", "7"])
def test_flags_are_refused_as_the_run_refuses_them(words: str) -> None:
    parser = CommandParser(prog="test", description="")

    def refused(read: Any) -> str:
        with pytest.raises(ValueError) as error:
            read(parser, "transformers.TrainingArguments", words.split())
        return str(error.value)

    assert refused(training_flags) == refused(parse_training_flags)
