"""Speed of stage-1 training on videos from pixels and from the feature cache, side by side.

The model is the family siglip_qwen with random weights: a SigLIP tower of a real size (--tower_* flags), frozen, and a
small language model. Both sides are `python -m drive_vlm sft` on the same rows, in turns, with equal flags; the losses
must agree. Rates run from the log of step 1, a warm-up that also hides start-up, to the log of the last step. The ratio
grows with the tower and with frames, and shrinks as the language model grows: both are printed with it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

TOOLS = Path(__file__).resolve().parents[1]

EXAMPLES = """
python tools/bench/bench_features.py --json runs/bench_features.json
python tools/bench/bench_features.py --tower_width 1152 --tower_layers 27 --tower_heads 16 --patch_size 14 --num_frames 16   # SO400M
"""
NUMBERS = {
    "clips": (6, "videos, each named by a few rows"),
    "num_frames": (4, "frames of a video"),
    "steps": (4, "steps of a run; the first is a warm-up"),
    "batch_size": (2, "rows of a step"),
    "repeats": (1, "runs of each side, in turns; the median counts"),
    "threads": (1, "torch threads of both sides"),
    "workers": (1, "loader workers of both sides"),
    "image_size": (384, "pixels of a frame's side"),
    "patch_size": (16, "pixels of a patch's side"),
    "tower_width": (768, "width of the vision tower"),
    "tower_layers": (12, "layers of the vision tower"),
    "tower_heads": (12, "attention heads of the vision tower"),
    "pool_size": (3, "side of the projector's pooling window, in patches"),
    "text_width": (256, "width of the language model"),
    "text_layers": (4, "layers of the language model"),
}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_features.py", description=__doc__, examples=EXAMPLES)
    for name, (default, text) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--stored", default="float16", choices=("float16", "bfloat16", "float32"), help="number type on disk"
    )
    parser.add_argument("--work", type=Path, help="folder for data, model and runs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser


def prepare(args: Any, work: Path) -> dict[str, int]:
    """Write clips and model; parameters by part."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    from drive_vlm.models.siglip_qwen.compose import write_model
    from drive_vlm.models.siglip_qwen.processing import SPECIAL as PICTURES
    from drive_vlm.models.tiny.tiny import SPECIAL, corpus_of, train_tokenizer

    tool = TOOLS / "build_synthetic.py"
    words = ["--scenes", 8, "--clips", args.clips, "--num_frames", args.num_frames, "--size", args.image_size]
    words += ["--splits", "train:1", "--workers", 1]
    start(
        [sys.executable, str(tool), "--out", str(work / "data"), *map(str, words)], dict(os.environ), work / "data.log"
    )
    rows = [json.loads(line) for line in (work / "data" / "clips_train.jsonl").read_text().splitlines()]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus_of(rows), 2000, (*SPECIAL[:3], *PICTURES), {})
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=args.tower_width,
            num_hidden_layers=args.tower_layers,
            num_attention_heads=args.tower_heads,
            intermediate_size=4 * args.tower_width,
            image_size=args.image_size,
            patch_size=args.patch_size,
            vision_use_head=False,
        )
    )
    language = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=args.text_width,
            intermediate_size=3 * args.text_width,
            num_hidden_layers=args.text_layers,
            num_attention_heads=max(1, args.text_width // 64),
            num_key_value_heads=max(1, args.text_width // 64),  # any width: every head has keys of its own
            head_dim=64,
            tie_word_embeddings=True,
        )
    )
    pixels = SiglipImageProcessor(size={"height": args.image_size, "width": args.image_size})
    settings = {"pool_size": args.pool_size, "max_frames": args.num_frames}
    write_model(work / "model", tower, language, tokenizer, pixels, thinks=False, **settings)
    return {"tower": tower.num_parameters(), "language_model": language.num_parameters(), "rows": len(rows)}


def start(words: list[str], env: dict[str, str], log: Path) -> float:
    """Run to the end; seconds. Raises ValueError when it fails."""
    began = time.perf_counter()
    with open(log, "wb") as file:
        done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, env=env, check=False)
    if done.returncode:
        raise ValueError(f"{log.stem} ended with code {done.returncode}: {log.read_text(errors='replace')[-3000:]}")
    return time.perf_counter() - began


def train(args: Any, work: Path, out: Path, env: dict[str, str], *more: str) -> dict[str, Any]:
    """One run; samples a second after the warm-up step, the share of waiting for data, and all losses."""
    flags = {
        "model": work / "model",
        "data": work / "data" / "clips_train.jsonl",
        "output_dir": out,
        "num_frames": args.num_frames,
        "max_steps": args.steps,
        "logging_steps": 1,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": args.workers,
        "use_cpu": True,
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    words += ["--freeze", "vision_tower", "language_model", *more]
    start([sys.executable, "-m", "drive_vlm", "sft", *words], env, out.with_suffix(".log"))
    logs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in logs if "loss" in row]
    assert len(steps) == args.steps
    timed = steps[1:]
    seconds = sum(args.batch_size / row["samples_per_second"] for row in timed)
    return {
        "samples_per_second": args.batch_size * len(timed) / seconds,
        "data_wait_share": statistics.mean(row["data_wait_share"] for row in timed),
        "losses": [row["loss"] for row in steps],
    }


def measure(args: Any, work: Path) -> dict[str, Any]:
    """Prepare, build the cache, run both sides in turns; what --json holds. Raises ValueError."""
    from drive_vlm.launch.manifest import machine, versions

    sizes = prepare(args, work)
    if sizes["rows"] < args.steps * args.batch_size:
        raise ValueError(
            f"{sizes['rows']} rows for {args.steps} steps of {args.batch_size}: raise --clips, so that no row comes twice."
        )
    env = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "DRIVE_VLM_CACHE": str(work / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    env = {key: value for key, value in env.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    features, tool = work / "features", TOOLS / "cache_features.py"
    words = ["--model", work / "model", "--data", work / "data" / "clips_train.jsonl", "--num_frames", args.num_frames]
    words += ["--out", features, "--stored", args.stored]
    built = start([sys.executable, str(tool), *map(str, words)], env, work / "features.log")
    runs: dict[str, list[dict[str, Any]]] = {"pixels": [], "cache": []}
    for repeat in range(args.repeats):
        runs["pixels"].append(train(args, work, work / f"pixels{repeat}", env))
        runs["cache"].append(train(args, work, work / f"cache{repeat}", env, "--feature_cache", str(features)))
    apart = max(
        abs(a - b)
        for ours, theirs in zip(runs["pixels"], runs["cache"], strict=True)
        for a, b in zip(ours["losses"], theirs["losses"], strict=True)
    )
    if apart > 0.01:
        raise ValueError(f"the losses of the two sides are {apart:.3g} apart: they did not train the same.")
    rates = {side: statistics.median(run["samples_per_second"] for run in runs[side]) for side in runs}
    return {
        "samples_per_second": rates,
        "ratio": rates["cache"] / rates["pixels"],
        "largest_loss_difference": apart,
        "cache": {
            "build_seconds": built,
            "bytes": sum(path.stat().st_size for path in features.glob("*.bin")),
            "videos": args.clips,
        },
        "parameters": sizes,
        "runs": runs,
        "settings": {name: getattr(args, name) for name in (*NUMBERS, "stored")},
        "machine": machine(),
        "versions": versions(),
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, sizes = result["settings"], result["parameters"]
    table = Table()
    for column in ("training from", "samples/s", "waiting for data"):
        table.add_column(column, justify="left" if column == "training from" else "right")
    for side, rate in result["samples_per_second"].items():
        waits = statistics.median(run["data_wait_share"] for run in result["runs"][side])
        table.add_row(side, f"{rate:.3g}", f"{waits:.0%}")
    Console(width=120).print(table)
    patches = (settings["image_size"] // settings["patch_size"]) ** 2
    print(
        f"ratio {result['ratio']:.1f}; losses differ by {result['largest_loss_difference']:.2g} at most ({settings['stored']} features)"
    )
    print(
        f"tower of {sizes['tower'] / 1e6:.0f} M weights, {settings['tower_layers']} layers, {patches} patches a frame, {settings['num_frames']} "
        f"frames; language model of {sizes['language_model'] / 1e6:.1f} M, frozen; projector and temporal embeddings train"
    )
    cache, machine, found = result["cache"], result["machine"], result["versions"]
    print(
        f"cache: {cache['videos']} videos, {cache['bytes'] / 2**20:.1f} MiB, built in {cache['build_seconds']:.0f} s with start-up"
    )
    print(
        f"{machine['processor']}, {machine['cores']} cores, {settings['threads']} threads, CPU, float32; torch {found['torch']}"
    )


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        if args.steps < 2 or min(args.clips, args.num_frames, args.batch_size, args.repeats, args.threads) < 1:
            raise ValueError("--steps must be at least 2, the other counts at least 1.")
        with tempfile.TemporaryDirectory() as temporary:
            work = (args.work or Path(temporary)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            result = measure(args, work)
    except ValueError as error:
        parser.error(str(error))
    show(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
