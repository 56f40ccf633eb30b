"""Models and rows of tools/bench/gpu.py: configurations without weights, random weights made on the device, synthetic rows."""

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure

# What a random configuration of another size must not keep of the tiny one.
_OF_THE_SIZE = ("head_dim", "layer_types", "max_window_layers", "max_position_embeddings")
_REWARD = """
def build():
    def length(prompts, completions, **columns):
        texts = [completion[0]["content"] for completion in completions]
        return [len(set(text)) / (1 + len(text)) for text in texts]
    return length
"""


@dataclasses.dataclass(frozen=True)
class BenchModel:
    """`shipped` is a name of drive_vlm/models/architectures, `build` of drive_vlm/models/tiny; pictures as they are there and at toy size."""

    shipped: str
    build: str
    real: dict[str, Any]
    toy: dict[str, Any]


MODELS = {
    "internvl": BenchModel(
        "internvl3_1b", "build_tiny_internvl", {"image_size": 448, "patch_size": 14, "max_tiles": 1}, {"max_tiles": 1}
    ),
    # The published tower takes 384 pixels and drops the last 6 of each side.
    "siglip_qwen": BenchModel(
        "siglip2_qwen3_4b", "build_tiny_siglip_qwen", {"image_size": 378, "patch_size": 14, "pool_size": 3}, {}
    ),
    "llava_next": BenchModel("llava_next_8b", "build_tiny_llava_next", {"image_size": 336}, {}),
    # Small on a GPU too: its losses are compared with those of a CPU.
    "toy": BenchModel("internvl3_1b", "build_tiny_internvl", {"max_tiles": 1}, {"max_tiles": 1}),
}


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made by `make(part)` unless it is there; a process that is killed leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        # Ranks of one case ask for it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_name(f".{path.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(path)
    return path


# ---- rows


def images(work: Path, cuda: bool) -> Path:
    """Pictures, clips and their rows, by tools/build_synthetic.py."""

    def make(part: Path) -> None:
        sizes = (
            {"scenes": 400, "clips": 24, "num_frames": 16, "size": 448}
            if cuda
            else {"scenes": 40, "clips": 4, "num_frames": 4, "size": 56}
        )
        building = part.with_name("building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        measure.build_synthetic(building, clip_format="frames", **sizes).rename(part)
        shutil.rmtree(building)

    return made_once(work / "synthetic", make)


def rows_of(work: Path, kind: str, cuda: bool) -> Path:
    """The JSONL of `kind`: mixed (bench_sft's lengths), eight (short ones), clips, or pairs (chosen and rejected)."""
    data = images(work, cuda)
    if kind == "clips":
        return data / "clips_train.jsonl"
    from bench_sft import mixed_rows

    questions, captions = (measure.json_lines(data / name) for name in ("train.jsonl", "captions_train.jsonl"))

    def make(part: Path) -> None:
        if kind == "pairs":
            rows = [
                row | {"chosen": _answer(row), "rejected": f"{_answer(row)} Nothing of it is certain."}
                for row in captions
            ]
        else:
            rows = mixed_rows(questions, captions, 2000 if cuda else 200) if kind == "mixed" else questions[:8]
        measure.write_json_lines(part, rows)

    return made_once(data / f"bench_{kind}.jsonl", make)


def _answer(row: dict[str, Any]) -> str:
    return row["conversations"][-1]["value"]


def reward_file(work: Path) -> Path:
    """A reward that costs nothing: what a reward of the project costs is measured on a CPU."""

    def make(part: Path) -> None:
        part.write_text(_REWARD)

    return made_once(work / "length.py", make)


# ---- models


def directory(work: Path, name: str, cuda: bool) -> Path:
    """Configuration and processor of MODELS[name], without weights, at its real size where there is a GPU."""
    model = MODELS[name]

    def make(part: Path) -> None:
        from drive_vlm.data.jsonl import JsonlFile
        from drive_vlm.models import tiny
        from drive_vlm.models.tiny.tiny import corpus_of
        from drive_vlm.plan.model_sizes import shipped

        real = cuda and name != "toy"
        corpus = corpus_of(JsonlFile(images(work, cuda) / "train.jsonl"))
        getattr(tiny.tiny, model.build)(part, corpus, **(model.real if real else model.toy))
        for weights in part.glob("*.safetensors"):
            weights.unlink()
        if real:
            config = json.loads((part / "config.json").read_text())
            (part / "config.json").write_text(
                json.dumps(at_size(config, shipped(model.shipped)[1]["config"]), indent=2)
            )

    return made_once(work / ("real" if cuda else "toy") / name, make)


def at_size(tiny: dict[str, Any], shipped: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a tiny model with the sizes of the shipped one; token ids stay those of the tiny tokenizer."""
    found = {key: value for key, value in tiny.items() if key not in _OF_THE_SIZE}
    for key, value in shipped.items():
        found[key] = at_size(tiny.get(key) or {}, value) if isinstance(value, dict) else value
    # Pictures are those of the processor next to it.
    for key in ("image_size", "patch_size"):
        if key in tiny:
            found[key] = tiny[key]
    if "initializer_range" in found:
        found["initializer_range"] = 0.02
    return found


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Inside, ZeRO-3 does not cut weights as they are made: random numbers would fall on other weights than without it."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


@contextlib.contextmanager
def random_weights(device: str) -> Iterator[None]:
    """Inside, a model directory without weights loads as a random model, made on `device`; the seed makes it the same each time."""
    import torch

    from drive_vlm import models
    from drive_vlm.models import loading

    real, head = loading._auto_class, loading.has_own_head

    class Random:
        """Takes the place of from_pretrained of a transformers Auto class."""

        def __init__(self, auto: Any) -> None:
            self.auto = auto

        def from_pretrained(self, path: str, config: Any, dtype: Any, attn_implementation: str, **rest: Any) -> Any:
            if rest.get("quantization_config") is not None:
                raise ValueError("weights are quantised as they are read, and there is no file to read")
            torch.manual_seed(0)
            with torch.device(device), whole_weights():
                model = self.auto.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
            return model, {"missing_keys": set()}

        def from_config(self, *args: Any, **kwargs: Any) -> Any:
            return self.auto.from_config(*args, **kwargs)

    def own_head(path: str) -> bool | None:
        stored = loading.stored_config(path)
        return not stored.get("tie_word_embeddings", True) if head(path) is None else head(path)

    # Patches, of these names of the package alone: the one place where weights are read.
    loading._auto_class = lambda spec: Random(real(spec))  # type: ignore[assignment,return-value]
    loading.has_own_head = models.has_own_head = own_head
    try:
        yield
    finally:
        loading._auto_class = real
        loading.has_own_head = models.has_own_head = head
