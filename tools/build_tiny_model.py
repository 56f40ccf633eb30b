"""Write a tiny random model (the real classes, tokenizer and processor, small sizes) for trials without a download."""

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool

EXAMPLES = """
python tools/build_tiny_model.py --out runs/tiny --corpus data/train.jsonl
python tools/build_tiny_model.py --out runs/tiny --corpus data/train.jsonl --image_size 64 --patch_size 8 --hidden_size 128
python tools/build_tiny_model.py --family llava_next --out runs/tiny_llava --corpus data/train.jsonl
python tools/build_tiny_model.py --family siglip_qwen --out runs/tiny_video --corpus data/train.jsonl --pool_size 2 --max_frames 16
"""
_MEANING = {
    "image_size": "pixels of a tile's or frame's side",
    "patch_size": "pixels of a patch's side",
    "hidden_size": "width of tower and language model",
    "vision_layers": "layers of the vision tower",
    "text_layers": "layers of the language model",
    "vocab_size": "tokens of the tokenizer, at most",
    "seed": "seed of the random weights",
    "max_tiles": "tiles a row may use for its pictures",
    "splits": "tiles along a picture's longer edge, at most",
    "pool_size": "side of a pooling window in patches",
    "num_queries": "tokens of a frame or slice that a resampler makes",
    "version": "of MiniCPM-V: 2.5 or 2.6",
    "max_frames": "frames of a row, at most",
    "text_width": "width of the language model; 0: hidden_size",
    "heads": "attention heads of the vision tower; 0: one for each 32 of its width",
}


def tiny_builders() -> dict[str, Callable[..., Path]]:
    """{family: what builds its tiny twin}, of every family that names one (FamilySpec.tiny); no torch is loaded."""
    from drive_vlm.models import family_spec, known_models

    places = {spec.name: spec.tiny.split(":") for spec in map(family_spec, known_models()) if spec.tiny}
    return {name: getattr(importlib.import_module(module), function) for name, (module, function) in places.items()}


def sizes_of(builder: Callable[..., Path]) -> dict[str, Any]:
    """{flag: default} of a builder: its parameters that have one."""
    parameters = inspect.signature(builder).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_tiny_model.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--out", required=True, help="directory to write")
    add("--corpus", nargs="+", required=True, help="JSONL rows whose words train the tokenizer")
    sizes = {name: sizes_of(builder) for name, builder in tiny_builders().items()}
    add("--family", default="internvl", choices=tuple(sizes), help="whose classes")
    for flag in dict.fromkeys(flag for own in sizes.values() for flag in own):
        defaults = {name: own[flag] for name, own in sizes.items() if flag in own}
        same = len(defaults) == len(sizes) and len(set(defaults.values())) == 1
        text = (
            next(iter(defaults.values())) if same else ", ".join(f"{name} {value}" for name, value in defaults.items())
        )
        kind = type(next(iter(defaults.values())))
        if kind is not bool:
            add(f"--{flag}", type=kind, help=f"{_MEANING.get(flag, 'of its configuration')} (default: {text})")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Write the model; returns its config.json. Raises ValueError for a flag of another family."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.models.tiny.tiny import corpus_of

    builder = tiny_builders()[args.family]
    named = ("out", "corpus", "family")
    given = {name: value for name, value in vars(args).items() if value is not None and name not in named}
    for name in given:
        if name not in sizes_of(builder):
            raise ValueError(f"--{name} is not a flag of --family {args.family}.")
    builder(args.out, corpus_of(row for path in args.corpus for row in JsonlFile(Path(path))), **given)
    return json.loads((Path(args.out) / "config.json").read_text())


def show(config: dict[str, Any], args: Any) -> None:
    # Some families write their text's numbers at the top.
    words = config.get("text_config", config)["vocab_size"]
    print(f"{args.out}: {config['architectures'][0]}, vocabulary {words}, random weights (seed {args.seed or 0})")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
