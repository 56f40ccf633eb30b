"""Open-loop planning scores: L2 in VAD's and in UniAD's protocol, ADE, FDE, miss rates, collisions, next to what no picture earns.

Trajectories are read from the answers as text (drive_vlm/evaluation/answers); one that cannot be read is counted with its reason and
takes no part in any mean, least of all as the origin. The true future is the columns `future` and `axes` of the predictions, which
generate keeps, or of the rows of --data. Baselines on the same rows: standing still, constant velocity; with --train the mean future of
the command and a regression on history, speed and command (ego-only); with --blind_predictions the model without its pictures.
Intervals are 95 %, from a bootstrap over scenes. Each checkpoint is compared with the first one and with the baselines, on the rows
that both have. Collisions need --boxes. Definitions: drive_vlm/evaluation/planning.py and collision_grid.py, docs/evaluation.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, output_file, run_tool
from drive_vlm.report.tables import write_csv

if TYPE_CHECKING:
    import numpy as np

    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.planning import EgoState, Plans, PlanTruth

EXAMPLES = """
python tools/planning_eval.py --predictions sft.jsonl grpo.jsonl --train data/planning/train.jsonl --json scores.json
python tools/planning_eval.py --predictions p.jsonl --data data/planning/val.jsonl --boxes data/planning/val.boxes.jsonl
python tools/planning_eval.py --predictions p.jsonl --blind_predictions blank.jsonl --csv rows.csv
"""


BENCHMARK = "nuScenes open-loop planning"


def make_parser() -> CommandParser:
    from drive_vlm.evaluation.collision_grid import VAD_RANGE

    parser = CommandParser(prog="python tools/planning_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    add("--data", help="rows with the futures, found by id; every row must then have a prediction")
    flag(
        "--on_missing",
        ("error", "skip"),
        "rows of --data without a prediction: stop, or leave them out and mark the scores as partial",
    )
    add("--train", help="rows of tools/build_nuscenes_planning.py, usually those of training: what two baselines know")
    add("--blind_predictions", help="predictions of the last checkpoint with blank pictures (generate --blank_images)")
    add("--boxes", help="SPLIT.boxes.jsonl of tools/build_nuscenes_planning.py, for the collision rates")
    flag(
        "--box_range",
        list(VAD_RANGE),
        "metres: agents whose centre is inside x from, y from, x to, y to take part (the default is VAD's)",
        least=-1000,
        most=1000,
        metavar="M",
    )
    add("--csv", type=output_file, help="write one line for each row and checkpoint")
    add("--json", help="write every number to this file")
    flag("--seed", 0, "of the bootstrap")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Read, score, compare, write the CSV; returns what --json holds."""
    from drive_vlm.data.predictions import BLIND, read_blind, read_checkpoints
    from drive_vlm.evaluation.planning import read_plans

    if len(args.box_range) != 4 or args.box_range[0] >= args.box_range[2] or args.box_range[1] >= args.box_range[3]:
        raise ValueError(f"--box_range {' '.join(map(str, args.box_range))}: four numbers, x from, y from, x to, y to")
    names, files, left_out = read_checkpoints(args.predictions, need_reference=False)
    truth, missing = true_plans(files, args)
    systems: dict[str, Plans] = {
        name: read_plans([item.prediction for item in items], truth) for name, items in zip(names, files, strict=True)
    }
    known = known_plans(args.train) if args.train else None
    baselines = dict(baselines_of(truth, known))
    if args.blind_predictions:
        answers = [item.prediction for item in read_blind(args.blind_predictions, files[-1], False)]
        baselines[BLIND] = read_plans(answers, truth)
    collisions = collisions_of(systems | baselines, truth, files[0], args) if args.boxes else None
    scored = {name: scores_of(name, plans, truth, collisions) for name, plans in (systems | baselines).items()}
    result: dict[str, Any] = headline(names[-1], systems[names[-1]], baselines, scored, truth, missing, args.seed)
    if any(left_out):
        result["partial"].append(f"{sum(left_out):,} ids are not in every file")
    result |= {
        "rows": len(truth),
        "missing": missing,
        "scenes": len(set(truth.groups)),
        "baselines_know": args.train,
        "scenes_known": len(set(truth.groups) & set(known.groups)) if known else 0,
        "boxes": None if collisions is None else {"file": args.boxes, "range": args.box_range, **collisions.about},
        "checkpoints": {},
        "references": {},
        "comparisons": [],
    }
    for name, path, items, out in zip(names, args.predictions, files, left_out, strict=True):
        cut = sum(item.row.get("finish_reason") == "length" for item in items)
        entry = {"file": path, "ids_left_out": out, "cut": cut}
        result["checkpoints"][name] = entry | entry_of(systems[name], scored[name], truth, args.seed)
    for name, plans in baselines.items():
        result["references"][name] = entry_of(plans, scored[name], truth, args.seed)
    pairs = [(names[0], name) for name in names[1:]]
    pairs += [(base, name) for name in names for base in baselines if base != "standing still"]
    result["comparisons"] = [
        compared(first, second, systems | baselines, scored, truth, args.seed) for first, second in pairs
    ]
    if args.csv:
        write_csv(args.csv, csv_head(scored[names[0]]), csv_rows(names, files, systems, scored))
    return result


def true_plans(files: list[list["Prediction"]], args: Any) -> "tuple[PlanTruth, list[str]]":
    """The futures of the files' rows, and the ids of --data that have no prediction."""
    from drive_vlm.data.predictions import rows_by_id
    from drive_vlm.evaluation.planning import plan_truth
    from drive_vlm.evaluation.score_table import match_predictions

    items = files[0]
    if not args.data:
        return plan_truth([(f"{item.where}: id {item.id!r}", item.row, item.group) for item in items]), []
    rows = rows_by_id(args.data)
    match_predictions({name: row for name, (_, row) in rows.items()}, items, args.data, args.on_missing)
    said = {item.id for item in items}
    chosen = [(f"{rows[item.id][0]}: id {item.id!r}", rows[item.id][1], item.group) for item in items]
    return plan_truth(chosen), [name for name in rows if name not in said]


def known_plans(path: str) -> "PlanTruth":
    from drive_vlm.data.predictions import rows_by_id
    from drive_vlm.evaluation.planning import plan_truth

    rows = rows_by_id(path).values()
    return plan_truth([(where, row, str(row.get("group") or "")) for where, row in rows])


def baselines_of(truth: "PlanTruth", known: "PlanTruth | None") -> "Iterator[tuple[str, Plans]]":
    from drive_vlm.evaluation import planning

    def whole(points: "np.ndarray") -> "Plans":
        return planning.Plans(points, [""] * len(points))

    state: EgoState = truth.state
    yield "standing still", whole(planning.stand_still(state))
    yield "constant velocity", whole(planning.constant_velocity(state))
    if known is not None:
        yield "mean of the command", whole(planning.mean_trajectory(known.state, known.future, state))
        yield "ego-only", whole(planning.ego_only(known.state, known.future, state))


def headline(
    name: str,
    plans: "Plans",
    baselines: "dict[str, Plans]",
    scored: "dict[str, dict[str, np.ndarray]]",
    truth: "PlanTruth",
    missing: list[str],
    seed: int,
) -> dict[str, Any]:
    """The last checkpoint in the form that all evaluators share: its scores, and the ADE of the baselines."""
    from drive_vlm.evaluation.planning import VERSION
    from drive_vlm.evaluation.score_table import BASELINES, ScoreTable

    found = ScoreTable(BENCHMARK, VERSION, len(truth) + len(missing), len(truth), scale=1, seed=seed)
    found.unread = int((~plans.read).sum())
    groups = [group for group, read in zip(truth.groups, plans.read, strict=True) if read]
    for score, values in scored[name].items():
        found.add(score, values, groups, len(truth), found.unread)
    for base, other in baselines.items():
        groups = [group for group, read in zip(truth.groups, other.read, strict=True) if read]
        found.add(f"ADE, {base}", scored[base]["ADE"], groups, len(truth), int((~other.read).sum()), BASELINES)
    return found.to_dict()


class Collisions:
    """hits bool[N, 6] of each system (False where it is unread), and what is known of the boxes."""

    def __init__(self, hits: "dict[str, np.ndarray]", about: dict[str, Any]) -> None:
        self.hits, self.about = hits, about


def collisions_of(systems: "dict[str, Plans]", truth: "PlanTruth", items: "list[Prediction]", args: Any) -> Collisions:
    import numpy as np

    from drive_vlm.builders.nuscenes_planning import read_boxes
    from drive_vlm.evaluation.collision_grid import hits

    boxes = read_boxes(args.boxes)
    lost = [item for item in items if item.id not in boxes]
    if lost:
        raise ValueError(
            f"--boxes {args.boxes} lacks {len(lost):,} of {len(items):,} frames, e.g. {lost[0].id}; is it the same split?"
        )
    found = {name: np.zeros(truth.future.shape[:2], dtype=bool) for name in systems}
    own = np.zeros(truth.future.shape[:2], dtype=bool)
    for index, item in enumerate(items):
        read = {name: plans.points[index] for name, plans in systems.items() if plans.read[index]}
        each, own[index] = hits(list(read.values()), truth.future[index], boxes[item.id], args.box_range)
        for name, steps in zip(read, each, strict=True):
            found[name][index] = steps
    return Collisions(found, {"steps_left_out": float(own.mean())})


def scores_of(name: str, plans: "Plans", truth: "PlanTruth", collisions: Collisions | None) -> "dict[str, np.ndarray]":
    """Each score of the rows that are read, float[R]."""
    from drive_vlm.evaluation.planning import collision_scores, row_scores

    found = row_scores(plans.points[plans.read], truth.future[plans.read])
    return found if collisions is None else found | collision_scores(collisions.hits[name][plans.read])


def entry_of(plans: "Plans", scored: "dict[str, np.ndarray]", truth: "PlanTruth", seed: int) -> dict[str, Any]:
    """What --json holds of a checkpoint or a baseline."""
    from drive_vlm.evaluation.planning import estimates, unread_share

    groups = [group for group, read in zip(truth.groups, plans.read, strict=True) if read]
    commands = truth.state.command[plans.read]
    return {
        "scored": int(plans.read.sum()),
        "unread": asdict(unread_share(plans, truth.groups, seed)),
        "unread_by_reason": plans.reasons(),
        "scores": {name: asdict(value) for name, value in estimates(scored, groups, seed).items()},
        "by_command": by_command(scored, commands),
    }


def by_command(scored: "dict[str, np.ndarray]", commands: "np.ndarray") -> dict[str, Any]:
    from drive_vlm.evaluation.planning import COMMANDS

    found = {}
    for place, name in enumerate(COMMANDS):
        chosen = commands == place
        means = {score: float(scored[score][chosen].mean()) for score in ("ADE", "FDE")} if chosen.any() else {}
        found[name] = {"rows": int(chosen.sum()), **means}
    return found


def compared(
    first: str,
    second: str,
    systems: "dict[str, Plans]",
    scored: "dict[str, dict[str, np.ndarray]]",
    truth: "PlanTruth",
    seed: int,
) -> dict[str, Any]:
    """`second - first` on the rows that both have."""
    from drive_vlm.evaluation.planning import change

    both = systems[first].read & systems[second].read
    old, new = (
        {score: values[both[systems[name].read]] for score, values in scored[name].items()} for name in (first, second)
    )
    groups = [group for group, read in zip(truth.groups, both, strict=True) if read]
    moved = {name: asdict(value) for name, value in change(old, new, groups, seed).items()}
    return {"first": first, "second": second, "rows": len(groups), "scores": moved}


def csv_head(scored: "dict[str, np.ndarray]") -> list[str]:
    return ["id", "dataset", "group", "checkpoint", "unread", *scored, "prediction"]


def csv_rows(
    names: Sequence[str],
    files: list[list["Prediction"]],
    systems: "dict[str, Plans]",
    scored: "dict[str, dict[str, np.ndarray]]",
) -> Iterator[list[Any]]:
    for name, items in zip(names, files, strict=True):
        place = iter(range(len(items)))
        for item, reason in zip(items, systems[name].problems, strict=True):
            if reason:
                values = [""] * len(scored[name])
            else:
                index = next(place)
                values = [f"{column[index]:.6f}" for column in scored[name].values()]
            yield [item.id, item.dataset, item.group, name, reason, *values, item.prediction]


def main() -> None:
    from drive_vlm.report.planning import print_tables

    run_tool(make_parser(), run, lambda result, args: print_tables(result))


if __name__ == "__main__":
    main()
