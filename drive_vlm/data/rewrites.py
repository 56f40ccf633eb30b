"""Is what a teacher wrote usable? Cleaning and checks of a rewritten caption, as functions of texts."""

import re

from drive_vlm.data.samples import IMAGE, VIDEO

_THOUGHTS = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_OPENING = re.compile(r"(sure|certainly|okay|of course|here (is|are)|here's)\b[^\n:]*:\s+", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(i|we) (cannot|can't|can not|could not|am unable|am not able|'m unable|'m not able|won't)\b"
    r"|\bi('m| am) sorry\b|\bas an ai\b|\bas a language model\b|\b(unable|not able) to (help|assist|provide|rewrite)\b",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"<\|[^|>]*\|>|</?s>|\[/?INST\]")


def clean(text: str) -> str:
    """The answer without thoughts, an opening such as "Here is the caption:", quotes, code fences and line breaks."""
    text = _THOUGHTS.sub("", text).strip()
    text = re.sub(r"^```\w*\s*|\s*```$", "", text).strip()
    text = " ".join(_OPENING.sub("", text, count=1).split() if _OPENING.match(text) else text.split())
    quoted = len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("“", "”"), ("'", "'")}
    return text[1:-1].strip() if quoted else text


def words(text: str) -> int:
    return len(text.split())


def fault(text: str, finish_reason: str, least: int, most: int) -> str | None:
    """Why a cleaned answer cannot be used: empty, cut_off, refusal, special_tokens, too_short, too_long; None if it can.

    `least` and `most` are numbers of words.
    """
    if not text:
        return "empty"
    if finish_reason == "length":
        return "cut_off"
    if _REFUSAL.search(text):
        return "refusal"
    if _TOKENS.search(text) or IMAGE in text or VIDEO in text:
        return "special_tokens"
    if not least <= words(text) <= most:
        return "too_short" if words(text) < least else "too_long"
    return None
