"""What multiple-choice questions give without a look: the option whose words are most often right, chance, blank pictures.

Benchmarks shuffle options, so a majority of letters says nothing. The majority here knows the *words* that are right most often for
the question's template, and chooses the option that has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from drive_vlm.evaluation.answer_accuracy import normalize_answer
from drive_vlm.evaluation.answers import Said
from drive_vlm.evaluation.score_table import BASELINES, ScoreTable


class Choice(Protocol):
    """A multiple-choice question. `options` {letter: words}, {} of a question of yes or no; `gold` is read."""

    @property
    def group(self) -> str: ...

    @property
    def options(self) -> Mapping[str, str]: ...

    @property
    def template(self) -> str: ...

    @property
    def gold(self) -> Said[Any]: ...


def words_of(item: Choice, choice: Any) -> str:
    """What a choice says, so that "B. Stopped" and "C. Stopped" are the same."""
    return normalize_answer(item.options[choice]) if item.options else str(choice)


def count_right(known: Sequence[Choice]) -> dict[tuple[str, str], int]:
    """How often words are right, by (template, words), and by ("", words) over all templates."""
    counts: dict[tuple[str, str], int] = {}
    for item in known:
        if item.gold.read:
            for template in (item.template, ""):
                key = (template, words_of(item, item.gold.value))
                counts[key] = counts.get(key, 0) + 1
    return counts


def most_often(item: Choice, counts: Mapping[tuple[str, str], int]) -> Any:
    """The choice whose words are right most often in `counts`; of equal ones the first."""
    choices: list[Any] = list(item.options) or [True, False]
    seen = any(template == item.template for template, _ in counts)
    template = item.template if seen else ""
    return max(choices, key=lambda choice: counts.get((template, words_of(item, choice)), 0))


def add_guesses(table: ScoreTable, choices: Sequence[Choice], known: Sequence[Choice] | None) -> None:
    """The majority of the `known` questions, and chance, on `choices`, whose gold is read. None: the majority of `choices` themselves,
    under a name that says so."""
    groups = [item.group for item in choices]
    counts = count_right(choices if known is None else known)
    guessed = [float(most_often(item, counts) == item.gold.value) for item in choices]
    table.add("majority of these rows" if known is None else "majority", guessed, groups, section=BASELINES)
    table.add("chance", [1 / (len(item.options) or 2) for item in choices], groups, section=BASELINES)


def add_blind(table: ScoreTable, choices: Sequence[Choice], said: Sequence[Said[Any]], of: int | None = None) -> None:
    """Accuracy of what was `said` to blank pictures, one for each of `choices`; unread is wrong and counted."""
    right = [float(reading.read and reading == item.gold) for reading, item in zip(said, choices, strict=True)]
    unread_rows = sum(not reading.read for reading in said)
    table.add("blind, lenient", right, [item.group for item in choices], of, unread_rows, BASELINES)
