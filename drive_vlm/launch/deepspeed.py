"""DeepSpeed configuration: the JSON in ds_configs/ holds memory layout only, the command line owns everything else."""

import json
import os
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest
from drive_vlm.launch.deepspeed_rules import Document, check_config
from drive_vlm.store.secrets import hide

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"

# Keys that the command line owns, and the flag that sets them: the JSON may say "auto" there, or nothing.
OWNED = {
    "train_batch_size": "--global_batch_size",
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--global_batch_size",
    "gradient_clipping": "--max_grad_norm",
    "bf16.enabled": "--bf16",
    "fp16.enabled": "--fp16",
    "optimizer": "--optim, --learning_rate, --weight_decay",
    "scheduler": "--lr_scheduler_type, --warmup_steps",
}


def load_deepspeed_config(name: str, cpu: bool) -> dict[str, Any]:
    """The configuration of a name in ds_configs/ or a JSON file, with "auto" for all that the command line owns.

    Raises ValueError with the file, the key and the way out: unknown name, broken JSON, unknown keys, contradictions, or a
    literal that belongs to the command line.
    """
    path = Path(name) if name.endswith(".json") else CONFIGS / f"{name}.json"
    # Unlike Path.is_file this takes a name that is too long for a file.
    if not os.path.isfile(path):
        known = sorted(p.stem for p in CONFIGS.glob("*.json"))
        raise ValueError(
            f"--deepspeed {name}: no such configuration. Known: {', '.join(known)}, or give a JSON file.{nearest(name, known)}"
        )
    document, config = _read(path)
    check_config(config, document, OWNED)
    if hide(config) != config:
        raise ValueError(
            f"{path}: holds a secret, such as an api_key, and every checkpoint would hold it too. Give it in the environment "
            "(COMET_API_KEY, WANDB_API_KEY) and take it out of the file."
        )
    for key, flag in OWNED.items():
        _own(config, key, flag, document)
    if cpu:
        # The compiled CPU Adam is worth its two minutes of compiling only where optimizer states are offloaded from a GPU.
        config["zero_force_ds_cpu_optimizer"] = False
        # There are no CUDA streams to overlap on.
        config["zero_optimization"]["overlap_comm"] = False
    # Without it DeepSpeed refuses every optimizer outside a short list of its own; --optim may name any that transformers has.
    config["zero_allow_untested_optimizer"] = True
    return config


def _read(path: Path) -> tuple[Document, dict[str, Any]]:
    """The file's text and content. Raises ValueError for what is not strict JSON, and for a key given twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8."
        ) from error

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        section = dict(pairs)
        twice = next((key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])), None)
        if twice is not None:
            raise ValueError(
                f'{path}: "{twice}" stands twice in one section (next to {", ".join(sorted(section.keys() - {twice})) or "nothing else"}). '
                "Keep one: the last would win in silence."
            )
        return section

    def whole(digits: str) -> int:
        # Python refuses more than 4300, without a word of the file.
        if len(digits) > 30:
            raise ValueError(f"{path}: {digits[:10]}... has {len(digits)} digits. Write another number.")
        return int(digits)

    def finite(word: str) -> Any:
        raise ValueError(f"{path}: {word} is not a JSON value. Write a number.")

    try:
        config = json.loads(text, object_pairs_hook=unique, parse_constant=finite, parse_int=whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).{_hint(text[error.pos :])}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply for a configuration.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object {{...}}, got {type(config).__name__}.")
    return Document(path, text), config


def _hint(rest: str) -> str:
    """Suggest the usual cause of a JSON error here: a comment, a comma too many, single quotes."""
    if rest.startswith(("//", "/*", "#")):
        return " Comments are not JSON: remove it."
    if rest.startswith(("}", "]")):
        return " Remove the comma before it."
    if rest.startswith("'"):
        return ' JSON quotes with ".'
    return ""


def _own(config: dict[str, Any], key: str, flag: str, document: Document) -> None:
    """Set "auto" for a key of the command line, where transformers fills in the flag's value. Raises ValueError for a literal."""
    section, _, leaf = key.rpartition(".")
    place = config.setdefault(section, {}) if section else config
    if place.get(leaf, "auto") != "auto":
        way_out = f'Write "auto" or remove it, and use {flag}.'
        raise document.problem(key, f"is {json.dumps(place[leaf])}, which belongs to the command line", way_out)
    # transformers makes these two itself where the JSON does not have them; it cannot fill in an "auto" there.
    if leaf in ("optimizer", "scheduler"):
        place.pop(leaf, None)
    else:
        place[leaf] = "auto"


def zero_stage(config: dict[str, Any] | None) -> int:
    """ZeRO stage of a configuration; 0 without DeepSpeed."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))
