"""What a DeepSpeed JSON may not say: unknown keys, keys that act nowhere, settings that exclude each other.

DeepSpeed 0.19 finds few of these, and those after the model is loaded: "offload_param" under stage 2 is ignored
in silence, NVMe under stage 2 becomes CPU, and stage 3 without gathering ends without a saved model.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest
from drive_vlm.launch.deepspeed_keys import DEPRECATED, KEYS, NOT_TAKEN, REMOVED

# What only stage 3 reads (engine._configure_zero_optimizer); elsewhere it has no effect.
STAGE3_ONLY = {key for key in KEYS["zero_optimization"] if key.startswith("stage3_")}
STAGE3_ONLY |= {key.removeprefix("stage3_") for key in STAGE3_ONLY}
STAGE3_ONLY |= {"offload_param", "sub_group_size", "leaf_module", "zero_hpz_partition_size", "zero_quantized_weights"}
STAGE3_ONLY |= {"zero_quantized_nontrainable_weights", "zero_quantized_gradients"}
# "auto" that transformers fills in besides what the command line owns; the last two under stage 3 only.
_AUTO_BUCKET = "zero_optimization.reduce_bucket_size"
_AUTO_STAGE3 = {
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
}
_OPTIONAL = {f"zero_optimization.{name}" for name in ("offload_param", "offload_optimizer", "zenflow")}
_GATHER = "stage3_gather_16bit_weights_on_model_save"


@dataclasses.dataclass(frozen=True)
class Document:
    """The file that messages point into."""

    path: Path
    text: str

    def problem(self, key: str, what: str, way_out: str) -> ValueError:
        """`file:line: "a.b" what. Way out.` The line is left out where the key's last name stands more than once."""
        name = re.escape(key.rpartition(".")[2])
        found = [match.start() for match in re.finditer(rf'"{name}"\s*:', self.text)]
        line = f":{self.text.count(chr(10), 0, found[0]) + 1}" if len(found) == 1 else ""
        return ValueError(f'{self.path}{line}: "{key}" {what}. {way_out}')


def check_config(config: dict[str, Any], document: Document, owned: dict[str, str]) -> None:
    """Raises ValueError for the first key that is unknown, gone, of the wrong kind or without effect, and for contradictions."""
    if config.get("zero_optimization") is None:
        way_out = 'Write "zero_optimization": {"stage": 2}; stage 0 is plain data parallelism.'
        raise document.problem("zero_optimization", "is missing", way_out)
    _check_keys(config, document)
    zero = config["zero_optimization"]
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        shown = "is missing" if stage is None else f"is {json.dumps(stage)}"
        raise document.problem("zero_optimization.stage", shown, "Write 0, 1, 2 or 3.")
    _check_precision(config, document)
    _check_stage(zero, int(stage), document)
    for name in ("offload_param", "offload_optimizer"):
        _check_offload(zero, name, int(stage), document)
    _check_auto(config, int(stage), document, owned)


def _walk(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(section, key, value) of every section that KEYS describes."""
    for key, value in section.items():
        yield prefix, key, value
        inner = f"{prefix}.{key}".lstrip(".")
        if inner in KEYS and isinstance(value, dict):
            yield from _walk(value, inner)


def _check_keys(config: dict[str, Any], document: Document) -> None:
    for section, key, value in _walk(config):
        full = f"{section}.{key}".lstrip(".")
        if full in REMOVED:
            raise document.problem(full, "was removed from DeepSpeed", "Remove it.")
        if full in DEPRECATED:
            raise document.problem(full, "is an old name", f"Write {DEPRECATED[full]}.")
        if full in NOT_TAKEN:
            raise document.problem(full, f"is not taken: {NOT_TAKEN[full]}", "Remove it.")
        if key not in KEYS[section]:
            where = f'in "{section}"' if section else "at the top level"
            hint = _elsewhere(key) or nearest(key, KEYS[section])
            raise document.problem(
                full, f"is not a key that DeepSpeed knows {where}", f"{hint.strip()} Fix or remove it.".strip()
            )
        _check_kind(full, value, KEYS[section][key], document)


def _elsewhere(key: str) -> str:
    homes = [f'"{section}"' if section else "the top level" for section, keys in KEYS.items() if key in keys]
    return f"It belongs into {' or '.join(homes)}." if 0 < len(homes) <= 2 else ""


def _check_kind(full: str, value: Any, kind: str, document: Document) -> None:
    """A value is of the kind that DeepSpeed's models expect; null and "auto" are looked at elsewhere."""
    if full in KEYS and not isinstance(value, dict) and not (value is None and full in _OPTIONAL):
        way_out = 'Write {"key": value, ...}, or remove it.'
        raise document.problem(full, f"is {json.dumps(value)}, not a section", way_out)
    if value is None or value == "auto":
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "bool" and not isinstance(value, bool):
        raise document.problem(full, f"is {json.dumps(value)}", "Write true or false.")
    if kind == "int" and not (number and 0 <= value < math.inf and value == int(value)):
        raise document.problem(full, f"is {json.dumps(value)}", "Write a whole number, 0 or more.")
    if kind == "number" and not (number and math.isfinite(value)):
        raise document.problem(full, f"is {json.dumps(value)}", "Write a number.")


def _check_precision(config: dict[str, Any], document: Document) -> None:
    if all(config.get(name, {}).get("enabled") is True for name in ("bf16", "fp16")):
        way_out = 'Write "auto" in both, and choose with --bf16 or --fp16.'
        raise document.problem("bf16.enabled", "and fp16.enabled are both true", way_out)
    bf16 = config.get("bf16", {})
    if bf16.get("bf16_optimizer_states") and not bf16.get("bf16_master_weights_and_grads"):
        way_out = 'Set "bf16_master_weights_and_grads" to true as well.'
        raise document.problem("bf16.bf16_optimizer_states", "needs bf16 master weights", way_out)
    if bf16.get("bf16_master_weights_and_grads") and config["zero_optimization"]["stage"] == 0:
        way_out = "Set the stage, or remove it."
        raise document.problem("bf16.bf16_master_weights_and_grads", "needs stage 1, 2 or 3", way_out)


def _acts(value: Any) -> bool:
    """Whether a setting asks for anything: not false, null, an hpZ group of one or an offload to no device."""
    if isinstance(value, dict) and "device" in value:
        return value["device"] != "none"
    return value is not None and value is not False and not (value == 1 and not isinstance(value, bool))


def _check_stage(zero: dict[str, Any], stage: int, document: Document) -> None:
    for key in zero:
        if stage < 3 and key in STAGE3_ONLY and _acts(zero[key]):
            raise document.problem(
                f"zero_optimization.{key}",
                f"acts under stage 3 only, and the stage is {stage}",
                f'Set "stage" to 3, or remove "{key}".',
            )
    if stage == 3 and not (zero.get(_GATHER) is True or zero.get("gather_16bit_weights_on_model_save") is True):
        shown = "is missing" if _GATHER not in zero else f"is {json.dumps(zero[_GATHER])}"
        way_out = "Set it to true: without it a stage 3 run ends with shards and no model that can be loaded."
        raise document.problem(f"zero_optimization.{_GATHER}", shown, way_out)
    if zero.get("compute_grad_norm") is False and stage not in (1, 2):
        way_out = "Remove it."
        raise document.problem(
            "zero_optimization.compute_grad_norm", f"is false under stage {stage}; that takes 1 or 2", way_out
        )
    bucket = zero.get("allgather_bucket_size", 0)
    if bucket != "auto" and (bucket or 0) % 2 and stage in (1, 2):
        way_out = "Write an even one."
        raise document.problem("zero_optimization.allgather_bucket_size", f"is {bucket}, an odd number", way_out)


def _check_offload(zero: dict[str, Any], name: str, stage: int, document: Document) -> None:
    offload = zero.get(name)
    if offload is None:
        return
    full = f"zero_optimization.{name}"
    device = offload.get("device")
    if device not in ("cpu", "nvme", "none"):
        shown = "is missing" if device is None else f"is {json.dumps(device)}"
        raise document.problem(f"{full}.device", shown, 'Write "cpu", "nvme" or "none".')
    if device != "none" and stage == 0:
        raise document.problem(full, "needs ZeRO, and the stage is 0", f'Set "stage" to 1, 2 or 3, or remove "{name}".')
    if device == "nvme" and stage != 3:
        way_out = 'Set "stage" to 3, or "device" to "cpu".'
        raise document.problem(
            f"{full}.device", f'is "nvme", which stage {stage} would silently turn into "cpu"', way_out
        )
    if device == "nvme" and not offload.get("nvme_path"):
        way_out = "Give a folder on the NVMe disk."
        raise document.problem(f"{full}.nvme_path", 'is missing next to "device": "nvme"', way_out)
    for key, asked in (("ratio", offload.get("ratio", 1) != 1), ("super_offload", bool(offload.get("super_offload")))):
        if asked and stage != 3:
            raise document.problem(f"{full}.{key}", f"needs stage 3, and the stage is {stage}", "Remove it.")


def _check_auto(config: dict[str, Any], stage: int, document: Document, owned: dict[str, str]) -> None:
    """Refuse an "auto" that transformers does not fill in: Accelerate would raise at it after the model is loaded."""
    filled = {*owned, _AUTO_BUCKET, *(_AUTO_STAGE3 if stage == 3 else ())}
    for section, key, value in _walk(config):
        full = f"{section}.{key}".lstrip(".")
        if value == "auto" and full not in filled:
            way_out = "Write a value, or remove the key: then DeepSpeed's own default holds."
            raise document.problem(full, 'is "auto", which is not filled in for this key', way_out)
