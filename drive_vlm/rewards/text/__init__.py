"""What a text about driving says: objects, lights, negations."""

from typing import Any


def completion_text(completion: Any) -> str:
    """The assistant's words of a completion as TRL hands it over: a text, or messages whose content is text or parts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion]
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    return " ".join(part if isinstance(part, str) else part.get("text", "") for part in parts)
