"""Speed and memory of our SFT (packed) beside TRL's SFTTrainer (unpacked, as it comes) on the same rows and tiny model.

Rows have mixed lengths: short answers, long captions, six pictures as in DriveLM, no picture. Both sides train one
epoch in processes of their own, in turns, with equal weights, float32, no gradient checkpointing, adamw_torch, loader
workers, threads and a frozen vision tower, and with the same non-padding tokens a step: TRL's batch size follows from
ours. Both learn the assistant's words only (TRL's prompt and completion rows). Before anything is timed, token ids and
labels of every row are compared.
Rates run from the log of step 1, a warm-up that also hides start-up, to the log of the last step: ours as they stand in
metrics.jsonl (logging_first_step), TRL's from a callback at the same two logs and its own count of tokens.
Peak RSS is that of the largest process of a side.
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
python tools/bench/bench_sft.py --json runs/bench_sft.json
python tools/bench/bench_sft.py --rows 2000 --hidden_size 256 --max_length 1024 --batch_size 4 --threads 2
"""
SHARED: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "gradient_checkpointing": False,
    "bf16": False,
    "seed": 0,
    "save_strategy": "no",
    "report_to": "none",
    "logging_first_step": True,
    "disable_tqdm": True,
}
PEER = (sys.executable, str(Path(__file__).with_name("bench_sft_trl.py")))
SIZES = ("image_size", "patch_size", "hidden_size", "vision_layers", "text_layers", "vocab_size")
NUMBERS = {
    "rows": (480, "training rows, at least 16"),
    "max_length": (1024, "tokens of a pack (ours)"),
    "batch_size": (4, "packs a step (ours); TRL's batch follows"),
    "repeats": (2, "runs of each side, in turns; the median counts"),
    "threads": (1, "torch threads of both sides"),
    "workers": (1, "loader workers of both sides"),
    "hidden_size": (128, "width of vision tower and language model"),
    "vision_layers": (2, "layers of the vision tower"),
    "text_layers": (4, "layers of the language model"),
    "vocab_size": (4000, "tokens of the tokenizer, at most"),
    "image_size": (112, "pixels of a picture's side; one tile each"),
    "patch_size": (7, "pixels of a patch's side; 4 patches make a token"),
}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_sft.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    for name, (default, text) in NUMBERS.items():
        add(f"--{name}", type=int, default=default, help=text)
    forms = ("prompt_completion", "messages")
    add("--peer_rows", choices=forms, default=forms[0], help="form of TRL's rows; of messages it learns every token")
    add("--work", type=Path, help="folder to keep data, model and logs (default: a temporary one)")
    add("--prepare", action="store_true", help="fill the folder --work only; the tool starts this itself")
    add("--json", type=Path, help="write the measurement to this file")
    return parser


# ---- prepare: rows, model, plan


def mixed_rows(questions: list[dict[str, Any]], captions: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows: of eight, one caption (short or long), one without a picture, one with six pictures, five plain questions."""
    rows = []
    for i in range(count):
        question = questions[i % len(questions)]
        row = captions[i // 8 % len(captions)] if i % 8 == 0 else question
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = asked.removeprefix("<image>\n")
        number = {1: 0, 2: 6}.get(i % 8, 1)
        images = (
            [row["image"]]
            if number == 1
            else [questions[(i + 11 * k) % len(questions)]["image"] for k in range(number)]
        )
        turns = [{"from": "human", "value": "<image>\n" * number + asked}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"row-{i}", "conversations": turns} | ({"image": images} if images else {}))
    return rows


def prepare(args: Any, work: Path) -> None:
    """Write data, model and plan.json."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor
    from drive_vlm.models.tiny.tiny import build_tiny_internvl, corpus_of

    data = work / "data"
    tool, scenes = TOOLS / "build_synthetic.py", max(8, -(-args.rows // 6))
    build = [sys.executable, tool, "--out", data, "--scenes", scenes, "--size", args.image_size, "--splits", "train:1"]
    subprocess.run([str(word) for word in build], check=True, stdout=subprocess.DEVNULL)
    questions, captions = (
        [json.loads(line) for line in (data / name).read_text().splitlines()]
        for name in ("train.jsonl", "captions_train.jsonl")
    )
    rows = mixed_rows(questions, captions, args.rows)
    (data / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_tiny_internvl(work / "model", corpus_of(rows), max_tiles=1, **{name: getattr(args, name) for name in SIZES})
    parts = load_processor(ModelConfig(model=str(work / "model")))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(data / "mixed.jsonl")]), encoder, max_length=args.max_length)
    (work / "plan.json").write_text(json.dumps(make_plan(table.length, args.max_length, args.batch_size)))


def make_plan(length: Any, max_length: int, batch_size: int) -> dict[str, Any]:
    """Steps and batch of each side, and our samples and tokens after step 1, for rows of `length` int[N] tokens.

    Raises ValueError when no batch of TRL's holds our tokens a step within 5 %, and when hardly a step can be timed.
    """
    from drive_vlm.data.order import EpochOrder

    order = EpochOrder(length, SHARED["seed"], max_length)
    total, rows, packs = int(length.sum()), len(length), order.num_sequences
    peer_batch = max(1, round(batch_size * rows / packs))
    tokens = {"ours": total / packs * batch_size, "peer": total / rows * peer_batch}
    if abs(tokens["peer"] / tokens["ours"] - 1) > 0.05:
        raise ValueError(
            f"TRL's batch of {peer_batch} rows holds {tokens['peer']:.0f} tokens on average, ours {tokens['ours']:.0f}: "
            "more than 5 % apart. Raise --batch_size or --max_length, so that a step holds more rows."
        )
    steps = {"ours": -(-packs // batch_size), "peer": -(-rows // peer_batch)}
    if min(steps.values()) < 3:
        raise ValueError(f"only {min(steps.values())} steps: raise --rows, so that something follows the warm-up step")
    first = [i for sequence in order(0)[:batch_size] for i in sequence]
    return {
        "rows": rows,
        "tokens": total,
        "lengths": {"min": int(length.min()), "mean": total / rows, "max": int(length.max())},
        "steps": steps,
        "batch": {"ours": batch_size, "peer": peer_batch},
        "tokens_per_step": tokens,
        "shared": SHARED,
        "timed": {"samples": rows - len(first), "tokens": total - int(length[first].sum())},
    }


# ---- the two sides


def our_command(args: Any, work: Path, out: Path, plan: dict[str, Any]) -> list[str]:
    flags = SHARED | {
        "model": work / "model",
        "data": work / "data" / "mixed.jsonl",
        "output_dir": out,
        "freeze": "vision_tower",
        "packing": True,
        "max_length": args.max_length,
        "per_device_train_batch_size": args.batch_size,
        "logging_steps": plan["steps"]["ours"],
        "dataloader_num_workers": args.workers,
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "drive_vlm", "sft", *words]


def peer_command(args: Any, work: Path, out: Path) -> list[str]:
    flags = {"work": work, "out": out, "workers": args.workers, "peer_rows": args.peer_rows}
    return [*PEER, *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]


def start(command: list[str], env: dict[str, str], log: Path) -> float:
    """Run `command` to its end; return the peak RSS of its largest process in MB. Raises ValueError when it fails."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        text = log.read_text(errors="replace")
        reason = text.rsplit("error: ", 1)[-1].splitlines()[0] if process.returncode == 2 else text[-3000:]
        raise ValueError(f"{log.stem} ended with code {process.returncode}: {reason}")
    return usage.ru_maxrss / 1024


def our_rates(out: Path, plan: dict[str, Any]) -> dict[str, float]:
    """Rates of the window from step 1 to the last step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = (row for row in lines if "loss" in row)
    assert (first["step"], last["step"]) == (1, plan["steps"]["ours"]), "not the logs of the first and the last step"
    seconds = plan["timed"]["samples"] / last["samples_per_second"]
    counted = last["tokens_per_second"] * seconds
    assert abs(counted / plan["timed"]["tokens"] - 1) < 1e-6, "the run did not follow the plan"
    rates = {name: last[name] for name in ("samples_per_second", "tokens_per_second", "data_wait_share")}
    return rates | {"seconds": seconds, "last_loss": last["loss"]}


def peer_rates(out: Path, plan: dict[str, Any]) -> dict[str, float]:
    timed = json.loads((out / "timed.json").read_text())
    assert timed["steps"] == plan["steps"]["peer"]
    rates = {f"{name}_per_second": timed[name] / timed["seconds"] for name in ("samples", "tokens")}
    return rates | {"seconds": timed["seconds"]}


def measure(args: Any, work: Path) -> dict[str, Any]:
    """Prepare, run both sides in turns, return what --json holds."""
    from drive_vlm.launch.manifest import machine, versions

    env = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "DRIVE_VLM_CACHE": str(work / "cache"),
        "HF_DATASETS_CACHE": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    env = {key: value for key, value in env.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    names = [name for name in vars(args) if name not in ("json", "prepare", "work")]
    flags = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    # In a process of its own, as a child begins with the peak RSS of the parent that started it.
    start([sys.executable, __file__, "--prepare", "--work", str(work), *flags], env, work / "prepare.log")
    start([*PEER, "--check", "--work", str(work), "--peer_rows", args.peer_rows], env, work / "check.log")
    plan = json.loads((work / "plan.json").read_text())
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for repeat in range(args.repeats):
        for side, rates in (("ours", our_rates), ("peer", peer_rates)):
            out = work / f"{side}{repeat}"
            out.mkdir()
            command = our_command(args, work, out, plan) if side == "ours" else peer_command(args, work, out)
            peak = start(command, env, work / f"{side}{repeat}.log")
            runs[side].append({"peak_rss_mb": peak, **rates(out, plan)})
    return {
        **{side: summary(runs[side], side, plan) for side in runs},
        "ratio": ratio(runs),
        **{name: plan[name] for name in ("rows", "tokens", "lengths")},
        "settings": {name: getattr(args, name) for name in names} | SHARED,
        "machine": machine(),
        "versions": versions(),
    }


def median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def summary(runs: list[dict[str, float]], side: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Medians of a side's runs, what a step held, and the runs themselves."""
    rates = {name: median(runs, name) for name in ("samples_per_second", "tokens_per_second", "peak_rss_mb")}
    facts = {name: plan[name][side] for name in ("tokens_per_step", "steps", "batch")}
    return rates | facts | {"runs": runs}


def ratio(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Ours to the peer's."""
    names = {"samples": "samples_per_second", "tokens": "tokens_per_second", "peak_rss": "peak_rss_mb"}
    return {name: median(runs["ours"], column) / median(runs["peer"], column) for name, column in names.items()}


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, lengths = result["settings"], result["lengths"]
    title = f"{result['rows']:,} rows of {lengths['min']} to {lengths['max']} tokens, {lengths['mean']:.0f} on average"
    table = Table(title=title, title_justify="left")
    for column in ("", "samples/s", "tokens/s", "peak RSS MB", "tokens a step", "steps"):
        table.add_column(column, justify="left" if not column else "right")
    for side, name in (("ours", "drive-vlm sft --packing"), ("peer", "TRL SFTTrainer")):
        row = result[side]
        cells = (f"{row['samples_per_second']:.1f}", f"{row['tokens_per_second']:.0f}", f"{row['peak_rss_mb']:.0f}")
        table.add_row(name, *cells, f"{row['tokens_per_step']:.0f}", str(row["steps"]))
    Console(width=120).print(table)
    print("model:", ", ".join(f"{name} {settings[name]}" for name in SIZES))
    print(
        f"{settings['threads']} threads, {settings['workers']} loader workers, float32; padding is not counted as tokens"
    )
    print(f"ratio: {result['ratio']['samples']:.2f} in samples/s, {result['ratio']['tokens']:.2f} in tokens/s")


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        if args.prepare:
            prepare(args, args.work)
            return
        if min(args.repeats, args.threads, args.batch_size) < 1 or args.rows < 16 or args.workers < 0:
            raise ValueError(
                "--repeats, --threads, --batch_size: at least 1; --rows: at least 16; --workers: 0 or more"
            )
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
