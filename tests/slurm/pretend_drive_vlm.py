"""Stands for `python -m drive_vlm generate` and `spin` in the fast test of the round graph: their files, no model.

Every answer is "OK"; training copies the model and adds the round. Each piece of work adds a line to $PRETEND_LOG; shard 2 of
a generation is killed in its middle while $PRETEND_LOG.kill exists.
"""

import argparse
import json
import os
import shutil
import signal
from pathlib import Path

from drive_vlm.data.predictions import prediction_row
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import read_sample
from drive_vlm.generate import take_shard
from drive_vlm.store.fingerprint import model_fingerprint

LOG = Path(os.environ["PRETEND_LOG"])


def hashes(model: str) -> dict[str, str]:
    return {key: value for key, value in model_fingerprint(model).items() if key != "name"}


def generate(args: argparse.Namespace) -> None:
    source = open_sources(args.data, args.image_root)[0]
    samples, out = [read_sample(source, i) for i in range(len(source.rows))], Path(args.out)
    if args.shard:
        samples, out = take_shard(samples, out, args.shard)
    if out.is_file():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    log(f"generate {out.parent.name} {out.name}")
    if args.shard and args.shard.startswith("2/") and LOG.with_suffix(".kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    out.with_name(f"{out.name}.settings.json").write_text(json.dumps({"model": model_fingerprint(args.model)}))
    rows = [{"dataset": "x", "_image": ""} | sample.columns for sample in samples]
    for sample, columns in zip(samples, rows, strict=True):
        sample.columns.update(columns)
    out.write_text("".join(json.dumps(prediction_row(sample, "OK")) + "\n" for sample in samples))


def spin(args: argparse.Namespace) -> None:
    out = Path(args.output_dir)
    log(f"spin {out.parent.name}")
    shutil.copytree(args.model, out)
    (out / "tokenizer_config.json").write_text(json.dumps({"round": out.parent.name}))
    rows = [{"path": path, "rows": len(Path(path).read_text().splitlines())} for path in args.data]
    run = {"state": "finished", "config": {"training": {"beta": args.beta, "learning_rate": args.learning_rate}}}
    run |= {"data": {"train": rows}, "reference": {"model": [hashes(args.model)]}}
    (out / "run.json").write_text(json.dumps(run))
    logged = [{"step": step, "rewards/margins": step - 1, "rewards/accuracies": 0.5 * step} for step in (1, 2)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))


def log(line: str) -> None:
    with LOG.open("a") as file:
        file.write(line + "\n")


parser = argparse.ArgumentParser()
parser.add_argument("command", choices=("generate", "spin"))
for flag in ("--model", "--out", "--output_dir", "--image_root", "--shard"):
    parser.add_argument(flag)
for flag in ("--beta", "--learning_rate"):
    parser.add_argument(flag, type=float)
parser.add_argument("--data", nargs="+")
{"generate": generate, "spin": spin}[(args := parser.parse_known_args()[0]).command](args)
