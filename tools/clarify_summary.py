"""Collect what recipes/clarify_synthetic.sh measured in summary.json and print it claim by claim; exit 1 when one does not hold.

Claims on held-out scenes, with 95 % intervals that draw whole scenes:

1. SFT asks when it should: the interval of its J = recall - over-asking is above 0, which always and never asking have, and its gain over
   the model that it began with is above 0 too.
2. GRPO raises the reward that it trains, read by words and boxes, of replies sampled as in training.
3. It raises J, or the utility after the user's reply, of the sampled replies: one of the two intervals is above 0.
4. It does not ask more than SFT at clear questions: no interval of the change in over-asking is above 0, of the sampled or of the likeliest
   replies, and neither change is above NOISE.
5. The likeliest replies lose nothing: J and utility do not fall by more than NOISE.
"""

from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.store.cache import read_json, write_json

EXAMPLES = "python tools/clarify_summary.py --run runs/clarify_synthetic --seconds 900"
# What another draw of the scenes moves as well.
NOISE = 0.03
SCORES = ("youden_J", "ask_recall", "over_asking", "clear_accuracy", "reward", "final_accuracy", "final_utility")
Entry = dict[str, Any]


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/clarify_summary.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="the recipe's directory")
    parser.add_argument("--seconds", type=float, required=True, help="how long the recipe took")
    return parser


def change(scores: Entry, first: str, second: str) -> Entry:
    """{score: its change with interval} of two checkpoints in the file of tools/clarify_eval.py --json."""
    entry = next(item for item in scores["comparisons"] if (item["first"], item["second"]) == (first, second))
    return {name: entry["scores"][name] for name in SCORES}


def summarize(run: Path, seconds: float) -> Entry:
    """The recipe's numbers."""
    likeliest, sampled = read_json(run / "scores.json"), read_json(run / "sampled_scores.json")
    systems = likeliest["checkpoints"] | likeliest["baselines"]
    facts = read_json(run / "grpo/run.json")
    return {
        "rows": likeliest["rows"],
        "likeliest": {name: {score: entry["scores"][score] for score in SCORES} for name, entry in systems.items()},
        "sampled": {
            name: {score: entry["scores"][score] for score in SCORES} for name, entry in sampled["checkpoints"].items()
        },
        "sft_over_base": change(likeliest, "base", "sft"),
        "grpo_over_sft": {
            "likeliest": change(likeliest, "sft", "grpo"),
            "sampled": change(sampled, "sft", "grpo"),
        },
        "ranks": facts["world_size"],
        "zero_stage": facts["zero_stage"],
        "seconds": round(seconds),
    }


def interval(found: Entry) -> str:
    low, high = (f"{found[end]:+.3f}" if found[end] is not None else "none" for end in ("low", "high"))
    return f"{found['value']:+.3f} [{low}, {high}]" if found["value"] is not None else "none"


def above_zero(found: Entry) -> bool:
    return found["low"] is not None and found["low"] > 0


def claims(summary: Entry) -> list[tuple[str, bool]]:
    """(what was found, whether the claim holds)."""
    sft, gain = summary["likeliest"]["sft"]["youden_J"], summary["sft_over_base"]["youden_J"]
    moved, likeliest = summary["grpo_over_sft"]["sampled"], summary["grpo_over_sft"]["likeliest"]
    worth, utility = moved["youden_J"], moved["final_utility"]

    def not_more(found: Entry) -> bool:
        return not above_zero(found) and found["value"] is not None and found["value"] <= NOISE

    def kept(found: Entry) -> bool:
        return found["value"] is not None and found["value"] >= -NOISE

    over, over_likeliest = moved["over_asking"], likeliest["over_asking"]
    return [
        (f"SFT: J {interval(sft)}, always and never asking 0", above_zero(sft)),
        (f"SFT: J over the model before it {interval(gain)}", above_zero(gain)),
        (f"GRPO: reward of sampled replies {interval(moved['reward'])}", above_zero(moved["reward"])),
        (
            f"GRPO: J of sampled replies {interval(worth)}, utility {interval(utility)}",
            above_zero(worth) or above_zero(utility),
        ),
        (
            f"GRPO: over-asking of sampled replies {interval(over)}, of the likeliest {interval(over_likeliest)}",
            not_more(over) and not_more(over_likeliest),
        ),
        (
            f"GRPO: likeliest replies, J {interval(likeliest['youden_J'])}, utility {interval(likeliest['final_utility'])}",
            kept(likeliest["youden_J"]) and kept(likeliest["final_utility"]),
        ),
    ]


def run(args: Any) -> Entry:
    """Collect, judge, write summary.json, which is returned."""
    summary = summarize(args.run, args.seconds)
    summary["claims"] = [{"found": text, "holds": holds} for text, holds in claims(summary)]
    write_json(args.run / "summary.json", summary)
    return summary


def show(summary: Entry, args: Any) -> str | None:
    where = f"{summary['rows']:,} held-out rows, {summary['ranks']} ranks, ZeRO-{summary['zero_stage']}"
    print(f"\nClarifyVLM at small size: {where}, {summary['seconds']} s")
    for claim in summary["claims"]:
        print(f"  {'holds ' if claim['holds'] else 'FAILS '} {claim['found']}")
    for kind in ("likeliest", "sampled"):
        for name, scores in summary[kind].items():
            found = ", ".join(
                f"{score} {'none' if scores[score]['value'] is None else format(scores[score]['value'], '.3f')}"
                for score in SCORES
            )
            print(f"  {kind} replies of {name}: {found}")
    print(f"  pictures {args.run}/plots, {args.run}/failures.html\n  summary  {args.run}/summary.json")
    return None if all(claim["holds"] for claim in summary["claims"]) else "Not every claim holds."


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
