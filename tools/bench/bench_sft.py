"""Speed and memory of our SFT (packed) next to TRL's SFTTrainer (unpacked, as it comes) on the same rows and tiny model.

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
import sys
from pathlib import Path
from typing import Any

import measure

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench/bench_sft.py --json runs/bench_sft.json
python tools/bench/bench_sft.py --rows 2000 --hidden_size 256 --max_length 1024 --batch_size 4 --threads 2
"""
SHARED: dict[str, Any] = measure.TRAINING | {
    "num_train_epochs": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "logging_first_step": True,
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
    parser = measure.bench_parser("bench_sft", __doc__, EXAMPLES, NUMBERS)
    forms = ("prompt_completion", "messages")
    parser.add_argument(
        "--peer_rows", choices=forms, default=forms[0], help="form of TRL's rows; of messages it learns every token"
    )
    return parser


def check(args: Any) -> None:
    """Raises ValueError."""
    measure.at_least(args, repeats=1, threads=1, batch_size=1, rows=16, workers=0)


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

    data = measure.build_synthetic(work, scenes=max(8, -(-args.rows // 6)), size=args.image_size)
    rows = mixed_rows(
        measure.json_lines(data / "train.jsonl"), measure.json_lines(data / "captions_train.jsonl"), args.rows
    )
    measure.write_json_lines(data / "mixed.jsonl", rows)
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


def our_command(args: Any, work: Path, out: Path, plan: dict[str, Any]) -> list[Any]:
    values = SHARED | {
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
    return [sys.executable, "-m", "drive_vlm", "sft", *measure.flags(values)]


def peer_command(args: Any, work: Path, out: Path) -> list[Any]:
    return [*PEER, *measure.flags({"work": work, "out": out, "workers": args.workers, "peer_rows": args.peer_rows})]


def our_rates(out: Path, plan: dict[str, Any]) -> dict[str, float]:
    """Rates of the window from step 1 to the last step, from metrics.jsonl."""
    first, last = measure.logged(out)
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


def run(args: Any, work: Path) -> dict[str, Any]:
    """Both sides in turns. This process loads no torch: a child begins with the peak RSS of the process that forks it."""
    env = measure.environment(work, args.threads)
    measure.start([*PEER, "--check", "--work", work, "--peer_rows", args.peer_rows], work / "check.log", env)
    plan = json.loads((work / "plan.json").read_text())

    def peak(command: list[Any], out: Path) -> dict[str, float]:
        out.mkdir()
        return {"peak_rss_mb": measure.start(command, out.with_suffix(".log"), env)["peak_rss_mb"]}

    def ours(repeat: int) -> dict[str, float]:
        out = work / f"ours{repeat}"
        return peak(our_command(args, work, out, plan), out) | our_rates(out, plan)

    def peer(repeat: int) -> dict[str, float]:
        out = work / f"peer{repeat}"
        return peak(peer_command(args, work, out), out) | peer_rates(out, plan)

    runs = measure.in_turns({"ours": ours, "peer": peer}, args.repeats)
    found = {name: measure.medians(side) for name, side in runs.items()}
    names = {"samples": "samples_per_second", "tokens": "tokens_per_second", "peak_rss": "peak_rss_mb"}
    facts = {
        name: {key: plan[key][name] for key in ("tokens_per_step", "steps", "batch")} | {"runs": runs[name]}
        for name in runs
    }
    return {
        **{name: found[name] | facts[name] for name in runs},
        "ratio": {name: found["ours"][column] / found["peer"][column] for name, column in names.items()},
        **{name: plan[name] for name in ("rows", "tokens", "lengths", "shared")},
    }


def show(result: dict[str, Any], args: Any) -> None:
    lengths = result["lengths"]
    title = f"{result['rows']:,} rows of {lengths['min']} to {lengths['max']} tokens, {lengths['mean']:.0f} on average"
    rows = []
    for side, name in (("ours", "drive-vlm sft --packing"), ("peer", "TRL SFTTrainer")):
        row = result[side]
        columns = ("tokens_per_second", "peak_rss_mb", "tokens_per_step", "steps")
        rows.append([name, f"{row['samples_per_second']:.1f}", *(f"{row[column]:.0f}" for column in columns)])
    measure.table(title, ("", "samples/s", "tokens/s", "peak RSS MB", "tokens a step", "steps"), rows)
    print("model:", ", ".join(f"{name} {getattr(args, name)}" for name in SIZES))
    print(f"{args.threads} threads, {args.workers} loader workers, float32; padding is not counted as tokens")
    print(f"ratio: {result['ratio']['samples']:.2f} in samples/s, {result['ratio']['tokens']:.2f} in tokens/s")


def main() -> None:
    measure.run_bench(make_parser(), run, show, prepare, check)


if __name__ == "__main__":
    main()
