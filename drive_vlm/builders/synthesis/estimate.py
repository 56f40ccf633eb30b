"""What the steps of a plan take for all pictures, from the lines of a preview: `tools/synthesize.py --estimate`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drive_vlm.builders.synthesis.cost import Estimate, PerPicture, estimate, measured
from drive_vlm.builders.synthesis.plan_file import STEPS
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.store.cache import read_json
from drive_vlm.store.forms import part

_WAY_OUT = "Run --preview again."


def of_preview(step: str, preview: Path, flags: Mapping[str, Any], pictures: int) -> Estimate:
    """The estimate of one step for `pictures`. `preview`: the folder of a preview; `flags`: those of the step in the plan, for prices.

    Of a step that the preview lacks nothing is known, and nothing is guessed.
    """
    path = preview / STEPS[step].output
    if not path.exists():
        return Estimate(step, pictures, None, None, None, None, None, None, "nothing: run --preview 10 first")
    prices = [None if flags.get(name) is None else float(flags[name]) for name in ("price_in", "price_out")]
    per = _of_gate(path) if step == "gate" else _of_lines(step, path)
    seconds = flags.get("gpu_seconds")
    if seconds is not None:
        per = replace(per, seconds=float(seconds))
    found = estimate(step, pictures, per, *prices)
    # What a model in this process says has no price.
    return replace(found, cost=0.0) if flags.get("backend") == "hf" else found


def _of_lines(step: str, path: Path) -> PerPicture:
    """What a line of a step took. Its seconds count where this process ran a model and made all lines in this run; those of a server are
    not seconds of a GPU that the plan must have."""
    audit = read_json(path.with_name(f"{path.name}.audit.json"))
    lines = list(JsonlFile(path))
    if not lines:
        raise ValueError(f"{path}: a preview without a line says nothing. {_WAY_OUT}")
    files = [path, *path.parent.glob(f"{path.name}.vectors*")]
    per = measured(step, lines, None, f"a preview of {len(lines):,} pictures")
    asked = per.calls and per.prompt_tokens is not None
    timed = not asked and audit.get("made") == len(lines)
    size = sum(file.stat().st_size for file in files) / len(lines)
    return replace(per, seconds=audit["seconds"] / len(lines) if timed else None, bytes=size)


def _of_gate(path: Path) -> PerPicture:
    """What the gate took of a picture: the judge's calls and tokens where there is one; rows, rejected rows and drawn pictures."""
    file = path / "data_audit.json"
    audit = read_json(file)
    pictures = part(audit, "pictures", int, file, _WAY_OUT)
    spent = part(audit, "spent", dict | None, file, _WAY_OUT) or {}
    size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file() and not item.is_symlink())
    prompt, reply = (
        spent[name] / pictures if name in spent else None for name in ("prompt_tokens", "completion_tokens")
    )
    return PerPicture(
        calls=spent.get("requests", 0) / pictures,
        prompt_tokens=prompt,
        reply_tokens=reply,
        bytes=size / pictures,
        basis=f"a preview of {pictures:,} pictures",
    )
