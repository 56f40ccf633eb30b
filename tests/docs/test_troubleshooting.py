"""docs/troubleshooting.md quotes texts that exist: each is found in one string of the source, or in a script."""

import ast
import re
from pathlib import Path

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
AT_LEAST = 30


def quoted() -> list[str]:
    """Code spans of the first column of every table."""
    rows = [line.split(" | ")[0] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row)]


def _text(node: ast.expr) -> str:
    """A literal as it is written, with a NUL for each value that is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "\0"


def literals(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    texts = [_text(node) for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))]
    # A message that is put together from several literals of one call (BadRow, problem, _fail).
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return texts + ["\0".join(map(_text, call.args)) for call in calls]


@pytest.mark.slow
def test_every_quoted_text_is_in_the_source() -> None:
    python = [path for folder in ("drive_vlm", "tools") for path in (ROOT / folder).rglob("*.py")]
    scripts = [path for folder in ("recipes", "slurm") for path in (ROOT / folder).iterdir() if path.is_file()]
    sources = [text for path in python for text in literals(path)] + [path.read_text() for path in scripts]
    texts = quoted()
    assert len(set(texts)) >= AT_LEAST
    gone = []
    for text in texts:
        pieces = [piece.strip() for piece in text.split("...")]
        pattern = re.compile(".*?".join(map(re.escape, pieces)))
        if not any(pieces[0] in source and pattern.search(source) for source in sources):
            gone.append(text)
    assert not gone, f"{PAGE.name} quotes what no message says any more: {gone}"
