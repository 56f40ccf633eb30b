"""Model families: how a checkpoint becomes a model, a processor, named parts and picture tokens.

A new family is one file with a `build` function and one line in MODELS.
"""

import importlib
import json
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig, nearest
from drive_vlm.models.family import Family, ProcessorParts
from drive_vlm.models.quantize import check_quantization

# model_type of config.json -> "module:builder"; a builder takes (path, ModelConfig, dtype) and returns a Family.
# The module also has load_processor(path, ModelConfig) -> ProcessorParts, which reads no weights.
MODELS = {
    "internvl": "drive_vlm.models.internvl:build",
    "llama": "drive_vlm.models.language:build",
    "mistral": "drive_vlm.models.language:build",
    "qwen2": "drive_vlm.models.language:build",
    "qwen3": "drive_vlm.models.language:build",
    "llava_next": "drive_vlm.models.llava_next:build",
    "idefics3": "drive_vlm.models.smolvlm:build",
    "smolvlm": "drive_vlm.models.smolvlm:build",
    "siglip_qwen": "drive_vlm.models.siglip_qwen.family:build",
}


def model_type(path: str, trust_remote_code: bool = False) -> str:
    """The `model_type` of a local directory or hub id. Raises ValueError when there is no readable config."""
    config = Path(path) / "config.json"
    if config.is_file():
        return json.loads(config.read_text())["model_type"]
    if Path(path).is_dir():
        raise ValueError(
            f"{path}: no config.json and no adapter_config.json. Give a directory written by save_pretrained, or a hub id."
        )
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).model_type
    except OSError as error:
        raise ValueError(
            f"{path}: neither a local directory nor reachable on the hub. Download it and give the directory."
        ) from error


def _find(config: ModelConfig) -> tuple[Any, str, str, str | None]:
    """(module and builder of the family, path of the model, path of a LoRA adapter on it or None) of `config.model`."""
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
    if kind not in MODELS:
        raise ValueError(
            f"{path}: model_type {kind!r} is not supported (known: {', '.join(MODELS)}).{nearest(kind, MODELS)}"
        )
    module, builder = MODELS[kind].split(":")
    return importlib.import_module(module), builder, path, adapter


def load_processor(config: ModelConfig) -> ProcessorParts:
    """Processor, tokenizer, chat template and picture side of `config.model`, as load_family gives them, without weights.

    Raises ValueError for an unknown family, with the nearest known one.
    """
    module, _, path, _ = _find(config)
    return module.load_processor(path, config)


def load_family(config: ModelConfig, dtype: Any, for_training: bool = False, chunk_tokens: int | None = None) -> Family:
    """Load `config.model`: a directory or hub id of a supported family, or a directory with a LoRA adapter.

    With `for_training` the loss is computed in chunks and every batch passes the vision tower (training_forward.py).
    Raises ValueError for an unknown family, with the nearest known one, and where `--quantize` cannot work.
    """
    module, builder, path, adapter = _find(config)
    check_quantization(config, for_training and adapter is None)
    family = getattr(module, builder)(path, config, dtype)
    _keep_used_renamings(family.model)
    if for_training:
        from drive_vlm.models.training_forward import install_training_forward

        install_training_forward(family.model, family.vision.dummy_inputs() if family.vision else None, chunk_tokens)
    if adapter is not None:
        from drive_vlm.models.lora import load_adapter

        family.model = load_adapter(family.model, adapter, path, for_training)
    return family


def _keep_used_renamings(model: Any) -> None:
    """Leave only the renamings that matched a name in the checkpoint, for save_pretrained to undo.

    transformers does so itself, but not under ZeRO-3: there the saved names would grow a second `.model`.
    """
    renamings = getattr(model, "_weight_conversions", None) or []
    if renamings:
        model._weight_conversions = [renaming for renaming in renamings if renaming.was_used()]
