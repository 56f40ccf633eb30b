"""The state of a chain of rounds: what is done, what comes next, and whether it still fits its files."""

from pathlib import Path
from typing import Any

from drive_vlm.launch.fingerprint import same_model
from drive_vlm.rounds.steps import (
    DIRECT,
    FINISHED,
    RECORDERS,
    STEPS,
    identified,
    identity,
    read_json,
    short,
    write_json,
)

STATE = "rounds.json"
_FORMAT = 1


class Chain:
    """The state in `out`. Raises ValueError where there is none, or one of another format."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.path = self.out / STATE
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no chain of rounds was started here")
        self.content = read_json(self.path)
        if self.content.get("format") != _FORMAT:
            raise ValueError(
                f"{self.path}: format {self.content.get('format')}, this version reads {_FORMAT}. Give another OUT."
            )

    @classmethod
    def start(cls, out: str | Path, settings: dict[str, Any]) -> "Chain":
        """A new chain, or the one that is there. Raises ValueError when that one was started with other settings."""
        path = Path(out) / STATE
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"format": _FORMAT, "settings": settings, "rounds": {}})
        chain = cls(out)
        was = chain.content["settings"]
        agreed = {name: _agreed(was.get(name), now) for name, now in settings.items()}
        if moved := [name for name, value in agreed.items() if value is None]:
            lines = "; ".join(f"{name}: {short(was.get(name))} then, {short(settings[name])} now" for name in moved)
            raise ValueError(
                f"{path}: the chain was started with other settings ({lines}). Give another OUT, or go back to those settings."
            )
        if any(was[name] != value for name, value in agreed.items()):
            was |= agreed
            chain.save()
        return chain

    @property
    def settings(self) -> dict[str, Any]:
        return self.content["settings"]

    def folder(self, number: str) -> Path:
        return self.out / (number if number == DIRECT else f"round-{number}")

    def entry(self, number: str) -> dict[str, Any]:
        """What is recorded of a round; empty where nothing is."""
        return self.content["rounds"].get(number, {})

    def is_done(self, number: str, step: str) -> bool:
        """Whether a step is recorded, or finished and only not recorded yet.

        Raises ValueError when what was recorded is no longer what lies in the folder.
        """
        self._check_position(number, step)
        recorded = self.entry(number).get(step)
        if recorded is None:
            return step in FINISHED and FINISHED[step](self.folder(number))
        if (now := identity(self.folder(number), step)) != recorded["identity"]:
            what = "is gone" if now is None else "has changed since"
            raise ValueError(
                f"{self.path} does not fit its files: {identified(self.folder(number), step)}, recorded as round {number}'s result of "
                f"{step}, {what}. Put it back, or make this round and those after it anew: "
                f"python tools/rounds.py forget --out {self.out} --round {number}"
            )
        return True

    def record(self, number: str, step: str) -> None:
        """Write down what a finished step made. Raises ValueError when it is not finished, or an earlier one has changed."""
        if self.entry(number).get(step) is not None and self.is_done(number, step):
            return
        self._check_position(number, step)
        for before in STEPS[: STEPS.index(step)] if number not in (DIRECT, "0") else ():
            if before not in self.entry(number):
                raise ValueError(f"round {number}: {step} cannot be recorded before {before}, which is not")
            self.is_done(number, before)
        facts = RECORDERS[step](self, number)
        what = identity(self.folder(number), step)
        if what is None:
            raise ValueError(f"round {number}: {step} made no {identified(self.folder(number), step)}")
        entry = self.content["rounds"].setdefault(number, {})
        entry[step] = facts | {"identity": what}
        self.content["rounds"] = dict(sorted(self.content["rounds"].items(), key=lambda item: _order(item[0])))
        self.save()

    def decide(self, number: int, margin: float) -> bool:
        """Whether the chain goes on after a round: False when its evaluation fell by more than `margin`. Kept in the state.

        Raises ValueError when the round or the one before it is not evaluated.
        """
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
        """Take a round and those after it out of the state; their folders are kept beside, as round-T.forgotten-K."""
        moved = []
        for name in [name for name in self.content["rounds"] if name != DIRECT and int(name) >= number]:
            del self.content["rounds"][name]
        self.save()
        for folder in sorted(self.out.glob("round-*")):
            if folder.name.removeprefix("round-").isdigit() and int(folder.name.removeprefix("round-")) >= number:
                count = len(list(self.out.glob(f"{folder.name}.forgotten-*")))
                moved.append(folder.rename(folder.with_name(f"{folder.name}.forgotten-{count + 1}")))
        return moved

    def save(self) -> None:
        write_json(self.path, self.content)

    def _check_position(self, number: str, step: str) -> None:
        if step != "evaluate" and number in (DIRECT, "0"):
            raise ValueError(
                f"{number}: the models that a chain starts from are only evaluated, not put through {step}"
            )


def _order(number: str) -> int:
    return -1 if number == DIRECT else int(number)


def _agreed(then: Any, now: Any) -> Any:
    """A setting that is the same as before, None where it is another: files and models count by what they hold."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return now if then == now else None
    if "path" in now:
        return now if then.get("hash") == now["hash"] else None
    return same_model(then, now)
