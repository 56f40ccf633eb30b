"""The blocks about answers: scores by column, two runs on the same rows, and the tables of the evaluators' files."""

from collections.abc import Sequence
from dataclasses import dataclass

from drive_vlm.report.run_report.score_files import MOST_ROWS, Score, ScoreFile
from drive_vlm.report.run_report.scored import Scored, System, members


@dataclass(frozen=True)
class Cell:
    """A score as the page shows it: words, and where its bar and interval stand between 0 and 1 (None: no bar)."""

    words: str
    bar: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def span(self) -> tuple[float, float] | None:
        """(begin, width) of the interval in hundredths of the bar; None without one."""
        if self.low is None or self.high is None:
            return None
        low, high = (100 * min(1.0, max(0.0, end)) for end in (self.low, self.high))
        return low, max(0.5, high - low)


@dataclass(frozen=True)
class ScoreTable:
    """A row for each value of a column, or each score of a file; a column for each checkpoint and baseline."""

    title: str
    head: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    note: str = ""


def shown(value: float | None, percent: bool, sign: bool = False) -> str:
    """A score: percent of right answers, else three decimals."""
    if value is None:
        return "-"
    if percent:
        return f"{100 * value:+.1f}" if sign else f"{value:.1%}"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def interval(low: float | None, high: float | None, percent: bool, sign: bool = False) -> str:
    """ " [low, high]", or what is missing."""
    if low is None or high is None:
        return " (one group: no interval)"
    return f" [{shown(low, percent, sign)}, {shown(high, percent, sign)}]"


def cell_of(scored: Scored, system: System, rows: Sequence[int] | None = None) -> Cell:
    found = scored.summary(system, rows).to_dict()
    words = shown(found["mean"], scored.binary)
    if found["low"] is not None:
        words += interval(found["low"], found["high"], scored.binary)
    in_range = 0 <= found["mean"] <= 1
    return Cell(words, found["mean"] if in_range else None, found["low"], found["high"])


def tables_by_column(scored: Scored, columns: dict[str, list[str]]) -> list[ScoreTable]:
    """All rows, then a table for each column that splits them."""
    systems = [*scored.systems, *scored.baselines]
    head = [system.name for system in systems]
    whole = [cell_of(scored, system) for system in systems]
    found = [ScoreTable("all rows", head, [("all", _counted(scored, None), whole)])]
    for name, values in columns.items():
        rows = [
            (value, _counted(scored, chosen), [cell_of(scored, system, chosen) for system in systems])
            for value, chosen in members(values).items()
        ]
        found.append(ScoreTable(f"by {name.replace('_', ' ')}", head, rows))
    return found


def _counted(scored: Scored, rows: Sequence[int] | None) -> str:
    chosen = range(len(scored.rows)) if rows is None else rows
    groups = len({scored.groups[i] for i in chosen})
    return f"{len(chosen):,}" if groups == len(chosen) else f"{len(chosen):,} in {groups:,} groups"


@dataclass(frozen=True)
class Comparison:
    """The last checkpoint against another system on the same rows."""

    first: str
    second: str
    difference: str
    wins: int
    ties: int
    losses: int
    n: int
    test: str


def comparisons(scored: Scored) -> list[Comparison]:
    """Against each other prediction file and each baseline."""
    found = []
    for other in [*scored.systems[:-1], *scored.baselines]:
        change = scored.difference(other).to_dict()
        words = shown(change["difference"], scored.binary, sign=True) + (" points" if scored.binary else "")
        words += interval(change["low"], change["high"], scored.binary, sign=True)
        test = scored.mcnemar(other)
        p = "the scores are not right or wrong" if test is None else _p(test.p)
        wins, ties, losses, n = (change[name] for name in ("wins", "ties", "losses", "n"))
        found.append(Comparison(other.name, scored.last.name, words, wins, ties, losses, n, p))
    return found


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def file_tables(file: ScoreFile) -> list[ScoreTable]:
    """All scores of the checkpoints next to the same of the baselines, then the changes."""
    systems = {**file.systems, **file.baselines}
    paths = file.paths()
    rows = [
        (
            path or "score",
            _n([found.get(path) for found in systems.values()]),
            [_cell(found.get(path), file.scale) for found in systems.values()],
        )
        for path in paths[:MOST_ROWS]
    ]
    note = f"{len(paths) - MOST_ROWS:,} further scores are in {file.path}" if len(paths) > MOST_ROWS else ""
    found = [ScoreTable(file.name, list(systems), rows, note)] if rows else []
    changes = [
        (
            f"{title}: {path or 'score'}",
            "" if score.n is None else f"{score.n:,}",
            [_cell(score, file.scale, sign=True)],
        )
        for title, scores in file.comparisons
        for path, score in scores.items()
    ]
    if changes:
        found.append(ScoreTable(f"{file.name}: changes", ["difference"], changes[:MOST_ROWS]))
    return found


def _n(scores: Sequence[Score | None]) -> str:
    known = {score.n for score in scores if score is not None and score.n is not None}
    return ", ".join(f"{n:,}" for n in sorted(known))


def _cell(score: Score | None, scale: float, sign: bool = False) -> Cell:
    """A score of a file; its bar is a share of `scale`."""
    if score is None:
        return Cell("-")
    words = shown(score.value, False, sign)
    if score.low is not None and score.high is not None:
        words += interval(score.low, score.high, False, sign)
    value, low, high = (None if end is None else end / scale for end in (score.value, score.low, score.high))
    return Cell(words, value if value is not None and 0 <= value <= 1 and not sign else None, low, high)
