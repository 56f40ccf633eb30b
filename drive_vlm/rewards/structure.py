"""R3, the reward "structure": is the answer the JSON object that was asked for, and do its parts agree? In 0..1.

    {"description": str, "action": str or [str], "justification": str or [str]}

    R3 = v (.5 c e + .5 k)

v  1 where the whole text is one object in strict JSON (no key twice, no NaN), .5 where other words or a code fence stand
   around one, 0 else; the rest is then 0 as well.
c  mean over the three keys: 1 where it is there, of its type, and not blank. A description also needs 3 words and at most
   --structure_words of them, and counts 1 - share of its 4-grams that it has said before.
e  1 / (1 + number of further keys).
k  0 without an action or a justification, else the mean of
   k1  1 where every action and reason is in the vocabulary,
   k2  the rule of "action_reason",
   k3  share of the justification's content words that the description has as well, 1 where there are none.
   With --structure_vocabulary none k1 and k2 are 1.

--structure_mode gate: 1 where v = c = e = 1, else 0.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import field
from drive_vlm.evaluation.oia_labels import action_labels, read_answer, reason_labels
from drive_vlm.rewards.action_reason import rule_score
from drive_vlm.rewards.text import completion_text

KEYS = ("description", "action", "justification")
_LEAST_WORDS = 3
_WORD = re.compile(r"[^\W_]+")
# Words that say nothing about a scene.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by for from has have in into is it its of on or so that the their there they this to was "
        "were which while with",
    )
)


@dataclasses.dataclass
class StructureConfig:
    """Flags of the reward "structure"."""

    structure_mode: str = field(
        "graded", help="graded: 0..1 by what is right; gate: 1 for the exact form, else 0", choices=("graded", "gate")
    )
    structure_vocabulary: str = field(
        "bddoia",
        help="bddoia: actions and reasons must be BDD-OIA's and agree; none: any words",
        choices=("bddoia", "none"),
    )
    structure_words: int = field(
        60, help="words of a description, at most: a longer one does not count", least=_LEAST_WORDS
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Structure:
    """A text's R3 and what it is made of: `valid` v, `complete` c, `exact` e, `content` k with its parts k1, k2, k3.

    words, repeated: of the description, the number of its words and the share of its 4-grams that it has said before.
    """

    reward: float
    valid: float = 0.0
    complete: float = 0.0
    exact: float = 0.0
    content: float = 0.0
    known: float = 0.0
    agrees: float = 0.0
    shown: float = 0.0
    words: int = 0
    repeated: float = 0.0


def structure(text: str, vocabulary: bool = True, most_words: int = 60, gate: bool = False) -> Structure:
    """R3 of one text; pure, and never raises."""
    answer = read_answer(text)
    valid = {"json": 1.0, "json_in_text": 0.5}.get(answer.form, 0.0)
    if answer.fields is None:
        return Structure(0.0)
    fields = answer.fields
    words = [word.casefold() for word in _WORD.findall(answer.description)]
    repeated = _repeated(words)
    described = (1 - repeated) * (_LEAST_WORDS <= len(words) <= most_words)
    named, justified = (_are_texts(fields.get(key)) for key in KEYS[1:])
    complete = (described + named + justified) / len(KEYS)
    exact = 1 / (1 + len(fields.keys() - set(KEYS)))
    known = agrees = shown = 0.0
    if named and justified:
        actions, reasons = action_labels(answer.actions), reason_labels(answer.reasons)
        known = float(not (vocabulary and (actions.unknown or reasons.unknown)))
        agrees = rule_score(actions, reasons) if vocabulary else 1.0
        why = {word.casefold() for reason in answer.reasons for word in _WORD.findall(reason)} - _FUNCTION_WORDS
        shown = len(why & set(words[:most_words])) / len(why) if why else 1.0
    content = (known + agrees + shown) / 3
    reward = valid * (complete * exact + content) / 2
    if gate:
        reward = float(valid == complete == exact == 1)
    return Structure(reward, valid, complete, exact, content, known, agrees, shown, len(words), repeated)


def _are_texts(value: Any) -> bool:
    """Whether a field is a text, or a list of texts, none of them blank."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) and item.strip() for item in items)


def _repeated(words: Sequence[str]) -> float:
    """Share of the 4-grams that stood there before: a description may not be filled up with one phrase."""
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class StructureReward:
    """The reward as TRL calls it; `last_terms` are those of the last call."""

    __name__ = "structure"

    def __init__(self, config: StructureConfig) -> None:
        self.config = config
        self.last_terms: list[Structure] = []

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One number a completion; no column is needed."""
        config = self.config
        vocabulary, gate = config.structure_vocabulary != "none", config.structure_mode == "gate"
        self.last_terms = [
            structure(completion_text(completion), vocabulary, config.structure_words, gate)
            for completion in completions
        ]
        if columns.get("log_metric") and self.last_terms:
            for name in ("valid", "complete", "exact", "content", "words", "repeated"):
                total = sum(float(getattr(item, name)) for item in self.last_terms)
                columns["log_metric"](f"structure/{name}", total / len(self.last_terms))
        return [item.reward for item in self.last_terms]


def build(config: StructureConfig) -> StructureReward:
    return StructureReward(config)
