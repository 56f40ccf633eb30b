"""DeepSpeed configuration: the JSON in ds_configs/ holds memory layout only, the command line owns everything else."""

import json
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest

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
    "scheduler": "--lr_scheduler_type, --warmup_ratio",
}


def load_deepspeed_config(name: str, cpu: bool) -> dict[str, Any]:
    """The configuration of a name in ds_configs/ or a JSON file, with "auto" for all that the command line owns.

    Raises ValueError for an unknown name, broken JSON, or a literal that belongs to the command line.
    """
    path = Path(name) if name.endswith(".json") else CONFIGS / f"{name}.json"
    if not path.is_file():
        known = sorted(p.stem for p in CONFIGS.glob("*.json"))
        raise ValueError(
            f"--deepspeed {name}: no such configuration. Known: {', '.join(known)}, or give a JSON file.{nearest(name, known)}"
        )
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from error
    for key, flag in OWNED.items():
        _own(config, key, flag, path)
    if cpu:
        # The compiled CPU Adam is worth its two minutes of compiling only where optimizer states are offloaded from a GPU.
        config["zero_force_ds_cpu_optimizer"] = False
        config.get("zero_optimization", {})["overlap_comm"] = False  # there are no CUDA streams to overlap on
    config["zero_allow_untested_optimizer"] = True
    return config


def _own(config: dict[str, Any], key: str, flag: str, path: Path) -> None:
    section, _, leaf = key.rpartition(".")
    place = config.setdefault(section, {}) if section else config
    if place.get(leaf, "auto") != "auto":
        raise ValueError(
            f'{path}: "{key}": {json.dumps(place[leaf])} belongs to the command line. Write "auto" or remove it, and use {flag}.'
        )
    if leaf in ("optimizer", "scheduler"):
        place.pop(leaf, None)
    else:
        place[leaf] = "auto"


def zero_stage(config: dict[str, Any] | None) -> int:
    """ZeRO stage of a configuration; 0 without DeepSpeed."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))
