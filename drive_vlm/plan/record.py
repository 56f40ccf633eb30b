"""What model_sizes.py keeps of a model, from its real class on the meta device: no weights, but torch.

`python -m drive_vlm plan record` writes the shipped numbers again, each for the flags that stand next to it.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import MODELS, model_on_meta
from drive_vlm.models.family import FamilyModel
from drive_vlm.models.flops import TrainFlops, train_flops
from drive_vlm.models.freezing import freeze, part_of
from drive_vlm.models.lora import apply_lora
from drive_vlm.plan.model_sizes import SHIPPED, UNKNOWN, TextSizes, VisionSizes, all_shipped, recorded_flags
from drive_vlm.plan.training_fields import FIELDS, record_fields
from drive_vlm.stages import STAGES


def record(model: ModelConfig) -> dict[str, Any]:
    """The record of a local directory or a shipped name, as the flags freeze and adapt it.

    Raises ValueError as the class, freezing and LoRA do.
    """
    if Path(model.model).is_dir():
        return record_family(model_on_meta(model), model)
    return record_family(model_on_meta(model, all_shipped()[model.model]["config"]), model)


def record_family(family: FamilyModel, model: ModelConfig) -> dict[str, Any]:
    """The record of a family that is neither frozen nor adapted yet."""
    config = family.model.config
    sizes = {
        "text": dataclasses.asdict(_text(config.get_text_config())),
        "vision": dataclasses.asdict(_vision(config)) if "vision_tower" in family.parts else None,
        "max_frames": getattr(config, "max_frames", None),
    }
    return {**sizes, **_count(family, model)}


def _count(family: FamilyModel, model: ModelConfig) -> dict[str, Any]:
    """Weights and FLOPs of `family` as the flags freeze and adapt it."""
    freeze(family.model, family.parts, model.freeze)
    if model.lora_rank:
        family.model = apply_lora(family, model, model.freeze)
    counted = Counter(_weights(family))
    train = train_flops(family)
    family.model.requires_grad_(False)
    frozen = train_flops(family)
    # A frozen model's token costs 4 a weight, half of which is the gradient that flows through: not in a forward pass.
    forward = TrainFlops(frozen.token / 2, frozen.label / 2, frozen.tile)
    without = train_flops(dataclasses.replace(family, tokens_per_tile=0))
    return {
        "flags": recorded_flags(model),
        "tokens": family.projector_tokens,
        "tower_tokens": family.tokens_per_tile,
        "train": dataclasses.asdict(train),
        "forward": dataclasses.asdict(forward),
        "tower": frozen.tile - without.tile,
        "weights": [[*weight, count] for weight, count in counted.items()],
    }


def _weights(family: FamilyModel) -> Iterator[tuple[str, int, bool, bool]]:
    """(part, elements, trains, matrix) of each parameter; embeddings and head count apart from the rest of the language model."""
    embeddings, head = family.base.get_input_embeddings(), family.base.get_output_embeddings()
    own = {id(head.weight): "lm_head"} | {id(embeddings.weight): "embeddings"}
    matrices = {id(m.weight) for m in family.model.modules() if isinstance(m, torch.nn.Linear)}
    for name, parameter in family.model.named_parameters():
        part = "lora" if "lora_" in name else own.get(id(parameter), part_of(name, family.parts))
        yield part, parameter.numel(), parameter.requires_grad, id(parameter) in matrices


def _text(text: Any) -> TextSizes:
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return TextSizes(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        heads=heads,
        queries=head * heads,
        keys=head * text.num_key_value_heads,
        vocabulary=text.vocab_size,
        query_norms=text.model_type in ("qwen3", "qwen3_vl_text"),
    )


def _vision(config: Any) -> VisionSizes:
    vision = config.vision_config
    # Our own projectors say what they are (siglip_qwen); those of the package's other families take every patch.
    kind, layers = getattr(config, "projector_type", "patches" if config.model_type in MODELS else UNKNOWN), 0
    if kind == "mlp" and config.pool_size > 1:
        kind = "pooled"
    elif kind == "resampler":
        layers = config.resampler_layers
    return VisionSizes(
        # Qwen's configurations call it depth; transformers 5.17 gives it no other name.
        layers=vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers,
        width=vision.hidden_size,
        inner=vision.intermediate_size,
        # InternViT and DINOv2 scale the output of each layer.
        scaled=hasattr(vision, "layer_scale_init_value") or hasattr(vision, "layerscale_value"),
        projector=kind,
        projector_layers=layers,
    )


def record_everything() -> list[Path]:
    """Write again all that ships, for the flags that stand next to it, and return the files that changed.

    To ship one more set of flags, write {"flags": ...} into a file's "recorded" and call this.
    """
    contents = all_shipped()
    made: dict[Path, Any] = {}
    for file in sorted(SHIPPED.glob("*.json")):
        content = json.loads(file.read_text())
        for name in content["recorded"]:
            flags = [found["flags"] for found in contents[name]["recorded"]]
            content["recorded"][name] = [record(ModelConfig(model=name, **given)) for given in flags]
        made[file] = content
    classes = sorted({stage.training_arguments for stage in STAGES.values()})
    made[FIELDS] = {"versions": {name: version(name) for name in ("transformers", "trl")}}
    made[FIELDS] |= {name: record_fields(name) for name in classes}
    return [file for file, content in made.items() if _write(file, content)]


def _write(file: Path, content: dict[str, Any]) -> bool:
    """Whether the file has changed."""
    text = json.dumps(content, indent=2)
    # A list of plain values on one line.
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"
    if file.is_file() and file.read_text() == text:
        return False
    file.write_text(text)
    return True
