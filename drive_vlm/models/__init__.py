"""Model families: how a checkpoint becomes a model, a processor, named parts and picture tokens.

A new family is one file that ends in a `FAMILY` (family.py) and one line in MODELS; ADDING.md walks through it.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import ModelConfig, nearest
from drive_vlm.models.family import Family, FamilyModel, FamilySpec, ProcessorParts
from drive_vlm.models.loading import (
    Extend,
    build_on_meta,
    extend_model,
    has_own_head,
    model_type,
    read_model,
    read_processor,
    stored_config,
)
from drive_vlm.models.quantize import check_quantization

if TYPE_CHECKING:
    import torch

# model_type of config.json -> "module:spec"; naming a family imports neither torch nor transformers.
MODELS = {
    "internvl": "drive_vlm.models.internvl:FAMILY",
    "llama": "drive_vlm.models.language:FAMILY",
    "mistral": "drive_vlm.models.language:FAMILY",
    "qwen2": "drive_vlm.models.language:FAMILY",
    "qwen3": "drive_vlm.models.language:FAMILY",
    "llava_next": "drive_vlm.models.llava_next:FAMILY",
    "minicpmv": "drive_vlm.models.minicpmv.family:FAMILY",
    "idefics3": "drive_vlm.models.smolvlm:FAMILY",
    "smolvlm": "drive_vlm.models.smolvlm:FAMILY",
    "siglip_qwen": "drive_vlm.models.siglip_qwen.family:FAMILY",
    "cogvlm2": "drive_vlm.models.cogvlm2.family:FAMILY",
    "qwen2_5_vl": "drive_vlm.models.qwen_vl.family:QWEN2_5",
    "qwen3_vl": "drive_vlm.models.qwen_vl.family:QWEN3",
}


def known_models() -> dict[str, str]:
    """MODELS, and what DRIVE_VLM_MODELS adds: "model_type=module:spec", comma-separated, for families outside this package."""
    added = os.environ.get("DRIVE_VLM_MODELS", "")
    lines = [line.strip() for line in added.split(",") if line.strip()]
    for line in lines:
        if "=" not in line or ":" not in line.partition("=")[2]:
            raise ValueError(
                f'DRIVE_VLM_MODELS: {line!r} is not "model_type=module:spec", such as llava=my_family:FAMILY.'
            )
    return MODELS | {kind: place for kind, _, place in (line.partition("=") for line in lines)}


def family_spec(kind: str, where: str = "config.json") -> FamilySpec:
    """The family of a `model_type`, without torch. Raises ValueError for an unknown one, with the nearest known one."""
    models = known_models()
    if kind not in models:
        raise ValueError(
            f"{where}: model_type {kind!r} is not supported (known: {', '.join(models)}).{nearest(kind, models)}"
        )
    module, _, name = models[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def _find(config: ModelConfig) -> tuple[FamilySpec, str, str | None]:
    """(family, path of the model, path of a LoRA adapter on it or None) of `config.model`."""
    path, adapter = config.model, None
    if (Path(path) / "adapter_config.json").is_file():
        from drive_vlm.models.lora import base_of

        adapter, path = path, base_of(path)
    try:
        kind = model_type(path, config.trust_remote_code)
    except ValueError as error:
        if adapter is None:
            raise
        raise ValueError(
            f'{error} {adapter} is an adapter on it: "base_model_name_or_path" in its adapter_config.json.'
        ) from error
    return family_spec(kind, path), path, adapter


def load_processor(config: ModelConfig) -> ProcessorParts:
    """Processor, tokenizer, chat template and picture side of `config.model`, as load_family gives them, without weights.

    Raises ValueError for an unknown family, with the nearest known one.
    """
    spec, path, _ = _find(config)
    return read_processor(spec, path, config)


def load_family(
    config: ModelConfig,
    dtype: "torch.dtype | str",
    for_training: bool = False,
    chunk_tokens: int | None = None,
    extend: Extend | None = None,
) -> Family:
    """Load `config.model`: a directory or hub id of a supported family, or a directory with a LoRA adapter.

    With `for_training` the loss is computed in chunks and every batch passes the vision tower: the forwards of the model, of
    its head and, in a model with pictures, of its body are patched then (training_forward.py). `extend` adds modules of a
    stage's own, before an adapter is put on the model.
    Raises ValueError for an unknown family, with the nearest known one, and where `--quantize` cannot work.
    """
    spec, path, adapter = _find(config)
    check_quantization(config, for_training and adapter is None)
    family = read_model(spec, path, config, dtype)
    _keep_used_renamings(family.model)
    if for_training:
        from drive_vlm.models.training_forward import install_training_forward

        install_training_forward(family.model, family.vision, chunk_tokens)
    if extend is not None:
        extend_model(family, extend, path)
    elif not for_training:
        _name_what_is_left_out(adapter or path)
    if adapter is not None:
        from drive_vlm.models.lora import load_adapter

        family.model = load_adapter(family.model, adapter, path, for_training)
    return family


def model_on_meta(config: ModelConfig, stored: Mapping[str, Any] | None = None) -> FamilyModel:
    """The real classes of `config.model` without its weights, on torch's meta device: for counting, not for computing.

    `freeze`, `apply_lora`, `count_parameters` and `train_flops` work on it as on a loaded family. The directory needs a
    config.json only; where weights lie there too, their header says whether the head is tied, as load_family has it.
    Of a directory with a LoRA adapter this is the model below it. `stored` is the content of a config.json in place of
    the one of `config.model`, for models that are not at hand (architectures/*.json). `--quantize` is left to the caller.
    Raises ValueError for an unknown family, with the nearest known one.
    """
    if stored is not None:
        return build_on_meta(family_spec(stored["model_type"], config.model), stored, config, own_head=False)
    spec, path, _ = _find(config)
    own_head = spec.own_head and bool(has_own_head(path))
    return build_on_meta(spec, stored_config(path), config, own_head)


def _keep_used_renamings(model: Any) -> None:
    """Leave only the renamings that matched a name in the checkpoint, for save_pretrained to undo.

    transformers does so itself, but not under ZeRO-3: there the saved names would grow a second `.model`.
    """
    renamings = getattr(model, "_weight_conversions", None) or []
    if renamings:
        model._weight_conversions = [renaming for renaming in renamings if renaming.was_used()]


def _name_what_is_left_out(directory: str) -> None:
    """A line on stderr where `directory` holds a value head, which answers do not need; from the main process."""
    from drive_vlm.models.value_head import has_value_head

    if os.environ.get("RANK", "0") == "0" and has_value_head(directory):
        print(f"{directory}: its value head is left out, which only the stage a2c uses.", file=sys.stderr, flush=True)
