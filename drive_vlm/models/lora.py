"""LoRA through peft: the language model gets the adapter, parts that are not frozen train in full next to it.

A saved adapter is nothing without the model that it was trained on: its directory names that model (adapter_config.json) and
holds a hash of its weights (base_model.json), so that another model in its place is noticed.
"""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models.family import FamilyModel
from drive_vlm.store.forms import part, read_object

CONFIG, BASE = "adapter_config.json", "base_model.json"


def apply_lora(family: FamilyModel, config: ModelConfig, frozen: Sequence[str]) -> Any:
    """Wrap `family.model`: adapters on the language model's linear layers, other unfrozen parts in `modules_to_save`.

    Weights that were frozen before stay frozen. Raises ValueError when the language model or a layer of it is to be
    frozen as well, which would leave the adapter there without a meaning.
    """
    from peft import LoraConfig, get_peft_model

    body = family.parts["language_model"][0]
    for name in frozen:
        if name == "language_model" or f"{name}.".startswith(f"{body}."):
            raise ValueError(
                f"--freeze {name} with --lora_rank: LoRA already keeps its weights. Leave it out of --freeze; --lora_targets chooses layers."
            )
    kept = {name for name, parameter in family.model.named_parameters() if not parameter.requires_grad}
    trained = [
        path.rsplit(".", 1)[-1]
        for name, paths in family.parts.items()
        if name != "language_model"
        for path in paths
        if any(parameter.requires_grad for parameter in family.model.get_submodule(path).parameters())
    ]
    model = get_peft_model(
        family.model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets or family.lora_targets,
            modules_to_save=trained or None,
        ),
    )
    _name_base(model, family.model.name_or_path)
    # peft turns on the whole of a module in modules_to_save, also what was frozen in it.
    for name, parameter in model.named_parameters():
        if name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") in kept:
            parameter.requires_grad_(False)
    return model


def base_of(adapter: str | Path) -> str:
    """Hub id or directory of the model under a saved adapter, also where both directories were moved together."""
    config = Path(adapter) / CONFIG
    base = part(
        read_object(config), "base_model_name_or_path", str, config, "Name the model that the adapter was trained on."
    )
    folders = Path(adapter).absolute().parents
    moved = [folder / Path(base).name for folder in folders[:2]]  # of OUT/stage2 and of OUT/stage2/checkpoint-100
    return next((str(path) for path in (Path(base), *moved) if path.is_dir()), base)


def record_base(model: Any, directory: str | Path, added: Sequence[str] = ()) -> None:
    """Write which model the adapters of `model` belong to, and what a stage had `added` to it, in `directory`, where they lie."""
    content = _fingerprint(model.peft_config["default"].base_model_name_or_path)
    content |= {"added": list(added)} if added else {}
    (Path(directory) / BASE).write_text(json.dumps(content, indent=2) + "\n")


def load_adapter(model: Any, adapter: str, base: str, for_training: bool) -> Any:
    """`model`, loaded from `base`, with the saved adapter. Raises ValueError for an adapter of another model."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    file = Path(adapter) / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(f"{adapter}: no {file.name} next to {CONFIG}. Copy it there, or give another --model.")
    record = Path(adapter) / BASE
    # An adapter from elsewhere has none.
    then = read_object(record, "Remove the file if the adapter is whole.") if record.is_file() else {}
    now = _fingerprint(base) if then else {}
    wrong = f"{adapter} is an adapter of another model than {base}"
    way_out = f'Name its own in {Path(adapter) / CONFIG} ("base_model_name_or_path"), or train it again.'
    if moved := [key for key in ("weights", "hub_commit") if then.get(key) and now.get(key) and then[key] != now[key]]:
        raise ValueError(f"{wrong}, which has other weights now ({moved[0]} in {BASE}). {way_out}")
    try:
        with warnings.catch_warnings():
            # Missing keys are reported below, as an error with both names.
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            loaded = PeftModel.from_pretrained(model, adapter, is_trainable=for_training)
    except RuntimeError as error:
        raise ValueError(f"{wrong}: {' '.join(str(error).split())[:300]} {way_out}") from error
    with safe_open(file, framework="pt") as saved:
        there = set(saved.keys())
    # What a stage had added trains on in that stage; for others, such as merge and generate, the model is whole without it.
    absent = [name for name in then.get("added", []) if not hasattr(model, name)]
    there = {key for key in there if not any(key.startswith(f"base_model.model.{name}.") for name in absent)}
    expected = get_peft_model_state_dict(loaded, save_embedding_layers=False).keys()
    if odd := sorted(expected ^ there):
        what = "has no weights for" if odd[0] in expected else "has weights for"
        raise ValueError(f"{wrong}: it {what} {odd[0]} ({len(odd)} such). {way_out}")
    _name_base(loaded, base)
    return loaded


def _name_base(model: Any, base: str) -> None:
    """Record the base with an absolute path: a relative one would be another model from another folder."""
    model.peft_config["default"].base_model_name_or_path = os.path.abspath(base) if Path(base).is_dir() else base


def _fingerprint(base: str) -> dict[str, Any]:
    """{"weights"} of a directory, {"name", "hub_commit"} of a hub id."""
    from drive_vlm.store.fingerprint import model_fingerprint

    found = model_fingerprint(base)
    return {"weights": found["weights"]} if "weights" in found else found
