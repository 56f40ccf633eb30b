"""The chain as a table and as curves, and the choice of rows to hold out."""

from collections.abc import Callable, Sequence
from typing import Any

from drive_vlm.rounds.chain import DIRECT, Chain, logged


def table(chain: Chain, arena: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """One row a model: Direct, SFT (round 0) and every evaluated round, with the interval of its metric, and with `arena` (the
    result of tools/judge_arena.py on their answers) the win rate against SFT."""
    rows = []
    for number in chain.content["rounds"]:
        entry = chain.entry(number)
        if "evaluate" not in entry:
            continue
        score = entry["evaluate"]
        if lacks := [key for key in ("metric", "value", "low", "high") if key not in score]:
            raise ValueError(f"{chain.path}: rounds.{number}.evaluate has no {lacks[0]!r}. Evaluate the round again.")
        name = {DIRECT: "Direct", "0": "SFT"}.get(number, f"round {number}")
        training, generation = entry.get("train", {}), entry.get("generate", {})
        rows.append({
            "model": name,
            "metric": score["metric"],
            **{key: score[key] for key in ("value", "low", "high")},
            "pairs": sum(training["pairs"].values()) if training else None,
            "margin": training.get("margin"),
            "sampling": generation.get("settings"),
            "win_rate": None if number in (DIRECT, "0") else _win_rate(arena, number),
            "decision": entry.get("decision", {}).get("words"),
            **({"rows": rows_of_round(entry["regenerate"])} if "regenerate" in entry else {}),
        })  # fmt: skip
    return rows


def rows_of_round(facts: dict[str, Any]) -> dict[str, Any]:
    """What to watch of the rows that a round has written again, flat: counts, the figures of rows that passed the gates, the
    objects that nothing has seen before the gates and after, and the share of rows whose answer or question is new."""
    figures, changed = facts["gate"]["figures"], facts["changed"]
    none = {"value": None, "low": None, "high": None}
    used, given = (figures.get(name, {}) for name in ("used", "given"))
    return {
        **{key: facts[key] for key in ("human", "synthetic", "human_share")},
        **{key: used.get(key, none) for key in ("distinct_1", "distinct_2", "answer_words")},
        "hallucinated": {"given": given.get("hallucinated", none), "used": used.get("hallucinated", none)},
        "changed": None
        if changed is None
        else (changed["changed"] + changed["new"]) / (changed["both"] + changed["new"]),
    }


def _win_rate(arena: dict[str, Any] | None, number: str) -> dict[str, float] | None:
    if arena is None:
        return None
    rate = arena["pairs"].get(f"round-{number}/answers", {}).get("round-0/answers")
    return None if rate is None else {key: rate[key] for key in ("rate", "low", "high", "n")}


def training_curves(chain: Chain) -> dict[str, list[dict[str, float]]]:
    """What the training of each round logged, by the number of the round: see `logged`."""
    return {n: logged(chain.folder(n) / "model") for n, entry in chain.content["rounds"].items() if "train" in entry}


def held_out_rows(groups: Sequence[str], count: int, ordered: Callable[[str], Any]) -> set[str]:
    """Whole groups in the order of `ordered(group)` until `count` rows are together. `groups`: the group of each row."""
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    chosen: set[str] = set()
    taken = 0
    for group in sorted(sizes, key=lambda name: (ordered(name), name)):
        if taken >= count:
            break
        chosen.add(group)
        taken += sizes[group]
    if taken >= len(groups):
        raise ValueError(
            f"{count} of {len(groups)} rows in {len(sizes)} groups cannot be held out: nothing is left to train on"
        )
    return chosen
