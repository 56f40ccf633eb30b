"""Step time and memory of DPO with a live reference, with cached log-probabilities, and with cached ones and packed pairs.

All sides train every weight of the same model on the same pairs, in processes of their own, in turns. Rates run from the
log of step 1, a warm-up, to the log of the last step, as metrics.jsonl has them; a pack holds as many pairs as a padded
batch does on average. What the cache itself costs, once for all epochs, is measured by `python -m drive_vlm reference`.
Memory is the peak of a process: allocated on a GPU, resident on a CPU.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

TOOLS = Path(__file__).resolve().parents[1]

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
    parser = CommandParser(prog="python tools/bench/bench_preference.py", description=__doc__, examples=EXAMPLES)
    for name, (default, text) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--model", type=Path, help="model directory (default: a tiny random InternVL is built)")
    parser.add_argument("--data", type=Path, help="pairs of that model (default: built from synthetic scenes)")
    parser.add_argument("--work", type=Path, help="folder to keep data, model and logs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the measurement to this file")
    parser.add_argument("--flags", nargs="...", default=[], help="further flags of `dpo` for all sides; stands last")
    return parser


def start(words: list[Any], log: Path) -> None:
    """Run to the end. Raises ValueError with the end of its output when it fails."""
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with open(log, "w") as file:
        code = subprocess.run(
            [str(word) for word in words], stdout=file, stderr=subprocess.STDOUT, env=env, check=False
        )
    if code.returncode:
        raise ValueError(f"{words[3]} failed ({log}):\n{log.read_text()[-2000:]}")


def build(args: Any, work: Path) -> tuple[Path, Path]:
    """(model, pairs): captions and short answers as chosen, another row's as rejected."""
    if args.model and args.data:
        return args.model, args.data
    tools, data = TOOLS, work / "data"
    scenes = ("--scenes", max(8, -(-args.pairs // 4)), "--size", args.image_size, "--splits", "train:1")
    start([sys.executable, tools / "build_synthetic.py", "--out", data, *scenes], work / "data.log")
    short, long = (
        [json.loads(line) for line in (data / name).read_text().splitlines()]
        for name in ("train.jsonl", "captions_train.jsonl")
    )
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
    pairs = data / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [word for name in SIZES for word in (f"--{name}", getattr(args, name))]
    tiny = [sys.executable, tools / "build_tiny_model.py", "--out", work / "model", "--corpus", pairs, "--max_tiles", 1]
    start([*tiny, *sizes], work / "model.log")
    return work / "model", pairs


def train(args: Any, work: Path, model: Path, data: Path, side: str, out: Path) -> dict[str, float]:
    """One run of a side."""
    batch, length = args.batch_size, args.max_length
    reference: tuple[object, ...] = ("--reference", "live")
    if side != "live":
        reference = ("--reference_cache", work / "reference")
    if side == "packed":
        tokens = json.loads((work / "live0" / "data_audit.json").read_text())["train"]["tokens"]
        rows = json.loads((work / "live0" / "data_audit.json").read_text())["train"]["rows_used"]
        batch, length = 1, max(int(tokens["max"]), round(args.batch_size * tokens["total"] / rows))
        reference = (*reference, "--packing")
    words = [
        sys.executable, "-m", "drive_vlm", "dpo", "--model", model, "--data", data, "--output_dir", out, "--max_length", length,
        "--per_device_train_batch_size", batch, "--max_steps", args.steps, "--logging_steps", args.steps, "--logging_first_step",
        "true", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", *reference, *args.flags,
    ]  # fmt: skip
    start(words, work / f"{out.name}.log")
    logs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in logs if "loss" in row][-1]
    facts = json.loads((out / "run.json").read_text())
    return {
        "pairs_per_second": last["samples_per_second"],
        "tokens_per_second": last["tokens_per_second"],
        "peak_memory_gib": facts["peak_memory_gib"],
    }


def measure(args: Any, work: Path) -> dict[str, Any]:
    """Build, compute the cache, run all sides in turns; what --json holds."""
    from drive_vlm.launch.manifest import machine, versions

    model, data = build(args, work)
    words = ["--model", model, "--data", data, "--out", work / "reference", "--batch_size", args.batch_size]
    start(
        [sys.executable, "-m", "drive_vlm", "reference", *words, "--max_length", args.max_length],
        work / "reference.log",
    )
    cache = json.loads((work / "reference.log").read_text().splitlines()[-1])
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for repeat in range(args.repeats):
        for side in SIDES:
            runs[side].append(train(args, work, model, data, side, work / f"{side}{repeat}"))
    medians = {
        side: {name: statistics.median(run[name] for run in found) for name in found[0]} for side, found in runs.items()
    }
    rates = {side: found["pairs_per_second"] for side, found in medians.items()}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {
        **{side: medians[side] | {"runs": runs[side]} for side in SIDES},
        "speed_up": {side: rate / rates["live"] for side, rate in rates.items()},
        "reference": {"pairs_per_second": cache["computed"] / cache["seconds"], **cache},
        "settings": settings,
        "machine": machine(),
        "versions": versions(),
    }


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("reference", "pairs/s", "tokens/s", "peak memory GiB", "speed-up"):
        table.add_column(column, justify="left" if column == "reference" else "right")
    names = {"live": "live, padded", "cached": "cached, padded", "packed": "cached, packed"}
    for side, name in names.items():
        row = result[side]
        cells = (f"{row['pairs_per_second']:.2f}", f"{row['tokens_per_second']:.0f}", f"{row['peak_memory_gib']:.2f}")
        table.add_row(name, *cells, f"{result['speed_up'][side]:.2f}x")
    Console(width=100).print(table)
    print(f"the cache: {result['reference']['pairs_per_second']:.2f} pairs/s, once for all epochs")


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        if bool(args.model) != bool(args.data):
            raise ValueError("--model and --data belong together: give both, or neither to have them built.")
        if min(args.repeats, args.batch_size) < 1 or args.steps < 2 or args.pairs < 8:
            raise ValueError("--repeats and --batch_size: at least 1; --steps: at least 2; --pairs: at least 8")
        with tempfile.TemporaryDirectory() as temporary:
            work = (args.work or Path(temporary)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            result = measure(args, work)
    except ValueError as error:
        parser.error(str(error))
    print_table(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
