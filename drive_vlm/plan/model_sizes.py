"""What the plan's arithmetic needs of a model: sizes of its layers, its weights by part, tokens of a picture, FLOPs. No torch.

The numbers are those of the real Family on the meta device, as the real `freeze`, `apply_lora` and `train_flops` leave it
(record.py); lookup.py says where they are kept.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig, nearest
from drive_vlm.models.flops import TrainFlops
from drive_vlm.models.vision import Tiling

SHIPPED = Path(__file__).parents[1] / "models" / "architectures"


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter: `part` is vision_tower, temporal_embeddings, projector, language_model, embeddings, lm_head, lora or other.

    `matrix` is true for the weight of a linear layer: what NF4 holds in four bits where it is frozen.
    """

    part: str
    elements: int
    trains: bool = True
    matrix: bool = False

    @property
    def four_bit(self) -> bool:
        """Whether `--quantize nf4` holds it in four bits (models/quantize.py)."""
        return self.part == "language_model" and self.matrix and not self.trains


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """A stack of transformer layers: the width between layers, and the inner width of the MLP."""

    layers: int
    width: int
    inner: int


# What a family outside the package has, whose config.json does not say it ("projector_type").
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class TextSizes(LayerSizes):
    """A decoder. `queries` and `keys` are numbers a token and layer; `query_norms` says that both are normalised (Qwen3)."""

    heads: int
    queries: int
    keys: int
    vocabulary: int
    query_norms: bool


@dataclasses.dataclass(frozen=True)
class VisionSizes(LayerSizes):
    """A tower, and the projector behind it.

    Attributes:
        scaled: each layer's output is multiplied by a learned scale, which keeps two more widths for the backward pass.
        projector: "patches" takes every patch; "mlp" and "pooled" are siglip_qwen's two layers, without and with pooling;
            "resampler" is cross attention from learned queries; "glu" is CogVLM2's, as wide within as the language model's MLP. UNKNOWN, of a family outside the package, is counted as
            "patches", and the plan says so.
        projector_layers: layers of a resampler.
    """

    scaled: bool
    projector: str
    projector_layers: int


@dataclasses.dataclass(frozen=True)
class PictureSizes:
    """`tokens` of the language model and `tower_tokens` for one tile (frame, crop, slice); `tiles` of a picture at most.

    A model of `video` takes every picture whole: its `tiles` are the frames of a row. `pixels` are the numbers of a tile.
    `features` are those of a tile in a feature cache that holds more than the tower's last layer, where the run reads one.
    """

    tokens: int = 0
    tower_tokens: int = 0
    tiles: int = 0
    pixels: int = 0
    video: bool = False
    features: int = 0


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """A model as it is frozen and adapted.

    `tiling` is how the family cuts pictures (None for a plain language model). A feature cache stands for `cached_parts`, and holds
    `cached` numbers of a tile where these are more than the tower. `train` are the FLOPs of a training step, `forward` those of a forward pass alone, and `tower` the tower's share of a
    tile in both, where the tower is frozen.
    """

    name: str
    note: str
    text: TextSizes
    vision: VisionSizes | None
    pictures: PictureSizes
    tiling: Tiling | None
    weights: tuple[Weight, ...]
    train: TrainFlops
    forward: TrainFlops
    tower: float
    cached_parts: tuple[str, ...] = ("vision_tower",)
    cached: int = 0

    def with_frames(self, num_frames: int) -> "ModelSizes":
        """A video model with rows of `num_frames` frames; any other as it is. Raises ValueError above its max_frames."""
        if not self.pictures.video:
            return self
        if num_frames > self.pictures.tiles:
            raise ValueError(
                f"--num_frames {num_frames}: {self.name} has temporal embeddings for {self.pictures.tiles} frames. "
                "Lower --num_frames, or compose the model with a larger --max_frames."
            )
        return dataclasses.replace(self, pictures=dataclasses.replace(self.pictures, tiles=num_frames))

    def with_value_head(self, inner: int, trains: bool) -> "ModelSizes":
        """With the head of models/value_head.py, whose hidden layer is `inner` wide. Its FLOPs are not worth counting."""
        width = self.text.width
        matrices, biases = inner * (width + 1), inner + 1
        head = (Weight("value_head", matrices, trains, matrix=True), Weight("value_head", biases, trains))
        return dataclasses.replace(self, weights=(*self.weights, *head))

    def with_features(self) -> "ModelSizes":
        """As it lies in memory with a feature cache."""
        if not self.cached:
            return self.without_tower()
        left = tuple(weight for weight in self.weights if weight.part not in self.cached_parts)
        train, forward = (dataclasses.replace(flops, tile=0.0) for flops in (self.train, self.forward))
        pictures = dataclasses.replace(self.pictures, features=self.cached)
        return dataclasses.replace(self, weights=left, train=train, forward=forward, tower=0.0, pictures=pictures)

    def without_tower(self) -> "ModelSizes":
        """As it computes where the tower's last layer is given. The tower is frozen then, so that its FLOPs are those of `tower`."""
        left = tuple(weight for weight in self.weights if weight.part != "vision_tower")
        train, forward = (
            dataclasses.replace(flops, tile=flops.tile - self.tower) for flops in (self.train, self.forward)
        )
        return dataclasses.replace(self, weights=left, train=train, forward=forward, tower=0.0)

    def parts_that_train(self) -> set[str]:
        return {weight.part for weight in self.weights if weight.trains}

    def has(self, part: str) -> bool:
        return any(weight.part == part for weight in self.weights)


def recorded_flags(model: ModelConfig) -> dict[str, Any]:
    """The flags that a record depends on; the order of --freeze does not matter, nor do LoRA's targets without LoRA."""
    targets = model.lora_targets if model.lora_rank else None
    found = {"freeze": sorted(set(model.freeze)), "lora_rank": model.lora_rank, "lora_targets": targets}
    # Said only where it is so: what ships was recorded without.
    return found | ({"lora_embeddings": True} if model.lora_embeddings else {})


def shipped(model: str) -> tuple[str, dict[str, Any]]:
    """(name, content) of the published model that `model` names or whose hub id it is. Raises ValueError with the nearest one."""
    contents = all_shipped()
    for name, content in contents.items():
        if model.lower() in {name, *(alias.lower() for alias in content["names"])}:
            return name, content
    raise ValueError(
        f"--model {model}: neither a local directory nor one of the models whose sizes ship: {', '.join(contents)} (or their hub ids)."
        f"{nearest(model, [*contents, *(alias for content in contents.values() for alias in content['names'])])}"
    )


def all_shipped() -> dict[str, dict[str, Any]]:
    """{name: content} of the published models; a variant differs in a few words of the configuration (siglip2_qwen3_4b_pool1)."""
    contents: dict[str, dict[str, Any]] = {}
    for file in sorted(SHIPPED.glob("*.json")):
        content = json.loads(file.read_text())
        recorded = content["recorded"]
        contents[file.stem] = {**content, "recorded": recorded.get(file.stem, [])}
        for variant, change in content.get("variants", {}).items():
            name, config = f"{file.stem}_{variant}", {**content["config"], **change}
            note = f"{file.stem} with {', '.join(f'{key} {value}' for key, value in change.items())}"
            other = {"names": [], "note": note, "config": config, "recorded": recorded.get(name, [])}
            contents[name] = {**content, **other}
    return contents
