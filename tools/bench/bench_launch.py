"""What our launcher costs: start of a run, saves and resumes beside a bare torchrun script, and our share of each step.

Start: seconds from the command to the log of the first optimizer step. Ours is a recipe's `launch sft` (recipes/_launch.sh)
with manifest, audit, watchdog and row lengths measured anew (cold) or found in the cache (warm); the peer is
bench_launch_peer.py, a transformers Trainer without our code, by torchrun. On one process `launch` needs no torchrun, so
the peer is also started by plain python. Same rows, model, flags, DeepSpeed layout and threads, all sides in turns after
one run each that does not count; both write the log that is waited for.
Save and resume: a larger random model; the seconds of the Trainer's save on the main rank (ours flushes to the disk, the
peer's leaves that to the system), and the start of a run that goes on from a checkpoint.
Overhead: our parts of a step by a clock around each (bench_launch_probe.py), as a share of the median step, and the same
run with the parts left out in every other block of steps.
CPU seconds are those of all processes of a side: on a machine that others use, they vary less than the clock on the wall.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_launch_sides import TOOLS, Bench, gpu_count
from bench_launch_tables import print_tables

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench/bench_launch.py --json runs/bench_launch.json
python tools/bench/bench_launch.py --parts start --processes 2 --repeats 7 --deepspeed none
"""
PARTS = ("start", "save", "overhead")
IMAGE: dict[str, Any] = {"image_size": 112, "patch_size": 14, "vocab_size": 4000, "max_tiles": 1}
NUMBERS = {
    "repeats": (5, "runs of each side of start and resume, in turns; the median counts"),
    "rows": (2000, "training rows, one picture each"),
    "batch_size": (4, "rows a step and process"),
    "threads": (1, "torch threads of a process"),
    "hidden_size": (128, "width of the small model, of start and overhead"),
    "layers": (2, "layers of its vision tower and of its language model"),
    "save_hidden_size": (512, "width of the larger model, of save and resume"),
    "save_layers": (12, "layers of its language model; its vision tower has half as many"),
    "saves": (3, "saves of the larger model"),
    "steps": (400, "steps of the overhead run with the small model"),
    "large_steps": (40, "steps of the overhead run with the larger model"),
    "switch_every": (10, "steps of a block with, then without our parts"),
}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_launch.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    add("--processes", nargs="+", type=int, default=[1, 2], help="numbers of processes (default: 1 2)")
    add("--deepspeed", default="zero2", help="memory layout of both sides, or none for DDP (default: zero2)")
    for name, (default, text) in NUMBERS.items():
        add(f"--{name}", type=int, default=default, help=text)
    add("--work", type=Path, help="folder to keep data, models and logs (default: a temporary one)")
    add("--prepare", action="store_true", help="only data and models; the tool starts this itself")
    add("--json", type=Path, help="write the measurement to this file")
    return parser


def check(args: Any) -> None:
    """Raises ValueError for settings that measure nothing."""
    low = [name for name in NUMBERS if getattr(args, name) < 1]
    if low or min(args.processes) < 1:
        raise ValueError(f"--{(low or ['processes'])[0]}: at least 1")
    if min(args.steps, args.large_steps) < 4 * args.switch_every or args.rows < 6:
        raise ValueError("--steps, --large_steps: at least four blocks of --switch_every; --rows: at least 6")
    if 0 < gpu_count() < max(args.processes):
        raise ValueError(f"--processes {max(args.processes)}: this machine offers {gpu_count()} GPUs")
    if args.deepspeed != "none":
        from drive_vlm.launch.deepspeed import load_deepspeed_config

        load_deepspeed_config(args.deepspeed, cpu=not gpu_count())


# ---- prepare


def prepare(args: Any, work: Path) -> None:
    """Rows with one picture each, and the two models."""
    from drive_vlm.models.tiny.tiny import build_tiny_internvl, corpus_of

    build = ["build_synthetic.py", "--out", work / "data", "--scenes", max(4, -(-args.rows // 6)), "--size", 112]
    words = [sys.executable, TOOLS / build[0], *build[1:], "--splits", "train:1"]
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (work / "data" / "train.jsonl").read_text().splitlines()][: args.rows]
    (work / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = corpus_of(rows)
    for name, width, layers, tower in (
        ("small", args.hidden_size, args.layers, args.layers),
        ("large", args.save_hidden_size, args.save_layers, max(1, args.save_layers // 2)),
    ):
        sizes: dict[str, Any] = {"hidden_size": width, "text_layers": layers, "vision_layers": tower}
        build_tiny_internvl(work / name, corpus, **IMAGE, **sizes)


def parameters(model: Path) -> int:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", framework="np") as file:
        return sum(_product(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping


def _product(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# ---- what is measured


def measure_start(bench: Bench, processes: int) -> dict[str, Any]:
    """Sides in turns; the run numbered 0 of each warms the disk cache and does not count."""
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": [], "peer": []}
    if processes == 1:
        runs["peer_python"] = []
    for repeat in range(bench.args.repeats + 1):
        for side, found in runs.items():
            out = bench.work / f"start{processes}" / f"{side}{repeat}"
            flags = bench.flags(1, out)
            if side.startswith("peer"):
                run = bench.peer("small", processes, flags, plain=side == "peer_python")
            else:
                run = bench.ours("small", processes, flags, "warm" if side == "warm" else f"cold{processes}-{repeat}")
            found += [run] if repeat else []
            shutil.rmtree(out)
    sides = {side: summary(found) for side, found in runs.items()}
    return sides | {"ratio": {side: ratio(sides[side], sides["peer"]) for side in runs if side != "peer"}}


def measure_save(bench: Bench, processes: int) -> dict[str, Any]:
    """Saves of the larger model after each step, then runs that go on from the last."""
    count, root = bench.args.saves, bench.work / f"save{processes}"
    flags = {side: bench.flags(count, root / side, save_steps=1) for side in ("ours", "peer")}
    clock = bench.probe("large", processes, flags["ours"])[0]["once"]
    bench.peer("large", processes, flags["peer"])
    lines = (root / "peer" / "saves.jsonl").read_text().splitlines()
    seconds = {"ours": clock["save"], "peer": [json.loads(line)["seconds"] for line in lines]}
    last = {side: root / side / f"checkpoint-{count}" for side in seconds}
    save: dict[str, Any] = {
        side: {"seconds": statistics.median(found), "runs": found, "bytes_on_disk": bytes_of(last[side])}
        for side, found in seconds.items()
    }
    save["ours"]["of_it_flush_and_rename"] = statistics.median(clock["flush_and_rename"])
    save["ratio"] = save["ours"]["seconds"] / save["peer"]["seconds"]
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for repeat in range(bench.args.repeats + 1):
        for side, found in runs.items():
            out = root / f"resume-{side}{repeat}"
            again = bench.flags(count + 1, out)
            if side == "ours":
                run = bench.ours("large", processes, again, "warm", last[side])
            else:
                run = bench.peer("large", processes, again, last[side])
            found += [run] if repeat else []
            shutil.rmtree(out)
    resume = {side: summary(found) for side, found in runs.items()}
    shutil.rmtree(root)
    return {"save": save, "resume": resume | {"ratio": ratio(resume["ours"], resume["peer"])}}


def bytes_of(checkpoint: Path) -> dict[str, int]:
    """Of a checkpoint: all of it, and what it adds to the disk (a link to weights that are there already adds nothing)."""
    stats = [path.stat() for path in checkpoint.rglob("*") if path.is_file()]
    return {"whole": sum(s.st_size for s in stats), "added": sum(s.st_size for s in stats if s.st_nlink == 1)}


def measure_overhead(bench: Bench, model: str, processes: int) -> dict[str, Any]:
    """Median microseconds of each part in a step (mean over ranks), their share of the median step, that step without them."""
    steps = bench.args.steps if model == "small" else bench.args.large_steps
    out = bench.work / f"overhead-{model}{processes}"
    flags = bench.flags(steps, out) | {"logging_steps": 10}
    ranks = bench.probe(model, processes, flags, switch_every=bench.args.switch_every)
    shutil.rmtree(out)
    parts: dict[str, dict[str, float]] = {}
    for name in sorted({name for rank in ranks for name in rank["parts"]}):
        parts[name] = {
            key: statistics.mean(rank["parts"].get(name, {}).get(key, 0.0) for rank in ranks)
            for key in ("wall_us", "mean_wall_us", "cpu_us")
        }
    result: dict[str, Any] = {"parts": parts, "steps": ranks[0]["counted"], "once": ranks[0]["once"]}
    for key in ("wall", "cpu"):
        per_step = {
            on: statistics.median(step[key] for rank in ranks for step in rank["steps"] if step["on"] is on)
            for on in (True, False)
        }
        total = sum(part[f"{key}_us"] for part in parts.values())
        result[key] = {
            "total_us": total,
            "step_ms": per_step[True] * 1e3,
            "share": total / 1e6 / per_step[True],
            "step_ms_without": per_step[False] * 1e3,
            "with_to_without": per_step[True] / per_step[False],
        }
    return result


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, least and most of a side's runs, and the runs themselves."""
    names = ("seconds", "cpu_seconds")
    medians = {name: statistics.median(run[name] for run in runs) for name in names}
    spread = {name: [min(run[name] for run in runs), max(run[name] for run in runs)] for name in names}
    return medians | {"spread": spread, "runs": runs}


def ratio(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Ours to the peer's: medians, and the quickest runs, which other load on the machine touches least."""
    names = ("seconds", "cpu_seconds")
    medians = {name: ours[name] / peer[name] for name in names}
    return medians | {"least_seconds": ours["spread"]["seconds"][0] / peer["spread"]["seconds"][0]}


def measure(args: Any, work: Path) -> dict[str, Any]:
    """Prepare, run all parts, return what --json holds."""
    from drive_vlm.launch.manifest import machine, versions

    load = os.getloadavg()
    names = ["deepspeed", "processes", *NUMBERS]
    flags = [f"--{name}={getattr(args, name)}" for name in NUMBERS]
    words = [sys.executable, __file__, "--prepare", "--work", str(work), *flags]
    subprocess.run(words, check=True)  # its imports stay out of this process, which all others are forked from
    bench = Bench(args, work)
    result: dict[str, Any] = {name: {} for name in ("start", "save", "resume", "overhead")}
    for processes in args.processes:
        if "start" in args.parts:
            result["start"][str(processes)] = measure_start(bench, processes)
        if "save" in args.parts:
            for name, found in measure_save(bench, processes).items():
                result[name][str(processes)] = found
        if "overhead" in args.parts:
            models = ("small", "large")
            result["overhead"][str(processes)] = {m: measure_overhead(bench, m, processes) for m in models}
    return result | {
        "parameters": {name: parameters(work / name) for name in ("small", "large")},
        "settings": {name: getattr(args, name) for name in names},
        "load_average": {"before": load, "after": os.getloadavg()},
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        if args.prepare:
            prepare(args, args.work)
            return
        check(args)
        with tempfile.TemporaryDirectory() as temporary:
            work = (args.work or Path(temporary)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            result = measure(args, work)
    except ValueError as error:
        parser.error(str(error))
    print_tables(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
