"""DriveLMM-o1's scores: accuracy of the final choice, and a judge's rubric of the reasoning.

Source: mbzuai-oryx/DriveLMM-o1, evaluation/evaluation_script.py (9c2b983; arXiv 2503.10621). A question's number is the end of its idx;
2, 3, 4, 5 and 8 are multiple choice. The script takes the text behind the last of the first known marker ("Final Answer" ...), and in it
the first "B) words"; without one it is F where "none of the" stands there, else no letter. Two texts without a letter are equal there
(strict keeps this; a reference without a choice is left out of lenient reading). The rubric rates 12 aspects and an overall score, 1 to
10, of which the script reports the mean overall score x 10. It drops rows whose judgement cannot be read from both numbers; here they
are counted, and the choice is scored all the same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from drive_vlm.evaluation.answers import Said, json_object, options_of, read_choice
from drive_vlm.evaluation.score_table import ScoreTable

BENCHMARK, VERSION = "DriveLMM-o1", "mbzuai-oryx/DriveLMM-o1@9c2b983"
CHOICES = frozenset({2, 3, 4, 5, 8})
OVERALL = "Overall Score"
ASPECTS = (
    "Faithfulness-Step", "Informativeness-Step", "Risk Assessment Accuracy", "Traffic Rule Adherence",
    "Scene Awareness & Object Understanding", "Repetition-Token", "Hallucination", "Semantic Coverage-Step", "Commonsense Reasoning",
    "Missing Step", "Relevance", "Missing Details",
)  # fmt: skip
# The script's schema calls one aspect by a shorter name than its prompt.
_ALSO = {"Commonsense": "Commonsense Reasoning"}
# Marks of a final answer in the order in which the script tries them.
_MARKS = (
    "The final answer is:", "**Final Answer:**", "Final Answer", "Answer", "Why take this action?:", "**Final Answer**",
    "**Final Decision**:", "Final Step:", "<CONCLUSION>",
)  # fmt: skip
_CHOSEN = re.compile(r"([A-F])\)\s*(.+)")
_TAG = re.compile(r"<o\d+\s*,\s*CAM_[A-Z_]+[^<>]*>")
_STEM = re.compile(r"(?<![\w.])\(?A[).:]\s")


def question_number(idx: str) -> int | None:
    """The number at the end of an idx, which says what kind of question it is; None without one.

    >>> question_number("scene_frame_8")
    8
    """
    number = idx.rpartition("_")[2]
    return int(number) if number.isascii() and number.isdigit() else None


def reasoning_text(steps: str, final: str) -> str:
    """Steps and final answer in the form of the benchmark's own answers, which the judge is shown as ground truth."""
    return f"**Step-by-Step Reasoning**: {steps} **Final Answer**: {final}"


def final_part(text: str) -> str | None:
    """What stands behind the last place of a mark, the first in the script's order that the text has; None without any."""
    mark = next((mark for mark in _MARKS if mark in text), None)
    return text.rpartition(mark)[2] if mark else None


def official_letter(text: str) -> str:
    """The letter of the first "B) words", F where none of the options is said to fit, "" without either."""
    if chosen := _CHOSEN.search(text):
        return chosen[1]
    return "F" if "none of the " in text.lower() else ""


def read_rubric(reply: str) -> dict[str, float] | None:
    """The 12 aspects and the overall score of a judge's JSON, each 1 to 10; None where one is missing or beyond."""
    fields, _ = json_object(reply)
    if fields is None:
        return None
    fields = {_ALSO.get(name, name): value for name, value in fields.items()}
    wanted = (*ASPECTS, OVERALL)
    rated: dict[str, float] = {}
    for name in wanted:
        value: Any = fields.get(name)
        # Not isinstance: True is an int.
        if type(value) in (int, float) and 1 <= value <= 10:
            rated[name] = float(value)
    return rated if len(rated) == len(wanted) else None


@dataclass(frozen=True)
class Item:
    """An answered question. `rubric`: the judge's ratings, None where there are none, or none that could be read."""

    group: str
    number: int
    question: str
    final_answer: str
    prediction: str
    rubric: Mapping[str, float] | None = None

    @property
    def is_choice(self) -> bool:
        return self.number in CHOICES

    @cached_property
    def options(self) -> dict[str, str]:
        """The question's options; letters without words where it lists none."""
        return options_of(self.question) or dict.fromkeys("ABCDEF", "")

    @property
    def template(self) -> str:
        stem = _STEM.split(_TAG.sub("<object>", self.question))[0].strip()
        return f"{self.number} {stem}"

    @cached_property
    def gold(self) -> Said[str]:
        letter = official_letter(self.final_answer)
        return Said(letter) if letter in self.options else read_choice(self.final_answer, self.options)

    def read(self, text: str) -> Said[str]:
        """The choice behind the mark of the final answer; of the whole text where there is no mark."""
        part = final_part(text)
        return read_choice(text if part is None else part, self.options)

    @cached_property
    def said(self) -> Said[str]:
        return self.read(self.prediction)

    @property
    def strict(self) -> bool:
        return official_letter(final_part(self.prediction) or "") == official_letter(self.final_answer)

    @property
    def lenient(self) -> bool:
        return self.said.read and self.said.value == self.gold.value


def add_choices(table: ScoreTable, items: Sequence[Item]) -> list[Item]:
    """Accuracy of the final choice by the script and by lenient reading, in all and by the question's number. Gives the choices whose
    reference is read."""
    choices = [item for item in items if item.is_choice]
    usable = [item for item in choices if item.gold.read]
    if not choices:
        table.partial.append("no multiple-choice row, so no accuracy of the final choice")
        return []
    numbers = sorted({item.number for item in choices})
    parts = {"final choice": choices} | {f"question {n}": [i for i in choices if i.number == n] for n in numbers}
    for name, part in parts.items():
        table.add(f"{name}, strict", [float(item.strict) for item in part], [item.group for item in part])
        read = [item for item in part if item.gold.read]
        right, groups = [float(item.lenient) for item in read], [item.group for item in read]
        table.add(f"{name}, lenient", right, groups, len(part), sum(not item.said.read for item in read))
    table.unread = sum(not item.said.read for item in usable)
    table.differ = sum(item.strict != item.lenient for item in usable)
    if lost := len(choices) - len(usable):
        table.partial.append(
            f"{lost:,} of {len(choices):,} multiple-choice rows have no reference that names an option; strict calls answers without a "
            "letter right there, lenient leaves the rows out"
        )
    return usable


def add_rubric(table: ScoreTable, items: Sequence[Item]) -> None:
    """The judge's overall score, the mean of the 12 aspects, and each of them, x 10 in a table of points."""
    groups = [item.group for item in items]

    def column(names: Sequence[str]) -> list[float | None]:
        return [
            None if item.rubric is None else sum(item.rubric[name] for name in names) / len(names) / 10
            for item in items
        ]

    table.add("reasoning, overall", column([OVERALL]), groups)
    table.add("reasoning, mean of the aspects", column(ASPECTS), groups)
    for name in ASPECTS:
        table.add(f"reasoning, {name}", column([name]), groups)
