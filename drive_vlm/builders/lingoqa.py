"""LingoQA's Parquet tables and frames as rows: a question of a segment with its five frames and all its reference answers.

A table (evaluation/val.parquet, scenery/train.parquet, action/train.parquet; wayveai/LingoQA) has the columns question_id, segment_id,
question, answer; questions with several references have a line for each. Its frames lie at the paths of the column `images` where
there is one and they exist below the image root, else in images/NAME/SEGMENT/0.jpg, 1.jpg ..., NAME being the table's name.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.data.samples import BadRow
from drive_vlm.data.sources import open_sources, require_files
from drive_vlm.data.vision import frame_files
from drive_vlm.evaluation.lingoqa import BENCHMARK
from drive_vlm.store.cache import write_json

COLUMNS = ("question_id", "segment_id", "question", "answer")
SKIP = "--on_bad_row skip leaves it out and counts it"
PICTURES, VIDEO = "pictures", "video"
PER_QUESTION, PER_ANSWER = "question", "answer"


@dataclass
class Question:
    """A question of a segment; `images` are the paths of its table, [] without any."""

    id: str
    segment: str
    text: str
    where: str
    images: list[str]
    answers: list[str] = field(default_factory=list)


def read_questions(path: str) -> Iterator[Question | BadRow]:
    """The questions of a table in the order of their first lines, each with its answers in order; a BadRow for a line without one of
    COLUMNS, and for a second question under the ids of a first.

    Raises ValueError for a table without these columns, and for one that holds its pictures itself.
    """
    sources = open_sources([path])
    require_files(sources)
    found: dict[tuple[str, str], Question] = {}
    total = 0
    for source in sources:
        for i in range(len(source.rows)):
            line, where = source.row(i), source.where(i)
            total += 1
            if lacks := [name for name in COLUMNS if name not in line]:
                raise ValueError(
                    f"{where}: no column {', '.join(lacks)}; is it a table of LingoQA? It has {', '.join(line)}"
                )
            texts = [str(line[name]).strip() if line[name] is not None else "" for name in COLUMNS]
            if "" in texts:
                yield BadRow("empty_text", where, f"{COLUMNS[texts.index('')]} is empty", SKIP)
                continue
            question_id, segment, text, answer = texts
            named = line.get("images") or []
            images = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
            item = found.setdefault((segment, question_id), Question(question_id, segment, text, where, images))
            if item.text != text:
                problem = (
                    f"question {question_id} of segment {segment} is another one at {item.where}: {item.text[:60]!r}"
                )
                yield BadRow("duplicate_id", where, problem, SKIP)
                continue
            item.answers.append(answer)
    if not total:
        raise ValueError(f"{path}: no rows")
    yield from found.values()


class Frames:
    """Finds the frames of segments below an image root; each segment is looked at once."""

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, folder
        self._known: dict[str, list[str] | BadRow] = {}

    def of(self, item: Question) -> list[str] | BadRow:
        """The paths of the pictures in the order of time, below the root; a BadRow where they are not there."""
        if item.segment not in self._known:
            self._known[item.segment] = self._find(item)
        return self._known[item.segment]

    def _find(self, item: Question) -> list[str] | BadRow:
        if item.images and all((self.root / path).is_file() for path in item.images):
            return item.images
        folder = f"{self.folder}/{item.segment}"
        if not (self.root / folder).is_dir():
            named = f"{self.root / item.images[0]} nor " if item.images else ""
            problem = f"neither {named}{self.root / folder} exists" if named else f"{self.root / folder} does not exist"
            way_out = f"Is --image_root the folder with images/, and --frames the folder of the segments? {SKIP}"
            return BadRow("image_missing", item.where, problem, way_out)
        try:
            files = frame_files(str(self.root / folder), item.where)
        except BadRow as problem:
            return problem
        if not files:
            return BadRow("video_empty", item.where, f"the folder {self.root / folder} holds no frame", SKIP)
        return [f"{folder}/{Path(name).name}" for name in files]


def question_rows(item: Question, frames: list[str], shown: str, rows: str) -> Iterator[Row]:
    """One row of a question with all its `references`, or one for each of its answers. `shown`: the frames as pictures, or their
    folder as a video."""
    answers = item.answers if rows == PER_ANSWER else item.answers[:1]
    media: Row = {"image": frames}
    marks = "<image>\n" * len(frames)
    if shown == VIDEO:
        media, marks = {"video": str(Path(frames[0]).parent)}, "<video>\n"
    for number, answer in enumerate(answers):
        row: Row = {
            "id": f"{item.segment}_{item.id}" + (f"_{number}" if rows == PER_ANSWER else ""),
            "group": item.segment,
            "benchmark": BENCHMARK,
            "segment_id": item.segment,
            "question_id": item.id,
            "asked": item.text,
            **media,
            "conversations": [{"from": "human", "value": marks + item.text}, {"from": "gpt", "value": answer}],
        }
        yield row | ({"references": item.answers} if rows == PER_QUESTION else {})


def build(
    table: str, root: Path, folder: str, out: Path, name: str, shown: str, rows: str, on_bad_row: str, on_missing: str
) -> dict[str, Any]:
    """Write NAME.jsonl and NAME.audit.json; gives {"rows", "questions", "segments", "answers": {answers of a question: questions},
    "frames": {frames of a segment: segments}, "bad_rows"}."""
    finder = Frames(root, folder)
    answers: Counter[str] = Counter()
    seen: dict[str, int] = {}
    with RowWriter(out, on_bad_row) as writer:
        writer.add(f"{name}.jsonl", ())
        for item in read_questions(table):
            frames = item if isinstance(item, BadRow) else finder.of(item)
            if isinstance(item, BadRow) or isinstance(frames, BadRow):
                problem = item if isinstance(item, BadRow) else frames
                assert isinstance(problem, BadRow)
                writer.reject(problem, on_missing == "skip" and problem.reason == "image_missing")
                continue
            answers[str(len(item.answers))] += 1
            seen[item.segment] = len(frames)
            writer.add(f"{name}.jsonl", question_rows(item, frames, shown, rows))
    audit = writer.audit()
    result = {
        "rows": audit["rows"][f"{name}.jsonl"] if audit["rows"] else 0,
        "questions": sum(answers.values()),
        "segments": len(seen),
        "answers": dict(sorted(answers.items())),
        "frames": dict(sorted(Counter(map(str, seen.values())).items())),
        "bad_rows": audit["bad_rows"],
    }
    write_json(out / f"{name}.audit.json", result)
    return result
