"""Where the sizes of a model come from: the first of three places that has them.

1. A JSON file in drive_vlm/models/architectures, for the published models as the recipes train them.
2. The project's cache, under a key of the model's configuration files, the flags and the versions of the libraries.
3. The class itself (record.py), which takes the seconds of importing torch; the result goes into the cache.
"""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models import family_spec
from drive_vlm.models.flops import TrainFlops
from drive_vlm.models.loading import with_model_type
from drive_vlm.models.lora import base_of
from drive_vlm.models.vision import tiles_in
from drive_vlm.plan.model_sizes import (
    UNKNOWN,
    ModelSizes,
    PictureSizes,
    TextSizes,
    VisionSizes,
    Weight,
    recorded_flags,
    shipped,
)
from drive_vlm.store.cache import cache_dir, cache_key, file_key, read_sealed, write_sealed
from drive_vlm.store.forms import read_object

_LIBRARIES = ("torch", "transformers", "peft")
# Raise it when the meaning of a recorded number changes: what older versions cached is then recorded again.
_FORMAT = 2
_UNKNOWN_PROJECTOR = "; what its projector keeps for the backward pass is a guess: that of one that takes every patch"


def load_sizes(model: ModelConfig) -> ModelSizes:
    """The sizes of a local directory, a shipped name or a hub id. Raises ValueError with what is known, and as freezing and LoRA do."""
    path = Path(model.model)
    if (path / "adapter_config.json").is_file():
        return load_sizes(dataclasses.replace(model, model=base_of(path)))
    if (path / "config.json").is_file():
        content: dict[str, Any] = {
            "config": with_model_type(_json(path / "config.json")),
            "processor": _processor_numbers(path),
            "note": "counted by its class",
        }
        # The weights say whether the head is the checkpoint's own, which config.json does not.
        weights = [file_key(file) for file in sorted(path.glob("model.safetensors*"))]
        return _sizes(path.name, content, _cached(model, [content["config"], weights]), model)
    if path.is_dir():
        raise ValueError(f"--model {model.model}: no config.json in it. Give a directory written by save_pretrained.")
    name, content = shipped(model.model)
    found = next((found for found in content["recorded"] if found["flags"] == recorded_flags(model)), None)
    found = found or _cached(dataclasses.replace(model, model=name), content)
    return _sizes(name, content, found, model)


def _json(path: Path) -> dict[str, Any]:
    return read_object(path, "Copy the file again from where the model came from.") if path.is_file() else {}


def _processor_numbers(path: Path) -> dict[str, Any]:
    """The numbers of a processor. Older checkpoints have those of the image processor in a file of their own."""
    numbers = _json(path / "processor_config.json")
    files = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    return {name: _json(path / file) for name, file in files.items()} | numbers


def _cached(model: ModelConfig, identity: Any) -> dict[str, Any]:
    """The record of `model`, from the cache or from its class. `identity` is what else the class is built from."""
    libraries = {name: version(name) for name in _LIBRARIES}
    key = cache_key(_FORMAT, identity, recorded_flags(model), libraries)
    file = cache_dir() / "plan" / f"{key}.json"
    if (kept := read_sealed(file)) is not None:
        return json.loads(bytes(kept))
    from drive_vlm.plan.record import record

    made = record(model)
    write_sealed(file, json.dumps(made).encode())
    return made


def _sizes(name: str, content: dict[str, Any], found: dict[str, Any], model: ModelConfig) -> ModelSizes:
    spec = family_spec(content["config"]["model_type"])
    # Variants of a published model have the same processor but for this number.
    numbers = {"image_seq_length": found["tokens"]} | content["processor"]
    try:
        tiling = spec.tiling.read(numbers, model.max_tiles) if spec.tiling else None
    except KeyError as error:
        raise ValueError(
            f"--model {name}: its processor_config.json has no {error}, so it is not known how pictures are cut. Save the processor "
            "again with save_pretrained."
        ) from error
    if tiling is not None and (model.min_pixels or model.max_pixels):
        tiling.limit_pixels(model.min_pixels, model.max_pixels)
    pictures = PictureSizes()
    if tiling is not None:
        tiles = found["max_frames"] or tiles_in(tiling.largest())
        pixels, video = 3 * tiling.tile[0] * tiling.tile[1], found["max_frames"] is not None
        pictures = PictureSizes(found["tokens"], found["tower_tokens"], tiles, pixels, video)
    rows = (
        (Weight(part, elements, trains, matrix), count) for part, elements, trains, matrix, count in found["weights"]
    )
    vision = VisionSizes(**found["vision"]) if found["vision"] else None
    text = TextSizes(**found["text"])
    return ModelSizes(
        name=name,
        note=content["note"] + (_UNKNOWN_PROJECTOR if vision and vision.projector == UNKNOWN else ""),
        text=text,
        vision=vision,
        pictures=pictures,
        tiling=tiling,
        weights=tuple(weight for weight, count in rows for _ in range(count)),
        train=TrainFlops(**found["train"]),
        forward=TrainFlops(**found["forward"]),
        tower=found["tower"],
        cached_parts=spec.cached_parts,
        cached=spec.cached.vectors(content["config"]) * text.width if spec.cached else 0,
    )
