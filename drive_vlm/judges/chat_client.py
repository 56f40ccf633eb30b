"""Client of any OpenAI-compatible chat server: judge, teacher, captioner, and `generate --backend openai`.

Replies are cached on disk by what was asked, so a second run asks nothing; retries and time limits are those of the
`openai` package. The API key is read from the environment when the first request goes out and is kept nowhere else:
not in the cache, the log, `repr` or an error text.
"""

import base64
import hashlib
import ipaddress
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from drive_vlm.launch import stop
from drive_vlm.store.forms import read_dataclass

if TYPE_CHECKING:
    from concurrent.futures import Future

Message = dict[str, Any]
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")

# HTTP statuses that are about one request, not about the server or the key.
_REFUSALS = (400, 413, 422)
# Seconds between two looks for a request to stop.
_LOOK = 0.5
# So many refusals and not one answer mean that something is wrong; fewer may be what an earlier run left over.
_ALL_REFUSED = 8
# How the finish_reason of an empty reply begins that would come again: the model or the server declined, or thought to the limit.
_FINAL = ("refused: ", "content_filter", "length")
_IMAGE_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


class ChatError(ValueError):
    """The server could not be asked, refused, or answered with nothing."""


class RefusedError(ChatError):
    """The server is well but would not answer this one request: too long, filtered, or an empty reply each time."""


@dataclass(frozen=True)
class Reply:
    """One answer. `cached` replies cost nothing; token counts are those of the request that was once paid."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False

    @property
    def ending(self) -> str:
        """ "stop", "length" for a text that was cut, or for an empty one "refused" or "length": servers have more words for a whole
        answer than one."""
        if not self.text:
            return "length" if "finish_reason length" in self.finish_reason else "refused"
        return "length" if self.finish_reason == "length" else "stop"


@dataclass
class Usage:
    """What a client has asked so far; replies from the cache count in `cached` alone."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Purse(Protocol):
    """Who allows a request that may be paid; threads share it (builders/synthesis/cost.py has one)."""

    def reserve(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> float:
        """Before a request: what is held for it. What this raises ends the call."""

    def settle(self, reserved: float, reply: Reply | None) -> None:
        """After it: the reply, which is paid even where it is empty, or None for a request that failed."""


@dataclass
class ChatClient:
    """Asks `model` at `base_url` (e.g. https://host/v1).

    `timeout` is in seconds for one attempt, `price_in` and `price_out` are per million tokens. The key stands in the
    environment variable `api_key_env`; a server on this machine or in a private network needs none.
    `cache_dir` keeps the replies by request_key, so wherever the model is served; two different models that servers call
    by one name need a folder each. `purse` allows each request, also a repeated one; replies of the cache do not ask it.
    Raises ValueError for a `base_url` that is not an http(s) address or carries a password.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    cache_dir: str | Path | None = None
    timeout: float = 120.0
    max_retries: int = 4
    requests_per_minute: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    usage: Usage = field(default_factory=Usage)
    purse: Purse | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url {self.base_url!r}: expected an address such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                f"the base_url of {parts.hostname} carries credentials or a query; "
                f"put the key into the environment variable {self.api_key_env} instead"
            )
        self.base_url = self.base_url.rstrip("/")
        self._lock = threading.Lock()
        self._next_request = 0.0
        self._client: Any = None
        self._answered = False

    @property
    def cost(self) -> float | None:
        """Price of the requests so far (not of cached replies); None where no price was given."""
        if self.price_in is None or self.price_out is None:
            return None
        return (self.usage.prompt_tokens * self.price_in + self.usage.completion_tokens * self.price_out) / 1e6

    def complete(self, messages: Sequence[Message], **sampling: Any) -> Reply:
        """The reply to one conversation; `sampling` is passed on (temperature, max_tokens, seed ...).

        Raises RefusedError for a refused request or an empty reply, ChatError for a server that cannot be asked,
        ValueError for a missing key.
        """
        key = request_key(self.model, messages, sampling)
        reply = self._cached(key)
        if reply is None:
            reply = self._ask(key, messages, sampling)
            self._store(key, reply)
        self._answered = True
        return reply

    def complete_many(
        self,
        conversations: Sequence[Sequence[Message]],
        workers: int = 8,
        progress: str = "asking",
        keep_refused: bool = False,
        **sampling: Any,
    ) -> list[Reply]:
        """Replies in the order of `conversations`, asked by `workers` threads, with a progress bar on stderr.

        With a cache, equal conversations are asked once. The first error stops the rest; what was answered before
        stays in the cache. With `keep_refused` a request that the server refuses has an empty reply, whose
        finish_reason is the error's text; where nothing but refusals has come, the first is raised all the same.
        """
        keys: list[Any] = list(range(len(conversations)))
        if self.cache_dir is not None:
            keys = [request_key(self.model, messages, sampling) for messages in conversations]
        unique = dict(zip(keys, conversations, strict=True))
        replies = dict(self.complete_each(unique, workers, progress, keep_refused, **sampling))
        return [replies[key] for key in keys]

    def complete_each(
        self,
        conversations: Mapping[K, Sequence[Message]],
        workers: int = 8,
        progress: str = "asking",
        keep_refused: bool = False,
        own: Mapping[K, dict[str, Any]] | None = None,
        **sampling: Any,
    ) -> Iterator[tuple[K, Reply]]:
        """As complete_many, but (key, reply) as they come; an error is raised after the replies that were under way, and what
        was refused comes last. `own`: sampling of single conversations, such as the schema of their replies."""
        refused: dict[K, RefusedError] = {}
        for key, future in in_threads(
            lambda item: self.complete(item[0], **item[1]),
            {key: (asked, sampling | (own or {}).get(key, {})) for key, asked in conversations.items()},
            workers,
            progress,
            lambda error: keep_refused and isinstance(error, RefusedError),
        ):
            error = future.exception()
            if isinstance(error, RefusedError):
                refused[key] = error
            else:
                yield key, future.result()
        if len(refused) == len(conversations) >= _ALL_REFUSED and not self._answered:
            raise next(iter(refused.values()))
        yield from ((key, Reply("", str(error), 0, 0)) for key, error in refused.items())

    def _ask(self, key: str, messages: Sequence[Message], sampling: dict[str, Any]) -> Reply:
        import openai

        client, secret = self._connection()
        problem, kind = "", ChatError
        for _ in range(self.max_retries + 1):
            reserved = self.purse.reserve(messages, sampling) if self.purse else 0.0
            self._wait_for_turn()
            reply = None
            try:
                reply = _reply(client.chat.completions.create(model=self.model, messages=list(messages), **sampling))
            # The `openai` package hands both through unchecked.
            except (_Malformed, json.JSONDecodeError) as error:
                problem, kind = f"no chat completion, but {str(error).replace(secret, '***')}", ChatError
                continue
            except openai.OpenAIError as error:
                text = f"{type(error).__name__}: {error}".replace(secret, "***")
                # `from None`: the chained error would print what was redacted here.
                kind = RefusedError if getattr(error, "status_code", 0) in _REFUSALS else ChatError
                raise kind(f"{self.model} at {self.base_url}: {_name(key, messages)}: {text}") from None
            finally:
                if self.purse:
                    self.purse.settle(reserved, reply)
            with self._lock:
                self.usage.requests += 1
                self.usage.prompt_tokens += reply.prompt_tokens
                self.usage.completion_tokens += reply.completion_tokens
            if reply.text.strip():
                return reply
            problem = f"empty reply (finish_reason {reply.finish_reason}); raise max_tokens, or look at the request"
            kind = RefusedError
            if reply.finish_reason.startswith(_FINAL):
                raise kind(f"{self.model} at {self.base_url}: {_name(key, messages)}: {problem}")
        raise kind(
            f"{self.model} at {self.base_url}: {_name(key, messages)}: in {self.max_retries + 1} attempts {problem}"
        )

    def _connection(self) -> tuple[Any, str]:
        """The `openai` client, made at the first request, and the key to redact."""
        secret = os.environ.get(self.api_key_env) or ("EMPTY" if _is_local(self.base_url) else "")
        if not secret:
            raise ValueError(f"no key for {self.base_url}: set the environment variable {self.api_key_env}")
        with self._lock:
            if self._client is None:
                import openai

                self._client = openai.OpenAI(
                    base_url=self.base_url, api_key=secret, timeout=self.timeout, max_retries=self.max_retries
                )
            return self._client, secret

    def _wait_for_turn(self) -> None:
        if not self.requests_per_minute:
            return
        with self._lock:
            start = max(self._next_request, time.monotonic())
            self._next_request = start + 60.0 / self.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _cache_file(self, key: str) -> Path | None:
        return None if self.cache_dir is None else Path(self.cache_dir) / key[:2] / f"{key}.json"

    def _cached(self, key: str) -> Reply | None:
        path = self._cache_file(key)
        if path is None or not path.exists():
            return None
        try:
            reply = read_dataclass(path, Reply)
        except ValueError as error:
            cause = str(error).removeprefix(f"{path}: ")
            raise ChatError(f"{path}: not a cached reply ({cause}); delete the file to ask again") from error
        with self._lock:
            self.usage.cached += 1
        return replace(reply, cached=True)

    def _store(self, key: str, reply: Reply) -> None:
        path = self._cache_file(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own name, then a rename: several processes may store the same reply at once.
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(asdict(reply), file, ensure_ascii=False)
        os.replace(file.name, path)
        with self._lock:
            stop.count_kept(1)


def in_threads(
    work: Callable[[V], R],
    items: Mapping[K, V],
    workers: int,
    progress: str,
    is_result: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[tuple[K, "Future[R]"]]:
    """(key, what `work` made of the item) as they end, by `workers` threads, with a progress bar on stderr.

    An error that is no result, or a request to stop, lets no further item begin. Those under way are paid for: they are
    waited for and returned, then the error, or StopRequested, is raised. `work` may raise StopRequested between two
    requests of its own.
    """
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    from rich.console import Console
    from rich.progress import Progress

    def begin(item: V) -> R:
        if asked := stop.request(new=True):
            raise stop.StopRequested(asked)
        return work(item)

    failed: BaseException | None = None
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool, Progress(console=Console(stderr=True)) as bar:
        futures = {pool.submit(begin, item): key for key, item in items.items()}
        task, open_ = bar.add_task(progress, total=len(futures)), set(futures)
        try:
            while open_:
                ended, open_ = wait(open_, timeout=_LOOK, return_when=FIRST_COMPLETED)
                bar.advance(task, len(ended))
                for future in ended:
                    error = None if future.cancelled() else future.exception()
                    if error is not None and not is_result(error):
                        failed = failed or error
                    elif not future.cancelled():
                        yield futures[future], future
                asked = stop.request(new=True) if open_ and not failed else None
                failed = failed or (stop.StopRequested(asked) if asked else None)
                if failed:
                    for future in open_:
                        future.cancel()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if isinstance(failed, stop.StopRequested):
        stop.obey(failed.request)
    if failed is not None:
        raise failed


def request_key(model: str, messages: Sequence[Message], sampling: dict[str, Any]) -> str:
    """sha256 of everything that decides a reply: model, messages with their image bytes, sampling. Not the address: a server
    that a batch job starts stands on another host each time."""
    asked = [model, list(messages), sampling]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def image_part(path: str | Path, content: bytes | None = None) -> Message:
    """The picture as a content part of a message, its bytes unchanged in a data URL; `content` stands in for the file's own.

    Raises ValueError for a missing file and for bytes that are not JPEG, PNG, GIF or WebP.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such image")
    data = path.read_bytes() if content is None else content
    kind = next((kind for magic, kind in _IMAGE_KINDS.items() if data.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"{path}: not a JPEG, PNG, GIF or WebP image; convert it first")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


class _Malformed(Exception):
    """What a server sent is JSON or text, but no chat completion; the message says what it is."""


def _reply(answer: Any) -> Reply:
    """Raises _Malformed for what is not a chat completion: the `openai` package does not check it."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not all(hasattr(choice, "message") for choice in choices):
        raise _Malformed(f"{str(answer)[:100]!r}")
    choice = choices[0] if choices else None
    message = choice.message if choice else None
    text, declined = _words_of(getattr(message, "content", None))
    declined = str(getattr(message, "refusal", None) or declined)
    if declined and not text.strip():
        reason = f"refused: {_whole_text(declined)}"
    else:
        reason = (choice.finish_reason if choice else None) or "none"
    return Reply(
        text=_whole_text(text),
        finish_reason=reason,
        prompt_tokens=getattr(answer.usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(answer.usage, "completion_tokens", None) or 0,
    )


def _words_of(content: Any) -> tuple[str, str]:
    """(text, refusal) of a message's content: a text, nothing, or parts [{"type": "text", "text"}, {"type": "refusal", "refusal"}],
    whose texts are joined; parts of other types (thoughts) are no answer. Raises _Malformed."""
    if isinstance(content, str | None):
        return content or "", ""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) for part in parts):
        raise _Malformed(f"content {str(content)[:100]!r}")
    found = [
        "".join(str(part.get(key) or "") for part in parts if part.get("type", "text") in kinds)
        for key, kinds in (("text", ("text", "output_text")), ("refusal", ("refusal",)))
    ]
    return found[0], found[1]


def _whole_text(text: str) -> str:
    """`text` that can be written as UTF-8: half of an emoji that the limit of tokens cut through becomes the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _name(key: str, messages: Sequence[Message]) -> str:
    """A request as an error names it: its cache key and how its last words begin."""
    content = messages[-1].get("content", "") if messages else ""
    if not isinstance(content, str):
        content = " ".join(part.get("text", "[image]") for part in content)
    return f"request {key[:12]} ({content[:60]!r})"


def _is_local(base_url: str) -> bool:
    """True for this machine, a private address, or a bare host name (a node of the same cluster)."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host
