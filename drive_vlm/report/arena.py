"""The report of an arena (tools/judge_arena.py): every number of its battles as JSON holds it, and the picture of them."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.evaluation import arena
from drive_vlm.evaluation.arena import Battle, Rating, WinRate
from drive_vlm.judges.verdicts import TIE
from drive_vlm.report.figures import bare, errors_of, new_figure, save


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


def plot_arena(
    path: Path, ratings: Mapping[str, Rating], rates: Mapping[str, Mapping[str, WinRate]], title: str
) -> None:
    """Write a PNG. `rates[model][other]` as win_rates gives it; pairs that never met stay white."""
    names = sorted(ratings, key=lambda name: -ratings[name].rating)
    size = max(3.4, 1.2 + 0.55 * len(names))
    figure = new_figure(2.6 * size, size)
    left, right = figure.subplots(1, 2)
    _draw_ratings(left, names, ratings)
    _draw_matrix(figure, right, names, rates)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _draw_ratings(axes: Any, names: Sequence[str], ratings: Mapping[str, Rating]) -> None:
    for place, name in enumerate(names):
        entry = ratings[name]
        errors = errors_of(entry.rating, entry.low, entry.high)
        axes.errorbar(entry.rating, place, xerr=errors, fmt="o", color="#4477aa", markersize=5, capsize=4)
        axes.annotate(
            f"{entry.rating:.0f}", (entry.rating, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("Bradley-Terry rating, 95 % interval (400 points: odds 10 to 1)")
    bare(axes, "x")


def _draw_matrix(figure: Any, axes: Any, names: Sequence[str], rates: Mapping[str, Mapping[str, WinRate]]) -> None:
    import numpy as np

    table = np.full((len(names), len(names)), np.nan)
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if other in rates.get(name, {}):
                table[i, j] = rates[name][other].rate
                dark = abs(table[i, j] - 0.5) > 0.3
                text = f"{100 * table[i, j]:.0f}\nn {rates[name][other].n}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    image = axes.imshow(table, cmap="RdBu", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("win rate of the row against the column, %", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
