"""Which rows the page shows: the worst, the best, and those that changed against the other run, from every kind of question."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from markupsafe import Markup

from drive_vlm.data.predictions import Prediction
from drive_vlm.report.run_report.bird_view import Track, draw_tracks, read_track
from drive_vlm.report.run_report.pictures import Pictures
from drive_vlm.report.run_report.scored import Scored
from drive_vlm.report.run_report.training_rows import alike

WORST, BEST, CHANGED = "worst", "best", "changed"
# Characters of a text that a row shows.
_LONGEST = 1_500
# Columns that a row shows under its texts do not include these: they are shown elsewhere.
_SHOWN = {
    "id",
    "dataset",
    "prediction",
    "reference",
    "question",
    "image",
    "images",
    "video",
    "group",
    "candidates",
    "boxes",
}


@dataclass(frozen=True)
class Said:
    """An answer of a checkpoint or a baseline, with the row's score of it."""

    name: str
    text: str
    score: float


@dataclass
class Example:
    """A row of the page."""

    number: int
    item: Prediction
    kinds: list[str]
    question: str
    said: list[Said]
    gain: float
    change: float | None
    alike: str
    pictures: list[tuple[Markup, str]] = field(default_factory=list)
    bird: Markup | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)


def choose(scored: Scored, most: int) -> list[tuple[int, list[str]]]:
    """(row, why it is shown) of at most `most` rows, a third for each reason as long as there are such rows.

    Of equal rows those whose hash is smaller come first, kinds of question in turn: the same rows in every report, and not only
    those at the head of the file.
    """
    values = scored.gains(scored.last)
    best, worst = float(values.max()), float(values.min())
    middle = (best + worst) / 2
    changes = values - scored.gains(scored.first) if scored.first else values * 0
    order = sorted(
        range(len(scored.rows)),
        key=lambda i: hashlib.blake2b(scored.rows[i].id.encode(errors="replace"), digest_size=8).digest(),
    )

    def in_turn(rows: Iterable[int], by: Callable[[int], float]) -> list[int]:
        ranked = sorted(rows, key=by)
        turns: dict[tuple[float, str], int] = {}
        keyed = []
        for i in ranked:
            kind = (by(i), alike(scored.rows[i].row))
            turns[kind] = turns.get(kind, -1) + 1
            keyed.append((by(i), turns[kind], i))
        return [i for _, _, i in sorted(keyed, key=lambda key: key[:2])]

    pools = {
        WORST: in_turn((i for i in order if values[i] < middle or best == worst == 0), lambda i: float(values[i])),
        CHANGED: in_turn((i for i in order if changes[i]), lambda i: -abs(float(changes[i]))),
        BEST: in_turn((i for i in order if values[i] > middle or best == worst != 0), lambda i: -float(values[i])),
    }
    chosen: dict[int, list[str]] = {}
    shares = {kind: most // 3 + (most % 3 > place) for place, kind in enumerate(pools)}
    # Reasons without enough rows leave their places to the others.
    for extra in (False, True):
        for kind, pool in pools.items():
            room = most - len(chosen) if extra else shares[kind]
            for i in pool:
                if room <= 0:
                    break
                if i not in chosen:
                    chosen[i] = []
                    room -= 1
    for kind, pool in pools.items():
        there = set(pool)
        for i, kinds in chosen.items():
            if i in there:
                kinds.append(kind)
    return sorted(chosen.items(), key=lambda entry: (float(values[entry[0]]), entry[0]))


def make_examples(scored: Scored, most: int, pictures: Pictures) -> list[Example]:
    """The rows of `choose` with their pictures, worst first."""
    found = []
    gains = scored.gains(scored.last)
    for i, kinds in choose(scored, most):
        item = scored.rows[i]
        systems = [*scored.systems, *scored.baselines]
        said = [Said(system.name, clipped(system.said[i]), float(system.values[i])) for system in systems]
        change = float(gains[i] - scored.gains(scored.first)[i]) if scored.first else None
        facts = [
            (name, clipped(str(value), 200))
            for name, value in item.row.items()
            if name not in _SHOWN and not isinstance(value, (dict, list)) and value not in (None, "")
        ]
        question = clipped(str(item.row.get("question") or ""))
        found.append(
            Example(
                i,
                item,
                kinds,
                question,
                said,
                float(gains[i]),
                change,
                alike(item.row),
                pictures.strip(item),
                bird_of(scored, i),
                facts,
            )
        )
    return found


def bird_of(scored: Scored, i: int) -> Markup | None:
    """The trajectories of the row from above; None where its own answer is none."""
    own = read_track(scored.rows[i].reference)
    if own is None:
        return None
    tracks = [Track("the row's own", own, "answer")]
    for system in reversed(scored.systems):
        if (points := read_track(system.said[i])) is not None:
            tracks.append(Track(system.name, points, "said" if system is scored.last else "other"))
    return draw_tracks(tracks)


def clipped(text: str, limit: int = _LONGEST) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
