"""Splits that never cut a scene or a video, and the check that finds what leaked between them."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Of a token that names a key frame in all of nuScenes; a shorter "frame" is a number within its own file.
_TOKEN_LENGTH = 32


@dataclass(frozen=True)
class Leak:
    """One value that several splits share: a row id, a group (scene or video id), the token of a key frame, a picture's path or name."""

    # "id" | "group" | "frame" | "image"
    kind: str
    value: str
    splits: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.value!r} is in {' and '.join(self.splits)}"


def assign_split(group: str, fractions: Mapping[str, float], seed: int = 0) -> str:
    """The split of `group`: a pure hash of (seed, group), so that it never changes as the data grows.

    `fractions` maps a split's name to its share; the shares sum to 1 and their order matters.
    Raises ValueError for shares that are negative or do not sum to 1.
    """
    check_fractions(fractions)
    position = int.from_bytes(split_position(group, seed), "big") / 2**64
    reached = 0.0
    for name, share in fractions.items():
        reached += share
        if position < reached:
            return name
    # Rounding left the sum of the shares just below 1.
    return [name for name, share in fractions.items() if share > 0][-1]


def held_out_groups(groups: Iterable[str], count: int, seed: int = 0) -> set[str]:
    """`count` of the different `groups`: those with the smallest hash of (seed, group), whatever their order.

    Raises ValueError unless 0 <= count < number of groups: something must be left to train on.
    """
    names = set(groups)
    if not 0 <= count < len(names):
        raise ValueError(f"{count} of {len(names)} groups cannot be held out: give a number from 0 to {len(names) - 1}")
    return set(sorted(names, key=lambda name: (split_position(name, seed), name))[:count])


def split_position(group: str, seed: int = 0) -> bytes:
    """Where `group` stands in the order in which groups are held out: a hash of (seed, group)."""
    return hashlib.blake2b(f"{seed}\0{group}".encode(), digest_size=8).digest()


def parse_fractions(words: Iterable[str], flag: str) -> dict[str, float]:
    """{"train": 0.8, ...} from ["train:0.8", ...]. Raises ValueError, which names `flag`, for a malformed word, and for a
    sum other than 1."""
    fractions: dict[str, float] = {}
    for word in words:
        name, colon, share = word.partition(":")
        if not (name.isidentifier() and colon) or name in fractions:
            raise ValueError(f"{flag} {word}: expected different name:share words such as train:0.9 val:0.1")
        try:
            fractions[name] = float(share)
        except ValueError as error:
            raise ValueError(f"{flag} {word}: the share is not a number") from error
    check_fractions(fractions)
    return fractions


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises ValueError unless the shares are non-negative and sum to 1 (within 1e-6)."""
    bad = {name: share for name, share in fractions.items() if not 0 <= share <= 1}
    if bad:
        raise ValueError(f"split fractions must lie in [0, 1], got {bad}")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"split fractions must sum to 1, got {total:g} from {dict(fractions)}")


def find_leaks(splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[Leak]:
    """Every id, group, key frame and media path that more than one split holds, in order of kind and value.

    Rows carry `id`, optionally `group` and `frame`, and their media as `image`, `images` or `video` (a path or a list of paths).
    Memory grows with the number of distinct values: a million rows fit in a few hundred MB.
    """
    shared = SharedValues()
    for split, rows in splits.items():
        for row in rows:
            shared.add(split, row)
    return shared.leaks()


class SharedValues:
    """The ids, groups, key frames and media paths of rows as they come, each with the splits that hold it, one bit for a split."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._seen: dict[str, dict[str, int]] = {"id": {}, "group": {}, "frame": {}, "image": {}}

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        bit = self._bits.setdefault(split, 1 << len(self._bits))
        for kind, value in _keys(row):
            table = self._seen[kind]
            table[value] = table.get(value, 0) | bit

    def leaks(self) -> list[Leak]:
        """As `find_leaks`."""
        found = []
        for kind, table in self._seen.items():
            for value in sorted(value for value, bits in table.items() if bits & (bits - 1)):
                names = tuple(name for name, bit in self._bits.items() if table[value] & bit)
                found.append(Leak(kind, value, names))
        return found


def _keys(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if row.get("id") is not None:
        yield "id", str(row["id"])
    if row.get("group") is not None:
        yield "group", str(row["group"])
    if (token := row.get("frame")) is not None and isinstance(token, str) and len(token) == _TOKEN_LENGTH:
        yield "frame", token
    for column in ("image", "images", "video", "videos"):
        value = row.get(column)
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(path, str):
                yield "image", path
