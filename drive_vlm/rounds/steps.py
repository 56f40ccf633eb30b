"""The files that each step of a round makes, their hashes, and whether it is finished."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drive_vlm.store.fingerprint import content_hash, model_fingerprint
from drive_vlm.store.keyed_lines import short

STEPS = ("generate", "pairs", "train", "evaluate")
# The model before any fine-tuning, for the table only.
DIRECT = "direct"
_SHARD = re.compile(r"generated\.shard-(\d+)-of-(\d+)\.jsonl")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Restore the file, or give another OUT.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def identified(folder: Path, step: str) -> Path:
    """The file, or the model directory, whose hash stands for the step."""
    return folder / {"generate": "generated.jsonl", "pairs": "pairs.jsonl", "train": "model", "evaluate": "answers.jsonl"}[step]  # fmt: skip


def identity(folder: Path, step: str) -> Any:
    """Hash of a step's file, or of its model; None where there is none."""
    path = identified(folder, step)
    if step == "train":
        return {key: value for key, value in model_fingerprint(str(path)).items() if key != "name"} if path.is_dir() else None  # fmt: skip
    return content_hash(path) if path.is_file() else None


def shards_of(folder: Path) -> tuple[list[Path], list[int]]:
    """The finished shards of a generation in their order, and the numbers of those that are missing.

    Raises ValueError for shards of different counts.
    """
    found = {path: tuple(map(int, match.groups())) for path in folder.glob("generated.shard-*") if (match := _SHARD.fullmatch(path.name))}  # fmt: skip
    counts = {count for _, count in found.values()}
    if len(counts) > 1:
        raise ValueError(f"{folder}: shards of {' and of '.join(map(str, sorted(counts)))}. Remove those of one count.")
    there = {index for index, _ in found.values()}
    return sorted(found), [index for index in range(max(counts, default=0)) if index not in there]


def _generation_finished(folder: Path) -> bool:
    files, missing = shards_of(folder)
    return (folder / "generated.jsonl").is_file() or bool(files and not missing)


def training_finished(folder: Path) -> bool:
    # Weights alone do not say it: a run that was stopped on request saves them too.
    run = folder / "model" / "run.json"
    return run.is_file() and read_json(run).get("state") == "finished"


FINISHED: dict[str, Callable[[Path], bool]] = {"generate": _generation_finished, "train": training_finished}


def logged(model: Path) -> list[dict[str, float]]:
    """{step, margin, accuracy} of every logged step: beta times (the log-ratio to the reference of the chosen answer less that
    of the rejected one), and the share of pairs in which that is positive, both over the steps since the last line."""
    names = {"margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    lines = read_lines(model / "metrics.jsonl")
    return [{"step": line["step"], **{key: line[name] for key, name in names.items()}} for line in lines if names["margin"] in line]  # fmt: skip


def metric_of(path: Path, metric: str) -> tuple[float, dict[str, float | None]]:
    """The number at `metric` ("a.b.c") in a JSON file, and the interval next to it: "low" and "high"."""
    found, parts = read_json(path), metric.split(".")
    for depth, part in enumerate(parts):
        section = found
        if not isinstance(found, dict) or part not in found:
            known = f"there are {', '.join(found)}" if isinstance(found, dict) else f"it holds {short(found)}"
            raise ValueError(f"{path}: no {'.'.join(parts[: depth + 1])}: {known}. Name the metric with METRIC.")
        found = found[part]
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise ValueError(f"{path}: {metric} is {short(found)}, not a number. Name another metric with METRIC.")
    return float(found), {"low": section.get("low"), "high": section.get("high")}
