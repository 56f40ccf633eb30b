"""Keep tokens and keys out of what a run writes down."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "<hidden>"
# HF_TOKEN, OPENAI_API_KEY, WANDB_API_KEY, --hub_token; not TOKENIZERS_PARALLELISM, not pad_token.
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?|PAT|AUTH)(_|$)", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"((api|access|auth|secret|private|hub|hf)[_-]?(key|token)|password|secret|credential)s?$", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{16,})|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
# A shorter value of a secret variable ("none", "1") would hide innocent text.
_SHORTEST = 6


def is_secret(variable: str) -> bool:
    """Whether an environment variable of this name may hold a secret."""
    return bool(_SECRET_VARIABLE.search(variable))


def hide(value: Any) -> Any:
    """`value` (as JSON holds it) without secrets, known by the name of their key, as the value of a secret variable, or by their
    form."""
    # Longest first: a secret that contains another one must be replaced as a whole.
    known = sorted((v for k, v in os.environ.items() if is_secret(k) and len(v) >= _SHORTEST), key=len, reverse=True)
    return _hide(value, known)


def hide_words(words: list[str]) -> list[str]:
    """A command line without secrets: also what follows a flag such as --hub_token."""
    hidden = []
    after_secret_flag = False
    for word in words:
        flag, equals, _ = word.partition("=")
        if after_secret_flag and not word.startswith("--"):
            word = HIDDEN
        elif word.startswith("--") and equals and _SECRET_NAME.search(flag):
            word = f"{flag}={HIDDEN}"
        after_secret_flag = word.startswith("--") and not equals and bool(_SECRET_NAME.search(word))
        hidden.append(word)
    return hide(hidden)


@contextlib.contextmanager
def without_secrets(settings: Any) -> Iterator[None]:
    """The attributes of `settings` that hold a secret are hidden inside: something is about to write it to a file."""
    kept = {name: value for name, value in vars(settings).items() if isinstance(value, (str, dict, list))}
    hidden = {name: hide({name: value})[name] for name, value in kept.items()}
    changed = [name for name in kept if hidden[name] != kept[name]]
    for name in changed:
        setattr(settings, name, hidden[name])
    try:
        yield
    finally:
        for name in changed:
            setattr(settings, name, kept[name])


def _hide(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: HIDDEN if isinstance(item, str) and item and _SECRET_NAME.search(key) else _hide(item, known)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_hide(item, known) for item in value]
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, HIDDEN)
        return _SECRET_TEXT.sub(HIDDEN, value)
    return value
