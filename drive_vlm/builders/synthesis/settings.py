"""OUT.settings.json: what a step's file was made with. A file holds one step with one setting."""

import dataclasses
from pathlib import Path
from typing import Any

from drive_vlm.store.cache import write_json
from drive_vlm.store.fingerprint import same_model
from drive_vlm.store.forms import read_dataclass
from drive_vlm.store.keyed_lines import check_same, short

_WAY_OUT = "Give another --out, or the old setting."


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What decides the lines of a step's file besides the pictures.

    Attributes:
        step: "detect", "caption", ...
        settings: flags and thresholds.
        models: role ("detector", "teacher") -> model_fingerprint, or any object that names a model; those of earlier steps as well.
        image_root: folder that the pictures' paths start from; not compared, since folders move.
    """

    step: str
    settings: dict[str, Any]
    models: dict[str, Any]
    image_root: str = ""

    def check(self, then: "StepSettings", path: Path) -> "StepSettings":
        """What to write down now, where the file at `path` was made with `then`. Raises ValueError naming what differs."""
        made = f"{path} was made with other settings"
        check_same(made, {"step": then.step} | then.settings, {"step": self.step} | self.settings, _WAY_OUT)
        models = {}
        for role in sorted(self.models.keys() | then.models.keys()):
            was, now = then.models.get(role), self.models.get(role)
            same = same_model(was, now) if isinstance(was, dict) and isinstance(now, dict) else None
            if same is None:
                raise ValueError(f"{made} ({role}: {short(was)} then, {short(now)} now). {_WAY_OUT}")
            models[role] = same
        return dataclasses.replace(self, models=models)


def settings_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.settings.json")


def audit_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.audit.json")


def read_settings(out: Path) -> StepSettings | None:
    """The settings of the step's file `out`; None for a file that has none. Raises ValueError where they are damaged."""
    path = settings_path(out)
    return read_dataclass(path, StepSettings, f"Make {out} again, to a new --out") if path.is_file() else None


def write_settings(out: Path, settings: StepSettings) -> None:
    write_json(settings_path(out), dataclasses.asdict(settings))


def models_of(data: list[str]) -> dict[str, Any]:
    """The models that the steps before have used, by role, of all step files among `data`. Raises ValueError where two files name
    two models for one role."""
    found: dict[str, Any] = {}
    for entry in data:
        known = read_settings(Path(entry)) if Path(entry).is_file() else None
        for role, model in (known.models if known else {}).items():
            if found.setdefault(role, model) != model:
                raise ValueError(
                    f"{entry}: {role} is {short(model)}, another file of --data has {short(found[role])}. Give files of one model."
                )
    return found


def identity(model: Any) -> Any:
    """What of a model's fingerprint decides a key: where a directory lies does not, and a hub id counts without its commit, which is
    not known before the download; `StepSettings.check` compares that."""
    if not isinstance(model, dict):
        return model
    rest = {key: value for key, value in model.items() if key not in ("name", "hub_commit")}
    return rest or model.get("name")
