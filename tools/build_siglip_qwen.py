"""Put a SigLIP2 tower and a causal language model together into one video model, with a new projector and temporal embeddings.

Tokens of a video of 16 frames, SigLIP2-SO400M/14-384 (27 x 27 patches a frame): --pool_size 1: 11,664; 2: 3,136;
3: 1,296 (the default); 4: 784; 5: 576; 9: 144; --projector_type resampler: 1,024. Each frame has two marks more.
"""

import json
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool

EXAMPLES = """
python tools/build_siglip_qwen.py --vision_tower google/siglip2-so400m-patch14-384 --language_model Qwen/Qwen3-4B --out models/siglip2_qwen3_4b
python tools/build_siglip_qwen.py --vision_tower DIR --language_model DIR --projector_type resampler --num_queries 64 --out models/resampler
python tools/build_tiny_model.py --family siglip_qwen --corpus data/train.jsonl --out runs/tiny_video   # random and tiny, for trials
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_siglip_qwen.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--out", required=True, help="directory to write; it must not exist or be empty")
    add("--vision_tower", required=True, help="SigLIP or SigLIP2 checkpoint of fixed resolution: directory or hub id")
    add(
        "--language_model",
        required=True,
        help="causal language model with a ChatML tokenizer: directory, hub id or .gguf; or a siglip_qwen directory, to take its language model",
    )
    flag(
        "--projector_type",
        ("mlp", "resampler"),
        "mlp: average pooling and two layers; resampler: learned queries that attend to a frame",
    )
    flag("--pool_size", 3, "mlp: side of a pooling window in patches; 1: none")
    flag("--num_queries", 64, "resampler: tokens of a frame")
    flag("--resampler_layers", 2, "resampler: layers of cross attention", least=0)
    flag("--max_frames", 16, "frames of a video at most")
    flag("--dtype", ("auto", "float32", "bfloat16"), "of the weights; auto: the language model's")
    flag("--seed", 0, "seed of the new weights")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Write the model; returns its config.json, and the tokens of a frame as "image_seq_length"."""
    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out}: the directory is not empty. Give a new one.")
    from transformers.utils import logging

    from drive_vlm.models.siglip_qwen.compose import compose_siglip_qwen

    # The text half of a SigLIP checkpoint is left out on purpose: transformers need not warn of it.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        compose_siglip_qwen(**vars(args))
    except OSError as error:
        # How transformers refuses a checkpoint that is neither on disk nor reachable.
        raise ValueError(str(error)) from error
    return json.loads((out / "config.json").read_text()) | json.loads((out / "processor_config.json").read_text())


def show(config: dict[str, Any], args: Any) -> None:
    tokens = config["image_seq_length"]
    print(
        f"{args.out}: {config['architectures'][0]}, {config['projector_type']} projector, {tokens} tokens a frame, "
        f"{tokens * config['max_frames']:,} for {config['max_frames']} frames"
    )


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
