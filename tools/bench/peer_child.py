"""What runs in a peer's own environment: LLaMA-Factory's or ms-swift's code on rows and a model that a benchmark wrote.

`PYTHON peer_child.py facts PACKAGE...`, or `PYTHON peer_child.py PEER train|pictures JOB.json...`: jobs are carried out in
turn in one process, and each writes its "out". Of drive_vlm nothing is imported but the stand-in for torchvision's operators,
which lets its public wheel work next to a CPU build of torch: the peers pin versions of their own.
"""

import argparse
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IGNORED = -100
# Every CPU has it; ours takes it there too.
ATTENTION = "sdpa"


# ---- what is measured


def tree_cpu_seconds() -> float:
    """Processor seconds so far of this process and of all that it started and that still run or were waited for (Linux)."""
    ticks, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The name in brackets may hold blanks: what follows it are the fields from the third on.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            # It ended while we looked.
            continue
        parents[int(entry.name)] = int(fields[1])
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    family, more = set(), {os.getpid()}
    while more:
        family |= more
        more = {pid for pid, parent in parents.items() if parent in more} - family
    return sum(ticks[pid] for pid in family) / os.sysconf("SC_CLK_TCK")


def window_clock() -> Any:
    """A TrainerCallback: `window()` gives {"seconds", "cpu_seconds"} from the end of step 1 to the end of the last one."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []
            self.losses: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append((time.perf_counter(), tree_cpu_seconds()))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))

        def window(self) -> dict[str, float]:
            first, last = self.ends[0], self.ends[-1]
            return {"seconds": last[0] - first[0], "cpu_seconds": last[1] - first[1]}

    return Clock()


class Counted:
    """Counts what the trainer's steps hold, micro batch by micro batch, from the batches themselves."""

    def __init__(self, pad_id: int) -> None:
        from transformers import Trainer

        self.pad_id = pad_id
        self.batches: list[dict[str, int]] = []
        self._trainer, self._step = Trainer, Trainer.training_step
        counted, step = self, self._step

        @functools.wraps(step)
        def training_step(trainer: Any, model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
            counted.batches.append(counted.count(inputs["input_ids"], inputs["labels"]))
            return step(trainer, model, inputs, *rest, **kwargs)

        setattr(Trainer, "training_step", training_step)  # noqa: B010 - a patch of a class

    def count(self, ids: Any, labels: Any) -> dict[str, int]:
        """Of int[B, T]: tokens that are no padding, learned tokens, and answers, which are runs of learned tokens."""
        learned = labels != IGNORED
        begins = learned.clone()
        begins[:, 1:] &= ~learned[:, :-1]
        return {
            "tokens": int((ids != self.pad_id).sum()),
            "learned": int(learned.sum()),
            "rows": int(begins.sum()),
            "width": ids.shape[1],
        }

    def end(self) -> None:
        setattr(self._trainer, "training_step", self._step)  # noqa: B010


def write_run(job: dict[str, Any], clock: Any, counted: Counted, encoded: list[dict[str, list[int]]]) -> None:
    """Write what a run did; `encoded` are the rows as the peer hands them to its collator, where the job asks for them."""
    counted.end()
    micro = job["accumulate"]
    steps = len(clock.ends)
    sums = {name: sum(batch[name] for batch in counted.batches) for name in ("tokens", "learned", "rows")}
    timed = {name: sum(batch[name] for batch in counted.batches[micro:]) for name in ("tokens", "rows")}
    found = {
        "steps": steps,
        "all": sums,
        "timed": timed | clock.window(),
        "losses": clock.losses,
        "widest": max(batch["width"] for batch in counted.batches),
        "encoded": encoded if job["encoded"] else [],
    }
    Path(job["out"]).write_text(json.dumps(found))


def milliseconds(rows: Iterator[Any], warm_up: int = 2) -> dict[str, float]:
    """Wall and processor milliseconds that each of `rows` takes to come, medians after the first `warm_up`."""
    import statistics

    taken = []
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        if next(rows, None) is None:
            break
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    names = ("wall_ms", "cpu_ms")
    return {name: 1000 * statistics.median(row[i] for row in taken[warm_up:]) for i, name in enumerate(names)}


def write_pictures(job: dict[str, Any], rows: Iterator[dict[str, Any]]) -> None:
    """Time `rows`, collated batches of one row, and write what they took and held."""
    held = []

    def watched() -> Iterator[dict[str, Any]]:
        for row in rows:
            held.append((len(row["pixel_values"]), row["input_ids"].shape[1], str(row["pixel_values"].dtype)))
            yield row

    times = milliseconds(watched())
    tiles, tokens, dtype = held[0]
    Path(job["out"]).write_text(
        json.dumps(times | {"tiles": tiles, "tokens": tokens, "dtype": dtype, "rows": len(held)})
    )


# ---- LLaMA-Factory


def llamafactory_words(job: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `llamafactory-cli train` for `job`; dataset_info.json lies next to its rows."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model"],
        "template": "intern_vl",
        "default_system": "",
        "finetuning_type": "full",
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": False,
        "flash_attn": ATTENTION,
        "disable_gradient_checkpointing": True,
        "dataset": job["rows"],
        "dataset_dir": job["folder"],
        "media_dir": job["folder"],
        "overwrite_cache": True,
        "cutoff_len": job["max_length"],
        "neat_packing": job["packed"],
        # Its own limit, 768 x 768, would shrink a camera's picture before it is cut into tiles.
        "image_max_pixels": 2**22,
        "crop_to_patches": job["tiles"] > 1,
        **_training(job),
    }


def _training(job: dict[str, Any]) -> dict[str, Any]:
    """What transformers' TrainingArguments of both peers share."""
    return {
        **job["training"],
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["accumulate"],
        "dataloader_num_workers": job["workers"],
        "output_dir": job["out"] + ".run",
        "max_steps": job["steps"],
        "logging_steps": 10**6,
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "warmup_steps": 0,
    }


def llamafactory_train(job: dict[str, Any]) -> None:
    from llamafactory.train.tuner import run_exp

    clock = window_clock()
    encoded: list[dict[str, list[int]]] = []

    def on_train_begin(args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if job["encoded"]:
            dataset = train_dataloader.dataset
            encoded.extend({key: list(dataset[i][key]) for key in ("input_ids", "labels")} for i in range(len(dataset)))

    clock.on_train_begin = on_train_begin
    counted = Counted(job["pad_id"])
    run_exp(llamafactory_words(job), callbacks=[clock])
    write_run(job, clock, counted, encoded)


def llamafactory_pictures(job: dict[str, Any]) -> None:
    """From a row of its data set, whose words are tokens already, to what its collator gives: the pictures are read there."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, _, _ = get_train_args(llamafactory_words(job))
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    collate = SFTDataCollatorWith4DAttentionMask(
        template=template, pad_to_multiple_of=8, label_pad_token_id=IGNORED, **module
    )
    write_pictures(job, (collate([dataset[i]]) for i in range(len(dataset))))


# ---- ms-swift


def swift_words(job: dict[str, Any]) -> list[str]:
    """The words of a `swift sft` for `job`."""
    values = {
        "model": job["model"],
        "template": "internvl_hf",
        "system": "",
        "dataset": str(Path(job["folder"]) / f"{job['rows']}.swift.jsonl"),
        "tuner_type": "full",
        "freeze_vit": True,
        "freeze_aligner": False,
        "freeze_llm": False,
        "torch_dtype": "float32",
        "attn_impl": ATTENTION,
        "max_length": job["max_length"],
        "packing": job["packed"],
        "split_dataset_ratio": 0,
        "load_from_cache_file": False,
        "strict": True,
        "add_version": False,
        "eval_strategy": "no",
        **_training(job),
    }
    return [
        word
        for name, value in values.items()
        for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


def _swift_run(job: dict[str, Any]) -> Any:
    from swift.arguments import SftArguments
    from swift.pipelines.train.sft import SwiftSft

    if job["packed"]:
        # It refuses to pack without a flash attention kernel, which no CPU has. The positions that it gives the model separate the
        # rows for transformers' sdpa as well, as the loss of the first step shows.
        def without_flash(args: Any) -> None:
            args.padding_free = True

        setattr(SftArguments, "_check_padding_free", without_flash)  # noqa: B010 - a patch of a class
    return SwiftSft(swift_words(job))


def swift_train(job: dict[str, Any]) -> None:
    from swift.callbacks import callbacks_map

    clock = window_clock()
    # Its callbacks come by name, and this clock needs neither its arguments nor its trainer.
    callbacks_map["bench_clock"] = lambda args, trainer: clock
    encoded: list[dict[str, list[int]]] = []
    counted = Counted(job["pad_id"])
    pipeline = _swift_run(job)
    pipeline.args.training_args.callbacks = [*pipeline.args.training_args.callbacks, "bench_clock"]
    prepare = pipeline._prepare_dataset

    def prepared() -> Any:
        found = prepare()
        if job["encoded"]:
            rows = [found[0][i] for i in range(len(found[0]))]
            flat = [row for part in rows for row in (part if isinstance(part, list) else [part])]
            encoded.extend({key: list(row[key]) for key in ("input_ids", "labels")} for row in flat)
        return found

    pipeline._prepare_dataset = prepared
    pipeline.main()
    write_run(job, clock, counted, encoded)


def swift_pictures(job: dict[str, Any]) -> None:
    """From a row to what its collator gives: words and pictures are encoded when a row is asked for."""
    pipeline = _swift_run(job)
    dataset = pipeline._prepare_dataset()[0]
    collate = pipeline.template.data_collator
    write_pictures(job, (collate([dataset[i]]) for i in range(len(dataset))))


ACTIONS: dict[tuple[str, str], Callable[[dict[str, Any]], None]] = {
    ("llamafactory", "train"): llamafactory_train,
    ("llamafactory", "pictures"): llamafactory_pictures,
    ("swift", "train"): swift_train,
    ("swift", "pictures"): swift_pictures,
}


def facts(packages: list[str]) -> dict[str, str | None]:
    """{package: version, or None where it is not installed} in this environment."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=("facts", "llamafactory", "swift"), help="facts: versions; else whose code runs"
    )
    parser.add_argument("words", nargs="+", help="packages of facts; else `train` or `pictures`, and files of jobs")
    args = parser.parse_args()
    if args.what == "facts":
        print(json.dumps(facts(args.words)))
        return
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    importlib.import_module("drive_vlm")
    for file in args.words[1:]:
        ACTIONS[args.what, args.words[0]](json.loads(Path(file).read_text()))


if __name__ == "__main__":
    main()
