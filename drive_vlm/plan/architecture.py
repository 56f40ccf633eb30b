"""A model as numbers: its weights by name and shape, which of them train, what a picture costs; no torch, no weights read.

Published models ship as small JSON files in architectures/, in the words of their config.json; a local directory is read
from its own config.json. Counts are those of transformers' classes on the meta device (tests/plan/test_architecture.py).
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest
from drive_vlm.models.llava_next import layers_read
from drive_vlm.models.lora import base_of
from drive_vlm.models.siglip_qwen.tiling import frame_tokens
from drive_vlm.plan.parameter_shapes import SHAPES, Shapes, head_dim, num_patches

SHIPPED = Path(__file__).parents[1] / "models" / "architectures"
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # QLoRA: 4 bits, 8-bit scales for 64 weights, fp32 scales for 256 of those

_LINEAR = r"\..*[._](q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|query_key_value|dense)"
_PARTS = {
    "internvl": ("model.vision_tower", "model.multi_modal_projector", "model.language_model"),
    "llava_next": ("model.vision_tower", "model.multi_modal_projector", "model.language_model"),
    "idefics3": ("model.vision_model", "model.connector", "model.text_model"),
    "siglip_qwen": ("model.vision_tower", "model.projector", "model.language_model"),
    "minicpmv": ("model.vision_tower", "model.resampler", "model.language_model"),
    "cogvlm2": ("model.vision_tower", "model.projector", "model.language_model"),
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter: `part` is vision_tower, temporal_embeddings, projector, language_model, embeddings, lm_head, lora or other."""

    name: str
    shape: tuple[int, ...]
    part: str
    trains: bool = True
    four_bit: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """`tokens` of the language model and `tower_tokens` for one tile (frame, crop, slice); `tiles` of a picture at most.

    A model of `video` takes every picture whole: its `tiles` are the frames of a row.
    """

    tokens: int = 0
    tower_tokens: int = 0
    tiles: int = 0
    pixels: int = 0
    video: bool = False


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of a model. `estimate` says that no class of transformers was there to compare with."""

    name: str
    config: dict[str, Any]
    pictures: Pictures
    estimate: bool
    note: str

    @property
    def kind(self) -> str:
        return str(self.config["model_type"])

    @property
    def text(self) -> dict[str, Any]:
        return dict(self.config["text_config"])

    @property
    def vision(self) -> dict[str, Any] | None:
        return self.config.get("vision_config")

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part name -> module paths, as Family.parts."""
        if self.kind not in _PARTS:
            return {"language_model": ("model", "lm_head")}
        tower, projector, language = _PARTS[self.kind]
        temporal = {"temporal_embeddings": ("model.temporal_embeddings",)} if self.kind == "siglip_qwen" else {}
        return {
            "vision_tower": (tower,),
            **temporal,
            "projector": (projector,),
            "language_model": (language, "lm_head"),
        }

    def with_frames(self, num_frames: int) -> "Architecture":
        """A video model with rows of `num_frames` frames; any other as it is. Raises ValueError above its max_frames."""
        if not self.pictures.video:
            return self
        if num_frames > self.config["max_frames"]:
            raise ValueError(
                f"--num_frames {num_frames}: {self.name} has temporal embeddings for {self.config['max_frames']} frames. "
                "Lower --num_frames, or compose the model with a larger --max_frames."
            )
        return dataclasses.replace(self, pictures=dataclasses.replace(self.pictures, tiles=num_frames))

    def shapes(self) -> Shapes:
        return SHAPES[self.kind](self.config)

    def part_of(self, name: str) -> str:
        """The part of a weight, with embeddings and head apart from the rest of the language model."""
        if name == "lm_head.weight":
            return "lm_head"
        if name.endswith(".embed_tokens.weight"):
            return "embeddings"
        found = (part for part, paths in self.parts.items() if name.startswith(tuple(f"{path}." for path in paths)))
        return next(found, "other")

    def weights(
        self,
        freeze: Sequence[str] = (),
        lora_rank: int = 0,
        lora_targets: str | None = None,
        four_bit: bool = False,
    ) -> list[Weight]:
        """Every weight as the flags freeze and adapt it. Raises ValueError as freezing and LoRA themselves do."""
        shapes = self.shapes()
        frozen = (*self._frozen_paths(freeze, shapes), *self._unread())
        weights = [
            Weight(name, shape, self.part_of(name), not name.startswith(frozen)) for name, shape in shapes.items()
        ]
        if lora_rank:
            weights = self._adapt(
                weights, freeze, lora_rank, lora_targets or re.escape(self.parts["language_model"][0]) + _LINEAR
            )
        if four_bit:
            weights = [dataclasses.replace(w, four_bit=_is_four_bit(w)) for w in weights]
        if not any(weight.trains for weight in weights):
            raise ValueError(f"--freeze {' '.join(freeze)}: no parameter is left to train. Leave a part out.")
        return weights

    def _unread(self) -> tuple[str, ...]:
        """Paths of the tower's layers behind the one that LLaVA-NeXT reads: no gradient reaches them."""
        if self.kind != "llava_next":
            return ()
        tower, depth = self.parts["vision_tower"][0], self.config["vision_config"]["num_hidden_layers"]
        read = layers_read(self.config.get("vision_feature_layer", -2), depth)
        return (f"{tower}.post_layernorm.", *(f"{tower}.encoder.layers.{i}." for i in range(read, depth)))

    def _frozen_paths(self, freeze: Sequence[str], shapes: Shapes) -> tuple[str, ...]:
        modules = {name[:i] for name in shapes for i, letter in enumerate(name) if letter == "."}
        paths: list[str] = []
        for name in freeze:
            if name not in self.parts and name not in modules:
                raise ValueError(
                    f"--freeze {name}: no such part. Parts are {', '.join(self.parts)}, or a module path."
                    f"{nearest(name, [*self.parts, *modules])}"
                )
            paths += [f"{path}." for path in self.parts.get(name, (name,))]
        return tuple(paths)

    def _adapt(self, weights: list[Weight], freeze: Sequence[str], rank: int, targets: str) -> list[Weight]:
        """peft's layout: adapters on the matched layers, a trained copy of every other part that is not frozen."""
        body = self.parts["language_model"][0]
        for name in freeze:
            if name == "language_model" or f"{name}.".startswith(f"{body}."):
                raise ValueError(
                    f"--freeze {name} with --lora_rank: LoRA already keeps its weights. Leave it out of --freeze."
                )
        outside = tuple(f"{path}." for part, paths in self.parts.items() if part != "language_model" for path in paths)
        copies = [w for w in weights if w.trains and w.name.startswith(outside)]
        adapters: list[Weight] = []
        for weight in weights:
            module = weight.name.removesuffix(".weight")
            if len(weight.shape) == 2 and re.fullmatch(targets, module):
                outputs, inputs = weight.shape
                adapters.append(Weight(f"{module}.lora_A", (rank, inputs), "lora"))
                adapters.append(Weight(f"{module}.lora_B", (outputs, rank), "lora"))
        if not adapters:
            raise ValueError(f"--lora_targets {targets}: no linear layer of {self.name} matches.")
        originals = [dataclasses.replace(weight, trains=False) for weight in weights]
        return [*originals, *copies, *adapters]


def _is_four_bit(weight: Weight) -> bool:
    return weight.part == "language_model" and not weight.trains and len(weight.shape) == 2


def load_architecture(model: str) -> Architecture:
    """The architecture of a local directory, a shipped name or a hub id. Raises ValueError with what is known."""
    path = Path(model)
    if (path / "adapter_config.json").is_file():
        return load_architecture(base_of(path))
    if (path / "config.json").is_file():
        return _local(path)
    if path.is_dir():
        raise ValueError(f"--model {model}: no config.json in it. Give a directory written by save_pretrained.")
    contents = _shipped()
    for name, content in contents.items():
        if model.lower() in {name, *(alias.lower() for alias in content["names"])}:
            config = content["config"]
            return Architecture(
                name, config, _pictures(config, content["pictures"]), content["estimate"], content["note"]
            )
    raise ValueError(
        f"--model {model}: neither a local directory nor one of the models whose sizes ship: {', '.join(contents)} (or their hub ids)."
        f"{nearest(model, [*contents, *(alias for content in contents.values() for alias in content['names'])])}"
    )


def _shipped() -> dict[str, dict[str, Any]]:
    """{name: content} of the architecture files; a variant differs in a few words of the configuration (siglip2_qwen3_4b_pool1)."""
    contents: dict[str, dict[str, Any]] = {}
    for file in sorted(SHIPPED.glob("*.json")):
        content = json.loads(file.read_text())
        contents[file.stem] = content
        for variant, change in content.get("variants", {}).items():
            config = {**content["config"], **change}
            note = f"{file.stem} with {', '.join(f'{key} {value}' for key, value in change.items())}"
            contents[f"{file.stem}_{variant}"] = {**content, "names": [], "note": note, "config": config}
    return contents


def _local(path: Path) -> Architecture:
    config = json.loads((path / "config.json").read_text())
    kind = config.get("model_type")
    if kind not in SHAPES:
        raise ValueError(f"{path}/config.json: model_type {kind!r} cannot be planned (known: {', '.join(SHAPES)}).")
    if "text_config" not in config:
        config = {"model_type": kind, "text_config": config}
    # InternVLConfig says tied whatever the checkpoint holds; our own configuration is right, and ZeRO-3 saves tied heads twice
    own_head = None if kind == "siglip_qwen" else _has_own_head(path)
    tied = config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings", False))
    config["text_config"] = {**config["text_config"], "tie_word_embeddings": tied if own_head is None else not own_head}
    processor = path / "processor_config.json"
    image = json.loads(processor.read_text()).get("image_processor", {}) if processor.is_file() else {}
    limit = image.get("max_patches")
    try:
        pictures = _pictures(config, {"tiles": limit + (limit > 1)} if limit else {})
        SHAPES[kind](config)
    except KeyError as error:
        raise ValueError(f"{path}/config.json: the key {error} is missing, so the model cannot be counted.") from error
    return Architecture(path.name, config, pictures, False, "counted from its config.json")


def _has_own_head(path: Path) -> bool | None:
    """Whether the checkpoint stores an lm_head tensor, from the safetensors index or header; None without weights."""
    index, weights = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        return any(name.endswith("lm_head.weight") for name in json.loads(index.read_text())["weight_map"])
    if not weights.is_file():
        return None
    with open(weights, "rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return any(name.endswith("lm_head.weight") for name in names)


def _pictures(config: dict[str, Any], given: dict[str, int]) -> Pictures:
    """Tokens of a tile, by family; `given` (from an architecture file or a processor) wins."""
    vision = config.get("vision_config")
    if not vision:
        return Pictures()
    patches, kind = num_patches(vision), config["model_type"]
    if kind == "internvl":
        known: dict[str, Any] = {"tokens": config["image_seq_length"], "tower_tokens": patches + 1, "tiles": 13}
    elif kind == "idefics3":
        known = {"tokens": patches // config["scale_factor"] ** 2, "tower_tokens": patches, "tiles": 17}
    elif kind == "siglip_qwen":
        tokens = frame_tokens(patches, config["projector_type"], config["pool_size"], config["num_queries"])
        known = {"tokens": tokens, "tower_tokens": patches, "tiles": config["max_frames"], "video": True}
    else:
        known = {"tokens": patches, "tower_tokens": patches + 1, "tiles": 5}
    side = vision["image_size"]
    pixels = 3 * int(side[0] if isinstance(side, list) else side) ** 2
    return Pictures(**{**known, "pixels": pixels, **given})


def attention_widths(text: dict[str, Any]) -> tuple[int, int]:
    """(queries, keys) of a layer in numbers a token."""
    return head_dim(text) * text["num_attention_heads"], head_dim(text) * text["num_key_value_heads"]
