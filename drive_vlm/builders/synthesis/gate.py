"""The gate step: lines of the questions step -> training rows, rejected rows with reasons, an audit that adds up.

1. Read every line; a print of every picture (bytes, looks, vectors); pictures that are the same come into one group.
2. Pass the rows through the gates, in the order of GATES; each sees what the ones before let through.
3. Split by group, draw the pictures of region rows, mix human rows, write.

used + rejected = given, always: `GateRun` is checked before anything is written.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from drive_vlm.builders.synthesis.gates import GATES
from drive_vlm.builders.synthesis.gates.balance import Caps, check_balance
from drive_vlm.builders.synthesis.gates.candidate import Candidate, Gate, Outcome, each
from drive_vlm.builders.synthesis.gates.decontamination import EvaluationRows, check_decontamination
from drive_vlm.builders.synthesis.gates.duplicates import about_region, check_duplicates, check_question_cap
from drive_vlm.builders.synthesis.gates.form import FormLimits, check_form
from drive_vlm.builders.synthesis.gates.grounding import check_grounding, labels_of
from drive_vlm.builders.synthesis.gates.objects import Mention, ObjectReader
from drive_vlm.builders.synthesis.gates.pictures import Print
from drive_vlm.builders.synthesis.gates.positions import check_positions
from drive_vlm.builders.synthesis.gates.rubric import HIGH, LOW, THRESHOLD, RubricGate, rubric_audit
from drive_vlm.config import field

# Rows whose texts are read together.
_AT_ONCE = 4096
FREE = "form,grounding,positions,duplicates,decontamination,balance"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateRules:
    """What a row must be to pass."""

    gates: str = field(FREE, help=f"gates to pass, of {','.join(GATES)}; none: every row passes")
    question_words: list[int] = field([4, 60], help="words of a free question: MIN MAX", least=1)
    answer_words: list[int] = field([1, 300], help="words of an answer: MIN MAX", least=1)
    coordinates: str = field(
        "pixels",
        help="what numbers in brackets are measured in",
        choices=("pixels", "thousandths", "unit"),
    )
    rouge: float = field(0.7, help="ROUGE-L of two questions about one picture, at most", least=0, most=1)
    rouge_over: str = field(
        "same",
        help="same: of a picture's questions those of one kind about the same objects are compared; all: every two",
        choices=("same", "all"),
    )
    question_cap: int | None = field(1000, help="rows that ask the same free question, at most", least=1)
    ngram: int = field(8, help="words in a row that evaluation rows must not share", least=2)
    judge_threshold: int = field(THRESHOLD, help="each score of the judge must be at least this", least=LOW, most=HIGH)
    cap_class: int | None = field(None, help="rows about one class, at most", least=1)
    cap_template: int | None = field(None, help="rows of one question template, at most", least=1)
    cap_picture: int | None = field(None, help="rows of one picture, at most", least=1)
    cap_rows: int | None = field(None, help="rows in all, at most", least=1)

    def __post_init__(self) -> None:
        for name in ("question_words", "answer_words"):
            words = getattr(self, name)
            if len(words) != 2 or words[0] > words[1]:
                raise ValueError(f"--{name} {' '.join(map(str, words))}: give MIN and MAX with MIN <= MAX")
        unknown = [name for name in self.chosen if name not in GATES]
        if unknown:
            raise ValueError(f"--gates {self.gates}: {unknown[0]!r} is no gate; there are {', '.join(GATES)}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names given, each once, in the order in which they run."""
        given = [name.strip() for name in self.gates.split(",") if name.strip() not in ("", "none")]
        return tuple(sorted(dict.fromkeys(given), key=lambda name: GATES.index(name) if name in GATES else -1))

    @property
    def read_texts(self) -> bool:
        """Whether a gate reads the objects of texts, which takes spaCy."""
        return bool({"grounding", "positions"} & set(self.chosen))


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A row that did not pass: which gate, why."""

    row: Candidate
    gate: str
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class GateRun:
    """What came of the rows: those that passed with their scores, in order; those that did not, by gate and in order; counts by gate."""

    passed: list[tuple[Candidate, dict[str, float]]]
    rejected: list[Rejected]
    counts: dict[str, dict[str, Any]]

    def regrouped(self, groups: Mapping[str, str]) -> "GateRun":
        """The same with the rows that passed in the groups that their pictures belong to, picture -> group."""
        moved = [(dataclasses.replace(row, group=groups[row.image]), scores) for row, scores in self.passed]
        return dataclasses.replace(self, passed=moved)

    def without(self, gate: str, reason: str, rows: Mapping[str, str]) -> "GateRun":
        """The same with further rows rejected, id -> detail."""
        gone = [Rejected(row, gate, Outcome(reason, rows[row.id])) for row, _ in self.passed if row.id in rows]
        kept = [(row, scores) for row, scores in self.passed if row.id not in rows]
        counts = {"given": len(self.passed), "passed": len(kept), "rejected": {reason: len(gone)} if gone else {}}
        return GateRun(kept, self.rejected + gone, self.counts | {gate: counts})


def run_gates(rows: Sequence[Candidate], gates: Mapping[str, Gate]) -> GateRun:
    """Pass `rows` through the gates in the order of the mapping."""
    left: list[tuple[Candidate, dict[str, float]]] = [(row, {}) for row in rows]
    rejected: list[Rejected] = []
    counts: dict[str, dict[str, Any]] = {}
    for name, gate in gates.items():
        outcomes = gate([row for row, _ in left])
        reasons: Counter[str] = Counter()
        kept = []
        for (row, scores), outcome in zip(left, outcomes, strict=True):
            if outcome.reason:
                rejected.append(Rejected(row, name, dataclasses.replace(outcome, scores=scores | outcome.scores)))
                reasons[outcome.reason] += 1
            else:
                kept.append((row, scores | outcome.scores))
        counts[name] = {"given": len(left), "passed": len(kept), "rejected": dict(sorted(reasons.items()))}
        left = kept
    assert len(left) + len(rejected) == len(rows), "a gate lost rows"
    return GateRun(left, rejected, counts)


def then(first: Gate, second: Gate) -> Gate:
    """One gate of two: the second sees what the first lets through."""

    def both(rows: Sequence[Candidate]) -> list[Outcome]:
        found = first(rows)
        places = [i for i, outcome in enumerate(found) if not outcome.reason]
        for i, outcome in zip(places, second([rows[i] for i in places]), strict=True):
            found[i] = dataclasses.replace(outcome, scores=found[i].scores | outcome.scores)
        return found

    return both


@dataclasses.dataclass
class Gates:
    """The gates of the rules, and what they say besides outcomes (`audit`, filled as they run).

    Attributes:
        reader: of texts; None where no gate asks for one.
        held: evaluation rows; None without any.
        rubric: the judge's gate; None without a judge.
    """

    rules: GateRules
    reader: ObjectReader | None
    prints: Mapping[str, Print]
    held: EvaluationRows | None
    rubric: RubricGate | None
    seed: int = 0
    audit: dict[str, Any] = dataclasses.field(default_factory=dict)

    def chosen(self) -> dict[str, Gate]:
        """The gates by name, in order."""
        makers: dict[str, Callable[[], Gate]] = {
            "form": self._form,
            "grounding": self._grounding,
            "positions": self._positions,
            "duplicates": self._duplicates,
            "decontamination": lambda: self._decontaminate,
            "judge": lambda: self._judge,
            "balance": self._balance,
        }
        return {name: makers[name]() for name in self.rules.chosen}

    def _form(self) -> Gate:
        question, answer = self.rules.question_words, self.rules.answer_words
        limits = FormLimits((question[0], question[1]), (answer[0], answer[1]))
        return each(partial(check_form, limits=limits))

    def _grounding(self) -> Gate:
        assert self.reader is not None
        return prepared(self.reader, partial(check_grounding, reader=self.reader))

    def _positions(self) -> Gate:
        assert self.reader is not None
        check = partial(check_positions, reader=self.reader, coordinates=self.rules.coordinates)
        return prepared(self.reader, check)

    def _duplicates(self) -> Gate:
        same_only = self.rules.rouge_over == "same"
        about = partial(about_objects, reader=self.reader) if same_only else about_region
        same = partial(check_duplicates, limit=self.rules.rouge, about=about)
        if self.rules.question_cap is None:
            return same
        return then(same, partial(check_question_cap, most=self.rules.question_cap, seed=self.seed))

    def _decontaminate(self, rows: Sequence[Candidate]) -> list[Outcome]:
        held = self.held or EvaluationRows([], frozenset(), self.rules.ngram)
        found = check_decontamination(rows, self.prints, held)
        self.audit["decontamination"] = found.audit
        return found.outcomes

    def _judge(self, rows: Sequence[Candidate]) -> list[Outcome]:
        assert self.rubric is not None
        outcomes = self.rubric(rows)
        self.audit["judge"] = rubric_audit(outcomes) | {"model": self.rubric.judge.describe()}
        return outcomes

    def _balance(self) -> Gate:
        rules = self.rules
        caps = Caps(rules.cap_class, rules.cap_template, rules.cap_picture, rules.cap_rows)
        return partial(check_balance, caps=caps, seed=self.seed)


def prepared(reader: ObjectReader, check: Callable[[Candidate], Outcome]) -> Gate:
    """The gate that looks at one row at a time, and lets the reader read the texts of many at once."""

    def gate(rows: Sequence[Candidate]) -> list[Outcome]:
        found: list[Outcome] = []
        for start in range(0, len(rows), _AT_ONCE):
            block = rows[start : start + _AT_ONCE]
            texts = ((text, labels_of(row)) for row in block for text in (*row.texts, row.question))
            reader.prepare(texts)
            found += map(check, block)
        return found

    return gate


def about_objects(row: Candidate, reader: ObjectReader | None) -> object:
    """What tells questions of one picture apart besides their words: the region, the kind, and the objects that they name ("Is there a
    car?", "Is there a bus?"), where somebody reads them."""
    named: Sequence[Mention] = ()
    if reader is not None and row.asks_freely:
        named = reader.mentions(row.question, labels_of(row))
    words = frozenset(tuple(item.classes) or (row.question[item.start : item.end].casefold(),) for item in named)
    return about_region(row), row.kind, words
