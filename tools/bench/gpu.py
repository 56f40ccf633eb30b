"""Measure the project on a GPU in a few minutes: parts in the order of their value, each with a time limit of its own.

Start it with tools/bench/gpu.sh. Every part consists of cases; a case runs in a process of its own, which is forked with its
imports done, and its figures are in --out as soon as it ends: killed at any moment, what is done is kept. Models have the real
sizes and random weights, made on the device from the shipped configurations; rows are synthetic; nothing is downloaded.
Without a GPU the same code runs at toy size on the CPU. Such figures say nothing about a GPU, and are labelled.

  a environment   versions, doctor's verdicts, rates of copying and of a bf16 product (the two ceilings)
  b SFT           InternVL3-1B, tower frozen, packs of 4,096 and 16,384; attention kernels; TRL's SFTTrainer on the same rows
  c 24 GB         SigLIP2-SO400M + Qwen3-4B LoRA of rank 32, 16 frames: the three stages' recipes within the memory of a 24 GB card
  d GRPO          a step's sampling, scoring, reward and learning
  e preference    LLaVA-Next-8B LoRA on pairs, cached next to live reference
  f equality      losses of three steps on GPU and CPU, packed and not, by attention kernel
  g DeepSpeed     ZeRO-1, 2, 3 and offload: the same loss, peak next to the plan, seconds of saving and resuming
"""

import contextlib
import importlib.util
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_wheels
import measure
from gpu_parts import PARTS, Case, Part

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.report.tables import print_table
from drive_vlm.store.cache import read_json, write_json

EXAMPLES = """
bash tools/bench/gpu.sh --minutes 9 --out gpu.json
bash tools/bench/gpu.sh --parts a,b,c --out gpu.json
bash tools/bench/gpu.sh --out gpu.json --resume
bash tools/bench/gpu.sh --wheels wheels --out gpu.json --resume
"""
# Seconds that a case needs at least to be worth a start.
_LEAST = 8.0
_FORMAT = 1
# Wheels that were given and cannot be used: {package: what it lacks}.
_LEFT_OUT: dict[str, str] = {}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="bash tools/bench/gpu.sh", description=__doc__, examples=EXAMPLES)
    parser.flag("--minutes", 9.0, "minutes for all parts together", 0.1, 600)
    parser.flag("--parts", ",".join(PARTS), "letters of the parts to run, with commas")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu.json"), help="file of the figures, written after every case"
    )
    parser.flag("--resume", False, "keep the figures of --out and go on with what is left, was cut, or failed")
    parser.add_argument(
        "--work", type=Path, help="folder for models, rows and logs (default: OUT with .work behind it), kept"
    )
    parser.flag("--fresh", False, "start every case as a new process, where forking does not work")
    return parser


# ---- one case


def skipped(case: Case) -> str:
    """Why `case` cannot run here; "" where it can."""
    if missing := [name for name in case.needs if importlib.util.find_spec(name) is None]:
        lacks = {name: _LEFT_OUT.get(name.replace("_", "-")) for name in missing}
        shown = [name + (f" (its wheel needs {lacks[name]})" if lacks[name] else "") for name in missing]
        return f"not installed: {', '.join(shown)}"
    if case.words.get("attn_implementation") in ("flash", "flex") and device_name() == "CPU":
        return "this kernel needs a GPU"
    return "one GPU" if case.gpus == 0 and number_of_gpus() < 2 else ""


def child(case: Case, work: Path, log: Path, result: Path) -> None:
    """Run `case` in this process, its output in `log`; write {"figures"} or {"why"} to `result`. Does not return."""
    if "RANK" not in os.environ and os.getpgrp() != os.getpid():
        # Loader workers are ended with the group. A process that was spawned leads its own, a rank is in its launcher's.
        os.setpgid(0, 0)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # What was imported decides: a signal handler or a lock of the parent is not wanted here.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 1
    try:
        import gpu_measure

        gpu_measure.run_case(case, work, result)
        code = 0
    # Whatever ends a case is written down for the parent, which goes on with the next one: a GPU out of memory, a refused flag.
    except BaseException as error:
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0][:300]
        if isinstance(error, SystemExit):
            # A command that refuses its flags says so on stderr.
            first = log.read_text(errors="replace").rpartition("error: ")[2].partition("\n")[0][:300]
        lacking = missing_package(error)
        found = {"lacks": lacking} if lacking else {"why": f"{type(error).__name__}: {first}"}
        if not result.is_file() and os.environ.get("RANK", "0") == "0":
            write_json(result, found)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The trainer's own end would write the model; loader workers end with their group.
        os._exit(code)


def missing_package(error: BaseException) -> str:
    """The package that was not found, where that is what `error` comes of; "" elsewhere. Libraries that import late wrap it."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, ModuleNotFoundError) and step.name and not step.name.startswith("drive_vlm"):
            return step.name.partition(".")[0]
        step = step.__cause__ or step.__context__
    return ""


def run_case(part: str, case: Case, work: Path, seconds: float, fresh: bool) -> dict[str, Any]:
    """{"state": done | skipped | failed | cut, "seconds", "figures" or "why", "log"} of one case with at most `seconds`."""
    ranks = case.gpus or number_of_gpus()
    log, result = work / f"{part}-{case.name}.log", work / f"{part}-{case.name}.json"
    log.unlink(missing_ok=True)
    result.unlink(missing_ok=True)
    started = time.monotonic()
    pid = _spawn(part, case, work, log, result, ranks) if fresh or ranks > 1 else os.fork()
    if pid == 0:
        child(case, work, log, result)
    status = None
    try:
        while status is None and time.monotonic() - started < seconds:
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
            if status is None:
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            os.waitpid(pid, 0)
    found = read_json(result) if result.is_file() else {}
    taken = {"seconds": round(time.monotonic() - started, 1), "log": str(log)}
    if "figures" in found:
        return {"state": "done", "figures": found["figures"], **taken}
    if "lacks" in found:
        # A requirement of a package that is there itself.
        return {"state": "skipped", "why": f"not installed: {found['lacks']}", **taken}
    if status is None:
        return {"state": "cut", "why": f"it took more than its {seconds:.0f} s", **taken}
    return {"state": "failed", "why": found.get("why", f"ended with status {status} and no figures"), **taken}


def _spawn(part: str, case: Case, work: Path, log: Path, result: Path, ranks: int) -> int:
    start = measure.torchrun(ranks) if ranks > 1 else [sys.executable]
    words = [*start, __file__, "--child", part, case.name, str(work), str(log), str(result)]
    # What torchrun itself says goes to the log as well.
    there = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    redirected = [(os.POSIX_SPAWN_DUP2, there, 1), (os.POSIX_SPAWN_DUP2, there, 2)]
    try:
        return os.posix_spawn(words[0], words, os.environ, file_actions=redirected, setpgroup=0)
    finally:
        os.close(there)


def number_of_gpus() -> int:
    """By the driver; without a GPU two processes play two."""
    from drive_vlm.doctor.hardware import driver_gpus

    return len(driver_gpus()) if device_name() != "CPU" else 2


# ---- all parts


def open_result(args: Any, device: str) -> dict[str, Any]:
    """The content of --out to go on with. Raises ValueError for a file of another device, and for one that would be lost."""
    if args.out.is_file() and args.resume:
        found = read_json(args.out)
        if found.get("format") != _FORMAT:
            raise ValueError(f"{args.out}: not a file of this tool. Give another --out.")
        if found["device"] != device:
            raise ValueError(f"{args.out} was measured on {found['device']}, this is {device}. Give another --out.")
        return found
    if args.out.is_file():
        raise ValueError(f"{args.out} is there. Go on with --resume, or give another --out.")
    return {"format": _FORMAT, "device": device, "toy": device == "CPU", "parts": {}}


def device_name() -> str:
    """Of the first GPU, by the driver; "CPU" where there is none. torch is not asked: it would start CUDA."""
    from drive_vlm.doctor.hardware import driver_gpus

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    found = [] if hidden else driver_gpus()
    return found[0][0] if found else "CPU"


def chosen(text: str) -> list[str]:
    letters = [letter.strip() for letter in text.split(",") if letter.strip()]
    if unknown := [letter for letter in letters if letter not in PARTS]:
        raise ValueError(f"--parts {text}: {', '.join(unknown)} is not a part. Parts: {', '.join(PARTS)}")
    return letters


def run(args: Any) -> dict[str, Any]:
    """Run the chosen parts; --out is written after every case."""
    letters, device = chosen(args.parts), device_name()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = open_result(args, device)
    work = (args.work or args.out.with_name(f"{args.out.name}.work")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    os.environ |= measure.environment(work)
    if result["toy"]:
        print("No GPU: toy sizes on the CPU. The figures say nothing about a GPU.", flush=True)
    share = args.minutes * 60 / sum(PARTS[letter].seconds for letter in letters)
    fresh = args.fresh or not _warm_up(result["toy"])
    for letter in letters:
        run_part(
            letter, PARTS[letter], work, result, args, min(end, time.monotonic() + share * PARTS[letter].seconds), fresh
        )
    return result


def run_part(letter: str, part: Part, work: Path, result: dict[str, Any], args: Any, until: float, fresh: bool) -> None:
    """The cases of one part that are not done yet, until the time of the part is over."""
    entry = result["parts"].setdefault(letter, {"title": part.title, "cases": {}})
    states = {name: case["state"] for name, case in entry["cases"].items()}
    # What failed may fail again, what was skipped may lack its package still: first what has not been tried.
    for case in sorted(part.cases, key=lambda case: states.get(case.name) in ("failed", "skipped")):
        if states.get(case.name) == "done":
            continue
        left = until - time.monotonic()
        if why := skipped(case):
            entry["cases"][case.name] = {"state": "skipped", "why": why}
        elif left < _LEAST:
            if states.get(case.name) in (None, "skipped"):
                entry["cases"][case.name] = {"state": "left", "why": "no time was left; go on with --resume"}
        else:
            print(f"{letter} {case.name} ...", end=" ", flush=True)
            found = run_case(letter, case, work, left, fresh)
            entry["cases"][case.name] = found
            print(f"{found['state']} {found['seconds']:.1f} s {found.get('why', '')}".rstrip(), flush=True)
        write_json(args.out, result)


def _warm_up(toy: bool) -> bool:
    """Import what every case needs, once; whether a fork of this process can still use the GPU."""
    import gpu_measure

    gpu_measure.imports()
    if toy:
        return True
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = gpu_measure.gpu_works()
        os._exit(code)
    works = os.waitpid(pid, 0)[1] == 0
    if not works:
        print("A forked process cannot use the GPU here: every case starts as a new process.", flush=True)
    return works


# ---- what is printed


def show(result: dict[str, Any], args: Any) -> None:
    title = f"{result['device']}" + (", toy sizes: no figure of a GPU" if result["toy"] else "")
    rows = []
    for letter, part in result["parts"].items():
        for name, case in part["cases"].items():
            figures = case.get("figures", {})
            shown = ", ".join(
                f"{key} {_shown(value)}" for key, value in figures.items() if not isinstance(value, (dict, list))
            )
            rows.append(
                [f"{letter} {name}", case["state"], f"{case.get('seconds', 0):.0f} s", shown or case.get("why", "")]
            )
    print_table(title, ("case", "", "took", "figures"), rows, width=180)
    left = [
        f"{letter} {name}"
        for letter, part in result["parts"].items()
        for name, case in part["cases"].items()
        if case["state"] in ("left", "cut")
    ]
    print(f"{args.out}" + (f"; not measured: {', '.join(left)}: go on with --resume" if left else ""))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    if wheels := os.environ.get("GPU_BENCH_WHEELS"):
        _LEFT_OUT |= gpu_wheels.add(Path(wheels))
    if sys.argv[1:2] == ["--child"]:
        letter, name, folder, log_file, result_file = sys.argv[2:7]
        child(
            next(case for case in PARTS[letter].cases if case.name == name),
            Path(folder),
            Path(log_file),
            Path(result_file),
        )
    run_tool(make_parser(), run, show)
