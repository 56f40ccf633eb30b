"""Collect what recipes/drive_vlm_synthetic.sh measured in summary.json and print it claim by claim; exit 1 when one does not hold.

Claims: stage 1 lowers the loss of held-out captions to LOSS_LEFT of its start's, and of what it is with the frames of other
clips, so that it comes from seeing and not from knowing the texts; stage 2 obeys both granularities and uses the order of frames; stage 3 raises the reward and
the precision against the exact truth, while recall and F1 do not fall by more than NOISE, nor the length by more than WORD_LOSS.
Stage 3 is judged on sampled texts (temperature 1), the distribution that GRPO trains; its change of the greedy texts is printed
next to it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.store.cache import read_json, write_json

EXAMPLES = "python tools/drive_vlm_summary.py --run runs/drive_vlm_synthetic --seconds 600"
# Share of the start's held-out loss that stage 1 may leave, and of the loss with other clips.
LOSS_LEFT = 0.5
# Points by which the order questions must be answered better than with shuffled frames.
ORDER_POINTS = 15
# Of recall and F1, which another draw of the texts moved by up to 0.03.
NOISE = 0.01
# Share of its words that a text of stage 3 may lose.
WORD_LOSS = 0.15


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/drive_vlm_summary.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="the recipe's directory")
    parser.add_argument("--seconds", type=float, required=True, help="how long the recipe took")
    return parser


def caption_losses(model: Path, rows: Path, num_frames: int) -> tuple[float, float]:
    """Mean loss of a text token of `rows`, in nats: with the rows' own videos, and with each the video of the next row."""
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(model)), torch.float32)
    encoder = Encoder(family.tokenizer, family.template, family.vision, num_frames)
    collator = Collator(family.tokenizer.pad_token_id, family.vision, False)
    network = family.model.eval()
    source = open_sources([str(rows)])[0]
    own = [read_sample(source, i) for i in range(len(rows.read_text().splitlines()))]
    other = [
        dataclasses.replace(row, video=following.video) for row, following in zip(own, [*own[1:], own[0]], strict=True)
    ]

    def mean(samples: list[Any]) -> float:
        total, tokens = 0.0, 0
        for sample in samples:
            batch = collator([[encoder.encode(sample)]])
            count = int((batch["labels"] != -100).sum())
            inputs = {name: batch[name] for name in batch if name not in ("sample_ids", "bad_rows", "num_tokens")}
            with torch.no_grad():
                total += count * network(**inputs).loss.item()
            tokens += count
        return total / tokens

    return mean(own), mean(other)


def change_in_stage3(scores: dict[str, Any]) -> dict[str, Any]:
    """Name -> value, low, high: reward, and objects against the exact truth; stage 3 less stage 2 on the same videos."""
    change = next(item for item in scores["comparisons"] if item["second"] == "stage3")["modes"]["(all)"]
    reward = change["terms"]["reward"]
    return {"reward": {**reward, "value": reward["difference"]}, **change["truth"]}


def summarize(run: Path, seconds: float) -> dict[str, Any]:
    """The recipe's numbers; accuracies as fractions."""
    frames = read_json(run / "stage1/run.json")["config"]["data"]["num_frames"]
    rows = run / "data/raw_captions_test.jsonl"
    start, end = (caption_losses(run / name, rows, frames) for name in ("base", "stage1"))
    order = read_json(run / "order_accuracy.json")["checkpoints"]
    greedy, sampled = read_json(run / "video_scores.json"), read_json(run / "sampled_scores.json")
    stages = {
        way: {name: found["modes"]["(all)"] for name, found in scores["checkpoints"].items()}
        for way, scores in (("greedy", greedy), ("sampled", sampled))
    }
    return {
        "stage1_loss": {"start": start[0], "end": end[0], "end_with_other_clips": end[1]},
        "concise_to_detailed": greedy["checkpoints"]["stage2"]["adherence"]["ratio"],
        "order_accuracy": {key: order["order"][key] for key in ("accuracy", "low", "high")},
        "order_accuracy_shuffled": {key: order["shuffled"][key] for key in ("accuracy", "low", "high")},
        **{
            name: {
                way: {stage: texts["terms"][name]["mean"] for stage, texts in found.items()}
                for way, found in stages.items()
            }
            for name in ("reward", "words")
        },
        "truth": {way: {stage: texts["truth"] for stage, texts in found.items()} for way, found in stages.items()},
        "stage3_change": {"greedy": change_in_stage3(greedy), "sampled": change_in_stage3(sampled)},
        "ranks": read_json(run / "stage3/run.json")["world_size"],
        "zero_stage": read_json(run / "stage3/run.json")["zero_stage"],
        "seconds": round(seconds),
    }


def interval(change: dict[str, Any]) -> str:
    if change["value"] is None:
        return "nothing to measure"
    return f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def claims(summary: dict[str, Any]) -> list[tuple[str, bool]]:
    """(what was found, whether the claim holds)."""
    start, end, other = (summary["stage1_loss"][name] for name in ("start", "end", "end_with_other_clips"))
    ratio, order = summary["concise_to_detailed"]["value"], summary["order_accuracy"]["accuracy"]
    shuffled = summary["order_accuracy_shuffled"]["accuracy"]
    change, words = summary["stage3_change"]["sampled"], summary["words"]["sampled"]

    lengths = "no text to measure"
    if ratio is not None:
        lengths = f"a concise text has {ratio:.2f} of the detailed one's words (median)"
    in_order = 100 * (order - shuffled) >= ORDER_POINTS
    kept = words["stage3"] > (1 - WORD_LOSS) * words["stage2"]

    def above(name: str, least: float, key: str = "value") -> bool:
        return change[name][key] is not None and change[name][key] > least

    def moved(name: str) -> str:
        return f"{name} {interval(change[name])} (greedy {interval(summary['stage3_change']['greedy'][name])})"

    return [
        (f"stage 1: loss of held-out captions {start:.3f} -> {end:.3f}", end <= LOSS_LEFT * start),
        (f"stage 1: that loss with the frames of other clips {other:.3f}", end <= LOSS_LEFT * other),
        (f"stage 2: {lengths}", ratio is not None and ratio <= 0.5),
        (f"stage 2: order of events {order:.1%}, with shuffled frames {shuffled:.1%}", in_order),
        (f"stage 3: {moved('reward')}", above("reward", 0, "low")),
        (f"stage 3, exact truth: {moved('precision')}", above("precision", 0)),
        (f"stage 3, exact truth: {moved('recall')}", above("recall", -NOISE)),
        (f"stage 3, exact truth: {moved('f1')}", above("f1", -NOISE)),
        (f"stage 3: words {words['stage2']:.1f} -> {words['stage3']:.1f}", kept),
    ]


def run(args: Any) -> dict[str, Any]:
    """Collect, judge, write summary.json, which is returned."""
    summary = summarize(args.run, args.seconds)
    summary["claims"] = [{"found": text, "holds": holds} for text, holds in claims(summary)]
    write_json(args.run / "summary.json", summary)
    return summary


def show(summary: dict[str, Any], args: Any) -> str | None:
    print(f"\nDrive-VLM at small size: {summary['ranks']} ranks, ZeRO-{summary['zero_stage']}, {summary['seconds']} s")
    for claim in summary["claims"]:
        print(f"  {'holds ' if claim['holds'] else 'FAILS '} {claim['found']}")
    print(f"  pictures {args.run}/video_scores.png, sampled_scores.png\n  summary  {args.run}/summary.json")
    return None if all(claim["holds"] for claim in summary["claims"]) else "Not every claim holds."


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
