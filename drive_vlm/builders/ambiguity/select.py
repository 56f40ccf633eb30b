"""Which questions become rows: each text stands as often in ambiguous rows as in clear ones, so that no text gives it away.

A twin narrows its ambiguous question down, and so its text differs: were each pair taken as it comes, "on the left" would always
be clear. Therefore

1. Pairs are taken in circles. In one picture "the red vehicle" is ambiguous and "the truck" its twin; in another "the truck" is
   ambiguous and "the red vehicle" its twin. Two pairs, four rows, two texts, each of them once ambiguous and once clear.
2. A further ambiguous question of a pair's picture ("the vehicle") comes with a clear one of the same text about another picture,
   where there is one vehicle, one stands out, or all have the same answer: levels 0 and 1.
"""

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from drive_vlm.builders.ambiguity.questions import AMBIGUOUS, Pair, Question

Key = tuple[str, str]
# Pairs in a circle, at most.
_LONGEST = 4


@dataclass(frozen=True)
class Single:
    """A question without a twin: a clear one, or of the types of two_readings.py."""

    picture: int
    question: Question


@dataclass
class Circle:
    """Rows that balance each other, all in the same wording.

    Attributes:
        pairs: each an ambiguous question and its twin.
        extras: (further ambiguous question, number of its pair in `pairs`).
        singles: clear questions, one for each text of `extras`; of `matched` an ambiguous and a clear one.
    """

    pairs: list[Pair]
    extras: list[tuple[Question, int]]
    singles: list[Single]

    @property
    def rows(self) -> int:
        return 2 * len(self.pairs) + len(self.extras) + len(self.singles)


class Selection:
    """Takes circles from `pairs` and `singles`, in whose order ties are settled, until nothing balances or `rows` are reached."""

    def __init__(self, pairs: Iterable[Pair], singles: Iterable[Single], pairs_per_picture: int) -> None:
        self._most = pairs_per_picture
        self._arcs: dict[Key, dict[Key, deque[Pair]]] = defaultdict(dict)
        for pair in _spread(pairs):
            self._arcs[pair.asked.key].setdefault(pair.twin.key, deque()).append(pair)
        self._singles: dict[Key, deque[Single]] = defaultdict(deque)
        for single in _spread_singles(singles):
            self._singles[single.question.key].append(single)
        self._pairs_of: Counter[int] = Counter()
        self._asked: set[tuple[int, Key]] = set()

    def circles(self, rows: int | None) -> Iterator[Circle]:
        """Circles in turn from each class and attribute, so that none takes all the rows."""
        waiting: dict[Hashable, deque[Key]] = defaultdict(deque)
        for key in sorted(self._arcs):
            waiting[self._class_of(key), key[0]].append(key)
        taken = 0
        while waiting:
            for part in sorted(waiting, key=str):
                circle = self._next(waiting[part])
                if circle is None:
                    del waiting[part]
                    continue
                taken += circle.rows
                if rows is not None and taken > rows:
                    return
                yield circle

    def _class_of(self, key: Key) -> str:
        return next(iter(next(iter(self._arcs[key].values())))).asked.asked.name

    def _next(self, keys: deque[Key]) -> Circle | None:
        while keys:
            found = self._circle(keys[0])
            if found is None:
                keys.popleft()
            else:
                keys.rotate(-1)
                return found
        return None

    def _circle(self, start: Key) -> Circle | None:
        """The shortest circle through `start`, its pairs marked as taken."""
        while (path := self._path(start)) is not None:
            chosen: list[Pair] = []
            for first, second in itertools.pairwise(path):
                pair = self._usable(first, second, {pair.picture for pair in chosen})
                if pair is None:
                    break
                chosen.append(pair)
            if len(chosen) == len(path) - 1:
                for pair in chosen:
                    self._take(pair)
                found = [extra for i in range(len(chosen)) if (extra := self._extra(chosen[i], i))]
                return Circle(chosen, [extra for extra, _ in found], [single for _, single in found])
        return None

    def _path(self, start: Key) -> list[Key] | None:
        before: dict[Key, Key] = {}
        ends, depth = [start], 0
        while ends and depth < _LONGEST:
            found = []
            for key in ends:
                for following in self._arcs.get(key, ()):
                    if following == start:
                        path = [start, key]
                        while path[-1] != start:
                            path.append(before[path[-1]])
                        return path[::-1]
                    if following not in before:
                        before[following] = key
                        found.append(following)
            ends, depth = found, depth + 1
        return None

    def _usable(self, first: Key, second: Key, elsewhere: set[int]) -> Pair | None:
        """The next free pair of an arc, which goes when it has none; one in a picture of this circle waits for another circle."""
        queue = self._arcs[first].get(second, deque())
        for _ in range(len(queue)):
            pair = queue[0]
            if not self._free(pair):
                queue.popleft()
            elif pair.picture in elsewhere:
                queue.rotate(-1)
            else:
                return pair
        # Left with pairs in pictures of this circle only: without the arc the search ends.
        self._arcs[first].pop(second, None)
        return None

    def _free(self, pair: Pair) -> bool:
        new = {(pair.picture, pair.asked.key), (pair.picture, pair.twin.key)}
        return self._pairs_of[pair.picture] < self._most and not new & self._asked

    def _take(self, pair: Pair) -> None:
        self._pairs_of[pair.picture] += 1
        self._asked |= {(pair.picture, pair.asked.key), (pair.picture, pair.twin.key)}

    def _extra(self, pair: Pair, number: int) -> tuple[tuple[Question, int], Single] | None:
        for question in pair.more:
            if (pair.picture, question.key) in self._asked:
                continue
            queue = self._singles.get(question.key, deque())
            while queue:
                single = queue.popleft()
                if single.picture != pair.picture and (single.picture, question.key) not in self._asked:
                    self._asked |= {(pair.picture, question.key), (single.picture, question.key)}
                    return (question, number), single
        return None


def matched(singles: Iterable[Single]) -> Iterator[Circle]:
    """Two questions of one text, ambiguous about one picture and clear about another, as long as there are both."""
    waiting: dict[Key, tuple[deque[Single], deque[Single]]] = defaultdict(lambda: (deque(), deque()))
    for single in _spread_singles(singles):
        waiting[single.question.key][single.question.kind != AMBIGUOUS].append(single)
    # A picture has one question of a text, so that the two are never about the same.
    found = [[Circle([], [], [*both]) for both in zip(*waiting[key], strict=False)] for key in sorted(waiting)]
    yield from (circle for turn in itertools.zip_longest(*found) for circle in turn if circle is not None)


def in_turn(first: Iterable[Circle], second: Iterable[Circle], rows: int | None) -> Iterator[Circle]:
    """Circles of both in turn, at most `rows` rows."""
    taken = 0
    for circle in (circle for turn in itertools.zip_longest(first, second) for circle in turn if circle is not None):
        taken += circle.rows
        if rows is not None and taken > rows:
            return
        yield circle


def unbalanced(pairs: Iterable[Pair], singles: Iterable[Single], rows: int | None) -> Iterator[Circle]:
    """One pair for each picture and attribute, and as many single clear questions, whatever their texts."""
    seen: set[tuple[int, str]] = set()
    asked: set[tuple[int, Key]] = set()
    others = iter(_spread_singles(singles))
    taken = 0
    for pair in _spread(pairs):
        if (pair.picture, pair.asked.attribute) in seen or (pair.picture, pair.twin.key) in asked:
            continue
        seen.add((pair.picture, pair.asked.attribute))
        asked |= {(pair.picture, pair.asked.key), (pair.picture, pair.twin.key)}
        free = (single for single in others if (single.picture, single.question.key) not in asked)
        circle = Circle([pair], [], [*itertools.islice(free, 1)])
        asked |= {(single.picture, single.question.key) for single in circle.singles}
        taken += circle.rows
        if rows is not None and taken > rows:
            return
        yield circle


def _spread(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs in turn by number of candidates, side of the twin's target, and its answer."""
    return _in_turn((len(pair.asked.candidates), *_stratum(pair.twin), pair) for pair in pairs)


def _spread_singles(singles: Iterable[Single]) -> list[Single]:
    """In turn by kind, side and answer."""
    return _in_turn((single.question.kind, *_stratum(single.question), single) for single in singles)


def _stratum(question: Question) -> tuple[str, str]:
    return question.target.attributes["side"] if question.target else "", question.answer


def _in_turn(items: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The last of each tuple, in turn by the others."""
    parts: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for *stratum, item in items:
        parts[tuple(stratum)].append(item)
    rounds = itertools.zip_longest(*(parts[stratum] for stratum in sorted(parts)))
    return [item for turn in rounds for item in turn if item is not None]
