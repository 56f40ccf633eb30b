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
import time
from pathlib import Path
from typing import Any

import measure

from drive_vlm.config import CommandParser
from drive_vlm.report.tables import print_table

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
ROWS = ("prompt_completion", "messages")
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
    text = "form of TRL's rows; of messages it learns every token"
    parser.add_argument("--peer_rows", choices=ROWS, default=ROWS[0], help=text)
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
    from drive_vlm.models.tiny.tiny import build_tiny_internvl, corpus_of

    data = measure.build_synthetic(work, scenes=max(8, -(-args.rows // 6)), size=args.image_size)
    questions, captions = (measure.json_lines(data / name) for name in ("train.jsonl", "captions_train.jsonl"))
    rows = mixed_rows(questions, captions, args.rows)
    measure.write_json_lines(data / "mixed.jsonl", rows)
    build_tiny_internvl(work / "model", corpus_of(rows), max_tiles=1, **{name: getattr(args, name) for name in SIZES})
    table, _, _ = encoded(work, max_length=args.max_length)
    (work / "plan.json").write_text(json.dumps(make_plan(table.length, args.max_length, args.batch_size)))


def encoded(work: Path, max_length: int | None = None) -> tuple[Any, Any, Any]:
    """(table of the rows, our encoder, the processor)."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(work / "model")))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    return (
        build_table(open_sources([str(work / "data" / "mixed.jsonl")]), encoder, max_length=max_length),
        encoder,
        parts.processor,
    )


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


# ---- our side


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


# ---- TRL's side, in processes of their own


def peer_dataset(work: Path, form: str) -> Any:
    """The rows as a TRL user writes them: {"images": [Image], "prompt": [...], "completion": [...]} or {"images", "messages"}."""
    from datasets import Dataset, Features, Image, List, Value

    rows = []
    for row in measure.json_lines(work / "data" / "mixed.jsonl"):
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = {"role": "user", "content": asked.replace("<image>\n", "")}
        answer = {"role": "assistant", "content": answer}
        turns = {"messages": [asked, answer], "prompt": [asked], "completion": [answer]}
        images = [str(work / "data" / name) for name in row.get("image", [])]
        rows.append({"images": images, **{name: turns[name] for name in form.split("_")}})
    messages = List({"role": Value("string"), "content": Value("string")})
    columns = {name: messages for name in rows[0] if name != "images"}
    return Dataset.from_list(rows, features=Features({"images": List(Image()), **columns}))


def check_same_tokens(table: Any, encoder: Any, dataset: Any, processor: Any) -> None:
    """Raises ValueError for the first row whose token ids differ between our encoder and TRL's collator, or whose labels do.

    Of prompt_completion rows TRL learns one token more, the template's newline after the end of the turn; of messages
    rows all of them, the picture tokens included.
    """
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from drive_vlm.config import IGNORE_INDEX

    by_completion = "prompt" in dataset.column_names
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=by_completion)
    for i in range(len(table)):
        ours, theirs = encoder.encode(table.sample(i)), collate([dataset[i]])
        ids, labels = ours["input_ids"].tolist(), ours["labels"].tolist()
        learned = labels[:-1] + ids[-1:] if by_completion else ids
        assert labels[-1] == IGNORE_INDEX, "our template ends with an unlearned newline"
        for key, expected in (("input_ids", ids), ("labels", learned)):
            if theirs[key][0].tolist() != expected:
                raise ValueError(
                    f"row {i}: {key} differ between ours ({len(ids)} tokens) and TRL ({theirs[key].shape[1]} tokens), so the two "
                    "sides would not train the same. Check the processor's tiles (crop_to_patches, max_patches) and its chat template."
                )


def train_peer(work: Path, form: str, out: Path, workers: int) -> None:
    """One epoch with TRL's SFTTrainer and its own collator; writes timed.json."""
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import freeze

    plan = json.loads((work / "plan.json").read_text())
    logs_seen: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                now = {"seconds": time.perf_counter(), "tokens": logs["num_tokens"], "step": state.global_step}
                logs_seen.append(now)

    family = load_family(ModelConfig(model=str(work / "model")), torch.float32)
    freeze(family.model, family.parts, ["vision_tower"])
    cpu = not torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=plan["batch"]["peer"],
        logging_steps=plan["steps"]["peer"],
        dataloader_num_workers=workers,
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        max_length=None,
        **plan["shared"],
    )
    dataset = peer_dataset(work, form)
    rest = {"train_dataset": dataset, "processing_class": family.processor, "callbacks": [Clock()]}
    SFTTrainer(family.model, config, **rest).train()
    first, last = logs_seen[0], logs_seen[-1]
    timed = {
        "seconds": last["seconds"] - first["seconds"],
        "samples": len(dataset) - plan["batch"]["peer"],
        "tokens": last["tokens"] - first["tokens"],
        "steps": last["step"],
    }
    (out / "timed.json").write_text(json.dumps(timed))


def child(words: list[str]) -> None:
    """`WORK FORM` compares the tokens and labels of all rows; with `OUT WORKERS` behind them TRL trains."""
    work, form = Path(words[0]), words[1]
    if len(words) > 2:
        train_peer(work, form, Path(words[2]), int(words[3]))
    else:
        table, encoder, processor = encoded(work)
        check_same_tokens(table, encoder, peer_dataset(work, form), processor)


# ---- both


def run(args: Any, work: Path) -> dict[str, Any]:
    """Both sides in turns. This process loads no torch: a child begins with the peak RSS of the process that forks it."""
    env = measure.environment(work, args.threads)
    peer_words = [sys.executable, __file__, "--child", work, args.peer_rows]
    measure.start(peer_words, work / "check.log", env)
    plan = json.loads((work / "plan.json").read_text())

    def peak(command: list[Any], out: Path) -> dict[str, float]:
        out.mkdir()
        return {"peak_rss_mb": measure.start(command, out.with_suffix(".log"), env)["peak_rss_mb"]}

    def ours(repeat: int) -> dict[str, float]:
        out = work / f"ours{repeat}"
        return peak(our_command(args, work, out, plan), out) | our_rates(out, plan)

    def peer(repeat: int) -> dict[str, float]:
        out = work / f"peer{repeat}"
        return peak([*peer_words, out, args.workers], out) | peer_rates(out, plan)

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
    print_table(title, ("", "samples/s", "tokens/s", "peak RSS MB", "tokens a step", "steps"), rows)
    print("model:", ", ".join(f"{name} {getattr(args, name)}" for name in SIZES))
    print(f"{args.threads} threads, {args.workers} loader workers, float32; padding is not counted as tokens")
    print(f"ratio: {result['ratio']['samples']:.2f} in samples/s, {result['ratio']['tokens']:.2f} in tokens/s")


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show, prepare, check, child=child)
