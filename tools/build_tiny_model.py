"""Write a tiny random model (the real classes, tokenizer and processor, small sizes) for trials without a download."""

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
# Flags of one family only, with their defaults there.
_OWN: dict[str, dict[str, Any]] = {
    "internvl": {"max_tiles": 4},
    "llava_next": {},
    "smolvlm": {"splits": 2},
    "siglip_qwen": {"projector_type": "mlp", "pool_size": 2, "num_queries": 8, "resampler_layers": 1, "max_frames": 16},
}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_tiny_model.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--out", required=True, help="directory to write")
    add("--corpus", nargs="+", required=True, help="JSONL rows whose words train the tokenizer")
    add(
        "--family",
        default="internvl",
        choices=tuple(_OWN),
        help="internvl, llava_next and smolvlm (pictures in tiles), or siglip_qwen (video: SigLIP, temporal embeddings, Qwen3)",
    )
    add("--image_size", type=int, default=56, help="pixels of a tile's or frame's side")
    add("--patch_size", type=int, help="pixels of a patch's side (default: 7; llava_next: 14)")
    add("--hidden_size", type=int, default=64, help="width of tower and language model")
    add("--vision_layers", type=int, help="layers of the vision tower (default: 2; llava_next: 3)")
    add("--text_layers", type=int, default=2, help="layers of the language model")
    add("--vocab_size", type=int, default=2000, help="tokens of the tokenizer, at most")
    add("--seed", type=int, default=0, help="seed of the random weights")
    add("--max_tiles", type=int, help="internvl: tiles a row may use for its pictures (default: 4)")
    add("--splits", type=int, help="smolvlm: tiles along a picture's longer edge, at most (default: 2)")
    add("--projector_type", choices=("mlp", "resampler"), help="siglip_qwen: kind of projector (default: mlp)")
    add("--pool_size", type=int, help="siglip_qwen: side of a pooling window in patches (default: 2)")
    add("--num_queries", type=int, help="siglip_qwen: queries of the resampler (default: 8)")
    add("--resampler_layers", type=int, help="siglip_qwen: layers of the resampler (default: 1)")
    add("--max_frames", type=int, help="siglip_qwen: frames of a row, at most (default: 16)")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Write the model; returns its config.json. Raises ValueError for a flag of another family."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.models.tiny.tiny import build_tiny_internvl, build_tiny_siglip_qwen, corpus_of
    from drive_vlm.models.tiny.tiny_pictures import build_tiny_llava_next, build_tiny_smolvlm

    given = {name: getattr(args, name) for own in _OWN.values() for name in own}
    for name, value in given.items():
        if value is not None and name not in _OWN[args.family]:
            raise ValueError(f"--{name} is not a flag of --family {args.family}.")
    own = {name: default if given[name] is None else given[name] for name, default in _OWN[args.family].items()}
    builders: dict[str, Callable[..., Path]] = {
        "internvl": build_tiny_internvl,
        "llava_next": build_tiny_llava_next,
        "smolvlm": build_tiny_smolvlm,
        "siglip_qwen": build_tiny_siglip_qwen,
    }
    shared = ("image_size", "patch_size", "hidden_size", "vision_layers", "text_layers", "vocab_size", "seed")
    sizes = {name: getattr(args, name) for name in shared if getattr(args, name) is not None}
    corpus = corpus_of(row for path in args.corpus for row in JsonlFile(Path(path)))
    builders[args.family](args.out, corpus, **sizes, **own)
    return json.loads((Path(args.out) / "config.json").read_text())


def show(config: dict[str, Any], args: Any) -> None:
    words = config["text_config"]["vocab_size"]
    print(f"{args.out}: {config['architectures'][0]}, vocabulary {words}, random weights (seed {args.seed})")


def main() -> None:
    run_tool(make_parser(), run, show)


if __name__ == "__main__":
    main()
