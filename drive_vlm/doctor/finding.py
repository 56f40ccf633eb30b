"""Findings of the doctor's checks."""

import dataclasses
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was looked at, the verdict, what was seen and, unless all is well, what to do."""

    check: str
    verdict: Verdict
    seen: str
    todo: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The flags of the command: where a run would write, whether the network may be used, whether ranks may be started."""

    output_dir: Path
    offline: bool = False
    communication: bool = False


Check = Callable[[Setting], Iterable[Finding]]


def judge(check: str, seen: str, *cases: tuple[object, Verdict, str]) -> Finding:
    """The first of `cases` (whether it holds, the verdict, what to do) that holds; ok where none does."""
    return next((Finding(check, verdict, seen, todo) for holds, verdict, todo in cases if holds), ok(check, seen))


def ok(check: str, seen: str) -> Finding:
    return Finding(check, "ok", seen)


def output_of(words: list[str], timeout: float = 10) -> str:
    """stdout of a command. Raises OSError or subprocess.SubprocessError when it is missing, fails or hangs."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=True)
    return done.stdout.strip()
