"""Human rows next to synthetic ones, at a share that stays the same in every round.

Models that learn their own captions alone drift (arXiv 2505.08803). The same human rows come in every round: a hash of (seed, id) puts
them in an order, and the first ones are taken.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drive_vlm.builders.row_writer import Row
from drive_vlm.builders.splits import split_position
from drive_vlm.builders.synthesis.gates.decontamination import EvaluationRows, sample_outcome
from drive_vlm.builders.synthesis.gates.pictures import Print, take_prints, twins
from drive_vlm.data.samples import Sample
from drive_vlm.data.sources import open_sources, require_files
from drive_vlm.data.table import read_sample

FOLDER = "human_images"


@dataclass(frozen=True)
class HumanRows:
    """Rows that people wrote, in the order in which they are taken; what was left out, by reason; the folder of their pictures."""

    samples: tuple[Sample, ...]
    left_out: Mapping[str, int]
    root: str
    total: int


def read_human(data: Sequence[str], image_root: str | None) -> tuple[list[Sample], str]:
    """(all rows, the folder that their pictures start from). Raises ValueError, naming file and line, for a row that cannot be used, for
    a video, for an id that comes twice, and for several folders of pictures."""
    files = open_sources(data, image_root)
    require_files(files)
    roots = sorted({os.path.abspath(file.root) for file in files})
    if len(roots) > 1:
        raise ValueError(
            f"--human: the pictures start from {' and '.join(roots)}; give the folder above as --human_root"
        )
    samples = [read_sample(file, i, need_answer=True) for file in files for i in range(len(file.rows))]
    seen: dict[str, str] = {}
    for sample in samples:
        if sample.video:
            raise ValueError(f"{sample.where}: a row with a video; the rows of --human must have pictures")
        if sample.id in seen:
            raise ValueError(f"{sample.where}: id {sample.id!r} came before at {seen[sample.id]}; make ids unique")
        seen[sample.id] = sample.where
    return samples, roots[0]


def usable_human(
    samples: Sequence[Sample],
    root: str,
    held: EvaluationRows | None,
    held_out: frozenset[str],
    pictures: Sequence[Print],
    seed: int,
    workers: int,
) -> HumanRows:
    """The rows without those of a group or a picture that is held out (`held_out`, `pictures`), and without what evaluation rows
    hold (`held`)."""
    prints = take_prints({path: path for sample in samples for path in sample.images}, workers=workers)
    found = {twin.name: twin.how for twin in twins(prints, held.prints)} if held is not None else {}
    own = {twin.name for twin in twins(prints, pictures)}
    left_out: Counter[str] = Counter()
    kept = []
    for sample in sorted(samples, key=lambda sample: (split_position(sample.id, seed), sample.id)):
        if sample.group is not None and sample.group in held_out:
            left_out["held_out_group"] += 1
        elif own & set(sample.images):
            left_out["held_out_picture"] += 1
        elif held is not None and (reason := sample_outcome(sample, found, held)):
            left_out[reason] += 1
        else:
            kept.append(sample)
    return HumanRows(tuple(kept), dict(sorted(left_out.items())), root, len(samples))


def wanted_human(synthetic: int, share: float) -> int:
    """How many human rows make up `share` of all, next to `synthetic` ones, rounded to the nearest.

    >>> wanted_human(70, 0.3), wanted_human(10, 0.5), wanted_human(3, 0.0)
    (30, 10, 0)
    """
    if not 0 <= share < 1:
        raise ValueError(f"--human_share {share:g} must be 0 or more and less than 1")
    return round(synthetic * share / (1 - share))


def most_synthetic(human: int, share: float) -> int:
    """How many synthetic rows `human` rows are enough for.

    >>> most_synthetic(30, 0.3)
    70
    """
    return int(human * (1 - share) / share + 1e-9)


def human_row(sample: Sample, root: str, number: int) -> Row:
    """A human row as the rows' folder shows it: messages, pictures below FOLDER, and its own columns."""
    images = [f"{FOLDER}/{os.path.relpath(path, root)}" for path in sample.images]
    media: dict[str, Any] = {"images": images} if images else {}
    group = {} if sample.group is None else {"group": sample.group}
    columns = {name: value for name, value in sample.columns.items() if not name.startswith("_") and name != "dataset"}
    messages = [{"role": turn.role, "content": "".join(turn.parts)} for turn in sample.turns]
    return columns | {"id": sample.id} | media | group | {"round": number, "origin": "human", "messages": messages}
