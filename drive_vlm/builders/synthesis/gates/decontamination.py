"""Gate 4, decontamination: no picture, no scene and no 8 words in a row of the evaluation rows.

The words are those of question and answer together. A question that evaluation rows ask about several pictures is the benchmark's
template, which training rows of the same task share by design: it is left out of the comparison, the answers are not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drive_vlm.builders.synthesis.gates.candidate import PASSED, Candidate, Outcome, plain_words
from drive_vlm.builders.synthesis.gates.pictures import Print, Twin, audit_of, twins
from drive_vlm.data.samples import Sample

NGRAM = 8
_Gram = tuple[str, ...]


@dataclass
class EvaluationRows:
    """What synthetic rows must not share.

    Attributes:
        prints: of the evaluation pictures.
        grams: runs of `n` words -> id of the first evaluation row that has it.
        templates: questions, as words, that are asked about two pictures or more.
    """

    prints: list[Print]
    groups: frozenset[str]
    n: int = NGRAM
    grams: dict[_Gram, str] = field(default_factory=dict)
    templates: set[_Gram] = field(default_factory=set)
    rows: int = 0

    @classmethod
    def of(cls, samples: Sequence[Sample], prints: Sequence[Print], n: int = NGRAM) -> "EvaluationRows":
        """The samples' words and groups, with the prints of their pictures."""
        groups = frozenset(sample.group for sample in samples if sample.group is not None)
        found = cls(list(prints), groups, n, rows=len(samples))
        asked: dict[_Gram, set[str]] = defaultdict(set)
        pairs = [(sample, question, answer) for sample in samples for question, answer in _asked(sample)]
        for sample, question, _ in pairs:
            asked[tuple(plain_words(question))].add("|".join(sample.images) or sample.id)
        found.templates = {words for words, pictures in asked.items() if len(pictures) > 1}
        for sample, question, answer in pairs:
            for gram in found.grams_of(question, answer):
                found.grams.setdefault(gram, sample.id)
        return found

    def grams_of(self, question: str, answer: str) -> Iterator[_Gram]:
        """Runs of `n` words of a question and its answer; of a template's answer alone."""
        asked, said = tuple(plain_words(question)), tuple(plain_words(answer))
        words = said if asked in self.templates else asked + said
        return (words[i : i + self.n] for i in range(len(words) - self.n + 1))


def _asked(sample: Sample) -> list[tuple[str, str]]:
    """(question, answer) of each turn of the user; the answer of a prompt without one is its column "reference", else ""."""
    turns = [turn for turn in sample.turns if turn.role != "system"]
    texts = [turn.text for turn in turns]
    if len(texts) % 2:
        texts.append(str(sample.columns.get("reference") or ""))
    return list(zip(texts[::2], texts[1::2], strict=True))


@dataclass(frozen=True)
class Decontaminated:
    """The outcomes, and counts for the audit: every kind, 0 included."""

    outcomes: list[Outcome]
    audit: dict[str, Any]


def check_decontamination(
    rows: Sequence[Candidate], prints: Mapping[str, Print], held: EvaluationRows
) -> Decontaminated:
    """Reasons: picture_bytes, picture_look, picture_embedding, group, ngram. `prints`: of the rows' pictures, by their names."""
    named = {row.image: prints[row.image] for row in rows}
    found: dict[str, Twin] = {twin.name: twin for twin in twins(list(named.values()), held.prints)}
    outcomes = [_outcome(row, found, held) for row in rows]
    with_vectors = any(one.vectors is not None for one in held.prints)
    reasons = Counter(outcome.reason for outcome in outcomes)
    kinds = ("picture_bytes", "picture_look", "picture_embedding", "group", "ngram")
    audit = {
        "evaluation_rows": held.rows,
        "evaluation_pictures": len(held.prints),
        "templates": len(held.templates),
        "n": held.n,
        "pictures": audit_of(list(found.values()), with_vectors),
        "rows": {kind: reasons[kind] for kind in kinds},
    }
    return Decontaminated(outcomes, audit)


def sample_outcome(sample: Sample, found: Mapping[str, str], held: EvaluationRows) -> str:
    """The reason why a row of people may not be used, "" if it may. `found`: how a picture's file is one of the evaluation's."""
    if twin := next((found[path] for path in sample.images if path in found), ""):
        return f"picture_{twin}"
    if sample.group is not None and sample.group in held.groups:
        return "group"
    shared = any(gram in held.grams for question, answer in _asked(sample) for gram in held.grams_of(question, answer))
    return "ngram" if shared else ""


def _outcome(row: Candidate, found: Mapping[str, Twin], held: EvaluationRows) -> Outcome:
    if twin := found.get(row.image):
        return Outcome(f"picture_{twin.how}", f"{row.image} = {twin.other} ({twin.likeness:.3f})")
    if row.group in held.groups:
        return Outcome("group", row.group)
    answer = f"{row.answer} {row.reasoning}" if row.reasoning else row.answer
    for gram in held.grams_of(row.question, answer):
        if gram in held.grams:
            return Outcome("ngram", f"{' '.join(gram)!r} is in evaluation row {held.grams[gram]}")
    return PASSED
