"""What each step of a round leaves behind: its files, their hashes, and the facts of it that are worth keeping."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.launch.cache import write_atomically
from drive_vlm.launch.fingerprint import content_hash, model_fingerprint

if TYPE_CHECKING:
    from drive_vlm.rounds.chain import Chain

STEPS = ("generate", "pairs", "train", "evaluate")
DIRECT = "direct"  # the model before any fine-tuning, for the table only
_SHARD = re.compile(r"generated\.shard-(\d+)-of-(\d+)\.jsonl")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Restore the file, or give another OUT.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def identified(folder: Path, step: str) -> Path:
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


def _training_finished(folder: Path) -> bool:
    run = folder / "model" / "run.json"
    return run.is_file() and read_json(run).get("state") == "finished"


FINISHED: dict[str, Callable[[Path], bool]] = {"generate": _generation_finished, "train": _training_finished}


def _record_generation(chain: "Chain", number: str) -> dict[str, Any]:
    """Joins the shards of an array, where it was one."""
    folder, name = chain.folder(number), "generated.jsonl"
    shards, missing = shards_of(folder)
    if not (folder / name).is_file():
        if missing or not shards:
            raise ValueError(
                f"{folder}: no {name}, and of its shards {missing or 'none'} are missing. Run STEP=generate."
            )
        settings = [read_json(path.with_name(f"{path.name}.settings.json")) for path in shards]
        if different := [path.name for path, item in zip(shards, settings, strict=True) if item != settings[0]]:
            raise ValueError(
                f"{folder}: {', '.join(different)}: other settings than {shards[0].name}. Remove them and run STEP=generate."
            )
        write_json(folder / f"{name}.settings.json", settings[0])
        write_atomically(folder / name, lambda file: file.writelines(path.read_bytes() for path in shards))
    rows = sum(1 for line in (folder / name).open("rb") if line.strip())
    sampling = read_json(folder / f"{name}.settings.json")
    _check_model(chain, number, sampling["model"], folder / name)
    return {"file": _relative(chain, folder / name), "rows": rows, "shards": max(1, len(shards)), "settings": sampling}


def _record_pairs(chain: "Chain", number: str) -> dict[str, Any]:
    path = chain.folder(number) / "pairs.jsonl"
    audit = read_json(path.with_name(f"{path.name}.audit.json"))
    words = audit["words"]
    return {
        "file": _relative(chain, path),
        "pairs": audit["pairs"],
        "rows": audit["rows"],
        "dropped": audit["dropped"],
        "near_duplicates": audit["near_duplicates"]["count"],
        "mean_words": {key: round(words[key]["mean"], 2) for key in ("chosen", "rejected")},
        "chosen_longer": words["chosen_longer"],
    }


def _record_training(chain: "Chain", number: str) -> dict[str, Any]:
    folder = chain.folder(number)
    if not _training_finished(folder):
        raise ValueError(
            f"{folder / 'model'}: its training is not finished. Run STEP=train; it goes on where it stopped."
        )
    run = read_json(folder / "model" / "run.json")
    _check_model(chain, number, run["reference"]["model"][0], folder / "model")
    used = run["config"]["training"]
    points = logged(folder / "model")
    return {
        "output_dir": _relative(chain, folder / "model"),
        "pairs": {_relative(chain, Path(path)): count for path, count in _rows_used(run).items()},
        "beta": used["beta"],
        "learning_rate": used["learning_rate"],
        "steps": int(max((line["step"] for line in read_lines(folder / "model" / "metrics.jsonl")), default=0)),
        "margin": {"first": points[0]["margin"], "last": points[-1]["margin"]} if points else None,
    }


def logged(model: Path) -> list[dict[str, float]]:
    """{step, margin, accuracy} of every logged step: beta times (the log-ratio to the reference of the chosen answer less that
    of the rejected one), and the share of pairs in which that is positive, both over the steps since the last line."""
    names = {"margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    lines = read_lines(model / "metrics.jsonl")
    return [{"step": line["step"], **{key: line[name] for key, name in names.items()}} for line in lines if names["margin"] in line]  # fmt: skip


def _check_model(chain: "Chain", number: str, used: dict[str, Any], path: Path) -> None:
    """Raises ValueError unless `used` is the model that the round before left; a server's model is known by its name only."""
    before = int(number) - 1
    expected = chain.entry(str(before))["train"]["identity"] if before else chain.settings["model"]
    if "weights" in used and "weights" in expected:
        if all(used[key] == expected[key] for key in ("config", "weights")):
            return
    elif "weights" not in used and used.get("name", "").rstrip("/").endswith(_expected_name(chain, before)):
        return
    raise ValueError(
        f"{path}: made with another model than round {before}'s. Remove {path.parent} and run the round again, or take it out of the chain: "
        f"python tools/rounds.py forget --out {chain.out} --round {number}"
    )


def _expected_name(chain: "Chain", number: int) -> str:
    return f"round-{number}/model" if number else chain.settings["model"]["name"].rstrip("/").rsplit("/", 1)[-1]


def _rows_used(run: dict[str, Any]) -> dict[str, int]:
    return {file["path"]: file["rows"] for file in run["data"]["train"]}


def _record_evaluation(chain: "Chain", number: str) -> dict[str, Any]:
    folder, metric = chain.folder(number), chain.settings["metric"]
    value, interval = metric_of(folder / "scores.json", metric)
    files = {"answers": folder / "answers.jsonl", "scores": folder / "scores.json"}
    model = {} if number not in (DIRECT, "0") else {"model": chain.settings[DIRECT if number == DIRECT else "model"]}
    return {**model, **{key: _relative(chain, path) for key, path in files.items()}, "metric": metric, "value": value, **interval}  # fmt: skip


RECORDERS: dict[str, Callable[["Chain", str], dict[str, Any]]] = {
    "generate": _record_generation,
    "pairs": _record_pairs,
    "train": _record_training,
    "evaluate": _record_evaluation,
}


def metric_of(path: Path, metric: str) -> tuple[float, dict[str, float | None]]:
    """The number at `metric` ("a.b.c") in a JSON file, and the interval that stands beside it as "low" and "high"."""
    found, parts = read_json(path), metric.split(".")
    for depth, part in enumerate(parts):
        beside = found
        if not isinstance(found, dict) or part not in found:
            known = f"there are {', '.join(found)}" if isinstance(found, dict) else f"it holds {short(found)}"
            raise ValueError(f"{path}: no {'.'.join(parts[: depth + 1])}: {known}. Name the metric with METRIC.")
        found = found[part]
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise ValueError(f"{path}: {metric} is {short(found)}, not a number. Name another metric with METRIC.")
    return float(found), {"low": beside.get("low"), "high": beside.get("high")}


def _relative(chain: "Chain", path: Path) -> str:
    path, out = path.resolve(), chain.out.resolve()
    return str(path.relative_to(out)) if path.is_relative_to(out) else str(path)
