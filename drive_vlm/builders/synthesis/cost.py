"""What a step costs: an estimate before the work (`--estimate`), and a limit that no request passes (`--max_cost`).

1. PerPicture says what one picture takes. `measured` takes it from the lines of a preview; what nobody measured is None, never a
   guess, and is shown as "not measured".
2. `estimate` multiplies (tools/synth_paid.py prints a row for each step).
3. Budget is the purse of a ChatClient: before each request that may be paid it adds up what was spent, what the requests under way
   may cost, and what this one may cost at most. Where that passes the limit, CostReached ends the run; all replies are kept.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drive_vlm.judges.chat_client import Message, Reply

# Tokens of a text that a budget counts at most: a token of a byte-level vocabulary is a byte or more, and a chat template adds
# a few marks to each turn.
_MARKS = 16
# Letters of English for each token, for an estimate without a preview.
LETTERS_A_TOKEN = 4


class CostReached(ValueError):
    """The next request may pass --max_cost."""


@dataclass(frozen=True)
class PerPicture:
    """What one picture takes in one step. None: nobody measured it.

    Attributes:
        calls: requests to a server.
        prompt_tokens, reply_tokens: of all its requests together.
        seconds: of a GPU.
        bytes: on disk: the step's line, and what the step writes besides.
        basis: where the numbers come from, in words.
    """

    calls: float = 0.0
    prompt_tokens: float | None = None
    reply_tokens: float | None = None
    seconds: float | None = None
    bytes: float | None = None
    basis: str = ""


def measured(
    step: str, lines: Sequence[Mapping[str, Any]], seconds: float | None = None, basis: str = ""
) -> PerPicture:
    """The mean over finished `lines` of a step, which say what they took in "calls" and "tokens", both by step.

    `seconds`: what a GPU of this machine took for all of them together; None for a server elsewhere. Raises ValueError without
    a line.
    """
    if not lines:
        raise ValueError(
            "an estimate from a preview needs at least one finished line; run the step with --preview first"
        )
    calls = sum(line.get("calls", {}).get(step, 0) for line in lines)
    tokens = [line.get("tokens", {}).get(step, {}) for line in lines if line.get("calls", {}).get(step, 0)]
    known = all({"prompt", "reply"} <= item.keys() for item in tokens)
    each = {
        name: sum(item.get(name, 0) for item in tokens) / len(lines) if known else None for name in ("prompt", "reply")
    }
    return PerPicture(
        calls=calls / len(lines),
        prompt_tokens=each["prompt"],
        reply_tokens=each["reply"],
        seconds=None if seconds is None else seconds / len(lines),
        bytes=sum(len(json.dumps(line, ensure_ascii=False).encode()) + 1 for line in lines) / len(lines),
        basis=basis or f"a preview of {len(lines):,} pictures",
    )


@dataclass(frozen=True)
class Estimate:
    """A step over all its pictures; None where a number is not known. `cost` is in the currency of the prices."""

    step: str
    pictures: int
    calls: float | None
    prompt_tokens: float | None
    reply_tokens: float | None
    cost: float | None
    gpu_hours: float | None
    disk_bytes: float | None
    basis: str


def estimate(
    step: str, pictures: int, per: PerPicture, price_in: float | None = None, price_out: float | None = None
) -> Estimate:
    """`per` times `pictures`. Prices are per million tokens; without both the cost of a step with calls is None."""

    def times(value: float | None, scale: float = 1.0) -> float | None:
        return None if value is None else pictures * value / scale

    prompt, reply = times(per.prompt_tokens), times(per.reply_tokens)
    cost: float | None = 0.0 if not per.calls else None
    if per.calls and None not in (prompt, reply, price_in, price_out):
        cost = cost_of(prompt, reply, price_in, price_out)  # type: ignore[arg-type]
    return Estimate(
        step=step,
        pictures=pictures,
        calls=pictures * per.calls,
        prompt_tokens=prompt if per.calls else 0.0,
        reply_tokens=reply if per.calls else 0.0,
        cost=cost,
        gpu_hours=times(per.seconds, 3600.0),
        disk_bytes=times(per.bytes),
        basis=per.basis,
    )


def cost_of(prompt_tokens: float, reply_tokens: float, price_in: float, price_out: float) -> float:
    """Prices are per million tokens."""
    return (prompt_tokens * price_in + reply_tokens * price_out) / 1e6


class Budget:
    """The purse of one or more ChatClients of a step: `ChatClient.purse = budget`. Threads share it.

    Attributes:
        spent: what the step has cost so far: `before`, what earlier runs of it paid; each reply that was paid; what `keep` adds.

    `picture_tokens`: what a server counts for a picture at most. Without it the largest prompt that was seen stands in, and the
    first request of a run with pictures is counted by its text alone.
    Raises ValueError for a limit without prices.
    """

    def __init__(
        self,
        max_cost: float | None,
        price_in: float | None,
        price_out: float | None,
        picture_tokens: int | None = None,
        before: float = 0.0,
    ) -> None:
        if max_cost is not None and (price_in is None or price_out is None):
            raise ValueError(f"--max_cost {max_cost:g} needs --price_in and --price_out, per million tokens")
        self.max_cost, self.spent = max_cost, before
        self._prices = (price_in or 0.0, price_out or 0.0)
        self._picture_tokens = picture_tokens
        self._largest_prompt = 0
        self._open = 0.0
        self._settled = threading.Condition()

    def reserve(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> float:
        """What this request may cost at most, which is held until `settle`. Raises CostReached where it may pass the limit; while
        only requests under way stand in its way, it waits for them."""
        if self.max_cost is None:
            return 0.0
        with self._settled:
            while True:
                most = cost_of(self._most_prompt_tokens(messages), int(sampling["max_tokens"]), *self._prices)
                if self.spent + most > self.max_cost:
                    raise CostReached(
                        f"--max_cost {self.max_cost:g}: {self.spent:.6g} is spent, and the next request may cost {most:.6g}. Every reply "
                        "is kept: give the same command with a higher --max_cost to go on"
                    )
                if self.spent + self._open + most <= self.max_cost:
                    self._open += most
                    return most
                self._settled.wait()

    def settle(self, reserved: float, reply: Reply | None) -> None:
        """The request has ended: with a reply, which is paid, or without one."""
        with self._settled:
            self._open -= reserved
            if reply is not None:
                self._count(reply)
            self._settled.notify_all()

    def keep(self, reply: Reply) -> None:
        """A reply from the cache, which an earlier run of the step has paid."""
        with self._settled:
            self._count(reply)

    def _count(self, reply: Reply) -> None:
        self.spent += cost_of(reply.prompt_tokens, reply.completion_tokens, *self._prices)
        self._largest_prompt = max(self._largest_prompt, reply.prompt_tokens)

    def _most_prompt_tokens(self, messages: Sequence[Message]) -> int:
        texts, pictures = 0, 0
        for message in messages:
            content = message["content"]
            for part in [{"text": content}] if isinstance(content, str) else content:
                texts += len(part.get("text", "").encode()) + _MARKS
                pictures += part.get("type") == "image_url"
        if not pictures:
            return texts
        return texts + (self._largest_prompt if self._picture_tokens is None else pictures * self._picture_tokens)
