"""Collect what recipes/opendriver_synthetic.sh measured in summary.json and print it claim by claim; exit 1 when one does not hold.

Claims, with 95 % intervals that draw whole pictures:

1. Retrieval finds names that the detector missed, and takes out some that it invented: recall and precision of named boxes rise.
2. The gates lower the hallucinated-object rate of rows: false claims of all claims that something is there, by the scenes' truth.
3. Retrieval lowers it further: rows that passed the gates with the detector alone hallucinate more.
4. Both arms of SFT have the same number of human and of synthetic rows.
5. SFT on rows that passed the gates beats, on held-out scenes, SFT on rows as they came, and
6. SFT on the human rows alone.

--claims small: 1 to 4, since its training is too short to teach; smoke: none. The round on rows that were written again stands next to
the round on the rows as they were; which is better is no claim.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, plain, run_tool
from drive_vlm.store.cache import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from drive_vlm.evaluation.object_names import Named

EXAMPLES = "python tools/opendriver_summary.py --run runs/opendriver_synthetic --claims full --seconds 900"
ARMS = ("human", "ungated", "gated")
Entry = dict[str, Any]


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/opendriver_summary.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="the recipe's directory")
    parser.flag("--claims", ("full", "small", "smoke"), "which claims must hold")
    parser.add_argument("--seconds", type=float, required=True, help="how long the recipe took")
    return parser


def truth_of(run: Path, pictures: Sequence[str]) -> "dict[str, list[Named]]":
    from drive_vlm.builders.synthesis.truth import objects_of_scene, read_scenes

    scenes = read_scenes(run / "world/scenes.jsonl")
    return {picture: [(name, box) for name, box in objects_of_scene(scenes[picture])] for picture in pictures}


def named_boxes(path: Path, field: str) -> "dict[str, list[Named]]":
    """{picture: (label, box) of a step's field}, names of the world alone: a crop of nothing has a name of its own."""
    from drive_vlm.builders.synthesis.truth import NAMES
    from drive_vlm.data.jsonl import JsonlFile

    return {
        line["image"]: [(item["label"], item["box"]) for item in line[field] if item["label"] in NAMES]
        for line in JsonlFile(path)
    }


def claims_of_steps(path: Path, names: Sequence[str]) -> list[Any]:
    """Claims of all rows of the step ask, as they came."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.evaluation.object_names import claim_of

    said = [
        claim_of(line["image"], row["question"], row["answer"], names)
        for line in JsonlFile(path)
        for row in line["rows"]
    ]
    return [claim for claim in said if claim is not None]


def claims_of_rows(path: Path, names: Sequence[str]) -> list[Any]:
    """Claims of the rows of a gate step, those of people left out; their pictures stand below images/."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.data.samples import parse_row
    from drive_vlm.evaluation.object_names import claim_of

    found = []
    for row in JsonlFile(path):
        if row.get("origin") != "human":
            sample = parse_row(row, str(path), "")
            found.append(claim_of(row["image"].removeprefix("images/"), sample.turns[0].text, sample.reference, names))
    return [claim for claim in found if claim is not None]


def row_scores(run: Path, truth: "Mapping[str, Sequence[Named]]") -> Entry:
    """Scores of what rows claim, with and without gates and retrieval, and the changes that are claimed."""
    from drive_vlm.builders.synthesis.truth import NAMES
    from drive_vlm.evaluation.object_names import claim_change, claim_counts, claim_scores

    names = list(NAMES)
    claims = {
        "detector": claims_of_steps(run / "detector/ask.jsonl", names),
        "detector, gates": claims_of_rows(run / "detector/gate/rows.jsonl", names),
        "retrieval": claims_of_steps(run / "synthetic/ask.jsonl", names),
        "retrieval, gates": claims_of_rows(run / "synthetic/gate/rows.jsonl", names),
    }
    counts: dict[str, np.ndarray] = {name: claim_counts(found, truth, names) for name, found in claims.items()}
    changes = {
        "gates": claim_change(counts["retrieval"], counts["retrieval, gates"]),
        "retrieval": claim_change(counts["detector, gates"], counts["retrieval, gates"]),
    }
    scores = {name: {"claims": int(item[:, 1].sum())} | plain(claim_scores(item)) for name, item in counts.items()}
    return {"scores": scores, "changes": plain({name: item["hallucinated"] for name, item in changes.items()})}


def box_scores(run: Path, truth: "Mapping[str, Sequence[Named]]") -> Entry:
    """Precision and recall of named boxes after detection and after retrieval, and the change."""
    from drive_vlm.evaluation.object_names import box_counts, name_change, name_scores

    counts = {
        "detection": box_counts(named_boxes(run / "synthetic/truth.jsonl", "boxes"), truth),
        "retrieval": box_counts(named_boxes(run / "synthetic/retrieve.jsonl", "objects"), truth),
    }
    change = name_change(counts["detection"], counts["retrieval"])
    return {"scores": plain({name: name_scores(item) for name, item in counts.items()}), "change": plain(change)}


def accuracies(run: Path) -> Entry:
    """Accuracy on held-out scenes of each arm, and the paired differences that are claimed."""
    from drive_vlm.data.predictions import read_checkpoints
    from drive_vlm.evaluation.answer_accuracy import correct_answers
    from drive_vlm.evaluation.statistics import paired_difference, summarize

    _, files, _ = read_checkpoints([str(run / f"{name}.jsonl") for name in ARMS])
    groups = [item.group for item in files[0]]
    right = {
        name: correct_answers([item.prediction for item in items], [item.reference for item in items])
        for name, items in zip(ARMS, files, strict=True)
    }
    entries = {name: summarize(values, groups).to_dict() for name, values in right.items()}
    pairs = {name: paired_difference(right[name], right["gated"], groups).to_dict() for name in ("ungated", "human")}
    return {
        "questions": len(groups),
        "accuracy": {name: {"value": one["mean"], "low": one["low"], "high": one["high"]} for name, one in entries.items()},
        "gated_over": {name: {"value": one["difference"], "low": one["low"], "high": one["high"]} for name, one in pairs.items()},
    }  # fmt: skip


def row_counts(run: Path) -> Entry:
    from drive_vlm.data.jsonl import JsonlFile

    found = {}
    for name, path in (("gated", run / "synthetic/gate/rows.jsonl"), ("ungated", run / "ungated/rows.jsonl")):
        rows = list(JsonlFile(path))
        human = sum(row.get("origin") == "human" for row in rows)
        found[name] = {"human": human, "synthetic": len(rows) - human}
    return found


def rounds_of(run: Path) -> Entry:
    """The last row of each chain's table: SFT before, the round after."""
    found = {}
    for name in ("static", "regenerated"):
        rows = read_json(run / name / "table.json")["rows"]
        found[name] = {"before": rows[-2], "after": rows[-1]}
    return found


def summarize_run(run: Path, seconds: float) -> Entry:
    """The recipe's numbers."""
    from drive_vlm.data.jsonl import JsonlFile

    pictures = [line["image"] for line in JsonlFile(run / "synthetic/truth.jsonl")]
    truth = truth_of(run, pictures)
    facts = read_json(run / "sft_gated/run.json")
    return {
        "pictures": len(pictures),
        "boxes": box_scores(run, truth),
        "rows": row_scores(run, truth),
        "row_counts": row_counts(run),
        "held_out": accuracies(run),
        "rounds": rounds_of(run),
        "ranks": facts["world_size"],
        "zero_stage": facts["zero_stage"],
        "seconds": round(seconds),
    }


def shown(found: Entry, scale: float = 100.0, form: str = ".1f") -> str:
    if found["value"] is None:
        return "undefined"
    if found["low"] is None:
        return f"{scale * found['value']:{form}}"
    return f"{scale * found['value']:{form}} [{scale * found['low']:{form}}, {scale * found['high']:{form}}]"


def above(found: Entry) -> bool:
    return found["low"] is not None and found["low"] > 0


def below(found: Entry) -> bool:
    return found["high"] is not None and found["high"] < 0


def claims(summary: Entry, size: str) -> list[tuple[str, bool]]:
    """(what was found, whether the claim holds), of those that this size makes."""
    boxes, rows, counts, arms = (summary[name] for name in ("boxes", "rows", "row_counts", "held_out"))
    change, signed = boxes["change"], "+.1f"
    data = [
        (f"retrieval: recall of names {shown(change['recall'], form=signed)} points", above(change["recall"])),
        (f"retrieval: precision of names {shown(change['precision'], form=signed)} points", above(change["precision"])),
        (
            f"gates: hallucinated objects {shown(rows['changes']['gates'], form=signed)} points",
            below(rows["changes"]["gates"]),
        ),
        (
            f"retrieval before the gates: hallucinated objects {shown(rows['changes']['retrieval'], form=signed)} points",
            below(rows["changes"]["retrieval"]),
        ),
        (
            f"rows of SFT: {counts['gated']} gated, {counts['ungated']} as they came",
            counts["gated"] == counts["ungated"],
        ),
    ]
    training = [
        (f"SFT: gated over {name} {shown(found, form=signed)} points", above(found))
        for name, found in arms["gated_over"].items()
    ]
    return {"full": [*data, *training], "small": data, "smoke": []}[size]


def run(args: Any) -> Entry:
    """Collect, judge, write summary.json, which is returned."""
    summary = summarize_run(args.run, args.seconds)
    summary["claims"] = [{"found": text, "holds": holds} for text, holds in claims(summary, args.claims)]
    write_json(args.run / "summary.json", summary)
    return summary


def show(summary: Entry, args: Any) -> str | None:
    where = f"{summary['pictures']:,} unlabelled pictures, {summary['held_out']['questions']:,} held-out questions"
    print(
        f"\nOpenDriver at small size: {where}, {summary['ranks']} ranks, ZeRO-{summary['zero_stage']}, {summary['seconds']} s"
    )
    for claim in summary["claims"]:
        print(f"  {'holds ' if claim['holds'] else 'FAILS '} {claim['found']}")
    for name, scores in summary["boxes"]["scores"].items():
        print(f"  names after {name}: precision {shown(scores['precision'])} %, recall {shown(scores['recall'])} %")
    for name, scores in summary["rows"]["scores"].items():
        print(
            f"  rows, {name}: {scores['claims']:,} claims, hallucinated {shown(scores['hallucinated'])} %, names: precision "
            f"{shown(scores['precision'])} %, recall {shown(scores['recall'])} %"
        )
    for name, found in summary["held_out"]["accuracy"].items():
        print(f"  SFT on {name} rows: accuracy {shown(found)} %")
    for name, found in summary["rounds"].items():
        print(f"  one round, {name}: accuracy {shown(found['before'])} -> {shown(found['after'])} %")
    print(f"  a sample of rows  {args.run}/synthetic/gate/sample.html\n  summary  {args.run}/summary.json")
    return None if all(claim["holds"] for claim in summary["claims"]) else "Not every claim holds."


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
