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
import time
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench_sft.py --json runs/bench_sft.json
python tools/bench_sft.py --rows 2000 --hidden_size 256 --max_length 1024 --batch_size 4 --threads 2
"""
SHARED = {
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


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench_sft.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--rows", type=int, default=480, help="training rows, at least 16")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens of a pack (ours)")
    parser.add_argument("--batch_size", type=int, default=4, help="packs a step (ours); TRL's batch follows")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side, in turns; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of both sides")
    parser.add_argument("--workers", type=int, default=1, help="loader workers of both sides")
    parser.add_argument("--hidden_size", type=int, default=128, help="width of vision tower and language model")
    parser.add_argument("--vision_layers", type=int, default=2, help="layers of the vision tower")
    parser.add_argument("--text_layers", type=int, default=4, help="layers of the language model")
    parser.add_argument("--vocab_size", type=int, default=4000, help="tokens of the tokenizer, at most")
    parser.add_argument("--image_size", type=int, default=112, help="pixels of a picture's side; one tile each")
    parser.add_argument("--patch_size", type=int, default=7, help="pixels of a patch's side; 4 patches make a token")
    parser.add_argument(
        "--peer_rows", choices=("prompt_completion", "messages"), default="prompt_completion", help="form of TRL's rows"
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="folder to keep data, model and logs (default: a temporary one)"
    )
    parser.add_argument(
        "--part", choices=("prepare", "peer"), default=None, help="one part only; the tool starts these itself"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of that part's output")
    parser.add_argument("--json", type=Path, default=None, help="write the measurement to this file")
    return parser


# ---- prepare: rows, model, plan, and the proof that both sides see the same tokens


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
    """Write data, model and plan.json (rows, tokens and batch of each side). Raises ValueError when the sides would differ."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.order import EpochOrder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor
    from drive_vlm.models.tiny import build_tiny_internvl, corpus_of

    data = work / "data"
    scenes = max(8, -(-args.rows // 6))
    tool = Path(__file__).with_name("build_synthetic.py")
    build = [sys.executable, tool, "--out", data, "--scenes", scenes, "--size", args.image_size, "--splits", "train:1"]
    subprocess.run([str(word) for word in build], check=True, stdout=subprocess.DEVNULL)
    questions, captions = (
        [json.loads(line) for line in (data / name).read_text().splitlines()]
        for name in ("train.jsonl", "captions_train.jsonl")
    )
    rows = mixed_rows(questions, captions, args.rows)
    (data / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {
        name: getattr(args, name)
        for name in ("image_size", "patch_size", "hidden_size", "vision_layers", "text_layers", "vocab_size")
    }
    build_tiny_internvl(work / "model", corpus_of(rows), max_tiles=1, **sizes)
    parts = load_processor(ModelConfig(model=str(work / "model")))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(data / "mixed.jsonl")]), encoder, max_length=args.max_length)
    check_same_tokens(table, encoder, peer_dataset(work, args.peer_rows), parts.processor)
    order = EpochOrder(table.length, SHARED["seed"], args.max_length)
    total, sequences = int(table.length.sum()), order.num_sequences
    per_step = total / sequences * args.batch_size
    peer_batch = max(1, round(per_step / (total / len(table))))
    peer_per_step = total / len(table) * peer_batch
    if abs(peer_per_step / per_step - 1) > 0.05:
        raise ValueError(
            f"TRL's batch of {peer_batch} rows holds {peer_per_step:.0f} tokens on average, ours {per_step:.0f}: more than 5 % apart. "
            "Raise --batch_size or --max_length, so that a step holds more rows."
        )
    first = [i for sequence in order(0)[: args.batch_size] for i in sequence]
    steps = {"ours": -(-sequences // args.batch_size), "peer": -(-len(table) // peer_batch)}
    if min(steps.values()) < 3:
        raise ValueError(f"only {min(steps.values())} steps: raise --rows, so that something follows the warm-up step")
    plan = {
        "rows": len(table),
        "tokens": total,
        "lengths": {"min": int(table.length.min()), "mean": total / len(table), "max": int(table.length.max())},
        "steps": steps,
        "batch": {"ours": args.batch_size, "peer": peer_batch},
        "tokens_per_step": {"ours": per_step, "peer": peer_per_step},
        "padding_share": {"ours": 1 - total / (sequences * args.max_length)},
        "timed": {"samples": len(table) - len(first), "tokens": total - int(table.length[first].sum())},
    }
    (work / "plan.json").write_text(json.dumps(plan))


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


def peer_dataset(work: Path, form: str) -> Any:
    """The rows as a TRL user writes them: {"images": [Image], "prompt": [...], "completion": [...]} or {"images", "messages"}."""
    from datasets import Dataset, Features, Image, List, Value

    rows = []
    for line in (work / "data" / "mixed.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = {"role": "user", "content": asked.replace("<image>\n", "")}
        answer = {"role": "assistant", "content": answer}
        turns = (
            {"prompt": [asked], "completion": [answer]}
            if form == "prompt_completion"
            else {"messages": [asked, answer]}
        )
        rows.append({"images": [str(work / "data" / name) for name in row.get("image", [])]} | turns)
    messages = List({"role": Value("string"), "content": Value("string")})
    columns = {name: messages for name in rows[0] if name != "images"}
    return Dataset.from_list(rows, features=Features({"images": List(Image()), **columns}))


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
    words = [
        sys.executable,
        __file__,
        "--part",
        "peer",
        "--work",
        work,
        "--out",
        out,
        "--workers",
        args.workers,
        "--peer_rows",
        args.peer_rows,
    ]
    return [str(word) for word in words]


def train_peer(args: Any, work: Path, out: Path) -> None:
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
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                logs_seen.append(
                    {"seconds": time.perf_counter(), "tokens": logs["num_tokens"], "step": state.global_step}
                )

    family = load_family(ModelConfig(model=str(work / "model")), torch.float32)
    freeze(family.model, family.parts, ["vision_tower"])
    cpu = not torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=plan["batch"]["peer"],
        logging_steps=plan["steps"]["peer"],
        dataloader_num_workers=args.workers,
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        max_length=None,
        **SHARED,
    )
    dataset = peer_dataset(work, args.peer_rows)
    SFTTrainer(
        family.model, config, train_dataset=dataset, processing_class=family.processor, callbacks=[Clock()]
    ).train()
    first, last = logs_seen[0], logs_seen[-1]
    timed = {
        "seconds": last["seconds"] - first["seconds"],
        "samples": len(dataset) - plan["batch"]["peer"],
        "tokens": last["tokens"] - first["tokens"],
        "steps": last["step"],
    }
    (out / "timed.json").write_text(json.dumps(timed))


def start(command: list[str], env: dict[str, str], log: Path) -> float:
    """Run `command` to its end; return the peak RSS of its largest process in MB. Raises ValueError when it fails."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        tail = lines[-1] if process.returncode == 2 and lines else "\n".join(lines[-30:])
        raise ValueError(
            f"{' '.join(command[1:4])} ... ended with code {process.returncode}: {tail.split('error: ')[-1]}"
        )
    return usage.ru_maxrss / 1024


def our_rates(out: Path, plan: dict[str, Any]) -> dict[str, float]:
    """Rates of the window from step 1 to the last step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = (row for row in lines if "loss" in row)
    seconds = plan["timed"]["samples"] / last["samples_per_second"]
    assert abs(last["tokens_per_second"] * seconds / plan["timed"]["tokens"] - 1) < 1e-6, (
        "the run did not follow the plan"
    )
    assert (first["step"], last["step"]) == (1, plan["steps"]["ours"]), (
        "the logs are not those of the first and last step"
    )
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
    names = [name for name in vars(args) if name not in ("json", "part", "out", "work")]
    flags = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    # In a process of its own, as a child begins with the peak RSS of the parent that started it.
    start([sys.executable, __file__, "--part", "prepare", "--work", str(work), *flags], env, work / "prepare.log")
    plan = json.loads((work / "plan.json").read_text())
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for repeat in range(args.repeats):
        for side, rates in (("ours", our_rates), ("peer", peer_rates)):
            out = work / f"{side}{repeat}"
            out.mkdir()
            command = our_command(args, work, out, plan) if side == "ours" else peer_command(args, work, out)
            peak = start(command, env, work / f"{side}{repeat}.log")
            runs[side].append({"peak_rss_mb": peak, **rates(out, plan)})
    sides = {
        side: {
            key: statistics.median(run[key] for run in runs[side])
            for key in ("samples_per_second", "tokens_per_second", "peak_rss_mb")
        }
        | {"rows_per_batch" if side == "peer" else "packs_per_batch": plan["batch"][side]}
        | {"tokens_per_step": plan["tokens_per_step"][side], "steps": plan["steps"][side], "runs": runs[side]}
        for side in runs
    }
    return {
        **sides,
        "ratio": {
            name: sides["ours"][f"{name}_per_second"] / sides["peer"][f"{name}_per_second"]
            for name in ("samples", "tokens")
        },
        "rows": plan["rows"],
        "tokens": plan["tokens"],
        "lengths": plan["lengths"],
        "settings": {name: getattr(args, name) for name in names} | SHARED,
        "machine": machine(),
        "versions": versions(),
    }


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
    model = {
        name: settings[name] for name in ("hidden_size", "vision_layers", "text_layers", "vocab_size", "image_size")
    }
    print(
        f"model: {model}; {settings['threads']} threads, {settings['workers']} loader workers, float32, tokens without padding"
    )
    print(f"ratio: {result['ratio']['samples']:.2f} in samples/s, {result['ratio']['tokens']:.2f} in tokens/s")


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.part == "peer":
        train_peer(args, args.work, args.out)
        return
    try:
        if args.part == "prepare":
            prepare(args, args.work)
            return
        if min(args.repeats, args.threads, args.batch_size) < 1 or args.rows < 16 or args.workers < 0:
            raise ValueError(
                "--repeats, --threads and --batch_size must be at least 1, --rows at least 16, --workers 0 or more"
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
