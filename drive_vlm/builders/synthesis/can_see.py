"""Which names the sources could have given: what no source can see is neither right nor wrong in a text."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from drive_vlm.builders.synthesis.rows import Line
from drive_vlm.builders.synthesis.settings import read_settings
from drive_vlm.data.jsonl import JsonlFile

COCO = "coco"


def names_seen(lines: Iterable[Line]) -> list[str]:
    """The labels that stand in the lines: all that is known where nobody says what was looked for."""
    return sorted({thing.label for line in lines for row in line.candidates[:1] for thing in row.objects})


def read_names(given: Sequence[str]) -> list[str] | None:
    """The names of --can_see: a text file (a name a line), the file of a detect step (its settings' labels), the folder of a data base
    (names.jsonl); None for "coco", the classes of the vocabulary.

    Raises ValueError, naming the word, for anything else, and for "coco" next to other words.
    """
    if COCO in given:
        if len(given) > 1:
            raise ValueError(
                f"--can_see {' '.join(given)}: coco stands alone; write its classes to a file to add names"
            )
        return None
    return sorted({name for word in given for name in _names_of(word)})


def _names_of(word: str) -> list[str]:
    path = Path(word)
    if path.is_dir() and (path / "names.jsonl").is_file():
        rows = JsonlFile(path / "names.jsonl")
        names = [row.get("name") for _, row in rows.places() if isinstance(row, dict)]
    elif path.suffix == ".jsonl" and path.is_file():
        settings = read_settings(path)
        names = list(settings.settings.get("labels") or ()) if settings is not None else []
    elif path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    else:
        raise ValueError(
            f"--can_see {word}: no such file; give coco, a text file, a detect step's file or a data base's folder"
        )
    found = [name for name in names if isinstance(name, str) and name]
    if not found:
        raise ValueError(f"--can_see {word}: holds no name (of a step's file the settings must have labels)")
    return found
