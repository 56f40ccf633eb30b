"""Is what a teacher wrote usable? Cleaning and checks of a rewritten caption, as functions of texts."""

import re

from drive_vlm.data.samples import IMAGE, VIDEO

# A template that opens the thoughts in the prompt leaves only their end in the answer.
_THOUGHTS = re.compile(r"^.*</think>|<think>.*", re.DOTALL)
_NAME = r"(caption|description|paragraph|sentence|summary|rewrite|version|answer)"
_KIND = r"(the|your|my|rewritten|revised|concise|detailed|short|brief|final|driving|video|one)"
_YES = r"(sure|certainly|okay|of course)"
_HERE = rf"(here you (go|are)|(here (is|are)|here's)( \w+,?){{0,4}} {_NAME}\b)[^\n:]*"
_LABEL = rf"({_KIND}[ -])*{_NAME}( \([^)\n]*\))?"
_OPENING = re.compile(
    rf"(({_YES}[!.]|({_YES}[!.,]? )?({_HERE}|{_LABEL}):|{_YES}\b[^\n:]*:(?=\s*\n))\s+)+", re.IGNORECASE
)
# Only a note that speaks of the task: "Note: the light is red." may belong to the text.
_NOTE = re.compile(
    r"(?<=\S)\s+[(\[]?note:(?=.*\b(I|caption|description|facts|information)\b).*", re.IGNORECASE | re.DOTALL
)
_REFUSAL = re.compile(
    r"\b(i|we)( (cannot|can't|can not|could not|won't)|(('| a)m|('| a)re) (unable|not able))\b"
    r"|\bi('m| am) sorry\b|\bas an ai\b|\bas a language model\b|\b(unable|not able) to (help|assist|provide|rewrite)\b"
    r"|\b(happy to help|let me know)\b|\bplease (provide|share|send|paste)\b|\b(the|this|your|no|given|provided|original) caption\b"
    r"|(\bnot|n't)\b[^.]*\benough (information|details?|context)\b",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"<\|[^|>]*\|>|</?s>|\[/?INST\]")


def clean(text: str) -> str:
    """The answer without thoughts, code fences, bold marks and headings, an opening such as "Here is the caption:", a note
    on how it was made, line breaks and quotes around it."""
    text = _THOUGHTS.sub("", text).strip()
    text = re.sub(r"^```\w*\s*|\s*```$", "", text)
    text = re.sub(r"^#+ [^\n]*\n", "", text.replace("**", "").strip()).strip()
    opening = _OPENING.match(text)
    text = " ".join(_NOTE.sub("", text[opening.end() :] if opening else text).split())
    quoted = len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("“", "”"), ("'", "'")}
    return text[1:-1].strip() if quoted else text


def words(text: str) -> int:
    return len(text.split())


def fault(text: str, finish_reason: str, least: int, most: int) -> str | None:
    """Why a cleaned answer cannot be used: empty, cut_off, refusal, special_tokens, too_short, too_long; None if it can.

    A refusal is also what speaks of "the caption" or asks for one. `least` and `most` are numbers of words.
    """
    if not text:
        return "empty"
    if finish_reason == "length":
        return "cut_off"
    if _REFUSAL.search(text.replace("’", "'")):
        return "refusal"
    if _TOKENS.search(text) or IMAGE in text or VIDEO in text:
        return "special_tokens"
    if not least <= words(text) <= most:
        return "too_short" if words(text) < least else "too_long"
    return None
