"""What the plan's arithmetic needs of a model: sizes of its layers, its weights by part, tokens of a picture, FLOPs. No torch.

The numbers are those of the real Family on the meta device, as the real `freeze`, `apply_lora` and `train_flops` leave it
(record.py). They come from the first of these places that has them:

1. A JSON file in drive_vlm/models/architectures, for the published models as the recipes train them.
2. The project's cache, under a key of the model's configuration files, the flags and the versions of the libraries.
3. The class itself, which takes the seconds that importing torch takes; the result goes into the cache.
"""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig, nearest
from drive_vlm.models import family_spec
from drive_vlm.models.flops import TrainFlops
from drive_vlm.models.lora import base_of
from drive_vlm.models.vision import Tiling, tiles_in
from drive_vlm.store.cache import cache_dir, cache_key, file_key, write_atomically

SHIPPED = Path(__file__).parents[1] / "models" / "architectures"
_LIBRARIES = ("torch", "transformers", "peft")
# Raise it when the meaning of a recorded number changes: what older versions cached is then recorded again.
_FORMAT = 1


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
            "resampler" is cross attention from learned queries.
        projector_layers: layers of a resampler.
    """

    scaled: bool
    projector: str
    projector_layers: int


@dataclasses.dataclass(frozen=True)
class PictureSizes:
    """`tokens` of the language model and `tower_tokens` for one tile (frame, crop, slice); `tiles` of a picture at most.

    A model of `video` takes every picture whole: its `tiles` are the frames of a row. `pixels` are the numbers of a tile.
    """

    tokens: int = 0
    tower_tokens: int = 0
    tiles: int = 0
    pixels: int = 0
    video: bool = False


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """A model as it is frozen and adapted. `estimate` says that no class of transformers was there to record.

    `tiling` is how the family cuts pictures (None for a plain language model). `train` are the FLOPs of a training step, `forward` those of a forward pass alone, and `tower` the tower's share of a
    tile in both, where the tower is frozen.
    """

    name: str
    estimate: bool
    note: str
    text: TextSizes
    vision: VisionSizes | None
    pictures: PictureSizes
    tiling: Tiling | None
    weights: tuple[Weight, ...]
    train: TrainFlops
    forward: TrainFlops
    tower: float

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

    def without_tower(self) -> "ModelSizes":
        """As it lies in memory with a feature cache. The tower is frozen then, so that its FLOPs are those of `tower`."""
        left = tuple(weight for weight in self.weights if weight.part != "vision_tower")
        train, forward = (
            dataclasses.replace(flops, tile=flops.tile - self.tower) for flops in (self.train, self.forward)
        )
        return dataclasses.replace(self, weights=left, train=train, forward=forward, tower=0.0)

    def parts_that_train(self) -> set[str]:
        return {weight.part for weight in self.weights if weight.trains}

    def has(self, part: str) -> bool:
        return any(weight.part == part for weight in self.weights)


def load_sizes(model: ModelConfig) -> ModelSizes:
    """The sizes of a local directory, a shipped name or a hub id. Raises ValueError with what is known, and as freezing and LoRA do."""
    path = Path(model.model)
    if (path / "adapter_config.json").is_file():
        return load_sizes(dataclasses.replace(model, model=base_of(path)))
    if (path / "config.json").is_file():
        content: dict[str, Any] = {
            "config": _json(path / "config.json"),
            "processor": _processor_numbers(path),
            "note": "counted by its class",
        }
        # The weights say whether the head is the checkpoint's own, which config.json does not.
        weights = [file_key(file) for file in sorted(path.glob("model.safetensors*"))]
        return _sizes(path.name, content, _cached(model, [content["config"], weights]), model.max_tiles)
    if path.is_dir():
        raise ValueError(f"--model {model.model}: no config.json in it. Give a directory written by save_pretrained.")
    name, content = shipped(model.model)
    found = next((found for found in content["recorded"] if found["flags"] == recorded_flags(model)), None)
    found = found or _cached(dataclasses.replace(model, model=name), content)
    return _sizes(name, content, found, model.max_tiles)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _processor_numbers(path: Path) -> dict[str, Any]:
    """The numbers of a processor. Older checkpoints have those of the image processor in a file of their own."""
    numbers = _json(path / "processor_config.json")
    return {"image_processor": _json(path / "preprocessor_config.json")} | numbers


def recorded_flags(model: ModelConfig) -> dict[str, Any]:
    """The flags that a record depends on; the order of --freeze does not matter, nor do LoRA's targets without LoRA."""
    targets = model.lora_targets if model.lora_rank else None
    return {"freeze": sorted(set(model.freeze)), "lora_rank": model.lora_rank, "lora_targets": targets}


def _cached(model: ModelConfig, identity: Any) -> dict[str, Any]:
    """The record of `model`, from the cache or from its class. `identity` is what else the class is built from."""
    libraries = {name: version(name) for name in _LIBRARIES}
    key = cache_key(_FORMAT, identity, recorded_flags(model), libraries)
    file = cache_dir() / "plan" / f"{key}.json"
    if file.is_file():
        return json.loads(file.read_text())
    from drive_vlm.plan.record import record

    made = record(model)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, lambda out: out.write(json.dumps(made).encode()))
    return made


def _sizes(name: str, content: dict[str, Any], found: dict[str, Any], max_tiles: int | None) -> ModelSizes:
    spec = family_spec(content["tiling"] if content.get("estimate") else content["config"]["model_type"])
    # Variants of a published model have the same processor but for this number.
    numbers = {"image_seq_length": found["tokens"]} | content["processor"]
    try:
        tiling = spec.tiling.read(numbers, max_tiles) if spec.tiling else None
    except KeyError as error:
        raise ValueError(
            f"--model {name}: its processor_config.json has no {error}, so it is not known how pictures are cut. Save the processor "
            "again with save_pretrained."
        ) from error
    pictures = PictureSizes()
    if tiling is not None:
        tiles = found["max_frames"] or tiles_in(tiling.largest())
        pixels, video = 3 * tiling.tile[0] * tiling.tile[1], found["max_frames"] is not None
        pictures = PictureSizes(found["tokens"], found["tower_tokens"], tiles, pixels, video)
    rows = (
        (Weight(part, elements, trains, matrix), count) for part, elements, trains, matrix, count in found["weights"]
    )
    return ModelSizes(
        name=name,
        estimate=content.get("estimate", False),
        note=content["note"],
        text=TextSizes(**found["text"]),
        vision=VisionSizes(**found["vision"]) if found["vision"] else None,
        pictures=pictures,
        tiling=tiling,
        weights=tuple(weight for weight, count in rows for _ in range(count)),
        train=TrainFlops(**found["train"]),
        forward=TrainFlops(**found["forward"]),
        tower=found["tower"],
    )


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
