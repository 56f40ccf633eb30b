"""A teacher's replies in JSON: asked for until one has the form and passes the checks, kept on disk, rejections counted by reason."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.config import field, plain
from drive_vlm.evaluation.answers.said import json_object
from drive_vlm.judges.chat_client import ChatClient, Message, RefusedError
from drive_vlm.launch import stop

# A form: a type, {key: form} for an object with these keys alone, [form] for a list.
Form = Any


@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """Who writes, and how it is asked."""

    teacher: str | None = field(
        None,
        help="model that puts questions into other words, or with --pipeline clarifyvlm writes them (default: nobody)",
    )
    base_url: str = field("http://localhost:8000/v1", help="OpenAI-compatible server of the teacher")
    api_key_env: str = field("OPENAI_API_KEY", help="environment variable that holds the server's key")
    cache: Path | None = field(
        None,
        help="folder of the teacher's replies (default: OUT/teacher_cache), kept by the teacher's name wherever it is served",
    )
    attempts: int = field(3, help="times a text is asked for, each with another seed", least=1)
    temperature: float = field(0.7, help="temperature of the teacher", least=0, most=2)
    max_tokens: int = field(512, help="tokens of a reply, at most", least=1)
    workers: int = field(8, help="requests at a time", least=1)
    timeout: float = field(120.0, help="seconds that one request may take", least=0.1)
    max_retries: int = field(4, help="times a request is repeated after a fault of server or network", least=0)
    price_in: float | None = field(None, help="price of a million prompt tokens, for the cost", least=0)
    price_out: float | None = field(None, help="price of a million reply tokens", least=0)


class Asker:
    """Asks one teacher; threads share it.

    Attributes:
        rejected: reasons of the replies that were not taken, each counted.
    """

    def __init__(self, flags: TeacherFlags, out: Path, seed: int) -> None:
        assert flags.teacher is not None
        self.flags, self.seed = flags, seed
        self.cache = flags.cache or out / "teacher_cache"
        self.client = ChatClient(
            flags.base_url, flags.teacher, flags.api_key_env, self.cache, flags.timeout, flags.max_retries,
            price_in=flags.price_in, price_out=flags.price_out,
        )  # fmt: skip
        self.rejected: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(
        self, messages: Sequence[Message], form: Form, problem_of: Callable[[dict[str, Any]], str], what: str
    ) -> dict[str, Any] | None:
        """The first reply that has the `form` and no problem; None after the last attempt.

        Raises ChatError when the server cannot be asked, StopRequested between two requests.
        """
        for seed in range(self.seed, self.seed + self.flags.attempts):
            if wanted := stop.request(new=True):
                raise stop.StopRequested(wanted)
            try:
                reply = self.client.complete(
                    messages, temperature=self.flags.temperature, max_tokens=self.flags.max_tokens, seed=seed
                )
            except RefusedError:
                self.reject(f"{what}: no_answer")
                continue
            fields, _ = json_object(reply.text.rpartition("</think>")[2])
            reason = "not_json" if fields is None else form_problem(fields, form)
            if fields is not None and not reason:
                reason = problem_of(fields)
            if fields is not None and not reason:
                return fields
            self.reject(f"{what}: {reason}")
        return None

    def reject(self, reason: str) -> None:
        with self._lock:
            self.rejected[reason] += 1

    def audit(self) -> dict[str, Any]:
        """Who was asked, how, what was rejected and what this run cost."""
        named = ("teacher", "base_url", "attempts", "temperature", "max_tokens")
        asked = {name: getattr(self.flags, name) for name in named}
        spent = {"usage": plain(self.client.usage), "cost": self.client.cost}
        return asked | {"rejected": dict(sorted(self.rejected.items()))} | spent


def form_problem(value: object, form: Form) -> str:
    """'schema' where `value` does not have the form, or a text of it is empty; '' where it has.

    >>> form_problem({"a": ["x"]}, {"a": [str]}), form_problem({"a": [1]}, {"a": [str]})
    ('', 'schema')
    """
    if isinstance(form, dict):
        fits = isinstance(value, dict) and value.keys() == form.keys()
        return "" if fits and not any(form_problem(value[key], form[key]) for key in form) else "schema"  # type: ignore[index]
    if isinstance(form, list):
        return "" if isinstance(value, list) and not any(form_problem(item, form[0]) for item in value) else "schema"
    return "" if type(value) is form and value != "" else "schema"
