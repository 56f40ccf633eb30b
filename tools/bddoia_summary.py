"""Collect what recipes/bddoia_synthetic.sh measured in summary.json and print it claim by claim; exit 1 when one does not hold.

Claims about A2C against the SFT model that it began with, on held-out scenes, with 95 % intervals:

1. The reward of answers sampled as in training and their share of valid JSON go up: the interval of either change is above 0.
2. F1_all and mF1 of the likeliest actions do not fall by more than NOISE: the whole interval is above that. With fewer than ENOUGH
   scenes it is too wide to show this; the claim is then that it does not show the contrary.
3. A2C looks: F1_all falls when the pictures are blank, and its interval lies above the best answer that needs no picture (with
   fewer than ENOUGH scenes, where training is as short, this is no claim).
4. The value head explains a part of the returns: the interval over the second half of the steps is above 0.
5. GRPO sampled as many tokens from the same start for the same rewards; what it reaches stands next to A2C, better or worse. (With
   fewer than ENOUGH scenes GRPO takes a few steps only, and this is no claim.)
"""

import json
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.store.cache import read_json, write_json

EXAMPLES = "python tools/bddoia_summary.py --run runs/bddoia_synthetic --seconds 600"
# Points of F1 that another draw of the scenes moves as well.
NOISE = 0.02
# Held-out scenes.
ENOUGH = 500
# Share by which the numbers of sampled tokens may differ before "as many" is not true.
SAME_TOKENS = 0.25


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bddoia_summary.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="the recipe's directory")
    parser.add_argument("--seconds", type=float, required=True, help="how long the recipe took")
    return parser


def metrics(run: Path, name: str) -> list[float]:
    """The values of a metric, step by step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def sampled_rewards(run: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """({checkpoint: {reward, its terms, valid JSON: a value a row}}, groups of the rows) of answers sampled as in training."""
    from drive_vlm.data.predictions import common_samples, read_predictions
    from drive_vlm.evaluation.oia_labels import read_answer
    from drive_vlm.rewards import build_reward, config_class

    files, _ = common_samples([read_predictions(run / "sampled" / f"{name}.jsonl") for name in names])
    config = read_json(run / "a2c/run.json")["config"]
    weights = config["a2c"]["reward_weights"]
    rewards = {}
    for name, flags in config["rewards"]:
        cls = config_class(name)
        rewards[name] = build_reward(name, cls(**flags) if cls else None)
    columns = {name: [item.row[name] for item in files[0]] for name in ("actions", "reason")}
    columns["files"] = [[str(run / "data" / name) for name in item.images] for item in files[0]]
    columns["reference"] = [item.reference for item in files[0]]
    found: dict[str, dict[str, list[float]]] = {}
    for name, items in zip(names, files, strict=True):
        texts = [item.prediction for item in items]
        scores = {term: reward([""] * len(texts), texts, **columns) for term, reward in rewards.items()}
        # Only a judge leaves a text unscored, and this demonstration has none.
        terms = {term: [score for score in given if score is not None] for term, given in scores.items()}
        total = [sum(map(float.__mul__, weights, row)) for row in zip(*terms.values(), strict=True)]
        valid = [float(read_answer(text).form == "json") for text in texts]
        found[name] = {"reward": total, **terms, "valid_json": valid}
    return found, [item.group for item in files[0]]


def change(first: list[float], second: list[float], groups: list[str]) -> dict[str, float]:
    from drive_vlm.evaluation.statistics import paired_difference

    found = paired_difference(first, second, groups)
    return {
        "first": found.mean_first, "second": found.mean_second, "value": found.difference, "low": found.low, "high": found.high
    }  # fmt: skip


def summarize(run: Path, seconds: float) -> dict[str, Any]:
    """The recipe's numbers."""
    from drive_vlm.data.predictions import BLIND
    from drive_vlm.evaluation.statistics import summarize as summary_of

    scores = read_json(run / "scores.json")
    sampled, groups = sampled_rewards(run, ("sft", "a2c", "grpo"))
    moved = {item["second"]: item["scores"]["action"] for item in scores["comparisons"] if item["first"] == "sft"}
    blind = next(item["scores"]["action"]["F1_all"] for item in scores["comparisons"] if item["first"] == BLIND)
    explained = metrics(run / "a2c", "explained_variance")
    late = summary_of(explained[len(explained) // 2 :])
    facts = read_json(run / "a2c/run.json")
    batch = facts["config"]["run"]["global_batch_size"]
    return {
        "rows": scores["rows"],
        "sampled": {
            pair: {term: change(sampled[first][term], sampled[second][term], groups) for term in sampled[first]}
            for pair, first, second in (("a2c", "sft", "a2c"), ("grpo", "sft", "grpo"), ("a2c_over_grpo", "grpo", "a2c"))
        },
        "action": {name: {key: found["scores"]["action"][key] for key in ("F1_all", "mF1")} for name, found in scores["checkpoints"].items()},
        "baselines": {name: found["scores"]["action"]["F1_all"] for name, found in scores["baselines"].items() if name != BLIND},
        "over_blank_pictures": blind,
        "action_change": {name: {key: moved[name][key] for key in ("F1_all", "mF1")} for name in ("a2c", "grpo")},
        "explained_variance": {"value": late.mean, "low": late.low, "high": late.high},
        "sampled_tokens": {name: sum(metrics(run / name, "completions/mean_length")) * batch for name in ("a2c", "grpo")},
        "ranks": facts["world_size"],
        "zero_stage": facts["zero_stage"],
        "seconds": round(seconds),
    }  # fmt: skip


def interval(found: dict[str, Any]) -> str:
    low, high = (f"{found[end]:+.3f}" if found[end] is not None else "none" for end in ("low", "high"))
    return f"{found['value']:+.3f} [{low}, {high}]"


def best_baseline(summary: dict[str, Any]) -> tuple[str, float]:
    """(name, F1_all of the actions) of the best constant or random answer."""
    scores = {name: found["value"] for name, found in summary["baselines"].items()}
    return max(scores.items(), key=lambda item: item[1])


def claims(summary: dict[str, Any]) -> list[tuple[str, bool]]:
    """(what was found, whether the claim holds)."""

    def rises(term: str, words: str) -> tuple[str, bool]:
        found = summary["sampled"]["a2c"][term]
        return f"{words} {found['first']:.3f} -> {found['second']:.3f}: {interval(found)}", above_zero(found)

    def above_zero(found: dict[str, Any]) -> bool:
        return found["low"] is not None and found["low"] > 0

    def kept(score: str) -> tuple[str, bool]:
        moved, now = summary["action_change"]["a2c"][score], summary["action"]["a2c"][score]["value"]
        end = "low" if summary["rows"] >= ENOUGH else "high"
        return f"A2C: {score} of the likeliest actions {now:.3f}: {interval(moved)}", moved[end] >= -NOISE

    explained, tokens = summary["explained_variance"], summary["sampled_tokens"]
    reached, (name, best) = summary["action"]["a2c"]["F1_all"], best_baseline(summary)
    blank = summary["over_blank_pictures"]
    share = tokens["grpo"] / tokens["a2c"]
    as_many = (f"GRPO sampled {share:.2f} of A2C's {tokens['a2c']:,.0f} tokens", abs(share - 1) <= SAME_TOKENS)
    without_a_look = f"without a look at best {best:.3f} ({name})"
    looks = (
        f"A2C: F1_all {reached['value']:.3f}, at least {reached['low']:.3f}; {without_a_look}",
        reached["low"] > best,
    )
    return [
        rises("reward", "A2C: reward of sampled answers"),
        rises("valid_json", "A2C: valid JSON of sampled answers"),
        kept("F1_all"),
        kept("mF1"),
        *([looks] if summary["rows"] >= ENOUGH else []),
        (f"A2C: F1_all over that with blank pictures {interval(blank)}", above_zero(blank)),
        (f"A2C: the value head explains {interval(explained)} of the returns' variance", above_zero(explained)),
        *([as_many] if summary["rows"] >= ENOUGH else []),
    ]


def run(args: Any) -> dict[str, Any]:
    """Collect, judge, write summary.json, which is returned."""
    summary = summarize(args.run, args.seconds)
    summary["claims"] = [{"found": text, "holds": holds} for text, holds in claims(summary)]
    write_json(args.run / "summary.json", summary)
    return summary


def show(summary: dict[str, Any], args: Any) -> str | None:
    where = f"{summary['rows']:,} held-out scenes, {summary['ranks']} ranks, ZeRO-{summary['zero_stage']}"
    print(f"\nBDD-OIA at small size: {where}, {summary['seconds']} s")
    for claim in summary["claims"]:
        print(f"  {'holds ' if claim['holds'] else 'FAILS '} {claim['found']}")
    for pair, words in (("a2c", "A2C - SFT"), ("grpo", "GRPO - SFT"), ("a2c_over_grpo", "A2C - GRPO")):
        terms = "; ".join(f"{term} {interval(found)}" for term, found in summary["sampled"][pair].items())
        print(f"  {words}, sampled answers: {terms}")
    name, best = best_baseline(summary)
    reached = ", ".join(f"{model} {found['F1_all']['value']:.3f}" for model, found in summary["action"].items())
    print(f"  F1_all of the likeliest actions: {reached}; best without a look: {name} {best:.3f}")
    print(f"  pictures {args.run}/f1.png, labels.png\n  summary  {args.run}/summary.json")
    return None if all(claim["holds"] for claim in summary["claims"]) else "Not every claim holds."


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
