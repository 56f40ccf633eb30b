"""Rows with `chosen` and `rejected`: making them, refusing unusable ones, and statistics to look at before training on them."""

import copy
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from drive_vlm.data.turns import ROLES, BadRow

NEAR = 0.8


def pair_row(row: dict[str, Any], chosen: str, rejected: str, pair_id: str, **columns: Any) -> dict[str, Any]:
    """A copy of `row` as a pair: its last assistant turn becomes `chosen`, and `chosen` and `rejected` are added as plain texts.

    A row that ends with the user's turn gets an assistant turn.
    """
    made = copy.deepcopy(row)
    key, role, text = ("conversations", "from", "value") if "conversations" in row else ("messages", "role", "content")
    turns = made[key]
    if ROLES.get(turns[-1].get(role)) == "assistant":
        turns.pop()
    turns.append({role: "gpt" if role == "from" else "assistant", text: chosen})
    return made | {"id": pair_id, "chosen": chosen, "rejected": rejected} | columns


def check_pair(row: Any, where: str) -> dict[str, Any]:
    """A row of a pairs file. Raises BadRow with one of missing_field, empty_answer, identical."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("chosen", "rejected")):
        raise BadRow("missing_field", where, 'a pair needs the texts "chosen" and "rejected"', "Fix the row")
    if problem := unusable(row["chosen"], row["rejected"]):
        way_out = "Build pairs with tools/build_pairs.py"
        raise BadRow(problem, where, f"the pair is {problem.replace('_', ' ')}", way_out)
    return row


def unusable(chosen: str, rejected: str) -> str | None:
    """Why two texts are not a pair: "empty_chosen", "empty_rejected", "identical" (but for blanks), else None."""
    if not chosen.strip():
        return "empty_chosen"
    if not rejected.strip():
        return "empty_rejected"
    return "identical" if chosen.split() == rejected.split() else None


def similarity(first: str, second: str) -> float:
    """Jaccard index of the word trigrams (of the words, where a text has fewer than three), 0-1; case and punctuation
    do not count.

    >>> similarity("The car stops at the light.", "the car stops at the light")
    1.0
    """
    words = [re.findall(r"\w+", text.lower()) for text in (first, second)]
    n = 3 if min(map(len, words)) >= 3 else 1
    grams = [set(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in words]
    either = grams[0] | grams[1]
    return len(grams[0] & grams[1]) / len(either) if either else 1.0


def length_statistics(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Words of chosen and rejected answers: a model trained on pairs of one kind learns the length before anything else.

    `chosen_longer` is the share of pairs of different lengths whose chosen answer has more words; 0.5 means no bias.
    """
    if not pairs:
        return {}
    words = {key: np.array([len(pair[key].split()) for pair in pairs]) for key in ("chosen", "rejected")}
    different = words["chosen"] != words["rejected"]
    longer = words["chosen"] > words["rejected"]
    return {
        **{
            key: {"mean": float(counts.mean()), **dict(zip(("p5", "median", "p95"), np.quantile(counts, [0.05, 0.5, 0.95]).tolist(), strict=True))}
            for key, counts in words.items()
        },
        "mean_difference": float((words["chosen"] - words["rejected"]).mean()),
        "chosen_longer": float(longer[different].mean()) if different.any() else None,
        "equal_length": int((~different).sum()),
    }  # fmt: skip


def near_duplicates(pairs: Sequence[dict[str, Any]], threshold: float = NEAR) -> list[dict[str, Any]]:
    """Pairs whose two answers say nearly the same: [{"id", "similarity"}], the most alike first."""
    scored = [{"id": pair["id"], "similarity": similarity(pair["chosen"], pair["rejected"])} for pair in pairs]
    return sorted((item for item in scored if item["similarity"] >= threshold), key=lambda item: -item["similarity"])


def repeated(pairs: Sequence[dict[str, Any]]) -> set[int]:
    """Places of pairs that repeat an earlier one: the same row, chosen and rejected answer."""
    counts: Counter[tuple[str, str, str]] = Counter()
    places = set()
    for place, pair in enumerate(pairs):
        key = str(pair.get("row_id", pair["id"])), pair["chosen"], pair["rejected"]
        counts[key] += 1
        if counts[key] > 1:
            places.add(place)
    return places
