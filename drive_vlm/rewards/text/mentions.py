"""Where a text names objects, and what a detector says to each: for people who read texts next to their rewards.

The verdicts are those of drive_vlm/rewards/physics.py: `hit` and `false` claims are what `terms` counts as verified and as
`false_claims`; everything else is named and claims nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from drive_vlm.rewards.text.driving_text import TextParser, object_mentions, parsed_doc, read_phrases
from drive_vlm.rewards.text.negation import is_negated
from drive_vlm.rewards.text.vocabulary import Term, Vocabulary

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

Verdict = Literal["hit", "false", "denied", "unseen", "again"]


@dataclasses.dataclass(frozen=True, slots=True)
class Mention:
    """An object phrase of a text.

    Attributes:
        start, end: characters of the text, end not included.
        classes: detector classes that the phrase stands for, sorted.
        verdict: hit: claimed and detected; false: claimed, and a class of it (of a general word: every class) was not
            detected; denied: the text says that it is not there; unseen: no detector sees such a thing; again: a general
            word next to a named class of its own, not a further claim.
    """

    start: int
    end: int
    classes: tuple[str, ...]
    verdict: Verdict


def find_mentions(parser: TextParser, text: str, detected: frozenset[str]) -> list[Mention]:
    """The object phrases of `text` in their order, judged against the `detected` classes."""
    return mentions_of(parser.doc(text), parser.vocabulary, detected)


def mentions_of(doc: "Doc", vocabulary: Vocabulary, detected: frozenset[str]) -> list[Mention]:
    """The same of a text that spaCy has read already."""
    claimed = parsed_doc(doc, vocabulary).groups
    found = []
    for term, first, noun in object_mentions(read_phrases(doc, vocabulary), vocabulary):
        verdict = _verdict(term, first, noun, claimed, detected)
        found.append(Mention(first.idx, noun.idx + len(noun), tuple(sorted(term.classes)), verdict))
    return found


def _verdict(term: Term, first: "Token", noun: "Token", claimed: Sequence[Term], detected: frozenset[str]) -> Verdict:
    if term.kind == "unseen":
        return "unseen"
    if is_negated(noun, first):
        return "denied"
    if term.kind == "class":
        return "hit" if term.classes <= detected else "false"
    if term not in claimed:
        return "again"
    return "hit" if term.classes & detected else "false"
