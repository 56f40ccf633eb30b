"""What a gate looks at: a question and its answer with what is known of the picture; and what it says of them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SourceObject:
    """A thing that a text about the picture may name: x1, y1, x2, y2 in pixels, its label, who said so."""

    box: Box
    label: str
    by: str = "detector"


@dataclass(frozen=True)
class Candidate:
    """A row that is not one yet.

    Attributes:
        where: file:line of the picture's line.
        image, path: the picture below the image root, and its file.
        group: the scene or video; the picture's own name where nothing says it.
        size: width and height in pixels.
        task: general, region, suggestion or vqa; `kind`: what is asked (existence, count ...), "" where it is not said.
        reasoning: what leads to the answer, kept apart from it; "" without.
        region: the object that a region row is about.
        objects: what the sources say is there.
        finish_reason: why the writer stopped.
        fixed: its question is a benchmark's: long, asked about every picture, and naming what need not be there.
    """

    id: str
    where: str
    image: str
    path: str
    group: str
    size: tuple[int, int]
    task: str
    question: str
    answer: str
    kind: str = ""
    reasoning: str = ""
    region: SourceObject | None = None
    objects: tuple[SourceObject, ...] = ()
    finish_reason: str = "stop"
    fixed: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """What the row teaches to say."""
        return (self.answer, self.reasoning) if self.reasoning else (self.answer,)

    @property
    def asks_freely(self) -> bool:
        """Whether its question was written for this picture."""
        return not self.fixed


@dataclass(frozen=True)
class Outcome:
    """What a gate says of a row: `reason` is "" where it passes; `detail` is for a person; `scores` go to the row."""

    reason: str = ""
    detail: str = ""
    scores: dict[str, float] = field(default_factory=dict)


PASSED = Outcome()
# The rows that are left -> an outcome for each, in order.
Gate = Callable[[Sequence[Candidate]], list[Outcome]]


def each(check: Callable[[Candidate], Outcome]) -> Gate:
    """The gate that looks at one row at a time."""
    return lambda rows: [check(row) for row in rows]


def plain_words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation left out: what two texts are compared by.

    >>> plain_words("Is the traffic-light RED?")
    ['is', 'the', 'traffic', 'light', 'red']
    """
    return re.findall(r"\w+", text.casefold())
