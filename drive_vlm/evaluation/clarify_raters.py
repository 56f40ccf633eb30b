"""Who rates replies, and how far they agree: people, judges and the rules of clarify_replies.py.

strategy 1 to 4 by quadratic-weighted kappa, factual and asked by Cohen's kappa, next to the share of equal labels, which flatters.
A judge to train on should have a kappa of .6 with people, one to report with .4.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drive_vlm.evaluation.agreement import Rate, agreement
from drive_vlm.evaluation.clarify_replies import CANNOT_TELL, FAIL, PASS, Reading, Verdict

RULES, HUMAN = "rules", "human"
TO_TRAIN, TO_REPORT = 0.6, 0.4
FIELDS = ("strategy", "factual", "asked")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Label:
    """What one rater says of a reply; None: nothing."""

    strategy: int | None
    factual: str | None
    asked: bool | None

    @classmethod
    def of(cls, rated: Reading | Verdict) -> "Label":
        return cls(rated.strategy, rated.factual, rated.asked)

    @classmethod
    def read(cls, cells: Mapping[str, Any]) -> "Label":
        """From the cells of a file, where an empty one says nothing. Raises ValueError for a value that it cannot have."""
        words = {name: str(cells.get(name) if cells.get(name) is not None else "").strip().lower() for name in FIELDS}
        if words["strategy"] not in ("", "1", "2", "3", "4"):
            raise ValueError(f'"strategy" is {cells["strategy"]!r}, not 1, 2, 3 or 4')
        if words["factual"] not in ("", PASS, FAIL, CANNOT_TELL):
            raise ValueError(f'"factual" is {cells["factual"]!r}, not {PASS}, {FAIL} or {CANNOT_TELL}')
        if words["asked"] not in ("", *_WORDS):
            raise ValueError(f'"asked" is {cells["asked"]!r}, not true or false')
        if not any(words.values()):
            raise ValueError(f"none of {', '.join(FIELDS)} is filled in")
        return cls(
            int(words["strategy"]) if words["strategy"] else None, words["factual"] or None, _WORDS.get(words["asked"])
        )


# (checkpoint, number of the row)
Key = tuple[str, int]


def compare_raters(
    raters: Mapping[str, Mapping[Key, Label]], groups: Mapping[Key, str], seed: int = 0
) -> list[dict[str, Any]]:
    """For each two raters {"first", "second", field: {"kappa", "exact"}} over the replies that both have labelled."""
    found = []
    for first, second in itertools.combinations(raters, 2):
        entry: dict[str, Any] = {"first": first, "second": second}
        for field in FIELDS:
            both = [
                (key, old, new)
                for key, label in raters[first].items()
                if key in raters[second]
                and (old := getattr(label, field)) is not None
                and (new := getattr(raters[second][key], field)) is not None
            ]
            old_labels, new_labels = [item[1] for item in both], [item[2] for item in both]
            rates: dict[str, Rate] = agreement(
                old_labels, new_labels, [groups[key] for key, _, _ in both], field == "strategy", seed
            )
            entry[field] = rates
        found.append(entry)
    return found
