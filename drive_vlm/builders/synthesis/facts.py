"""What the figures of a round need of rows: of candidates in the gate step, and of the rows that it wrote."""

from pathlib import Path
from typing import Any

from drive_vlm.builders.synthesis.gates.candidate import Candidate, SourceObject, plain_words
from drive_vlm.builders.synthesis.gates.grounding import claims_of
from drive_vlm.builders.synthesis.gates.objects import ObjectReader
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import IMAGE
from drive_vlm.evaluation.synthesis import RowFacts
from drive_vlm.store.forms import part

_WAY_OUT = "Give rows that tools/synth_gate.py has written"


def facts_of(row: Candidate, reader: ObjectReader) -> RowFacts:
    """The facts of a row; in another round it is the row of the same picture, task, region and question."""
    claims = claims_of(row, reader)
    region = None if row.region is None else row.region.box
    key = (row.image, row.task, region, tuple(plain_words(row.question)))
    return RowFacts(key, row.group, tuple(plain_words(row.answer)), claims.named, len(claims.false))


def read_gated(path: str) -> tuple[list[Candidate], int]:
    """(the synthetic rows of a file of the gate step, how many human rows stand in it). Raises ValueError, naming file and line, for a row
    that has another form."""
    found, human = [], 0
    for where, row in JsonlFile(path).places():
        if isinstance(row, dict) and row.get("origin") == "human":
            human += 1
        else:
            found.append(_candidate(row, where))
    return found, human


def _candidate(row: Any, where: str) -> Candidate:
    at = Path(where)
    boxes = part(row, "sources.boxes", list[dict[str, Any]], at, _WAY_OUT)
    messages = part(row, "messages", list[dict[str, Any]], at, _WAY_OUT)
    if len(messages) != 2 or not all(isinstance(message.get("content"), str) for message in messages):
        raise ValueError(f"{where}: messages must be a question and an answer. {_WAY_OUT}")
    texts = {name: part(row, name, str, at, _WAY_OUT) for name in ("id", "task", "kind")}
    # Of a region row "image" is the picture with the rectangle.
    texts["image"] = part(row, "sources.image", str, at, _WAY_OUT)
    question, answer = (message["content"] for message in messages)
    region = row.get("region")
    reasoning = str(row.get("reasoning") or "")
    # With --reasoning first it stands in both places.
    answer = answer.removeprefix(reasoning).strip() if reasoning else answer
    return Candidate(
        fixed=row.get("fixed_question") is True,
        where=where,
        path="",
        group=str(row.get("group")),
        size=(0, 0),
        question=question.removeprefix(IMAGE).strip(),
        answer=answer,
        reasoning=reasoning,
        region=None if region is None else _object(region, where),
        objects=tuple(_object(box, where) for box in boxes),
        **texts,
    )


def _object(thing: dict[str, Any], where: str) -> SourceObject:
    box, label = (
        part(thing, name, kind, Path(where), _WAY_OUT) for name, kind in (("box", list[float]), ("label", str))
    )
    if len(box) != 4:
        raise ValueError(f"{where}: a box must be four numbers, got {box}. {_WAY_OUT}")
    return SourceObject((box[0], box[1], box[2], box[3]), label, str(thing.get("by") or "detector"))
