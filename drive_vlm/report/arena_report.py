"""Rows of judged battles (tools/judge_arena.py) -> every number of an arena, as JSON holds it."""

import statistics
from collections import Counter
from typing import Any

from drive_vlm.evaluation import arena
from drive_vlm.evaluation.arena import Battle
from drive_vlm.judges.verdicts import TIE


def to_battle(row: dict[str, Any]) -> Battle:
    first, second = row["models"]
    score = 0.5 if row["winner"] == TIE else float(row["winner"] == first)
    return Battle(first, second, score, row["group"])


def summarise(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Everything that --json holds of the battles; raises ValueError when no battle could be read."""
    read = [row for row in rows if row["winner"] is not None]
    if not read:
        raise ValueError(f"none of {len(rows)} battles has a verdict that can be read; look at the replies in --out")
    battles = [to_battle(row) for row in read]
    rates = arena.win_rates(battles, seed)
    asked = [row for row in read if "verdicts" in row]
    words: dict[str, list[int]] = {}
    for row in rows:
        for name, count in zip(row["models"], row["words"], strict=True):
            words.setdefault(name, []).append(count)
    decided = [
        row["words"] if row["winner"] == row["models"][0] else row["words"][::-1]
        for row in read
        if row["winner"] != TIE
    ]
    position = arena.position_bias(tuple(row["verdicts"]) for row in asked)
    return {
        "counts": {
            "battles": len(rows),
            "equal_answers": sum("verdicts" not in row for row in rows),
            "unreadable": len(rows) - len(read),
            "asked_again": sum(max(row.get("attempts", [1])) > 1 for row in rows),
            **Counter("tie" if row["winner"] == TIE else "decided" for row in read),
        },
        "models": {
            name: {
                "win_rate": arena.win_rate(*scores_of(battles, name), seed).to_dict(),
                "bradley_terry": rating.to_dict(),
                "elo": elo.to_dict(),
                "mean_words": statistics.fmean(words[name]),
            }
            for (name, rating), elo in zip(
                arena.bradley_terry(battles, seed=seed).items(),
                arena.elo_over_orders(battles, seed=seed).values(),
                strict=True,
            )
        },
        "pairs": {name: {other: rate.to_dict() for other, rate in others.items()} for name, others in rates.items()},
        "by_category": by_category(read, seed),
        "position_bias": {name: share.to_dict() for name, share in position.items()},
        "length_bias": arena.length_bias((winner, loser) for winner, loser in decided).to_dict(),
    }


def scores_of(battles: list[Battle], name: str) -> tuple[list[float], list[str | None]]:
    """Scores of one model over all its battles, and their groups."""
    found = [
        (battle.score if battle.first == name else 1 - battle.score, battle.group)
        for battle in battles
        if name in (battle.first, battle.second)
    ]
    return [score for score, _ in found], [group for _, group in found]


def by_category(rows: list[dict[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    """Win rate of each model over its battles, by category."""
    result: dict[str, dict[str, Any]] = {}
    for category in sorted({row["category"] for row in rows}):
        battles = [to_battle(row) for row in rows if row["category"] == category]
        result[category] = {
            name: arena.win_rate(*scores_of(battles, name), seed).to_dict() for name in arena.models_of(battles)
        }
    return result
