"""The other side of bench_launch.py: SFT as one writes it by hand, a transformers Trainer with no code of this project.

Started by that tool with torchrun. Rows become tensors in the collator by the processor's chat template; all tokens but
the padding are learned. Only `import drive_vlm` is ours: next to a CPU build of torch the public torchvision needs its hook.
Every log is a line of metrics.jsonl, every save's seconds one of saves.jsonl.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import drive_vlm  # noqa: F401 - the hook for torchvision; loads nothing else


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path, help="JSON: model, data, freeze, resume and the TrainingArguments")
    settings = json.loads(parser.parse_args().settings.read_text())

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments, set_seed

    if settings["arguments"]["use_cpu"] and settings["arguments"]["deepspeed"]:
        start_deepspeed_on_cpu()
    args = TrainingArguments(**settings["arguments"])
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(settings["model"])
    model = AutoModelForImageTextToText.from_pretrained(settings["model"], dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(settings["freeze"] not in name)
    trainer = make_trainer(model, args, read_rows(Path(settings["data"])), processor)
    trainer.train(resume_from_checkpoint=settings["resume"])
    trainer.save_model()
    trainer.save_state()


def start_deepspeed_on_cpu() -> None:
    """As our engine does: without it use_cpu starts no process group, and DeepSpeed compiles a collective for a minute."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """{"picture": path, "asked": str, "answer": str} of each row of a JSONL file with one picture a row."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        asked, answer = (turn["value"] for turn in row["conversations"])
        rows.append({"picture": str(path.parent / row["image"]), "asked": asked[len("<image>\n") :], "answer": answer})
    return rows


def make_trainer(model: Any, args: Any, rows: list[dict[str, Any]], processor: Any) -> Any:
    """A Trainer with a collator by the processor, which notes its logs and the seconds of its saves in the output directory."""
    from PIL import Image
    from transformers import Trainer, TrainerCallback

    out, main_rank = Path(args.output_dir), int(os.environ.get("RANK", "0")) == 0

    def note(name: str, line: dict[str, Any]) -> None:
        if main_rank:
            with open(out / name, "a") as file:
                file.write(json.dumps(line) + "\n")

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids, attention_mask, labels int64[B, T], pixel_values float[B, 3, H, W]`."""
        conversations = []
        for row in batch:
            picture = {"type": "image", "image": Image.open(row["picture"]).convert("RGB")}
            asked = {"role": "user", "content": [picture, {"type": "text", "text": row["asked"]}]}
            answer = {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
            conversations.append([asked, answer])
        tensors = processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
        )
        tensors["labels"] = tensors["input_ids"].masked_fill(tensors["attention_mask"] == 0, -100)
        return dict(tensors)

    class Logs(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            note("metrics.jsonl", {"step": state.global_step, **kwargs["logs"]})

    class TimedTrainer(Trainer):
        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            started = time.perf_counter()
            super()._save_checkpoint(*args, **kwargs)
            note("saves.jsonl", {"seconds": time.perf_counter() - started})

    rest: dict[str, Any] = {"train_dataset": rows, "data_collator": collate, "processing_class": processor}
    return TimedTrainer(model=model, args=args, callbacks=[Logs()], **rest)


if __name__ == "__main__":
    main()
