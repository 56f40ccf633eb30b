"""LoRA through peft: the language model gets the adapter, parts that are not frozen train in full next to it.

A saved adapter is nothing without the model that it was trained on: its directory names that model (adapter_config.json) and
holds a hash of its weights (base_model.json), so that another model in its place is noticed.
"""

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig, nearest
from drive_vlm.models.family import FamilyModel
from drive_vlm.models.loading import usable
from drive_vlm.store.forms import part, read_object

CONFIG, BASE = "adapter_config.json", "base_model.json"


def apply_lora(family: FamilyModel, config: ModelConfig, frozen: Sequence[str]) -> Any:
    """Wrap `family.model`: adapters on the language model's linear layers, other unfrozen parts in `modules_to_save`.

    Weights that were frozen before stay frozen. Raises ValueError when the language model or a layer of it is to be
    frozen as well, which would leave the adapter there without a meaning, and for --lora_targets that match nothing, or
    layers on which an adapter would not train or not be loaded again.
    """
    from peft import LoraConfig, get_peft_model

    body = family.parts["language_model"][0]
    for name in frozen:
        if name == "language_model" or f"{name}.".startswith(f"{body}."):
            raise ValueError(
                f"--freeze {name} with --lora_rank: LoRA already keeps its weights. Leave it out of --freeze; --lora_targets chooses layers."
            )
    kept = {name for name, parameter in family.model.named_parameters() if not parameter.requires_grad}
    outside = [path for name, paths in family.parts.items() if name != "language_model" for path in paths]
    full = [
        path
        for path in (own for path in outside for own in _saved_apart(family.model, path))
        if any(parameter.requires_grad for parameter in family.model.get_submodule(path).parameters())
    ]
    if config.lora_embeddings:
        full.append(_own_embeddings(family.model))
    # peft finds modules by the ends of their names.
    trained = [re.sub(r"^.*?([^.]+(\.\d+)?)$", r"\1", path) for path in full]
    check_targets(family.model, config.lora_targets or family.lora_targets, full)
    head = family.model.get_output_embeddings()
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets or family.lora_targets,
        modules_to_save=trained or None,
    )
    try:
        model = get_peft_model(family.model, lora)
    except ValueError as error:
        # Such as a norm, or a whole block.
        raise ValueError(f"--lora_targets {lora.target_modules}: {' '.join(str(error).split())[:300]}") from error
    check_head(model, head, f"--lora_targets {lora.target_modules}")
    _name_base(model, family.model.name_or_path)
    # peft turns on the whole of a module in modules_to_save, also what was frozen in it.
    for name, parameter in model.named_parameters():
        if name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") in kept:
            parameter.requires_grad_(False)
    return model


def _saved_apart(model: Any, path: str) -> list[str]:
    """`path`, or the modules in it where it is a list of modules, which peft cannot save as one."""
    from torch.nn import ModuleList

    module = model.get_submodule(path)
    return [f"{path}.{i}" for i in range(len(module))] if isinstance(module, ModuleList) else [path]


def check_targets(model: Any, targets: str, full: Sequence[str] = ()) -> None:
    """Raises ValueError where the regular expression `targets` matches no module of `model` whole, one inside a part of `full`,
    which trains itself, or the embeddings where they are the head's weight as well."""
    names = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
    if not names:
        layers = sorted(
            {name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if hasattr(layer, "in_features")}
        )
        near = next((hint for word in re.findall(r"\w{3,}", targets) if (hint := nearest(word, layers))), "")
        raise ValueError(
            f"--lora_targets {targets} matches no module. It is a regular expression for the whole path, such as "
            f"'.*language_model.*(q_proj|v_proj)'. Linear layers are named {', '.join(layers)}.{near}"
        )
    for path in full:
        if inside := [name for name in names if f"{name}.".startswith(f"{path}.")]:
            raise ValueError(
                f"--lora_targets {targets} matches {inside[0]}, but {path} trains in full, without adapters. Freeze it (--freeze), "
                "or leave it out of the expression."
            )
    embeddings, tied = _embeddings(model)
    if embeddings in names and tied:
        raise ValueError(
            f"--lora_targets {targets} matches {embeddings}, whose weight is also the head's: merged, the adapter would change both. "
            "Leave it out of the expression."
        )


def _embeddings(model: Any) -> tuple[str, bool]:
    """(path of the word embeddings, whether their weight is also the head's)."""
    tied = model.all_tied_weights_keys
    path = next((name for name, layer in model.named_modules() if layer is model.get_input_embeddings()), "")
    return path, f"{path}.weight" in {*tied, *tied.values()}


def _own_embeddings(model: Any) -> str:
    """Path of the word embeddings. Raises ValueError where their weight is also the head's: a copy of it would train apart."""
    path, tied = _embeddings(model)
    if tied:
        raise ValueError(
            f"--lora_embeddings: the weight of {path} is also the head's, so that a copy that trains would part the two. Leave the flag out."
        )
    return path


def check_head(model: Any, head: Any, what: str) -> None:
    """Raises ValueError where peft has put something around the `head` of before: training computes the loss inside the head
    (training_forward.py), so an adapter or a copy there would get no gradient."""
    if model.get_base_model().get_output_embeddings() is not head:
        raise ValueError(
            f"{what} takes in lm_head: the loss is computed in the head itself, in chunks, and an adapter or a copy around it would "
            "not train. Leave lm_head out."
        )


def base_of(adapter: str | Path) -> str:
    """Hub id or directory of the model under a saved adapter, also where both directories were moved together."""
    config = Path(adapter) / CONFIG
    base = part(
        read_object(config), "base_model_name_or_path", str, config, "Name the model that the adapter was trained on."
    )
    folders = Path(adapter).absolute().parents
    # Of OUT/stage2 and of OUT/stage2/checkpoint-100.
    moved = [folder / Path(base).name for folder in folders[:2]]
    return next((str(path) for path in (Path(base), *moved) if path.is_dir()), base)


def record_base(model: Any, directory: str | Path, added: Sequence[str] = ()) -> None:
    """Write which model the adapters of `model` belong to, and what a stage had `added` to it, in `directory`, where they lie."""
    content = _fingerprint(model.peft_config["default"].base_model_name_or_path)
    content |= {"added": list(added)} if added else {}
    (Path(directory) / BASE).write_text(json.dumps(content, indent=2) + "\n")


def load_adapter(model: Any, adapter: str, base: str, for_training: bool) -> Any:
    """`model`, loaded from `base`, with the saved adapter. Raises ValueError for an adapter of another model."""
    from peft import PeftModel

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
    head = model.get_output_embeddings()
    try:
        with warnings.catch_warnings():
            # Missing keys are reported below, as an error with both names.
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            with usable(adapter, CONFIG, "Copy the adapter again from where it came from."):
                loaded = PeftModel.from_pretrained(model, adapter, is_trainable=for_training)
    except ImportError as error:
        raise ValueError(
            f"{adapter}: {CONFIG} asks for a package that is not installed ({error}). Install it."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{wrong}: {' '.join(str(error).split())[:300]} {way_out}") from error
    if for_training:
        check_head(loaded, head, f"{adapter}: its adapter")
    # What a stage had added trains on in that stage; for others, such as merge and generate, the model is whole without it.
    absent = [name for name in then.get("added", []) if not hasattr(model, name)]
    if odd := odd_weights(loaded, file, absent):
        raise ValueError(f"{wrong}: it {odd}. {way_out}")
    _name_base(loaded, base)
    return loaded


def odd_weights(model: Any, file: Path, absent: Sequence[str] = ()) -> str:
    """How the names in a saved adapter differ from those that loading it into `model` expects; '' where they do not.

    `absent`: modules of a stage's own that `model` lacks. A base layer next to its adapter is as good as none: peft stores
    that of adapted embeddings, which do not train.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(file, framework="pt") as saved:
        there = {key for key in saved.keys() if ".base_layer." not in key}  # noqa: SIM118 - no mapping
    there = {key for key in there if not any(key.startswith(f"base_model.model.{name}.") for name in absent)}
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    odd = sorted(expected ^ there)
    what = "has no weights for" if odd and odd[0] in expected else "has weights for"
    return f"{what} {odd[0]} ({len(odd)} such)" if odd else ""


def _name_base(model: Any, base: str) -> None:
    """Record the base with an absolute path: a relative one would be another model from another folder."""
    model.peft_config["default"].base_model_name_or_path = os.path.abspath(base) if Path(base).is_dir() else base


def _fingerprint(base: str) -> dict[str, Any]:
    """{"weights"} of a directory, {"name", "hub_commit"} of a hub id."""
    from drive_vlm.store.fingerprint import model_fingerprint

    found = model_fingerprint(base)
    return {"weights": found["weights"]} if "weights" in found else found
