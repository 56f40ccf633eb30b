"""The state of a chain of rounds: the files that each step makes, their hashes, what is done, and whether it still fits."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drive_vlm.launch.checkpoint import with_step
from drive_vlm.store import cache, keyed_lines
from drive_vlm.store.cache import write_atomically, write_json
from drive_vlm.store.fingerprint import content_hash, model_fingerprint, same_model
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.keyed_lines import check_same, short

STATE = "rounds.json"
_FORMAT = 1
_WAY_OUT = "Restore the file, or give another OUT."
# The first one only in chains whose rows the model of the round before writes again (setting "regenerate").
STEPS = ("regenerate", "generate", "pairs", "train", "evaluate")
# The model before any fine-tuning, for the table only.
DIRECT = "direct"
_SHARD = re.compile(r"generated\.shard-(\d+)-of-(\d+)\.jsonl")


def read_json(path: Path) -> Any:
    try:
        return cache.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {_WAY_OUT}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Raises ValueError with path:line for one that is damaged."""
    return [row for _, row in keyed_lines.read_lines(path, "not a line of metrics", _WAY_OUT, with_step)]


def identified(folder: Path, step: str) -> Path:
    """The file, or the model directory, whose hash stands for the step."""
    return folder / {"regenerate": "rows.jsonl", "generate": "generated.jsonl", "pairs": "pairs.jsonl", "train": "model", "evaluate": "answers.jsonl"}[step]  # fmt: skip


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
    return run.is_file() and read_object(run, _WAY_OUT).get("state") == "finished"


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
    for depth, word in enumerate(parts):
        section = found
        if not isinstance(found, dict) or word not in found:
            known = f"there are {', '.join(found)}" if isinstance(found, dict) else f"it holds {short(found)}"
            raise ValueError(f"{path}: no {'.'.join(parts[: depth + 1])}: {known}. Name the metric with METRIC.")
        found = found[word]
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise ValueError(f"{path}: {metric} is {short(found)}, not a number. Name another metric with METRIC.")
    return float(found), {"low": section.get("low"), "high": section.get("high")}


class Chain:
    """The state in `out`. Raises ValueError where there is none, or one of another format."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.path = self.out / STATE
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no chain of rounds was started here")
        self.content = read_json(self.path)
        found = part(self.content, "format", int, self.path, _WAY_OUT)
        if found != _FORMAT:
            raise ValueError(f"{self.path}: format {found}, this version reads {_FORMAT}. Give another OUT.")
        part(self.content, "settings", dict, self.path, _WAY_OUT)
        rounds = part(self.content, "rounds", dict[str, dict], self.path, _WAY_OUT)
        for number, steps in rounds.items():
            for step in steps.keys() & set(STEPS):
                part(rounds, f"{number}.{step}.identity", Any, self.path, _WAY_OUT)

    @classmethod
    def start(cls, out: str | Path, settings: dict[str, Any]) -> "Chain":
        """A new chain, or the one that is there. Raises ValueError when that one was started with other settings."""
        path = Path(out) / STATE
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"format": _FORMAT, "settings": settings, "rounds": {}})
        chain = cls(out)
        was = chain.content["settings"]
        if was.get("regenerate") and "regenerate" not in settings:
            raise ValueError(f"{path}: its rounds regenerate their rows. Give SYNTH again, or another OUT.")
        agreed = {name: _agreed(was.get(name), now) for name, now in settings.items()}
        moved = [name for name, value in agreed.items() if value is None]
        then, now = ({name: found.get(name) for name in moved} for found in (was, settings))
        way_out = "Give another OUT, or go back to those settings."
        check_same(f"{path}: the chain was started with other settings", then, now, way_out)
        if any(was[name] != value for name, value in agreed.items()):
            was |= agreed
            chain.save()
        return chain

    @property
    def settings(self) -> dict[str, Any]:
        return self.content["settings"]

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of each round of this chain, in their order."""
        return STEPS if self.settings.get("regenerate") else STEPS[1:]

    def folder(self, number: str) -> Path:
        return self.out / (number if number == DIRECT else f"round-{number}")

    def entry(self, number: str) -> dict[str, Any]:
        """What is recorded of a round; empty where nothing is."""
        return self.content["rounds"].get(number, {})

    def is_done(self, number: str, step: str) -> bool:
        """Whether a step is recorded, or finished and not recorded yet.

        Raises ValueError when the folder no longer holds what was recorded.
        """
        self._check_position(number, step)
        recorded = self.entry(number).get(step)
        # A kill between the end of a step and its record, or a job array, leaves a finished step that is not recorded.
        if recorded is None:
            return step in FINISHED and FINISHED[step](self.folder(number))
        if (now := identity(self.folder(number), step)) != recorded["identity"]:
            what = "is gone" if now is None else "has changed since"
            raise ValueError(
                f"{self.path} does not fit its files: {identified(self.folder(number), step)}, recorded as round {number}'s result of "
                f"{step}, {what}. Put it back, or make this round and those after it again: "
                f"python tools/rounds.py forget --out {self.out} --round {number}"
            )
        return True

    def record(self, number: str, step: str) -> None:
        """Record what a finished step made. Raises ValueError when it is not finished, or an earlier one has changed."""
        if self.entry(number).get(step) is not None and self.is_done(number, step):
            return
        self._check_position(number, step)
        # Records are made in order, and each looks at those before it again: pairs of answers that were replaced later, for example,
        # are not the pairs of this round.
        for before in self.steps[: self.steps.index(step)] if number not in (DIRECT, "0") else ():
            if before not in self.entry(number):
                raise ValueError(f"round {number}: {step} cannot be recorded before {before}, which is not")
            self.is_done(number, before)
        facts = RECORDERS[step](self, number)
        what = identity(self.folder(number), step)
        if what is None:
            raise ValueError(f"round {number}: {step} made no {identified(self.folder(number), step)}")
        entry = self.content["rounds"].setdefault(number, {})
        entry[step] = facts | {"identity": what}
        rounds = self.content["rounds"]
        self.content["rounds"] = {n: rounds[n] for n in sorted(rounds, key=lambda n: -1 if n == DIRECT else int(n))}
        self.save()

    def decide(self, number: int, margin: float) -> bool:
        """Whether the chain goes on after a round: False when its evaluation fell by more than `margin`. Kept in the state.

        Raises ValueError when the round or the one before it is not evaluated.
        """
        # Round 0 is the model that the chain starts from: there is nothing to compare it with.
        if number == 0:
            return True
        before, after = (self.evaluation(str(n)) for n in (number - 1, number))
        change = after["value"] - before["value"]
        name = after["metric"].rsplit(".", 1)[-1]
        moved = f"{name} {after['value']:.4f} after {before['value']:.4f} ({change:+.4f})"
        stopped = change < -margin
        words = f"stopped: {moved} fell by more than the margin {margin:g}" if stopped else f"go on: {moved}"
        self.content["rounds"][str(number)]["decision"] = {"go_on": not stopped, "margin": margin, "words": words}
        self.save()
        return not stopped

    def evaluation(self, number: str) -> dict[str, Any]:
        if not self.entry(number).get("evaluate"):
            raise ValueError(f"round {number} is not evaluated yet. Run it: ROUND={number}")
        return self.entry(number)["evaluate"]

    def forget(self, number: int) -> list[Path]:
        """Take a round and those after it out of the state; their folders are kept, renamed to round-T.forgotten-K."""
        moved = []
        # Folders first: after a death between the two the state names what is gone, and says to forget it. The other way round
        # the old files would pass as those of the new rounds.
        for folder in sorted(self.out.glob("round-*")):
            if folder.name.removeprefix("round-").isdigit() and int(folder.name.removeprefix("round-")) >= number:
                count = len(list(self.out.glob(f"{folder.name}.forgotten-*")))
                moved.append(folder.rename(folder.with_name(f"{folder.name}.forgotten-{count + 1}")))
        for name in [name for name in self.content["rounds"] if name != DIRECT and int(name) >= number]:
            del self.content["rounds"][name]
        self.save()
        return moved

    def save(self) -> None:
        write_json(self.path, self.content)

    def _check_position(self, number: str, step: str) -> None:
        if step != "evaluate" and number in (DIRECT, "0"):
            raise ValueError(
                f"{number}: the models that a chain starts from are only evaluated, not put through {step}"
            )
        if step not in self.steps:
            raise ValueError(f"{self.path}: this chain regenerates no rows, and its rounds have no step {step}")


def _agreed(then: Any, now: Any) -> Any:
    """The setting as it is to be kept, None where it has changed: files and models are compared by content, not by path."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return now if then == now else None
    if "path" in now:
        return now if then.get("hash") == now["hash"] else None
    return same_model(then, now)


def _record_rows(chain: Chain, number: str) -> dict[str, Any]:
    path = chain.folder(number) / "rows.jsonl"
    file = path.with_name(f"{path.name}.audit.json")
    audit = read_json(file)
    _check_model(chain, number, part(audit, "model", dict, file, _WAY_OUT), path)
    kinds = {"rows": int, "human": int, "synthetic": int, "human_share": float, "gate": dict, "changed": dict | None}
    facts = {name: part(audit, name, kind, file, _WAY_OUT) for name, kind in kinds.items()}
    return {"file": _relative(chain, path), **facts}


def _record_generation(chain: Chain, number: str) -> dict[str, Any]:
    """Facts of a generation; joins the shards of a job array first, where it was one."""
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
        # Settings first: generated.jsonl is what says that the step is finished.
        write_json(folder / f"{name}.settings.json", settings[0])
        write_atomically(folder / name, lambda file: file.writelines(path.read_bytes() for path in shards))
    rows = sum(1 for line in (folder / name).open("rb") if line.strip())
    sampling = read_json(folder / f"{name}.settings.json")
    used = part(sampling, "model", dict, folder / f"{name}.settings.json", _WAY_OUT)
    _check_model(chain, number, used, folder / name)
    return {"file": _relative(chain, folder / name), "rows": rows, "shards": max(1, len(shards)), "settings": sampling}


def _record_pairs(chain: Chain, number: str) -> dict[str, Any]:
    path = chain.folder(number) / "pairs.jsonl"
    file = path.with_name(f"{path.name}.audit.json")
    audit = read_json(file)

    def field(name: str, kind: Any) -> Any:
        return part(audit, name, kind, file, _WAY_OUT)

    return {
        "file": _relative(chain, path),
        **{name: field(name, kind) for name, kind in {"pairs": int, "rows": int, "dropped": dict}.items()},
        "near_duplicates": field("near_duplicates.count", int),
        "mean_words": {key: round(field(f"words.{key}.mean", float), 2) for key in ("chosen", "rejected")},
        "chosen_longer": field("words.chosen_longer", float | None),
    }


def _record_training(chain: Chain, number: str) -> dict[str, Any]:
    folder = chain.folder(number)
    if not training_finished(folder):
        raise ValueError(
            f"{folder / 'model'}: its training is not finished. Run STEP=train; it goes on where it stopped."
        )
    file = folder / "model" / "run.json"
    run = read_json(file)

    def field(name: str, kind: Any) -> Any:
        return part(run, name, kind, file, _WAY_OUT)

    # SPIN trains against the model of the round before. Of an adapter the fingerprint of its base follows: [adapter, base].
    if not (reference := field("reference.model", list[dict])):
        raise ValueError(f"{file}: reference.model is empty. {_WAY_OUT}")
    _check_model(chain, number, reference[0], folder / "model")
    points = logged(folder / "model")
    return {
        "output_dir": _relative(chain, folder / "model"),
        "pairs": {_relative(chain, Path(one["path"])): one["rows"] for one in field("data.train", list[dict])},
        **{name: field(f"config.training.{name}", float) for name in ("beta", "learning_rate")},
        "steps": int(max((line["step"] for line in read_lines(folder / "model" / "metrics.jsonl")), default=0)),
        "margin": {"first": points[0]["margin"], "last": points[-1]["margin"]} if points else None,
    }


def _check_model(chain: Chain, number: str, used: dict[str, Any], path: Path) -> None:
    """Raises ValueError unless `used` is the model that the round before made; of a server's model only the name is known."""
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


def _expected_name(chain: Chain, number: int) -> str:
    return f"round-{number}/model" if number else chain.settings["model"]["name"].rstrip("/").rsplit("/", 1)[-1]


def _record_evaluation(chain: Chain, number: str) -> dict[str, Any]:
    folder, metric = chain.folder(number), chain.settings["metric"]
    value, interval = metric_of(folder / "scores.json", metric)
    files = {"answers": folder / "answers.jsonl", "scores": folder / "scores.json"}
    model = {} if number not in (DIRECT, "0") else {"model": chain.settings[DIRECT if number == DIRECT else "model"]}
    return {**model, **{key: _relative(chain, path) for key, path in files.items()}, "metric": metric, "value": value, **interval}  # fmt: skip


def _relative(chain: Chain, path: Path) -> str:
    path, out = path.resolve(), chain.out.resolve()
    return str(path.relative_to(out)) if path.is_relative_to(out) else str(path)


RECORDERS: dict[str, Callable[[Chain, str], dict[str, Any]]] = {
    "regenerate": _record_rows,
    "generate": _record_generation,
    "pairs": _record_pairs,
    "train": _record_training,
    "evaluate": _record_evaluation,
}
