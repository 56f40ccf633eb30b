"""TRL's side of tools/bench/bench_sft.py: one epoch with TRL's SFTTrainer and its own collator, or (--check) a comparison of the
token ids and labels of every row with those of our encoder.

It works in the folder that `tools/bench/bench_sft.py --work DIR` fills (data/mixed.jsonl, model/, plan.json), and is started by it.
"""

import json
import time
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool

EXAMPLES = """
python tools/bench/bench_sft_trl.py --work runs/bench_sft --check
python tools/bench/bench_sft_trl.py --work runs/bench_sft --out runs/bench_sft/peer --workers 1
"""
ROWS = ("prompt_completion", "messages")


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_sft_trl.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder with data, model and plan.json")
    add("--peer_rows", choices=ROWS, default=ROWS[0], help="form of the rows; of messages TRL learns every token")
    add("--check", action="store_true", help="compare tokens and labels of all rows, train nothing")
    add("--out", type=Path, help="folder of the trainer's output and timed.json")
    add("--workers", type=int, default=1, help="loader workers")
    return parser


def peer_dataset(work: Path, form: str) -> Any:
    """The rows as a TRL user writes them: {"images": [Image], "prompt": [...], "completion": [...]} or {"images", "messages"}."""
    from datasets import Dataset, Features, Image, List, Value

    rows = []
    for line in (work / "data" / "mixed.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = {"role": "user", "content": asked.replace("<image>\n", "")}
        answer = {"role": "assistant", "content": answer}
        turns = {"messages": [asked, answer], "prompt": [asked], "completion": [answer]}
        images = [str(work / "data" / name) for name in row.get("image", [])]
        rows.append({"images": images, **{name: turns[name] for name in form.split("_")}})
    messages = List({"role": Value("string"), "content": Value("string")})
    columns = {name: messages for name in rows[0] if name != "images"}
    return Dataset.from_list(rows, features=Features({"images": List(Image()), **columns}))


def check_rows(work: Path, form: str) -> None:
    """Raises ValueError when the two sides would not train the same tokens."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(work / "model")))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(work / "data" / "mixed.jsonl")]), encoder)
    check_same_tokens(table, encoder, peer_dataset(work, form), parts.processor)


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
        dataloader_num_workers=args.workers,
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        max_length=None,
        **plan["shared"],
    )
    dataset = peer_dataset(work, args.peer_rows)
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


def run(args: Any) -> None:
    if args.check:
        check_rows(args.work, args.peer_rows)
    elif args.out is None:
        raise ValueError("--out: give the folder of the trainer's output")
    else:
        train_peer(args, args.work, args.out)


def main() -> None:
    run_tool(make_parser(), run)


if __name__ == "__main__":
    main()
