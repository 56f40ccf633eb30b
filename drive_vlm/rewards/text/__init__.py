"""What a text about driving says: objects, lights, negations; and the text of a completion, whole or so far."""

from collections.abc import Sequence
from typing import Any, Protocol


class _Decodes(Protocol):
    def batch_decode(self, sequences: Any, *, skip_special_tokens: bool) -> list[str]: ...


def completion_text(completion: Any) -> str:
    """The assistant's words of a completion as TRL hands it over: a text, or messages whose content is text or parts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion]
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    return " ".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def prefix_texts(tokenizer: _Decodes, ids: Sequence[int]) -> list[str]:
    """The texts after each of the N tokens of a completion, as rewards that score prefixes take them.

    Special tokens are left out, and so is a U+FFFD at the end: the beginning of a character whose other bytes are not there yet.
    """
    prefixes = [list(ids[: end + 1]) for end in range(len(ids))]
    return [text.rstrip("\ufffd") for text in tokenizer.batch_decode(prefixes, skip_special_tokens=True)]
