"""Which answer is taken for which: a table for each question type whose rows have few different answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from drive_vlm.report.run_report.scored import NONE, Scored, column_of, members

# Different answers of a table, and tables of a page.
MOST_CLASSES, MOST_TABLES = 12, 9
# Characters of an answer that names a class; a trajectory or a sentence is longer.
_LONGEST = 40
OTHER = "(another answer)"


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: rows whose own answer is `classes[i]` and that were answered `said[j]`; `said` may end in OTHER."""

    title: str
    classes: list[str]
    said: list[str]
    counts: list[list[int]]

    @property
    def n(self) -> int:
        return sum(map(sum, self.counts))

    def share(self, i: int, j: int) -> float:
        """Of the rows of class i."""
        return self.counts[i][j] / max(1, sum(self.counts[i]))


def confusion(title: str, targets: Sequence[str], answers: Sequence[str]) -> Confusion | None:
    """Counts of normalised texts; None with fewer than two or more than MOST_CLASSES different targets, and for free texts."""
    from drive_vlm.evaluation.answer_accuracy import normalize_answer

    wanted, given = ([normalize_answer(text) for text in texts] for texts in (targets, answers))
    classes = sorted(set(wanted), key=lambda name: (-wanted.count(name), name))
    # As many answers as rows are free texts.
    if not 2 <= len(classes) <= MOST_CLASSES or len(classes) > len(wanted) / 2 or len(max(classes, key=len)) > _LONGEST:
        return None
    pairs = Counter(zip(wanted, (text if text in classes else OTHER for text in given), strict=True))
    said = classes + ([OTHER] if any(name == OTHER for _, name in pairs) else [])
    return Confusion(title, classes, said, [[pairs[row, column] for column in said] for row in classes])


def confusions(scored: Scored) -> list[Confusion]:
    """Of the last checkpoint: by question type where the rows say it, else of all rows."""
    said, targets = scored.last.said, [item.reference for item in scored.rows]
    for name in ("template", "question_type", "category", "task"):
        values = [column_of(item, name) for item in scored.rows]
        if len(set(values) - {NONE}) < 2:
            continue
        tables = [
            confusion(f"{name} {value}", [targets[i] for i in rows], [said[i] for i in rows])
            for value, rows in members(values).items()
        ]
        if found := [table for table in tables if table is not None]:
            return sorted(found, key=lambda table: -table.n)[:MOST_TABLES]
    whole = confusion("all rows", targets, said)
    return [whole] if whole else []
