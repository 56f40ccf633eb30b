"""The list of labels that an open-vocabulary detector is asked for, and which of its words are one of them."""

import re
from collections.abc import Sequence
from pathlib import Path

# What is asked for when the user says nothing: what driving rules speak of.
DRIVING = (
    "car", "truck", "bus", "van", "trailer", "motorcycle", "bicycle", "train", "pedestrian", "cyclist", "motorcyclist", "dog", "animal",
    "traffic light", "traffic sign", "traffic cone", "barrier", "bollard", "construction vehicle", "ambulance", "fire truck",
    "police car", "wheelchair", "stroller", "debris", "crosswalk",
)  # fmt: skip


def read_labels(words: Sequence[str]) -> list[str]:
    """Labels of the command line; a word that is a file gives one label a line. Raises ValueError for a label that is empty, holds a full
    stop (it parts labels for GroundingDINO), or is another one but for marks and case."""
    labels: list[str] = []
    for word in words:
        lines = Path(word).read_text(encoding="utf-8").splitlines() if Path(word).is_file() else [word]
        labels += [" ".join(line.split()) for line in lines if line.strip()]
    known: dict[str, str] = {}
    for label in labels:
        if "." in label or not letters(label):
            raise ValueError(
                f"--labels: {label!r} holds a full stop, which parts labels, or no letter. Write plain words."
            )
        if (first := known.setdefault(letters(label), label)) is not label:
            raise ValueError(f"--labels: {label!r} and {first!r} are one label to a detector. Keep one of them.")
    if not labels:
        raise ValueError("--labels: no label. Give words, or a file with one label a line.")
    return labels


def letters(text: str) -> str:
    """What of a label survives a detector's tokenizer: lower-case letters and digits."""
    return re.sub(r"[\W_]+", "", text.lower())


def in_groups(labels: Sequence[str], size: int) -> list[list[str]]:
    """Runs of at most `size` labels: with more, a detector of phrases mixes them."""
    return [list(labels[start : start + size]) for start in range(0, len(labels), size)]
