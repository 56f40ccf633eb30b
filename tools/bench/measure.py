"""What the benchmarks share: a work folder, sides in turns in processes of their own, medians, peak memory, one report.

A benchmark is `run_bench(make_parser(), measure, show)`: `measure(args, work)` returns what it found, this file adds settings,
machine, versions and load, writes --json and calls `show(result, args)`.
"""

import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool, user_errors
from drive_vlm.report.tables import print_table

BENCH = Path(__file__).resolve().parent
TOOLS = BENCH.parent
# TrainingArguments of every run: nothing is saved or tracked, and the learning rate does not move.
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "seed": 0,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LAUNCHER", "MAX_RESTARTS", "NNODES", "RESUME", "PLAN")


def bench_parser(
    name: str, description: str | None, examples: str, numbers: Mapping[str, tuple[int, int, str]]
) -> CommandParser:
    """A parser with --work, --json and an integer flag for each of `numbers` (default, least, help)."""
    parser = CommandParser(prog=f"python tools/bench/{name}.py", description=description, examples=examples)
    for flag, (default, least, text) in numbers.items():
        parser.flag(f"--{flag}", default, text, least)
    parser.add_argument("--work", type=Path, help="folder to keep data, models and logs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the measurement to this file")
    return parser


def run_bench(
    parser: CommandParser,
    measure: Callable[[Any, Path], dict[str, Any]],
    show: Callable[[Any, Any], Any],
    peers: Sequence[str] = (),
    child: Callable[[list[str]], None] | None = None,
) -> None:
    """Make the work folder, measure, report, show. `peers` are packages whose versions count as well.

    `FILE --child WORDS` calls `child(WORDS)` and nothing else: the tool starts that itself. What loads torch belongs there where
    memory is measured: a process begins with the peak memory of the one that forks it.
    """
    if child and sys.argv[1:2] == ["--child"]:
        with user_errors(parser.prog):
            return child(sys.argv[2:])

    def run(args: Any) -> dict[str, Any]:
        from drive_vlm.launch.manifest import machine, versions

        settings = {name: value for name, value in vars(args).items() if name not in ("json", "work")}
        before = os.getloadavg()
        with tempfile.TemporaryDirectory() as temporary:
            work = (args.work or Path(temporary)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            found = measure(args, work)
        load = {"before": before, "after": os.getloadavg()}
        used = versions() | {name: importlib.metadata.version(name) for name in peers}
        return {"settings": settings, "machine": machine(), "versions": used, "load_average": load} | found

    run_tool(parser, run, show)


# ---- processes


def environment(work: Path, threads: int | None = None) -> dict[str, str]:
    """For a child: no launcher's variables of the parent, caches in `work`, no network, `threads` torch threads."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER and not name.startswith(("SLURM_", "TORCHELASTIC_", "DRIVE_VLM_"))
    }
    cache = str(work / "cache")
    env |= {
        "DRIVE_VLM_CACHE": cache,
        "HF_DATASETS_CACHE": cache,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    env["PYTHONPATH"] = f"{TOOLS.parent}{os.pathsep}{env.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return env | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def start(command: Sequence[Any], log: Path, env: Mapping[str, str], first: Path | None = None) -> dict[str, float]:
    """Run `command` to its end, its output in `log`: {"seconds", "cpu_seconds" of all its processes, "peak_rss_mb" of the largest}.

    With `first`, a file that the command writes: also "seconds_to_first", until it was there. Raises ValueError with the
    reason, or the end of its output, when it fails.
    """
    started, found = time.perf_counter(), {}
    with open(log, "wb") as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, env=env)
        while (
            first is not None
            and "seconds_to_first" not in found
            and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            if first.exists():
                found["seconds_to_first"] = time.perf_counter() - started
            time.sleep(0.005)
        # wait4 and not wait(): it returns the memory of this one child, not of all children so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or (first is not None and "seconds_to_first" not in found):
        text = log.read_text(errors="replace")
        reason = text.rsplit("error: ", 1)[-1].splitlines()[0] if process.returncode == 2 else text[-3000:]
        raise ValueError(f"{log.stem} ended with code {process.returncode}: {reason}")
    used = {"peak_rss_mb": usage.ru_maxrss / 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return found | {"seconds": time.perf_counter() - started} | used


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def flags(values: Mapping[str, Any]) -> list[str]:
    """{"max_steps": 3} as ["--max_steps", "3"]; a list is several words."""
    return [
        str(word)
        for name, value in values.items()
        for word in (f"--{name}", *(value if isinstance(value, (list, tuple)) else [value]))
    ]


def run_stage(stage: str, words: list[str], change: Callable[[Any], None]) -> None:
    """Run the command `stage` with `words` in this process; its trainer passes through `change` before it trains."""
    from drive_vlm import stages
    from drive_vlm.stages.engine import run

    training = run.run_training

    def changed(trainer: Any, *rest: Any) -> None:
        change(trainer)
        training(trainer, *rest)

    # A stage has no hook for this, and needs none.
    setattr(run, "run_training", changed)  # noqa: B010 - its type is narrower
    stages.run(stage, words)


# ---- figures


def in_turns(
    sides: Mapping[str, Callable[[int], dict[str, Any]]], repeats: int, warm_up: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each side, taken in turns, so that other work on the machine meets all sides alike.

    A side is called with the number of the repeat; the first `warm_up` runs of each do not count.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repeat in range(warm_up + repeats):
        for side, run in sides.items():
            found = run(repeat)
            if repeat >= warm_up:
                runs[side].append(found)
    return runs


def compare(runs: Mapping[str, list[dict[str, Any]]], base: str) -> dict[str, dict[str, Any]]:
    """{side: the median of each number that its runs hold, "ratio": multiples of what `base` has too, "runs"}."""
    medians = {
        side: {
            name: statistics.median(run[name] for run in found)
            for name, value in found[0].items()
            if isinstance(value, (int, float))
        }
        for side, found in runs.items()
    }
    ratios = {
        side: {name: value / medians[base][name] for name, value in found.items() if medians[base].get(name)}
        for side, found in medians.items()
    }
    return {side: medians[side] | {"ratio": ratios[side], "runs": runs[side]} for side in runs}


def print_sides(
    title: str | None, sides: Mapping[str, Any], names: Mapping[str, str], columns: Mapping[str, tuple[str, str]]
) -> None:
    """A row for each side of `compare`: its `columns` (head, format of the number), and the ratio of the first of them."""
    first = next(iter(columns))
    rows = [
        [
            name,
            *(f"{sides[side][column]:{form}}" for column, (_, form) in columns.items()),
            f"{sides[side]['ratio'][first]:.2f}x",
        ]
        for side, name in names.items()
        if side in sides
    ]
    print_table(title, ("", *(head for head, _ in columns.values()), "ratio"), rows)


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that hold a loss."""
    return [row for row in json_lines(out / "metrics.jsonl") if "loss" in row]


# ---- data and models


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_synthetic(work: Path, **values: Any) -> Path:
    """The folder work/data, filled by tools/build_synthetic.py with one split, "train"; what is there already is kept."""
    data = work / "data"
    if not data.is_dir():
        words = flags({"out": data, "splits": "train:1", **values})
        start([sys.executable, TOOLS / "build_synthetic.py", *words], work / "data.log", environment(work))
    return data


def build_tiny(work: Path, name: str, corpus: Path, **values: Any) -> Path:
    """The folder work/`name` with a random model of tools/build_tiny_model.py, an InternVL unless `family` says otherwise."""
    own = {} if "family" in values else {"max_tiles": 1}
    words = flags({"out": work / name, "corpus": corpus, **own, **values})
    start([sys.executable, TOOLS / "build_tiny_model.py", *words], work / f"{name}.log", environment(work))
    return work / name


def parameters(model: Path, part: str = "") -> int:
    """Of a model on disk, of the tensors whose names hold `part`."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", framework="np") as file:
        names = [name for name in file.keys() if part in name]  # noqa: SIM118 - no mapping
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
