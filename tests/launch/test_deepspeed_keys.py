"""The lists of deepspeed_keys.py against the installed DeepSpeed: a key that it learns or forgets fails here."""

import typing
from typing import Any

import pytest

from drive_vlm.launch.deepspeed_keys import DEPRECATED, KEYS, NOT_TAKEN, REMOVED
from drive_vlm.launch.deepspeed_rules import STAGE3_ONLY

KINDS = {bool: "bool", int: "int", float: "number"}
READ_ELSEWHERE = {
    "sequence_parallel_size",
    "data_parallel_size",
}  # by deepspeed.initialize, not by its configuration class


class _Recorder(dict):
    """A section that notes every key that is asked of it, whichever way."""

    def __init__(self, **sections: Any) -> None:
        super().__init__(sections)
        self.asked: set[str] = set()

    def keys(self) -> Any:
        return self

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _fields(section: str, model: Any) -> dict[str, dict[str, str]]:
    """Section -> key -> kind of a DeepSpeed model and of the models inside it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    found: dict[str, dict[str, str]] = {section: {}}
    for name, field in model.model_fields.items():
        kinds = {kind for kind in (field.annotation, *typing.get_args(field.annotation)) if isinstance(kind, type)}
        kinds -= {type(None)}
        kind = KINDS.get(next(iter(kinds)), "") if len(kinds) == 1 else ""
        for alias in {name, field.alias or name}:
            found[section][alias] = kind
        for inner in kinds:
            if issubclass(inner, DeepSpeedConfigModel):
                found |= _fields(f"{section}.{name}", inner)
    return found


def _asked() -> dict[str, dict[str, str]]:
    """Section -> key -> "" of the sections that DeepSpeed reads as plain dicts."""
    from deepspeed.runtime.config import DeepSpeedConfig

    names = ("activation_checkpointing", "aio", "data_types", "flops_profiler", "timers")
    sections = {name: _Recorder() for name in names} | {"checkpoint": _Recorder(parallel_write=_Recorder())}
    top = _Recorder(**sections, train_micro_batch_size_per_gpu=1)
    DeepSpeedConfig(top)
    recorders = {"": top, **sections, "checkpoint.parallel_write": sections["checkpoint"]["parallel_write"]}
    return {section: dict.fromkeys(recorder.asked, "") for section, recorder in recorders.items()}


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, str]]:
    """Section -> key -> kind, as the installed DeepSpeed reads them."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime import config as ds

    getters = {
        "zero_optimization": ds.get_zero_config,
        "bf16": ds.get_bfloat16_config,
        "fp16": ds.get_float16_config,
        "timers.throughput": ds.get_timers_config,
    }
    models = {section: type(getter({})) for section, getter in getters.items()}
    models |= {"comms_logger": CommsLoggerConfig, "compile": ds.CompileConfig}
    models |= {name: field.annotation for name, field in type(ds.get_monitor_config({})).model_fields.items()}
    found = _asked()
    for section, model in models.items():
        found |= _fields(section, model)
    return found


def test_the_lists_are_what_the_installed_deepspeed_knows(known: dict[str, dict[str, str]]) -> None:
    left_out = {*NOT_TAKEN, *REMOVED, *DEPRECATED}
    expected = {
        section: {key: kind for key, kind in keys.items() if f"{section}.{key}".lstrip(".") not in left_out}
        for section, keys in known.items()
    }
    assert expected == KEYS


def test_what_is_not_taken_is_known_to_deepspeed(known: dict[str, dict[str, str]]) -> None:
    for full in NOT_TAKEN.keys() - READ_ELSEWHERE:
        section, _, key = full.rpartition(".")
        assert key in known[section], full


def test_removed_keys_are_those_that_deepspeed_stops_at() -> None:
    from deepspeed.runtime import config as ds

    zero = {f"zero_optimization.{key}" for key in ds._REMOVED_ZERO_CONFIG_KEYS}
    assert set(REMOVED) == ds._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys() | zero


def test_deprecated_keys_are_those_that_deepspeed_translates() -> None:
    from deepspeed.runtime.config import BFLOAT16_OLD, get_zero_config

    fields = type(get_zero_config({})).model_fields
    old = {
        f"zero_optimization.{name}"
        for name, field in fields.items()
        if (field.json_schema_extra or {}).get("deprecated")
    }
    assert DEPRECATED.keys() == old | {BFLOAT16_OLD}


def test_stage_3_keys_are_fields_of_deepspeed(known: dict[str, dict[str, str]]) -> None:
    assert known["zero_optimization"].keys() >= STAGE3_ONLY
