"""BDD-OIA's 4 actions and 21 reasons as texts, and answers of a model as labels.

Order of indices: the data set's own README and label files (Xu et al., CVPR 2020, github.com/Twizwei/bddoia_project); texts: ours,
after the paper's words, short and each different from all others. A text that is not a label's own or a listed synonym, after
`normalize_label`, is out of vocabulary: it is returned as it was written and never guessed.

Two forms of an answer are read:

    Action: move forward; turn left; Reason: road is clear
    {"description": "...", "action": "move forward", "justification": ["road is clear"]}
"""

import contextlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from drive_vlm.evaluation.answers.said import json_object

# A label's own text first, then its synonyms.
_ACTIONS = (
    ("move forward", "forward", "go forward", "go straight", "drive forward", "keep going", "proceed"),
    ("stop/slow down", "stop", "slow down", "stop/slow", "stop or slow down", "slow down/stop"),
    ("turn left", "left", "turn left/change to left lane", "turn or change lane to the left", "change to left lane"),
    (
        "turn right",
        "right",
        "turn right/change to right lane",
        "turn or change lane to the right",
        "change to right lane",
    ),
)
_REASONS = (
    ("follow traffic", "following traffic", "traffic moves"),
    ("road is clear", "clear road", "road clear"),
    ("traffic light is green", "green light", "green traffic light", "light is green"),
    ("obstacle: car",),
    ("obstacle: person", "obstacle: pedestrian"),
    ("obstacle: rider", "obstacle: cyclist"),
    ("obstacle: others", "obstacle: other"),
    ("traffic light", "red light", "traffic light is red", "red traffic light"),
    ("traffic sign", "stop sign"),
    ("front car turning left", "front car is turning left"),
    ("on the left-turn lane", "on left-turn lane"),
    ("traffic light allows left turn", "light allows left turn", "traffic light allows left"),
    ("front car turning right", "front car is turning right"),
    ("on the right-turn lane", "on right-turn lane"),
    ("traffic light allows right turn", "light allows right turn", "traffic light allows right"),
    ("obstacle on the left lane", "obstacles on the left lane", "obstacle on left lane"),
    ("no lane on the left", "no lane on left"),
    ("solid line on the left", "solid line left"),
    ("obstacle on the right lane", "obstacles on the right lane", "obstacle on right lane"),
    ("no lane on the right", "no lane on right"),
    ("solid line on the right", "solid line right"),
)
ACTION_TEXTS: tuple[str, ...] = tuple(texts[0] for texts in _ACTIONS)
REASON_TEXTS: tuple[str, ...] = tuple(texts[0] for texts in _REASONS)

# Which reasons speak for an action (0 forward, 1 stop/slow, 2 left, 3 right), and which obstacles speak against a turn.
# On the 4,557 test rows P(action | a reason for it) is at least .98, P(turn | an obstacle to it) at most .09.
REASONS_FOR: tuple[frozenset[int], ...] = tuple(map(frozenset, ((0, 1, 2), range(3, 9), (9, 10, 11), (12, 13, 14))))
OBSTACLES_TO: dict[int, frozenset[int]] = {2: frozenset((15, 16, 17)), 3: frozenset((18, 19, 20))}

# Token F1 from which a text that names no label counts as the nearest one, where that is asked for.
NEAR = 0.8

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_LEADING_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
_ACTION_MARK = re.compile(r"\bactions?\s*:", re.IGNORECASE)
_REASON_MARK = re.compile(r"\b(?:reasons?|justifications?)\s*:", re.IGNORECASE)


def normalize_label(text: str) -> str:
    """Unicode NFKC, case folded, without punctuation and a leading article, single spaces.

    >>> normalize_label(" The Traffic light, is GREEN. ")
    'traffic light is green'
    """
    words = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return _LEADING_ARTICLE.sub("", " ".join(words.split()))


@cache
def _index_of(labels: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    """Normalised text -> index."""
    return {normalize_label(text): index for index, texts in enumerate(labels) for text in texts}


@dataclass(frozen=True)
class Labels:
    """What a list of texts names.

    indices: of the labels, ascending, each once; unknown: texts out of vocabulary, as written, in order.
    """

    indices: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()

    def vector(self, size: int) -> tuple[int, ...]:
        """int[size]: 1 at the labels' places. A label vector of the data set has 4 or 21."""
        assert all(index < size for index in self.indices), "labels of the other kind"
        return tuple(int(index in self.indices) for index in range(size))


def action_labels(texts: Sequence[str], nearest: bool = False) -> Labels:
    """The actions that `texts` name, exactly or by a listed synonym; with `nearest` also those that are near (`_nearest`)."""
    return _labels(texts, _ACTIONS, nearest)


def reason_labels(texts: Sequence[str], nearest: bool = False) -> Labels:
    """The reasons that `texts` name, exactly or by a listed synonym; with `nearest` also those that are near (`_nearest`)."""
    return _labels(texts, _REASONS, nearest)


def _labels(texts: Sequence[str], labels: tuple[tuple[str, ...], ...], nearest: bool) -> Labels:
    known = _index_of(labels)
    found = {text: known.get(normalize_label(text)) for text in texts}
    if nearest:
        found |= {text: _nearest(text, labels) for text, index in found.items() if index is None}
    indices = {index for index in found.values() if index is not None}
    return Labels(tuple(sorted(indices)), tuple(text for text, index in found.items() if index is None))


def _nearest(text: str, labels: tuple[tuple[str, ...], ...]) -> int | None:
    """The label with the best token F1 (words in common, in any order) of one of its texts, if that is at least NEAR; None also where
    two labels are equally near."""
    words = Counter(normalize_label(text).split())
    near: dict[int, float] = {}
    for known, index in _index_of(labels).items():
        others = Counter(known.split())
        f1 = 2 * (words & others).total() / (words.total() + others.total())
        near[index] = max(near.get(index, 0.0), f1)
    best = max(near.values())
    winners = [index for index, f1 in near.items() if f1 == best]
    return winners[0] if best >= NEAR and len(winners) == 1 else None


def label_texts(vector: Sequence[int], texts: Sequence[str]) -> list[str]:
    """The texts of a label vector's positive places; `texts` is ACTION_TEXTS or REASON_TEXTS."""
    return [text for text, positive in zip(texts, vector, strict=True) if positive]


@dataclass(frozen=True)
class Answer:
    """A completion taken apart.

    form: "json" where the whole text is one JSON object, "json_in_text" where one object stands in other text or a code
    fence, "text" for "Action: ...; Reason: ...", "none" where neither was found (all lists are empty then).
    fields: the JSON object, with keys of its own as well; None for other forms.
    """

    actions: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    description: str = ""
    form: str = "none"
    fields: dict[str, Any] | None = None


def read_answer(text: str) -> Answer:
    """What a completion says, in either form. Never raises: a text that cannot be read has form "none"."""
    fields, strict = json_object(text)
    if fields is not None:
        description = fields.get("description")
        return Answer(
            actions=_texts(fields.get("action")),
            reasons=_texts(fields.get("justification")),
            description=description if isinstance(description, str) else "",
            form="json" if strict else "json_in_text",
            fields=fields,
        )
    # Broken JSON is not a text answer, whatever "Action:" its description holds.
    action = None if text.lstrip()[:1] in ("{", "[") else _ACTION_MARK.search(text)
    if action is None:
        return Answer()
    reason = _REASON_MARK.search(text, action.end())
    said = text[action.end() : reason.start() if reason else len(text)]
    return Answer(
        actions=_split(said),
        reasons=_split(text[reason.end() :]) if reason else (),
        description=text[: action.start()].strip(),
        form="text",
    )


# A string, which may end with the text, or a mark between strings.
_STRING_OR_MARK = re.compile(r'"((?:[^"\\]|\\.)*)"?|[{}\[\]:,]', re.DOTALL)
_OPEN_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{0,3}$")


def said_so_far(text: str, part: str) -> str:
    """The "description" or "justification" of an answer that may still be written, "" before it begins.

    JSON: the strings of that field, the last of which may be open. Else the words after "Reason:", or before "Action:". Of a
    whole answer in order it is what `read_answer` finds, texts joined by "; "; a text without marks is all description. Never raises.
    """
    text = text.strip()
    start = text.find("{")
    if start != -1 and text[start + 1 :].lstrip()[:1] in ("", '"'):
        return "; ".join(_open_strings(text[start:], part))
    action = _ACTION_MARK.search(text)
    if part == "description":
        return text[: action.start()].strip() if action else text
    reason = _REASON_MARK.search(text, action.end()) if action else None
    return "; ".join(_split(text[reason.end() :])) if reason else ""


def _open_strings(text: str, key: str) -> Iterator[str]:
    """The strings of the field `key` of a JSON object that may end anywhere: one, or those of a list."""
    depth, name, last = 0, "", ""
    for token in _STRING_OR_MARK.finditer(text):
        mark = token[0]
        if mark in "{[":
            depth += 1
            # What stands in an object inside is not a text of the field.
            name = "" if mark == "{" else name
        elif mark in "]}":
            depth -= 1
            if depth == 0:
                return
        elif mark == ":":
            name = last if depth == 1 else name
        elif mark == "," and depth == 1:
            name = ""
        elif mark[0] == '"':
            last = token[1]
            if name == key and depth <= 2 and (said := _unescaped(token[1]).strip()):
                yield said


def _unescaped(inside: str) -> str:
    """What stands between the quotes of a JSON string, as it is where an escape in it is wrong."""
    # As it stands, then without an escape at the end that is not whole yet.
    for text in (inside, _OPEN_ESCAPE.sub("", inside)):
        with contextlib.suppress(ValueError):
            inside = json.loads(f'"{text}"', strict=False)
            break
    # Half a surrogate pair, whose other half is not there yet.
    return inside.encode(errors="ignore").decode()


def text_answer(actions: Sequence[str], reasons: Sequence[str]) -> str:
    """The text form, which `read_answer` reads: "Action: a; b; Reason: c"."""
    return f"Action: {'; '.join(actions)}; Reason: {'; '.join(reasons)}"


def json_answer(description: str, actions: Sequence[str], reasons: Sequence[str]) -> str:
    """The JSON form on one line; a single label is a string, several are a list."""

    def one_or_list(texts: Sequence[str]) -> str | list[str]:
        return texts[0] if len(texts) == 1 else list(texts)

    fields = {"description": description, "action": one_or_list(actions), "justification": one_or_list(reasons)}
    return json.dumps(fields, ensure_ascii=False)


def _texts(value: Any) -> tuple[str, ...]:
    """A field's texts: a string or a list of strings; of anything else what is no string is left out."""
    items = value if isinstance(value, list) else [value]
    return tuple(item.strip() for item in items if isinstance(item, str) and item.strip())


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())
