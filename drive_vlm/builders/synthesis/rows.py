"""Lines of the questions step -> candidates for the gates, and candidates that passed -> training rows with where they come from.

A row's pictures lie below the folder of the rows: `images/` is the image root (a link, or copies), `images_w_boxes/` holds the
pictures of region rows. So one image root serves all rows, the default one.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row
from drive_vlm.builders.synthesis.drawing import draw_box
from drive_vlm.builders.synthesis.gates.candidate import Candidate, SourceObject, plain_words
from drive_vlm.builders.synthesis.records import check_box, descriptions_of, field_of
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import IMAGE, BadRow, resolve_below
from drive_vlm.data.vision import checked_image_size, load_image
from drive_vlm.evaluation.codalm import QUESTIONS
from drive_vlm.store.cache import cache_key
from drive_vlm.store.fingerprint import content_hash

TASKS = ("general", "region", "suggestion", "vqa")
PLAIN, BOXED = "images", "images_w_boxes"
_WAY_OUT = "Make the file again with tools/synth_questions.py"
# The order in which the parts of a suggestion's reasoning are read.
_REASONS = ("objects", "hazards", "rule", "risk", "action")


@dataclass(frozen=True)
class Line:
    """A picture's line of the questions step, and the candidates that it holds."""

    where: str
    image: str
    path: str
    candidates: tuple[Candidate, ...]
    file: JsonlFile
    number: int

    @property
    def line(self) -> dict[str, Any]:
        """The line itself, read from the file each time: it holds masks."""
        return self.file[self.number]


def fixed_questions(path: str | None) -> frozenset[tuple[str, ...]]:
    """The words of questions that are asked about every picture: those of CODA-LM, and the lines of a file. Raises ValueError."""
    texts = list(QUESTIONS.values())
    if path is not None:
        try:
            texts += Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--fixed_questions {path}: cannot be read ({error})") from error
    return frozenset(tuple(plain_words(text)) for text in texts if text.strip())


def read_question_lines(
    data: Sequence[str],
    image_root: str,
    note_bad: Callable[[BadRow], None],
    fixed: frozenset[tuple[str, ...]] = frozenset(),
) -> Iterator[Line]:
    """Every line of the files, in order; `fixed`: questions that are a benchmark's. `note_bad` counts a line whose picture cannot be read,
    or raises it.

    Raises ValueError, naming file and line, for what is damaged and for a picture that comes twice.
    """
    seen: dict[str, str] = {}
    for path in data:
        file = JsonlFile(path)
        for number, (where, line) in enumerate(file.places()):
            image = line.get("image") if isinstance(line, dict) else None
            if not isinstance(image, str):
                raise ValueError(f'{where}: a line of the questions step must hold "image" and "rows". {_WAY_OUT}')
            if image in seen:
                raise ValueError(f"{where}: {image!r} came before at {seen[image]}. Give each picture's line once.")
            seen[image] = where
            try:
                picture = resolve_below(image_root, image, where)
                height, width = checked_image_size(picture, where)
            except BadRow as error:
                note_bad(error)
                continue
            candidates = tuple(_candidates(line, where, image, picture, (width, height), fixed))
            yield Line(where, image, picture, candidates, file, number)


def objects_of(line: dict[str, Any], where: str) -> tuple[SourceObject, ...]:
    """What a text about the picture may name: "objects" of the retrieve step, else the detector's "boxes"."""
    name = "objects" if "objects" in line else "boxes"
    return tuple(SourceObject(_box(thing.box), thing.label, thing.by) for thing in field_of(line, name, where))


def _candidates(
    line: dict[str, Any], where: str, image: str, path: str, size: tuple[int, int], fixed: Collection[tuple[str, ...]]
) -> Iterator[Candidate]:
    objects = objects_of(line, where)
    stem = f"{Path(image).stem}-{hashlib.sha256(image.encode()).hexdigest()[:8]}"
    group = line.get("group")
    for number, row in enumerate(field_of(line, "rows", where)):
        at = f"{where}: row {number}"
        texts = {name: row.get(name, "") for name in ("task", "question", "answer", "kind")}
        if not all(isinstance(text, str) for text in texts.values()) or texts["task"] not in TASKS:
            raise ValueError(
                f"{at}: expected a task of {', '.join(TASKS)} with texts question and answer, got {str(row)[:100]}. {_WAY_OUT}"
            )
        region = _region(row.get("region"), at)
        if texts["task"] == "region" and region is None:
            raise ValueError(f"{at}: a row of the task region has no region. {_WAY_OUT}")
        reason = row.get("finish_reason")
        if reason is None and texts["task"] == "general":
            # Its answer is the caption.
            reason = line.get("finish_reason")
        yield Candidate(
            id=f"{stem}-{number}",
            where=at,
            image=image,
            path=path,
            group=image if group is None else str(group),
            size=size,
            reasoning=reasoning_text(row.get("reasoning")),
            region=region,
            objects=objects,
            finish_reason=str(reason or "stop"),
            fixed=tuple(plain_words(texts["question"])) in fixed,
            **texts,
        )


def reasoning_text(reasoning: Any) -> str:
    """Reasoning as one text: a text stays, the parts of an object become a line each ("Hazards: a car, a bus")."""
    if not isinstance(reasoning, dict):
        return str(reasoning or "").strip()
    names = [*(name for name in _REASONS if name in reasoning), *sorted(reasoning.keys() - set(_REASONS))]
    lines = []
    for name in names:
        value = reasoning[name]
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
        if text.strip():
            lines.append(f"{name.capitalize()}: {text.strip().rstrip('.')}.")
    return "\n".join(lines)


def _region(value: Any, where: str) -> SourceObject | None:
    if value is None:
        return None
    box, label = (value.get("box"), value.get("label")) if isinstance(value, dict) else (None, None)
    if not isinstance(box, list) or not isinstance(label, str):
        raise ValueError(f'{where}: a region must be {{"box", "label"}}, got {str(value)[:100]}. {_WAY_OUT}')
    try:
        check_box(box)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}. {_WAY_OUT}") from error
    return SourceObject(_box(box), label, str(value.get("by", "detector")))


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = values
    return float(x1), float(y1), float(x2), float(y2)


def training_row(
    candidate: Candidate, source: Line, scores: Mapping[str, float], models: Mapping[str, str], number: int, first: bool
) -> Row:
    """The row of a candidate that passed. `number`: of the round; `first`: the reasoning stands before the answer and is learned."""
    line = source.line
    answer = f"{candidate.reasoning}\n{candidate.answer}" if first and candidate.reasoning else candidate.answer
    picture = f"{PLAIN}/{candidate.image}" if candidate.region is None else boxed_name(candidate)
    row: Row = {
        "id": candidate.id,
        "image": picture,
        "group": candidate.group,
        "round": number,
        "task": candidate.task,
        "kind": candidate.kind,
        "messages": [
            {"role": "user", "content": f"{IMAGE}\n{candidate.question.strip()}"},
            {"role": "assistant", "content": answer.strip()},
        ],
    }
    if candidate.fixed:
        row["fixed_question"] = True
    if candidate.reasoning:
        row["reasoning"] = candidate.reasoning
    if candidate.region is not None:
        row["region"] = {"box": list(candidate.region.box), "label": candidate.region.label}
    return (
        row
        | {"sources": sources_of(line, source.where), "models": dict(models)}
        | _spent(candidate, line)
        | {"gates": dict(scores)}
    )


def sources_of(entries: dict[str, Any], where: str) -> dict[str, Any]:
    """Where a row comes from. Masks are kept of regions that have a name, in COCO's run lengths; a description without its text, with the
    licence that travels with it."""
    named = entries.get("objects", entries.get("boxes", []))
    boxes = [{key: thing.get(key) for key in ("box", "label", "score", "by")} for thing in named]
    regions = [
        {key: thing.get(key) for key in ("rle", "label", "score", "margin", "hits")}
        for thing in named
        if thing.get("rle")
    ]
    known = descriptions_of(entries, where) if "descriptions" in entries else {}
    descriptions = [
        {"label": label, "title": found.title, "url": found.url, "licence": found.licence}
        for label, found in known.items()
        if found is not None
    ]
    texts = {name: entries.get(name) for name in ("caption_raw", "caption_fine")}
    return {"image": entries["image"], "boxes": boxes, "regions": regions, "descriptions": descriptions, **texts}


def _spent(candidate: Candidate, line: dict[str, Any]) -> dict[str, Any]:
    """An equal share of what the picture's rows cost, in each row: summed over all given rows it is what was paid. None: unknown."""
    rows = len(line["rows"])
    own = line["rows"][int(candidate.id.rpartition("-")[2])]
    costs, tokens = line.get("cost") or {}, line.get("tokens") or {}
    counted = {
        step: None if count is None else {kind: round(value / rows, 2) for kind, value in count.items()}
        for step, count in tokens.items()
    }
    return {
        "prompt_sha": own.get("prompt_sha", line.get("prompt_sha")),
        "seed": own.get("seed", line.get("seed")),
        "cost_usd": sum(costs.values()) / rows if costs and None not in costs.values() else None,
        "tokens": counted,
    }


def rejected_row(candidate: Candidate, gate: str, reason: str, detail: str, scores: Mapping[str, float]) -> Row:
    """What rejected.jsonl says of a candidate that did not pass."""
    region = None if candidate.region is None else {"box": list(candidate.region.box), "label": candidate.region.label}
    return {
        "id": candidate.id,
        "where": candidate.where,
        "image": candidate.image,
        "group": candidate.group,
        "task": candidate.task,
        "kind": candidate.kind,
        "question": candidate.question,
        "answer": candidate.answer,
        "reasoning": candidate.reasoning,
        "region": region,
        "gate": gate,
        "reason": reason,
        "detail": detail,
        "scores": dict(scores),
    }


def model_name(model: Any, with_revision: bool = True) -> str:
    """The name of a model's fingerprint (settings.py), with what tells its versions apart: "org/model@1a2b3c4d5e6f"."""
    if not isinstance(model, dict):
        return str(model)
    name = str(model.get("name") or model.get("model") or "unnamed")
    rest = {key: value for key, value in model.items() if key != "name" and value}
    if not with_revision or not rest:
        return name
    return f"{name}@{model.get('hub_commit') or cache_key(rest)[:12]}"


# ---- pictures


def boxed_name(candidate: Candidate) -> str:
    """The picture of a region row below the folder of the rows."""
    return f"{BOXED}/{candidate.id}.jpg"


def draw_region(candidate: Candidate, out: Path) -> str:
    """The file of a region row's picture with its rectangle, written unless it is there; of other rows the picture itself.

    Raises BadRow for a picture that cannot be read.
    """
    if candidate.region is None:
        return candidate.path
    # A rectangle of another run may lie under the same id.
    box = ",".join(f"{value:g}" for value in candidate.region.box)
    target = out / boxed_name(candidate)
    mark = f"{box} {content_hash(candidate.path)}".encode()
    if not target.is_file() or _comment(target) != mark:
        drawn = draw_box(load_image(candidate.path, candidate.where), candidate.region.box)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        # Without subsampling: it would wash out the colour of thin lines.
        drawn.save(part, format="JPEG", quality=92, subsampling=0, comment=mark)
        os.replace(part, target)
    return str(target)


def keep_regions(candidates: Iterable[Candidate], out: Path) -> None:
    """Remove the pictures of region rows that an earlier run has drawn and no row names any more."""
    named = {out / boxed_name(candidate) for candidate in candidates}
    for path in (out / BOXED).glob("*.jpg"):
        if path not in named:
            path.unlink()


def _comment(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        found = picture.info.get("comment", b"")
    return found if isinstance(found, bytes) else str(found).encode()


def place_pictures(images: Iterable[str], root: str, folder: Path, copy: bool) -> None:
    """Make `folder` show the pictures of the image root: a symbolic link to it, or with `copy` a copy of each of `images`.

    Raises ValueError where something else is called so.
    """
    target = Path(root).resolve()
    if folder.is_symlink():
        folder.unlink()
    if folder.exists() and not copy:
        raise ValueError(f"{folder} is a folder of pictures already: remove it, or give --pictures copy")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        folder.symlink_to(target)
        return
    for image in dict.fromkeys(images):
        file = folder / image
        if not file.is_file() or file.stat().st_size != (target / image).stat().st_size:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target / image, file)
