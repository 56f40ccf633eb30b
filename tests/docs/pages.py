"""README and docs as the tests of this folder read them: pages, links, and the commands of their code blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"(?:<!--(?P<note>[^>]*)-->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")


def blocks(text: str, kind: str) -> list[tuple[str, str]]:
    """(note, text) of every fenced block of `kind`; the note is the HTML comment on the line before it."""
    return [(m["note"] or "", m["text"]) for m in _FENCE.finditer(text) if m["kind"] == kind]


def links(text: str) -> list[str]:
    """Targets of links and pictures outside code blocks, without fragments; web addresses are left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
    return [found.partition("#")[0] for found in targets if "://" not in found and not found.startswith("#")]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `python tools/...` and `python -m drive_vlm ...` in bash blocks and in code spans.

    Comments, pipes and redirections end a command. Words in angle or square brackets stand for what the reader puts in.
    """
    lines = [line for _, block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += _SPAN.findall(_FENCE.sub("", text))
    for line in lines:
        for part in re.split(r"\s#|;|&&|\||(?<!2)>|\$\(", line):
            try:
                words = shlex.split(part)
            except ValueError:  # a quoted program of several lines
                continue
            while words and _ASSIGNMENT.fullmatch(words[0]):
                words = words[1:]
            is_tool = words[:1] == ["python"] and len(words) > 1 and words[1].startswith("tools/")
            if is_tool or words[:3] == ["python", "-m", "drive_vlm"]:
                yield words
