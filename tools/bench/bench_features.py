"""Speed of stage-1 training on videos from pixels and from the feature cache, side by side.

The model is the family siglip_qwen with random weights: a SigLIP tower of a real size (--tower_* flags), frozen, and a
small language model. Both sides are `python -m drive_vlm sft` on the same rows, in turns, with equal flags; the losses
must agree. Rates run from the log of step 1, a warm-up that also hides start-up, to the log of the last step. The ratio
grows with the tower and with frames, and shrinks as the language model grows: both are printed with it.
"""

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import measure

EXAMPLES = """
python tools/bench/bench_features.py --json runs/bench_features.json
python tools/bench/bench_features.py --tower_width 1152 --tower_layers 27 --tower_heads 16 --patch_size 14 --num_frames 16   # SO400M
"""
NUMBERS = {
    "clips": (6, 1, "videos, each named by a few rows"),
    "num_frames": (4, 1, "frames of a video"),
    "steps": (4, 2, "steps of a run; the first is a warm-up"),
    "batch_size": (2, 1, "rows of a step"),
    "repeats": (1, 1, "runs of each side, in turns; the median counts"),
    "threads": (1, 1, "torch threads of both sides"),
    "workers": (1, 0, "loader workers of both sides"),
    "image_size": (384, 1, "pixels of a frame's side"),
    "patch_size": (16, 1, "pixels of a patch's side"),
    "tower_width": (768, 1, "width of the vision tower"),
    "tower_layers": (12, 1, "layers of the vision tower"),
    "tower_heads": (12, 1, "attention heads of the vision tower"),
    "pool_size": (3, 1, "side of the projector's pooling window, in patches"),
    "text_width": (256, 1, "width of the language model"),
    "text_layers": (4, 1, "layers of the language model"),
}


def make_parser() -> Any:
    parser = measure.bench_parser("bench_features", __doc__, EXAMPLES, NUMBERS)
    types = ("float16", "bfloat16", "float32")
    parser.add_argument("--stored", default=types[0], choices=types, help="number type on disk")
    return parser


def prepare(args: Any, work: Path) -> dict[str, int]:
    """Write clips and model; parameters by part, and the number of rows."""
    frames = {"clips": args.clips, "num_frames": args.num_frames, "size": args.image_size}
    rows = measure.build_synthetic(work, scenes=8, workers=1, **frames) / "clips_train.jsonl"
    shared = {
        name: getattr(args, name) for name in ("image_size", "patch_size", "pool_size", "text_width", "text_layers")
    }
    tower = {"hidden_size": args.tower_width, "vision_layers": args.tower_layers, "heads": args.tower_heads}
    sizes = shared | tower | {"max_frames": args.num_frames}
    model = measure.build_tiny(work, "model", rows, family="siglip_qwen", **sizes)
    parts = {"tower": "vision_tower", "language_model": "language_model"}
    found = {name: measure.parameters(model, part) for name, part in parts.items()}
    return found | {"rows": len(measure.json_lines(rows))}


def train(args: Any, work: Path, env: dict[str, str], side: str, repeat: int) -> dict[str, Any]:
    """One run; samples a second after the warm-up step, the share of waiting for data, and all losses."""
    out = work / f"{side}{repeat}"
    values = {
        "model": work / "model",
        "data": work / "data" / "clips_train.jsonl",
        "output_dir": out,
        "num_frames": args.num_frames,
        "max_steps": args.steps,
        "logging_steps": 1,
        "per_device_train_batch_size": args.batch_size,
        **measure.TRAINING,
        "dataloader_num_workers": args.workers,
        "use_cpu": True,
        "freeze": ["vision_tower", "language_model"],
        **({"feature_cache": work / "features"} if side == "cache" else {}),
    }
    measure.start([sys.executable, "-m", "drive_vlm", "sft", *measure.flags(values)], out.with_suffix(".log"), env)
    steps = measure.logged(out)
    assert len(steps) == args.steps
    timed = steps[1:]
    seconds = sum(args.batch_size / row["samples_per_second"] for row in timed)
    return {
        "samples_per_second": args.batch_size * len(timed) / seconds,
        "data_wait_share": statistics.mean(row["data_wait_share"] for row in timed),
        "losses": [row["loss"] for row in steps],
    }


def run(args: Any, work: Path) -> dict[str, Any]:
    """Prepare, build the cache, run both sides in turns. Raises ValueError."""
    sizes = prepare(args, work)
    if sizes["rows"] < args.steps * args.batch_size:
        raise ValueError(
            f"{sizes['rows']} rows for {args.steps} steps of {args.batch_size}: raise --clips, so that no row comes twice."
        )
    env = measure.environment(work, args.threads) | {"CUDA_VISIBLE_DEVICES": ""}
    values = {"model": work / "model", "data": work / "data" / "clips_train.jsonl", "num_frames": args.num_frames}
    words = measure.flags(values | {"out": work / "features", "stored": args.stored})
    caching = [sys.executable, measure.TOOLS / "cache_features.py", *words]
    built = measure.start(caching, work / "features.log", env)["seconds"]
    runs = measure.in_turns({side: partial(train, args, work, env, side) for side in ("pixels", "cache")}, args.repeats)
    apart = max(
        abs(a - b)
        for ours, theirs in zip(runs["pixels"], runs["cache"], strict=True)
        for a, b in zip(ours["losses"], theirs["losses"], strict=True)
    )
    if apart > 0.01:
        raise ValueError(f"the losses of the two sides are {apart:.3g} apart: they did not train the same.")
    stored = sum(path.stat().st_size for path in (work / "features").glob("*.bin"))
    return measure.compare(runs, "pixels") | {
        "largest_loss_difference": apart,
        "features": {"build_seconds": built, "bytes": stored, "videos": args.clips},
        "parameters": sizes,
    }


def show(result: dict[str, Any], args: Any) -> None:
    sizes, features = result["parameters"], result["features"]
    columns = {"samples_per_second": ("samples/s", ".3g"), "data_wait_share": ("waiting for data", ".0%")}
    names = {"pixels": "training from pixels", "cache": "training from the cache"}
    measure.print_sides(None, result, names, columns)
    patches = (args.image_size // args.patch_size) ** 2
    print(f"losses differ by {result['largest_loss_difference']:.2g} at most ({args.stored} features)")
    print(
        f"tower of {sizes['tower'] / 1e6:.0f} M weights, {args.tower_layers} layers, {patches} patches a frame, {args.num_frames} "
        f"frames; language model of {sizes['language_model'] / 1e6:.1f} M, frozen; projector and temporal embeddings train"
    )
    print(
        f"cache: {features['videos']} videos, {features['bytes'] / 2**20:.1f} MiB, built in {features['build_seconds']:.0f} s with start-up"
    )
    machine, torch = result["machine"], result["versions"]["torch"]
    print(f"{machine['processor']}, {machine['cores']} cores, {args.threads} threads, CPU, float32; torch {torch}")


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show)
