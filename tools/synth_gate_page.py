"""The sample of tools/synth_gate.py that a person looks at: which pictures, and what is shown of each."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.builders.splits import split_position
from drive_vlm.builders.synthesis.gate import GateRun
from drive_vlm.builders.synthesis.records import descriptions_of
from drive_vlm.builders.synthesis.rows import Line
from drive_vlm.report.synthesis import ShownBox, ShownPicture, ShownRow


def sample_of(run: GateRun, lines: Sequence[Line], count: int, seed: int) -> list[ShownPicture]:
    """Up to `count` pictures: one for each reason for which a row was taken out, then others, by a hash of (seed, picture)."""
    order = sorted(lines, key=lambda line: split_position(line.image, seed))
    reasons: dict[str, set[tuple[str, str]]] = {}
    for item in run.rejected:
        reasons.setdefault(item.row.image, set()).add((item.gate, item.outcome.reason))
    chosen: list[Line] = []
    shown: set[tuple[str, str]] = set()
    for line in order:
        if len(chosen) < count and reasons.get(line.image, set()) - shown:
            shown |= reasons[line.image]
            chosen.append(line)
    names = {line.image for line in chosen}
    chosen += [line for line in order if line.image not in names][: count - len(chosen)]
    rows: dict[str, list[ShownRow]] = {line.image: [] for line in chosen}
    for row, scores in run.passed:
        if row.image in rows:
            rows[row.image].append(ShownRow(row.task, row.question, row.answer, row.reasoning, scores=scores))
    for item in run.rejected:
        if item.row.image in rows:
            row, found = item.row, item.outcome
            texts = (row.task, row.question, row.answer, row.reasoning)
            rows[row.image].append(ShownRow(*texts, item.gate, found.reason, found.detail, found.scores))
    return [_shown(line, rows[line.image]) for line in chosen]


def _shown(line: Line, rows: Sequence[ShownRow]) -> ShownPicture:
    content = line.line
    named = content.get("objects", content.get("boxes", []))
    boxes = [ShownBox(t["box"], t["label"], _by(t.get("by")), t.get("score")) for t in named]
    boxes += [ShownBox(thing["box"], "?", "unknown", thing.get("score")) for thing in content.get("unknown", [])]
    about = {(row.region.box, row.region.label) for row in line.candidates if row.region is not None}
    boxes += [ShownBox(box, "", "region") for box, _ in sorted(about)]
    texts = {name: str(content.get(name) or "") for name in ("caption_raw", "caption_fine", "refused")}
    known = descriptions_of(content, line.where) if "descriptions" in content else {}
    for label, found in known.items():
        if found is not None:
            texts[f"{label}: {found.title}"] = f"{found.text} ({found.url}, {found.licence})"
    if "regions" in content:
        texts["regions"] = f"{len(content['regions'])} masks"
    dropped = [_words(claim) for claim in content.get("dropped_claims") or []]
    return ShownPicture(line.image, line.path, boxes, texts, dropped, rows)


def _by(value: Any) -> str:
    """A detector's own name counts as the detector's."""
    return "retrieval" if value == "retrieval" else "detector"


def _words(claim: Any) -> str:
    return claim if isinstance(claim, str) else str(claim.get("claim", claim) if isinstance(claim, dict) else claim)
