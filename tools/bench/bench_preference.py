"""Step time and memory of DPO with a live reference, with cached log-probabilities, and with cached ones and packed pairs.

All sides train every weight of the same model on the same pairs, in processes of their own, in turns. Rates run from the
log of step 1, a warm-up, to the log of the last step, as metrics.jsonl has them; a pack holds as many pairs as a padded
batch does on average. What the cache itself costs, once for all epochs, is measured by `python -m drive_vlm reference`.
Memory is the peak of a process: allocated on a GPU, resident on a CPU.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import measure

from drive_vlm.config import CommandParser
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/bench/bench_preference.py --json runs/bench_preference.json
python tools/bench/bench_preference.py --model runs/sft --data pairs.jsonl --batch_size 4 --max_length 4096 --flags --bf16 --gradient_checkpointing
"""
SIDES = ("live", "cached", "packed")
NUMBERS = {
    "pairs": (160, "pairs to build"),
    "batch_size": (8, "pairs a step; a pack holds as many on average"),
    "steps": (12, "steps of a run, the first of which is not timed"),
    "repeats": (2, "runs of each side, in turns; the median counts"),
    "max_length": (1024, "tokens of a pair's longer side, at most (padded)"),
    "hidden_size": (256, "width of vision tower and language model"),
    "vision_layers": (2, "layers of the vision tower"),
    "text_layers": (6, "layers of the language model"),
    "image_size": (112, "pixels of a picture's side; one tile each"),
    "patch_size": (7, "pixels of a patch's side"),
}
SIZES = ("hidden_size", "vision_layers", "text_layers", "image_size", "patch_size")


def make_parser() -> CommandParser:
    parser = measure.bench_parser("bench_preference", __doc__, EXAMPLES, NUMBERS)
    add = parser.add_argument
    add("--model", type=Path, help="model directory (default: a tiny random InternVL is built)")
    add("--data", type=Path, help="pairs of that model (default: built from synthetic scenes)")
    add("--flags", nargs="...", default=[], help="further flags of `dpo` for all sides; stands last")
    return parser


def check(args: Any) -> None:
    """Raises ValueError."""
    if bool(args.model) != bool(args.data):
        raise ValueError("--model and --data belong together: give both, or neither to have them built.")
    measure.at_least(args, repeats=1, batch_size=1, steps=2, pairs=8)


def build(args: Any, work: Path) -> tuple[Path, Path]:
    """(model, pairs): captions and short answers as chosen, another row's as rejected."""
    if args.model and args.data:
        return args.model, args.data
    data = measure.build_synthetic(work, scenes=max(8, -(-args.pairs // 4)), size=args.image_size)
    short, long = (measure.json_lines(data / name) for name in ("train.jsonl", "captions_train.jsonl"))
    rows = []
    for i in range(args.pairs):
        kind = long if i % 4 == 0 else short
        row, answer = dict(kind[i // 4 % len(kind)] if kind is long else kind[i % len(kind)]), ""
        chosen = row["conversations"][-1]["value"]
        for other in range(1, len(kind)):
            answer = kind[(i + other) % len(kind)]["conversations"][-1]["value"]
            if answer.split() != chosen.split():
                break
        rows.append(row | {"id": f"pair-{i}", "rejected": answer})
    pairs = measure.write_json_lines(data / "pairs.jsonl", rows)
    return measure.build_tiny(work, "model", pairs, **{name: getattr(args, name) for name in SIZES}), pairs


def train(args: Any, work: Path, model: Path, data: Path, side: str, repeat: int) -> dict[str, float]:
    """One run of a side."""
    out, batch, length = work / f"{side}{repeat}", args.batch_size, args.max_length
    reference: dict[str, Any] = {"reference": "live"} if side == "live" else {"reference_cache": work / "reference"}
    if side == "packed":
        audit = json.loads((work / "live0" / "data_audit.json").read_text())["train"]
        tokens = audit["tokens"]
        batch, length = 1, max(int(tokens["max"]), round(args.batch_size * tokens["total"] / audit["rows_used"]))
        reference["packing"] = True
    values = {
        "model": model,
        "data": data,
        "output_dir": out,
        "max_length": length,
        "per_device_train_batch_size": batch,
        "max_steps": args.steps,
        "logging_steps": args.steps,
        "logging_first_step": True,
        **measure.TRAINING,
        **reference,
    }
    words = [sys.executable, "-m", "drive_vlm", "dpo", *measure.flags(values), *args.flags]
    measure.start(words, work / f"{out.name}.log", measure.environment(work))
    last = measure.logged(out)[-1]
    facts = json.loads((out / "run.json").read_text())
    return {
        "pairs_per_second": last["samples_per_second"],
        "tokens_per_second": last["tokens_per_second"],
        "peak_memory_gib": facts["peak_memory_gib"],
    }


def run(args: Any, work: Path) -> dict[str, Any]:
    """Build, compute the cache, run all sides in turns."""
    model, data = build(args, work)
    values = {"model": model, "data": data, "out": work / "reference", "batch_size": args.batch_size}
    words = [sys.executable, "-m", "drive_vlm", "reference", *measure.flags(values | {"max_length": args.max_length})]
    measure.start(words, work / "reference.log", measure.environment(work))
    cache = json.loads((work / "reference.log").read_text().splitlines()[-1])
    runs = measure.in_turns({side: partial(train, args, work, model, data, side) for side in SIDES}, args.repeats)
    found = {side: measure.medians(runs[side]) for side in SIDES}
    return {
        **{side: found[side] | {"runs": runs[side]} for side in SIDES},
        "speed_up": {side: found[side]["pairs_per_second"] / found["live"]["pairs_per_second"] for side in SIDES},
        "reference": {"pairs_per_second": cache["computed"] / cache["seconds"], **cache},
    }


def show(result: dict[str, Any], args: Any) -> None:
    names = {"live": "live, padded", "cached": "cached, padded", "packed": "cached, packed"}
    rows = []
    for side, name in names.items():
        row = result[side]
        cells = (f"{row['pairs_per_second']:.2f}", f"{row['tokens_per_second']:,.0f}", f"{row['peak_memory_gib']:.2f}")
        rows.append([name, *cells, f"{result['speed_up'][side]:.2f}x"])
    print_table(None, ("reference", "pairs/s", "tokens/s", "peak memory GiB", "speed-up"), rows)
    print(f"the cache: {result['reference']['pairs_per_second']:.2f} pairs/s, once for all epochs")


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show, check=check)
