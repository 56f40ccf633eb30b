"""What the training rows answer, and what they share with the rows that are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drive_vlm.data.predictions import Prediction
from drive_vlm.data.samples import BadRow, parse_row, resolve_below
from drive_vlm.data.sources import open_sources
from drive_vlm.evaluation.answer_accuracy import TrainingAnswers
from drive_vlm.store.fingerprint import content_hash

# Rows that are read; a page is no place to wait for a million. The page says when it stopped.
MOST_ROWS = 200_000
# Pictures whose bytes are compared.
MOST_HASHED = 2_000
# Columns that say which questions are alike, the first that a row has.
ALIKE = ("template", "question_type", "category", "task")


def alike(row: dict[str, object]) -> str:
    """Which kind of question the row asks; "" where it does not say."""
    return next((str(row[name]) for name in ALIKE if row.get(name) not in (None, "")), "")


@dataclass
class TrainingRows:
    """Of the training files: answers by kind of question, groups, and pictures by size in bytes."""

    paths: list[str]
    answers: TrainingAnswers = field(default_factory=TrainingAnswers)
    groups: set[str] = field(default_factory=set)
    pictures: dict[int, list[str]] = field(default_factory=dict)
    rows: int = 0
    bad: int = 0
    cut: bool = False

    def majority(self, items: Sequence[Prediction]) -> list[str] | None:
        """The commonest training answer to each row's kind of question; None where the training rows have no answer."""
        if not self.answers.overall:
            return None
        return self.answers.majority([alike(item.row) for item in items])

    def unseen(self, items: Sequence[Prediction]) -> int:
        """Rows of a kind of question that training never asks: their majority answer is that of all training rows."""
        return sum(alike(item.row) not in self.answers.by_template for item in items)

    def priors(self, most: int = 8, kinds: int = 12) -> list[tuple[str, int, int, list[tuple[str, float]]]]:
        """(kind, answers, different ones, the commonest with their shares), the largest kinds first."""
        found = []
        for kind, counts in self.answers.by_template.items():
            total = sum(counts.values())
            common = [(text, count / total) for text, count in counts.most_common(most)]
            found.append((kind or "(all)", total, len(counts), common))
        return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:kinds]


def read_training(paths: Sequence[str], image_root: str | None) -> TrainingRows:
    """Read the rows of --train. A row that cannot be read is counted. Raises ValueError for a file that is missing or none of rows."""
    found = TrainingRows(list(paths))
    pictures: set[str] = set()
    for source in open_sources(paths, image_root):
        for i in range(len(source.rows)):
            if found.rows + found.bad >= MOST_ROWS:
                found.cut = True
                break
            try:
                row = source.row(i)
                sample = parse_row(row, source.where(i), source.root)
            except BadRow:
                found.bad += 1
                continue
            found.rows += 1
            kind = alike(row)
            for turn in sample.turns:
                if turn.role == "assistant":
                    found.answers.add(kind, turn.text)
            if sample.group is not None:
                found.groups.add(sample.group)
            pictures.update(sample.images)
    for name in sorted(pictures):
        path = Path(name)
        if path.is_file():
            found.pictures.setdefault(path.stat().st_size, []).append(str(path.resolve()))
    return found


@dataclass(frozen=True)
class Shared:
    """What the scored rows share with training: groups by name, pictures by file or by bytes. `looked` pictures of `pictures`."""

    groups: list[str]
    pictures: list[str]
    looked: int
    total: int

    @property
    def clean(self) -> bool:
        return not self.groups and not self.pictures


def shared_with(training: TrainingRows, items: Sequence[Prediction], roots: Sequence[Path]) -> Shared:
    """Groups that both name, and pictures that are the same file or hold the same bytes, of the first MOST_HASHED pictures."""
    named = {str(item.row["group"]) for item in items if item.row.get("group")}
    files = sorted({path for item in items for path in item.images})
    same, looked = [], 0
    for path in files[:MOST_HASHED]:
        found = _below(roots, path)
        if found is None:
            continue
        looked += 1
        candidates = training.pictures.get(found.stat().st_size, [])
        if str(found.resolve()) in candidates:
            same.append(path)
        elif candidates:
            own = content_hash(found)
            if any(content_hash(other) == own for other in candidates):
                same.append(path)
    return Shared(sorted(named & training.groups), same, looked, len(files))


def _below(roots: Sequence[Path], path: str) -> Path | None:
    for root in roots:
        try:
            found = Path(resolve_below(str(root), path, ""))
        except BadRow:
            return None
        if found.is_file():
            return found
    return None
