"""Collect the quickstart's results in summary.json and training.png, and print them; exit 1 when the model learned nothing to see."""

import json
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.report.figures import new_figure, save
from drive_vlm.store.cache import read_json, write_json

EXAMPLES = "python tools/quickstart_summary.py --run runs/quickstart --seconds 400"
# Above the better of blind baseline and chance.
MARGIN = 0.15


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/quickstart_summary.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="the quickstart's directory")
    parser.add_argument("--seconds", type=float, required=True, help="how long the quickstart took")
    return parser


def summarize(run: Path, seconds: float) -> dict[str, Any]:
    """The quickstart's numbers, accuracies and shares as fractions."""
    accuracy, clip, manifest = (read_json(run / name) for name in ("accuracy.json", "clip_scores.json", "run/run.json"))
    summary = {f"accuracy_{name}": accuracy["checkpoints"][name]["accuracy"] for name in ("before", "after")}
    summary["accuracy_blind"] = accuracy["baselines"]["blind"]["accuracy"]
    summary["accuracy_chance"] = accuracy["baselines"]["chance"]
    for part in ("text_text", "text_image"):
        for name in ("before", "after"):
            # Of each checkpoint there is one data set.
            (dataset,) = clip["checkpoints"][name]["datasets"].values()
            summary[f"clip_{part}_{name}"] = dataset[part]["mean"]
    return summary | {name: manifest[name] for name in ("world_size", "zero_stage")} | {"seconds": round(seconds)}


def plot_training(run: Path) -> None:
    """Training and evaluation loss over steps."""
    logs = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "held-out scenes")):
        points = [(log["step"], log[key]) for log in logs if key in log]
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if key == "eval_loss" else None)
    axes.set(
        xlabel="optimizer step", ylabel="loss per answer token", title="Quickstart: tiny InternVL, two ranks, ZeRO-2"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, run / "training.png")


def run(args: Any) -> dict[str, Any]:
    """Collect, plot, write summary.json, which is returned."""
    summary = summarize(args.run, args.seconds)
    plot_training(args.run)
    write_json(args.run / "summary.json", summary)
    return summary


def show(summary: dict[str, Any], args: Any) -> str | None:
    gain = summary["accuracy_after"] - max(summary["accuracy_blind"], summary["accuracy_chance"])
    print(f"\nQuickstart: {summary['world_size']} ranks, ZeRO-{summary['zero_stage']}, {summary['seconds']} s")
    print(
        f"  answer accuracy on held-out scenes   {summary['accuracy_before']:.1%} before -> {summary['accuracy_after']:.1%} after training"
    )
    print(
        f"  blind baseline {summary['accuracy_blind']:.1%}, chance {summary['accuracy_chance']:.1%}: {100 * gain:+.1f} points above the better"
    )
    for part, name in (("text_text", "CLIP text-text "), ("text_image", "CLIP text-image")):
        before, after = summary[f"clip_{part}_before"], summary[f"clip_{part}_after"]
        print(
            f"  {name}                      {before:.3f} -> {after:.3f} (difference {after - before:+.3f}; its interval is in the table above)"
        )
    run = args.run
    print(
        f"  pictures   {run}/clip_scores.png  {run}/training.png\n  logs       tensorboard --logdir {run}/run/tensorboard\n  summary    {run}/summary.json"
    )
    if gain < MARGIN:
        return (
            f"The model is only {100 * gain:.1f} points above the blind baseline; expected at least {100 * MARGIN:.0f}."
        )
    return None


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
