"""Who judges answers: a Judge replies to requests, a Comparer decides which of two answers is better.

A Judge is a model, on any OpenAI-compatible server (ServerJudge) or in this process (LocalJudge). It replies in the order of
the requests, and replies that cannot be read are asked for again. A Comparer is a judge with a prompt (PromptComparer), or
no model at all (AnswerComparer: the answer that equals the row's own wins).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from drive_vlm.config import field
from drive_vlm.judges.verdicts import FIRST, SECOND, TIE, Turns, combine, fill, parse_verdict
from drive_vlm.launch import stop

# Of the second and later attempts: at 0 a judge would say the same again.
RETRY_TEMPERATURE = 0.7
BLOCK = 64
# How the kept reply to a request begins that the server refused: its text may hold numbers and is no rating.
REFUSED = "(refused)"
T = TypeVar("T")


@dataclasses.dataclass
class JudgeConfig:
    """Who judges, and how it is asked."""

    judge_model: str | None = field(
        None, help="the judge: model name at --judge_url, or with --judge_backend hf a model directory"
    )
    judge_backend: str = field(
        "openai",
        help="openai: a server; hf: in this process; reference: no model, the answer that equals the reference wins (as "
        "tools/qa_eval.py compares them), two right or two wrong ones tie",
        choices=("openai", "hf", "reference"),
    )
    judge_url: str = field("https://api.openai.com/v1", help="OpenAI-compatible server of the judge")
    judge_key_env: str = field("OPENAI_API_KEY", help="environment variable with the judge's key")
    judge_workers: int = field(8, help="requests to the server at the same time")
    judge_timeout: float = field(120.0, help="seconds that one request may take")
    judge_retries: int = field(4, help="times that a request which failed is sent again", least=0)
    judge_max_tokens: int = field(512, help="tokens of a reply, at most")
    judge_attempts: int = field(
        3, help=f"times a reply that cannot be read is asked for, from the second on at temperature {RETRY_TEMPERATURE}"
    )
    judge_batch_size: int = field(8, help="requests at a time with --judge_backend hf")
    requests_per_minute: float | None = field(None, help="limit of the server", least=0.001)
    price_in: float | None = field(None, help="price of a million prompt tokens, for the cost")
    price_out: float | None = field(None, help="price of a million reply tokens, for the cost")
    cache: str | None = field(
        None,
        help="directory that keeps the server's replies by the judge's name, wherever it is served; a rerun asks nothing; another "
        "model of the same name needs another (default: judge in the cache directory)",
    )
    # What says where and how fast the judge is asked, not what it is.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "judge_url", "judge_key_env", "judge_workers", "judge_timeout", "judge_retries", "judge_batch_size",
        "requests_per_minute", "price_in", "price_out", "cache",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Request:
    """One question to a judge: its turns, the last by the user; `images` (paths) stand before the last turn's text."""

    turns: Turns
    images: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Judgement(Generic[T]):
    """What a judge said in the end: `value` is None when no attempt could be read."""

    value: T | None
    reply: str
    attempts: int

    def unread_after(self) -> dict[str, int]:
        """{"unread_after": attempts} where no attempt could be read: JudgedRows asks again when more are allowed."""
        return {} if self.value is not None else {"unread_after": self.attempts}


class Described(Protocol):
    def describe(self) -> dict[str, Any]:
        """The settings that decide the verdicts, apart from what is judged. Stored with the results, so it holds no API key."""

    def spent(self) -> dict[str, Any]:
        """Requests, tokens and cost so far."""


class Judge(Described, Protocol):
    """A model that replies to requests, `block` of them at a time."""

    block: int

    def ask(self, requests: Sequence[Request], attempt: int) -> list[str]:
        """Replies in the order of `requests`; attempt 0 is greedy, later ones are sampled, each with its own seed."""


def judge_all(
    judge: Judge, requests: Sequence[Request], parse: Callable[[str], T | None], attempts: int, first: int = 0
) -> Iterator[list[Judgement[T]]]:
    """Judgements in order, a block at a time, so that a caller can keep each block before the next is asked for. `first` is the
    number of the first attempt: with another one a judge that has been asked already says what it thinks of it again.

    Raises ChatError where the server cannot be asked, StopRequested on request.
    """
    for start in range(0, len(requests), judge.block):
        stop.check()
        yield _judge_block(judge, requests[start : start + judge.block], parse, attempts, first)


def _judge_block(
    judge: Judge, requests: Sequence[Request], parse: Callable[[str], T | None], attempts: int, first: int
) -> list[Judgement[T]]:
    found: dict[int, Judgement[T]] = {}
    for attempt in range(attempts):
        open_ = [i for i in range(len(requests)) if i not in found or found[i].value is None]
        if not open_:
            break
        for i, reply in zip(open_, judge.ask([requests[i] for i in open_], first + attempt), strict=True):
            found[i] = Judgement(parse(reply), reply, attempt + 1)
    return [found[i] for i in range(len(requests))]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two answers to one question; `values` fill the other places of the prompt (question, reference)."""

    values: dict[str, str]
    first: str
    second: str
    images: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Compared:
    """Both orders of a comparison, and their common verdict: FIRST, SECOND, TIE, or None where one cannot be read."""

    shown: Judgement[str]
    swapped: Judgement[str]

    @property
    def winner(self) -> str | None:
        return combine(self.shown.value, self.swapped.value)

    def unread_after(self) -> dict[str, int]:
        return self.shown.unread_after() | self.swapped.unread_after()


class Comparer(Described, Protocol):
    """Decides which of two answers is better."""

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[list[Compared]]:
        """Both orders of every comparison, in order, a block at a time, so that a caller can keep each block."""


@dataclasses.dataclass(frozen=True)
class PromptComparer:
    """A judge that reads both answers in a prompt with {answer_a} and {answer_b}, once in each order."""

    judge: Judge
    prompt: Turns
    attempts: int

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[list[Compared]]:
        """Raises ChatError where the server cannot be asked."""
        requests = [
            Request(fill(self.prompt, item.values | {"answer_a": a, "answer_b": b}), item.images)
            for item in comparisons
            for a, b in ((item.first, item.second), (item.second, item.first))
        ]
        for block in judge_all(self.judge, requests, parse_verdict, self.attempts):
            assert len(block) % 2 == 0, "a block holds whole comparisons"
            yield [Compared(shown, swapped) for shown, swapped in zip(block[::2], block[1::2], strict=True)]

    def describe(self) -> dict[str, Any]:
        return self.judge.describe()

    def spent(self) -> dict[str, Any]:
        return self.judge.spent()


class AnswerComparer:
    """No model: the answer that equals the row's own after the normalisation of tools/qa_eval.py wins; two right or two wrong
    ones tie. It is exact for questions with one short answer, and says nothing about free texts."""

    def compare(self, comparisons: Sequence[Comparison]) -> Iterator[list[Compared]]:
        """Raises ValueError for a comparison whose `values` have no "reference" (the row's own answer)."""
        from drive_vlm.evaluation.answer_accuracy import correct_answers

        if any("reference" not in item.values for item in comparisons):
            raise ValueError("--judge_backend reference: there is no reference to compare two answers with here")
        targets = [item.values["reference"] for item in comparisons]
        first = correct_answers([item.first for item in comparisons], targets)
        second = correct_answers([item.second for item in comparisons], targets)
        yield [Compared(_exact(a, b), _exact(b, a)) for a, b in zip(first, second, strict=True)]

    def describe(self) -> dict[str, Any]:
        return {"judge_backend": "reference"}

    def spent(self) -> dict[str, Any]:
        return {"requests": 0, "cost": None}


def _exact(shown: float, other: float) -> Judgement[str]:
    """The verdict on two answers that are right (1) or wrong (0)."""
    return Judgement(TIE if shown == other else FIRST if shown > other else SECOND, "", 1)


class ServerJudge:
    """A judge behind ChatClient, which stores every reply on disk as soon as it arrives."""

    block = BLOCK

    def __init__(self, config: JudgeConfig) -> None:
        from drive_vlm.judges.chat_client import ChatClient
        from drive_vlm.store.cache import cache_dir

        assert config.judge_model is not None
        self.config = config
        self.client = ChatClient(
            base_url=config.judge_url,
            model=config.judge_model,
            api_key_env=config.judge_key_env,
            cache_dir=config.cache or cache_dir() / "judge",
            timeout=config.judge_timeout,
            max_retries=config.judge_retries,
            requests_per_minute=config.requests_per_minute,
            price_in=config.price_in,
            price_out=config.price_out,
        )

    def ask(self, requests: Sequence[Request], attempt: int) -> list[str]:
        sampling = {"temperature": RETRY_TEMPERATURE if attempt else 0, "max_tokens": self.config.judge_max_tokens}
        seed = {"seed": attempt} if attempt else {}
        replies = self.client.complete_many(
            [messages_of(request) for request in requests],
            self.config.judge_workers,
            "judging" if attempt == 0 else f"asking again ({attempt})",
            keep_refused=True,
            **sampling,
            **seed,
        )
        return [reply.text or f"{REFUSED} {reply.finish_reason}" for reply in replies]

    def describe(self) -> dict[str, Any]:
        names = ("judge_model", "judge_url", "judge_max_tokens")
        return {name: getattr(self.config, name) for name in names}

    def spent(self) -> dict[str, Any]:
        return dataclasses.asdict(self.client.usage) | {"cost": self.client.cost}


def messages_of(request: Request) -> list[dict[str, Any]]:
    """OpenAI chat messages, pictures as data URLs."""
    from drive_vlm.data.vision import picture_bytes
    from drive_vlm.judges.chat_client import image_part

    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in request.turns]
    if request.images:
        pictures = [image_part(path, picture_bytes(path, path)) for path in request.images]
        messages[-1]["content"] = [*pictures, {"type": "text", "text": request.turns[-1][1]}]
    return messages


def resolve_images(images: Sequence[str], root: str, where: str) -> tuple[str, ...]:
    """Picture paths of a prediction row below `root`, checked."""
    from drive_vlm.data.samples import resolve_below

    return check_images(tuple(resolve_below(root, image, where) for image in images), where)


def check_images(paths: tuple[str, ...], where: str) -> tuple[str, ...]:
    """`paths`; raises ValueError, naming the row, for one that is not there."""
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(
                f"{where}: {path} does not exist; give --image_root, or --no_images for a judge that reads the texts alone"
            )
    return paths


def spent_line(spent: dict[str, Any]) -> str:
    """One line for people about what the judge cost."""
    if "cached" not in spent:
        return f"judge: {spent['requests']:,} requests in this process"
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    return (
        f"judge: {spent['requests']:,} requests ({spent['prompt_tokens']:,} + {spent['completion_tokens']:,} tokens{cost}), "
        f"{spent['cached']:,} replies from the cache"
    )
