"""What the steps of a plan take for all pictures, from the lines of a preview: `tools/synthesize.py --estimate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drive_vlm.builders.synthesis.cost import Estimate, PerPicture, estimate
from drive_vlm.builders.synthesis.plan_file import STEPS, Command
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.store.cache import read_json


def of_preview(command: Command, preview: Path, flags: Mapping[str, Any], pictures: int) -> Estimate:
    """The estimate of one step. `preview`: the folder of a preview; `flags`: those of the step in the plan, with its prices.

    A step that the preview lacks is "not measured": its calls and tokens are not guessed.
    """
    path = preview / STEPS[command.step].output
    prices = [None if flags.get(name) is None else float(flags[name]) for name in ("price_in", "price_out")]
    per = _measured(command.step, path) if path.is_file() else PerPicture(calls=None, basis="no preview")
    return estimate(command.step, pictures, per, *prices)


def _measured(step: str, path: Path) -> PerPicture:
    """What a picture of the preview took. Seconds are those of a step with a model of its own; a server's are not a GPU's of this machine."""
    audit = read_json(path.with_name(f"{path.name}.audit.json"))
    lines = JsonlFile(path)
    count = len({lines[i]["image"] for i in range(len(lines))})
    if not count:
        return PerPicture(calls=None, basis=f"a preview without lines ({path})")
    tokens = audit.get("tokens") or {}
    calls = tokens.get("calls", 0) / count
    own_model = not calls and audit.get("made", 0) == len(lines)
    return PerPicture(
        calls=calls,
        prompt_tokens=tokens["prompt"] / count if "prompt" in tokens else None,
        reply_tokens=tokens["completion"] / count if "completion" in tokens else None,
        seconds=audit["seconds"] / count if own_model and "seconds" in audit else None,
        bytes=path.stat().st_size / count,
        basis=f"a preview of {count:,} pictures",
    )
