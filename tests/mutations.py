"""Faults for configurations: odd words, odd values, broken files, a command that reads them in a forked child, and what is wrong with its end."""

import contextlib
import copy
import dataclasses
import importlib
import json
import os
import random
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What stands in the place of a flag's value. No large number that a machine would take hours to obey.
WORDS = [
    "nan", "inf", "-inf", "-1", "0", "1e30", "1" * 40, "9" * 5000, "3.5", "1", "0x10", "", " ", "x", "true", "none", "auto", "[1]", "{}", '{"a": 1}', "a b", "\udcff",
    "é🚦", "*", "(", "[", "\\", "%s", "{0}", "--", "-", "../x", "/dev/null", "/proc/x", ".", "a" * 300, "absent.json", "FILE", "FOLDER", "https://x.org/a", "a:b", "a=b",
]  # fmt: skip
ODD: list[Any] = [
    None, "", " ", "x", "\ud83d", "\0", "../x", "a" * 5000, 0, -1, 1, 3, 1.5, True, False, [], {}, [None], [1], {"a": 1}, [[]], float("nan"), float("inf"), 10**30, 10**4000,
]  # fmt: skip
BROKEN = [b"", b"\0" * 64, b"\xff\xfe\0", b"[]", b"null", b"{}", b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b"1", b'"x"', b"{'a': 1}"]  # fmt: skip


@dataclasses.dataclass
class Result:
    """A finished command. `code` is None where it did not end."""

    code: int | None
    text: str
    folder: Path


def forked(words: list[object], folder: Path, prepare_only: Path | None = None) -> Result:
    """The command in a child of this process, which has imported everything already, with `folder` as its directory. It has 30
    seconds of processor time, whatever else the machine does, and ten minutes to wait for something.

    `prepare_only`: a stage ends before its first step and writes the flags that it would train with there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / ".log"
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CPU, (30, 40))
            file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = open(1, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 - the child's own
            code = as_command([str(word) for word in words], prepare_only)
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + 600
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Result(None, log.read_text(errors="replace"), folder)
        time.sleep(0.004)
    code = os.waitstatus_to_exitcode(done[1])
    return Result(None if code == -signal.SIGXCPU else code, log.read_text(errors="replace"), folder)


def as_command(words: list[str], prepare_only: Path | None) -> int:
    """What the interpreter does with a command line: its exit code."""
    if prepare_only is not None:
        from drive_vlm.config import plain
        from drive_vlm.stages.engine import run

        run.run_training = lambda trainer, status, timeout, facts: prepare_only.write_text(json.dumps(plain(facts["config"])))  # fmt: skip
    try:
        sys.argv = list(words)
        if words[0] == "drive_vlm":
            importlib.import_module("drive_vlm.__main__").main()
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def mutated(content: bytes, dice: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """The content with one fault, and the keys on the way to it: in its JSON (or one line of it), or in its bytes."""
    kind = dice.randrange(10)
    if kind == 0:
        return dice.choice(BROKEN), ()
    if kind == 1:
        return content[: dice.randrange(len(content) + 1)], ()
    if kind == 2 and content:
        place = dice.randrange(len(content))
        return content[:place] + bytes([content[place] ^ dice.randrange(1, 256)]) + content[place + 1 :], ("a byte",)
    lines, at = [content], 0
    try:
        value = json.loads(content)
    except ValueError:
        lines = content.splitlines(keepends=True)
        at = dice.randrange(len(lines)) if lines else 0
        try:
            value = json.loads(lines[at])
        except (ValueError, IndexError):
            return content[: len(content) // 2] + content[len(content) // 2 + 1 :], ("a byte",)
    places = list(_places(value, ()))
    if not places:
        return b"7", ()
    way = dice.choice(places)
    container = value
    for key in way[:-1]:
        container = container[key]
    if kind < 5:
        del container[way[-1]]
    elif kind == 5 and isinstance(container, dict):
        container[f"{way[-1]}x"] = container.pop(way[-1])
    elif kind == 6 and isinstance(container, dict):
        container["extra"] = dice.choice(ODD)
        way = (*way[:-1], "extra")
    else:
        container[way[-1]] = copy.deepcopy(dice.choice(ODD))
    with contextlib.suppress(ValueError):
        lines[at] = (json.dumps(value) + "\n").encode()
    return b"".join(lines), way


def _places(value: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*way, key)
        yield from _places(item, (*way, key))


def fault_of(done: Result, names: list[str]) -> str:
    """What is wrong with the end of a command; '' for one that was taken, or refused in a line with one of `names`."""
    if done.code is None:
        return "no end"
    if done.code < 0:
        return f"killed by signal {-done.code}"
    if "Traceback (most recent call last)" in done.text:
        return "traceback"
    if done.code == 0:
        return ""
    lines = [line for line in done.text.splitlines() if line.strip() and not line.startswith("(see ")]
    if not lines:
        return "no word" if done.code != 1 else ""
    shown = "\n".join(lines[-3:])
    return "" if any(name and name in shown for name in names) else "unnamed"
