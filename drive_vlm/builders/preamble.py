"""A text that stands before each question of a benchmark, such as the benchmark's own prompt."""

from pathlib import Path


def read_preamble(path: str | None) -> str:
    """The text of --preamble, "" without one. Raises ValueError for a file that cannot be read."""
    if path is None:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--preamble {path}: cannot be read ({error})") from error
