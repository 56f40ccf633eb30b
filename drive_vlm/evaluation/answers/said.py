"""What all readers of answers share: the value or the reason why there is none, the part of a text that answers, JSON in it."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Braces that begin no JSON object, after which the search ends: each try reads the text again.
_TRIES = 100
# What a model thinks before it answers, even where the answer never came, and the marks of a chat template.
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|^.*</think(?:ing)?>|<\|[^|>]*\|>", re.DOTALL)
_INSIDE = re.compile(r"<answer>(.*?)</answer>|\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,3}|_{2,3}|`+|^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
# The field of a JSON answer that holds the answer itself.
_KEYS = ("answer", "finalanswer", "correctanswer", "choice", "option", "prediction", "result")


@dataclass(frozen=True)
class Said(Generic[T]):
    """What a text says: a value, or None and the reason why it is unread."""

    value: T | None
    reason: str = ""

    @property
    def read(self) -> bool:
        return self.value is not None


def unread(reason: str) -> Said[Any]:
    assert reason, "what is unread has a reason"
    return Said(None, reason)


def agreed(readings: Sequence[Said[T]], what: str) -> Said[T]:
    """The value that all readings share; unread where two differ, or where one of them is unread."""
    if missing := next((reading for reading in readings if not reading.read), None):
        return missing
    if any(reading != readings[0] for reading in readings):
        return unread(f"two different {what}")
    return readings[0] if readings else unread(f"no {what}")


def answer_parts(text: str) -> list[str]:
    """The parts of a text that answer: what stands in <answer> tags or in \\boxed{}, else all of it. Thinking, marks of a chat
    template and fences are taken off; Unicode is NFKC, a minus sign is "-".

    >>> answer_parts("<think>B?</think> So <answer>A</answer>")
    ['A']
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    text = _THINKING.sub(" ", text)
    inside = [first or second for first, second in _INSIDE.findall(text)]
    return [_FENCE.sub("", part).strip() for part in (inside or [text])]


def plain(text: str) -> str:
    """`text` without Markdown's emphasis, headings and ticks, and without LaTeX's \\text{}."""
    return _EMPHASIS.sub("", _LATEX.sub(r"\1", text)).strip()


def of_fields(fields: dict[str, Any], read: Callable[[Any], Said[T]], keys: Iterable[str], what: str) -> Said[T]:
    """What the fields of a JSON answer say: those whose name is one of `keys` (without case, blanks, "_" and "-"), or the only one."""
    wanted = {*_KEYS, *keys}
    found = [value for key, value in fields.items() if re.sub(r"[\s_-]", "", key.casefold()) in wanted]
    if not found and len(fields) == 1:
        found = list(fields.values())
    return agreed([read(value) for value in found], what) if found else unread(f"JSON without a field for {what}")


def json_object(text: str) -> tuple[dict[str, Any] | None, bool]:
    """The one JSON object of a text, and whether it is the whole text (but for blanks).

    Strict JSON: an object with a key twice, NaN, Infinity or half a character ("\\ud83d") is None, and so is one that is nested
    too deeply, stands in a list, is one of several, or comes after _TRIES braces that begin none.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
    text = text.strip()
    found: dict[str, Any] | None = None
    whole = False
    start, tries = text.find("{") if text[:1] != "[" else -1, _TRIES
    while start != -1:
        try:
            value, end = decoder.raw_decode(text, start)
            # Half a character decodes, and then no file can hold it.
            json.dumps(value, ensure_ascii=False).encode()
        # Thousands of nested brackets, which a model can write.
        except RecursionError:
            return None, False
        except ValueError:
            tries -= 1
            # Broken JSON from the first character on: what stands inside it is not an answer. And each try reads the text again.
            if start == 0 or not tries:
                return None, False
            start = text.find("{", start + 1)
            continue
        if found is not None:
            return None, False
        found, whole = value, start == 0 and end == len(text)
        start = text.find("{", end)
    return found, whole


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
