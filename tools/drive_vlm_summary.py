"""Gather what recipes/drive_vlm_synthetic.sh measured into summary.json and print it claim by claim; exit 1 when one does not hold.

Claims: stage 1 lowers the loss; stage 2 obeys both granularities and uses the order of frames; stage 3 raises the reward and
the precision against the exact truth, while F1 and length do not fall.
"""

import json
import sys
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

EXAMPLES = "python tools/drive_vlm_summary.py --run runs/drive_vlm_synthetic --seconds 600"
ORDER_POINTS = 15  # that the order questions must be answered better than with shuffled frames
F1_LOSS = 0.02  # of the object F1, and
WORD_LOSS = 0.15  # of the words that stage 3 may lose: what a bootstrap over 100 to 200 videos cannot tell from nothing


def parse() -> Any:
    parser = CommandParser(prog="python tools/drive_vlm_summary.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="the recipe's directory")
    parser.add_argument("--seconds", type=float, required=True, help="how long the recipe took")
    return parser.parse_args()


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def summarize(run: Path, seconds: float) -> dict[str, Any]:
    """The recipe's numbers; accuracies as fractions, differences as stage 3 less stage 2 on the same videos."""
    losses = [row["loss"] for row in map(json.loads, (run / "stage1/metrics.jsonl").open()) if "loss" in row]
    order = load(run / "order_accuracy.json")["checkpoints"]
    scores = load(run / "video_scores.json")
    change = next(item for item in scores["comparisons"] if item["second"] == "stage3")["modes"]["(all)"]
    reward = change["terms"]["reward"]
    stages = {name: found["modes"]["(all)"] for name, found in scores["checkpoints"].items()}
    return {
        "stage1_loss": [losses[0], losses[-1]],
        "concise_to_detailed": scores["checkpoints"]["stage2"]["adherence"]["ratio"],
        "order_accuracy": {key: order["order"][key] for key in ("accuracy", "low", "high")},
        "order_accuracy_shuffled": {key: order["shuffled"][key] for key in ("accuracy", "low", "high")},
        "reward": {name: found["terms"]["reward"]["mean"] for name, found in stages.items()},
        "truth": {name: found["truth"] for name, found in stages.items()},
        "words": {name: found["terms"]["words"]["mean"] for name, found in stages.items()},
        "stage3_change": {"reward": {**reward, "value": reward["difference"]}, **change["truth"]},
        "ranks": load(run / "stage3/run.json")["world_size"],
        "zero_stage": load(run / "stage3/run.json")["zero_stage"],
        "seconds": round(seconds),
    }


def claims(summary: dict[str, Any]) -> list[tuple[str, bool]]:
    """(what was found, whether the claim holds)."""
    first, last = summary["stage1_loss"]
    ratio, order = summary["concise_to_detailed"]["value"], summary["order_accuracy"]["accuracy"]
    shuffled, change = summary["order_accuracy_shuffled"]["accuracy"], summary["stage3_change"]
    words, reward = summary["words"], summary["reward"]

    def above(name: str, least: float, key: str = "value") -> bool:
        return change[name][key] is not None and change[name][key] > least

    def moved(name: str) -> str:
        if change[name]["value"] is None:
            return "nothing to measure"
        return f"{change[name]['value']:+.3f} [{change[name]['low']:+.3f}, {change[name]['high']:+.3f}]"

    return [
        (f"stage 1: loss {first:.3f} -> {last:.3f}", last < first),
        (
            "stage 2: "
            + (
                "no text to measure"
                if ratio is None
                else f"a concise text has {ratio:.2f} of the detailed one's words (median)"
            ),
            ratio is not None and ratio <= 0.5,
        ),
        (
            f"stage 2: order of events {order:.1%}, with shuffled frames {shuffled:.1%}",
            100 * (order - shuffled) >= ORDER_POINTS,
        ),
        (
            f"stage 3: reward {reward['stage2']:.3f} -> {reward['stage3']:.3f} ({moved('reward')})",
            above("reward", 0, "low"),
        ),
        (f"stage 3: precision against the exact truth {moved('precision')}", above("precision", 0)),
        (f"stage 3: recall {moved('recall')}, F1 {moved('f1')}", above("f1", -F1_LOSS)),
        (
            f"stage 3: words {words['stage2']:.1f} -> {words['stage3']:.1f}",
            words["stage3"] > (1 - WORD_LOSS) * words["stage2"],
        ),
    ]


def main() -> None:
    args = parse()
    summary = summarize(args.run, args.seconds)
    found = claims(summary)
    summary["claims"] = [{"found": text, "holds": holds} for text, holds in found]
    (args.run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nDrive-VLM at small size: {summary['ranks']} ranks, ZeRO-{summary['zero_stage']}, {summary['seconds']} s")
    for text, holds in found:
        print(f"  {'holds ' if holds else 'FAILS '} {text}")
    print(f"  picture  {args.run}/video_scores.png\n  summary  {args.run}/summary.json")
    if not all(holds for _, holds in found):
        sys.exit("Not every claim holds.")


if __name__ == "__main__":
    main()
