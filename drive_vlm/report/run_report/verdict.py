"""The line at the top: the score with its interval against the start, blank pictures and the majority answer."""

from dataclasses import dataclass

from drive_vlm.report.run_report.score_files import ScoreFile
from drive_vlm.report.run_report.scored import Scored

GOOD, UNSURE, BAD, ALONE = "good", "unsure", "bad", "alone"
_ORDER = (GOOD, UNSURE, BAD)
# An interval that draws fewer groups is too narrow to decide anything (scenes are not independent rows).
FEWEST_GROUPS = 10


@dataclass(frozen=True)
class Against:
    """A comparison: the other's score, `last - other` with its interval (None: not known), and what follows."""

    name: str
    value: float
    difference: float
    low: float | None
    high: float | None
    tone: str

    @property
    def words(self) -> str:
        return {GOOD: "above", UNSURE: "not decided", BAD: "not above"}[self.tone]


@dataclass(frozen=True)
class Verdict:
    """`tone` is the worst of `against`; ALONE where there is nothing to compare with."""

    title: str
    system: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    groups: int | None
    against: tuple[Against, ...]
    percent: bool

    @property
    def tone(self) -> str:
        return max((one.tone for one in self.against), key=_ORDER.index, default=ALONE)

    def same_as(self, other: "Verdict") -> bool:
        """Whether both give the same score of as many rows to one checkpoint."""
        return (self.system, self.n) == (other.system, other.n) and abs(self.value - other.value) < 1e-9

    @property
    def words(self) -> str:
        if self.tone == ALONE:
            return "no baseline is given: the score stands alone"
        named = {tone: [one.name for one in self.against if one.tone == tone] for tone in _ORDER}
        if self.tone == BAD:
            return f"not above {_listed(named[BAD])}"
        if self.tone == UNSURE:
            few = self.groups is not None and self.groups < FEWEST_GROUPS
            why = f"{self.groups} groups are too few" if few else "the interval holds 0"
            return f"not decided against {_listed(named[UNSURE])}: {why}"
        return f"above {_listed(named[GOOD])}"


def _listed(names: list[str]) -> str:
    """Names in words; of many the first three, and how many more."""
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def tone_of(difference: float, low: float | None, groups: int | None) -> str:
    """BAD where the other is as good or better; UNSURE where the interval of the difference holds 0, is not known, or draws fewer than
    FEWEST_GROUPS."""
    if difference <= 0:
        return BAD
    if groups is not None and groups < FEWEST_GROUPS:
        return UNSURE
    return GOOD if low is not None and low > 0 else UNSURE


def verdict_of_rows(scored: Scored) -> Verdict:
    """From the rows: differences are paired, and their intervals draw whole groups."""
    found = scored.summary(scored.last).to_dict()
    against = []
    others = [*([scored.first] if scored.first else []), *scored.baselines]
    for other in others:
        change = scored.difference(other).to_dict()
        name = f"the start ({other.name})" if other is scored.first else other.name
        against.append(
            Against(
                name,
                scored.summary(other).mean,
                change["difference"],
                change["low"],
                change["high"],
                tone_of(change["difference"], change["low"], change["groups"]),
            )
        )
    return Verdict(
        scored.title,
        scored.last.name,
        found["mean"],
        found["low"],
        found["high"],
        found["n"],
        found["groups"],
        tuple(against),
        scored.binary,
    )


def verdict_of_file(file: ScoreFile) -> Verdict | None:
    """From an evaluator's file, which holds intervals of each score but not of every difference: a baseline below the interval is
    beaten, one inside it is not decided. None where the file has no headline."""
    headline = file.headline()
    if headline is None:
        return None
    against = []
    score, sign = headline.score, -1 if headline.lower_is_better else 1
    ends = None if score.low is None or score.high is None else sorted((sign * score.low, sign * score.high))
    for name, value in headline.others.items():
        difference = sign * (score.value - value)
        low, high = (None, None) if ends is None else (end - sign * value for end in ends)
        against.append(Against(name, value, difference, low, high, tone_of(difference, low, score.groups)))
    title = f"{headline.title} ({file.name})" + (f"; partial: {'; '.join(file.partial)}" if file.partial else "")
    return Verdict(
        title, headline.system, score.value, score.low, score.high, score.n, score.groups, tuple(against), False
    )
