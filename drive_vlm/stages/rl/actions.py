"""What a policy answers, by the vocabulary of actions, and whether it has come to answer one thing only."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, action_labels, read_answer

# Generation batches that the start is measured over, and the present.
_WINDOW = 10
# Nats: a start that hardly varies is no measure.
_LEAST = 0.05

# Indices of the actions that an answer names, ascending; () where it names none, or a text out of vocabulary.
Actions = tuple[int, ...]


def actions_of(text: str) -> Actions:
    """Of a completion, read as the evaluation reads it.

    >>> actions_of("Action: stop; Reason: red light"), actions_of("Action: fly")
    ((1,), ())
    """
    labels = action_labels(read_answer(text).actions)
    return () if labels.unknown else labels.indices


def entropy(counts: Mapping[Any, int]) -> float:
    """In nats, of the distribution that the counts have."""
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values() if n) if total else 0.0


class ActionMonitor:
    """Counts the answers of each generation batch. All ranks see the same gathered answers, so all decide alike."""

    def __init__(self, least_share: float) -> None:
        """`least_share` of the start's entropy ends the run; 0 never does."""
        self._least_share = least_share
        self._start: list[Counter[Actions]] = []
        self._now: deque[Counter[Actions]] = deque(maxlen=_WINDOW)

    def observe(self, answers: Sequence[Actions]) -> dict[str, float]:
        """The answers of a generation batch to rows that have actions; the metrics.

        Raises ValueError where the answers have collapsed.
        """
        if not answers:
            return {}
        batch = Counter(answers)
        (self._now if len(self._start) >= _WINDOW else self._start).append(batch)
        found = {
            f"actions/{text.replace('/', '_').replace(' ', '_')}": sum(i in said for said in answers) / len(answers)
            for i, text in enumerate(ACTION_TEXTS)
        }
        recent = _joined(self._now or self._start)
        found |= {"actions/entropy": entropy(recent), "actions/out_of_vocabulary": batch[()] / len(answers)}
        if len(self._now) == _WINDOW:
            self._refuse_collapse(recent)
        return found

    def _refuse_collapse(self, recent: "Counter[Actions]") -> None:
        start, now = entropy(_joined(self._start)), entropy(recent)
        if start < _LEAST or now >= self._least_share * start:
            return
        said, count = recent.most_common(1)[0]
        words = " and ".join(ACTION_TEXTS[i] for i in said) or "no action of the vocabulary"
        raise ValueError(
            f"The actions have collapsed: over the last {_WINDOW} generation batches their entropy is {now:.3f} nats, below "
            f"{self._least_share:.0%} of the {start:.3f} of the first {_WINDOW}; {count / recent.total():.0%} of the answers are "
            f"'{words}'. The last checkpoint is untouched. Lower --learning_rate, raise --kl_coef or --entropy_coef, look for what "
            "this answer gains (samples.jsonl), and go on from an earlier checkpoint. --collapse_entropy 0 never stops."
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"start": [_plain(one) for one in self._start], "now": [_plain(one) for one in self._now]}

    def load(self, state: Mapping[str, Any]) -> None:
        self._start = [_counter(one) for one in state["start"]]
        self._now = deque((_counter(one) for one in state["now"]), maxlen=_WINDOW)


def _joined(batches: Iterable["Counter[Actions]"]) -> "Counter[Actions]":
    found: Counter[Actions] = Counter()
    for batch in batches:
        found.update(batch)
    return found


def _plain(counts: "Counter[Actions]") -> list[list[Any]]:
    return [[list(said), count] for said, count in sorted(counts.items())]


def _counter(pairs: list[list[Any]]) -> "Counter[Actions]":
    return Counter({tuple(said): count for said, count in pairs})
