"""The state of a chain of self-play rounds (rounds.json), for recipes/spin_rounds.sh and for people.

start: begins a chain, or checks that the one in --out has the same settings; without --eval_data it holds rows out.
take: writes the training rows of a round that regenerates, from its gate step, with what to watch of them.
done: ends with 0 when a step of a round is done, 1 when it is to do, 2 when the state does not fit its files.
record: writes down what a finished step made. decide: ends with 3 when a round made the evaluation worse by more than
--margin. table: Direct, SFT and all rounds, printed and as JSON and PNG, there with the margin over the steps of each round.
check: ends with 1 where the reward margin of a round has not grown. forget: takes a round and those after it out.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.report.tables import interval, print_table
from drive_vlm.rounds.chain import DIRECT, STEPS, Chain, read_json
from drive_vlm.rounds.table import held_out_rows, table, training_curves

if TYPE_CHECKING:
    from drive_vlm.data.sources import Source

STOPPED = 3
EXAMPLES = """
python tools/rounds.py table --out runs/spin
python tools/rounds.py forget --out runs/spin --round 3
python tools/rounds.py start --out runs/spin --model runs/sft --data train.jsonl --held_out 500
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/rounds.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("action", choices=tuple(ACTIONS), help="see above")
    add("--out", required=True, help="folder of the chain; rounds.json lies in it")
    add("--round", help=f"number of the round from 1, 0 for the model the chain starts from, or {DIRECT}")
    add("--step", choices=STEPS, help="step of the round")
    add("--model", help="start: model of round 0")
    add("--direct", help="start: model before any fine-tuning, for the table")
    add("--data", help="start: training rows")
    add("--eval_data", help="start: held-out rows (default: --held_out rows of --data)")
    flag("--held_out", 500, "start: rows to hold out, whole pictures or groups", least=0)
    add("--image_root", help="start: folder that picture paths start from (default: the file's own)")
    flag("--sampling", "", "start: how answers are generated, as words to be kept")
    flag("--metric", "checkpoints.answers.accuracy", "start: the number in scores.json that counts; higher is better")
    add("--synth", help="start: plan file of tools/synthesize.py, with which every round writes its rows again")
    flag("--human_share", 0.3, "start: share of human rows in every such round", 0, 1)
    add("--synthetic", help="take: folder of the gate step, whose rows the model of the round before has written")
    flag("--margin", 0.02, "decide: how far the metric may fall from one round to the next")
    add("--arena", help="table: JSON of tools/judge_arena.py on the rounds' answers, for win rates")
    add("--seconds", type=float, help="check: how long the rounds took, to be printed")
    return parser  # fmt: skip


def start(args: Any) -> None:
    from drive_vlm.store.fingerprint import content_hash, model_fingerprint

    for flag in ("model", "data"):
        if getattr(args, flag) is None:
            raise ValueError(f"start needs --{flag}")
    if args.held_out < 1:
        raise ValueError(f"--held_out {args.held_out}: at least one row is needed to evaluate the rounds")
    for path in filter(None, (args.data, args.eval_data)):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such data file")
    held_out = {"held_out": args.held_out} if args.eval_data is None else {}
    settings = {
        "model": model_fingerprint(args.model),
        **({DIRECT: model_fingerprint(args.direct)} if args.direct else {}),
        **{flag: {"path": getattr(args, flag), "hash": content_hash(getattr(args, flag))} for flag in ("data", "eval_data") if getattr(args, flag)},
        **held_out,
        "sampling": args.sampling,
        "metric": args.metric,
        **({"regenerate": {"path": args.synth, "hash": content_hash(args.synth)}, "human_share": args.human_share} if args.synth else {}),
    }  # fmt: skip
    new = not (Path(args.out) / "rounds.json").is_file()
    if new:
        split(args)
    Chain.start(args.out, settings)


def split(args: Any) -> None:
    """Write data/train.jsonl and data/eval.jsonl under --out, or check that given --eval_data shares nothing with --data.

    A group (of the row's "group", else its pictures or video) is never cut. Raises ValueError where both sides share an
    id, a group or a picture.
    """
    from drive_vlm.builders.splits import split_position
    from drive_vlm.data.sources import open_sources
    from drive_vlm.store.keyed_lines import write_lines

    rows = rows_of(open_sources([args.data], args.image_root))
    if args.eval_data:
        parts = {"training rows": rows, "held-out rows": rows_of(open_sources([args.eval_data], args.image_root))}
    else:
        groups = [group_of(row) for row in rows]
        chosen = held_out_rows(groups, args.held_out, split_position)
        parts = {
            "train": [row for row, group in zip(rows, groups, strict=True) if group not in chosen],
            "eval": [row for row, group in zip(rows, groups, strict=True) if group in chosen],
        }
    check_leaks(parts)
    if not args.eval_data:
        folder = Path(args.out) / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            write_lines(folder / f"{name}.jsonl", [row for row, _ in part])
        print(f"{folder}: {len(parts['train']):,} rows to train on, {len(parts['eval']):,} held out")


def rows_of(sources: list["Source"]) -> list[tuple[dict[str, Any], list[str]]]:
    """All rows as they stand in the files, each with the paths of its pictures or its video below the source's root. Raises
    ValueError for a row that cannot be read."""
    from drive_vlm.data.sources import require_files
    from drive_vlm.data.table import read_sample

    require_files(sources)
    rows = []
    for source in sources:
        for i in range(len(source.rows)):
            sample = read_sample(source, i, need_answer=False)
            media = [*sample.images, *filter(None, [sample.video])]
            rows.append((source.row(i), [os.path.relpath(path, source.root) for path in media]))
    return rows


def keys_of(row: tuple[dict[str, Any], list[str]]) -> dict[str, Any]:
    """What find_leaks compares, whatever the form of the row."""
    return {"id": row[0].get("id"), "group": row[0].get("group"), "image": row[1]}


def group_of(row: tuple[dict[str, Any], list[str]]) -> str:
    """The row's group, else its pictures or its video, else its id."""
    return str(row[0].get("group") or " ".join(row[1]) or row[0].get("id"))


def take(args: Any) -> None:
    """Write round-T/rows.jsonl and what to watch of it."""
    from drive_vlm.rounds.regenerated import take_rows

    for flag in ("model", "synthetic"):
        if getattr(args, flag) is None:
            raise ValueError(f"take needs --{flag}")
    number = number_of(args)
    audit = take_rows(Chain(args.out), number, args.model, Path(args.synthetic))
    print(
        f"round {number}: {audit['human']:,} human and {audit['synthetic']:,} synthetic rows ({audit['human_share']:.1%} human), "
        f"{audit['gate']['given']:,} written"
    )


def check_leaks(files: dict[str, list[tuple[dict[str, Any], list[str]]]]) -> None:
    """Raises ValueError where two of the files share an id, a group or a picture."""
    from drive_vlm.builders.splits import find_leaks

    if leaks := find_leaks({name: map(keys_of, rows) for name, rows in files.items()}):
        raise ValueError(
            f"{len(leaks)} leaks between {' and '.join(files)}, e.g. {leaks[0]}. Split by scene or picture, and give EVAL_DATA."
        )


def done(args: Any) -> None:
    sys.exit(0 if Chain(args.out).is_done(*place(args)) else 1)


def record(args: Any) -> None:
    Chain(args.out).record(*place(args))


def place(args: Any) -> tuple[str, str]:
    if args.step is None:
        raise ValueError(f"{args.action} needs --step")
    return round_of(args), args.step


def round_of(args: Any) -> str:
    if args.round is None or not (args.round == DIRECT or args.round.isdigit()):
        raise ValueError(f"--round {args.round}: give the number of a round, or {DIRECT}")
    return args.round


def number_of(args: Any) -> int:
    if (number := round_of(args)) == DIRECT:
        raise ValueError(f"--round {DIRECT}: {args.action} needs the number of a round")
    return int(number)


def decide(args: Any) -> None:
    if args.margin < 0:
        raise ValueError(f"--margin {args.margin}: 0 or more")
    number = number_of(args)
    chain = Chain(args.out)
    goes_on = chain.decide(number, args.margin)
    if number:
        print(f"round {number}: {chain.entry(str(number))['decision']['words']}", flush=True)
    if not goes_on:
        print(
            f"The chain ends here; round {number - 1}'s model is {chain.out / f'round-{number - 1}' / 'model' if number > 1 else 'the one to keep'}. "
            "A larger MARGIN goes on all the same.",
            flush=True,
        )
        sys.exit(STOPPED)


def show(args: Any) -> None:
    from drive_vlm.report.rounds import plot_rounds
    from drive_vlm.store.cache import write_atomically

    chain = Chain(args.out)
    rows = table(chain, read_json(Path(args.arena)) if args.arena else None)
    if not rows:
        raise ValueError(f"{args.out}: no model is evaluated yet")
    text = json.dumps({"metric": chain.settings["metric"], "rows": rows}, indent=2) + "\n"
    write_atomically(chain.out / "table.json", lambda file: file.write(text.encode()))
    name = chain.settings["metric"].rsplit(".", 1)[-1]
    plot_rounds(chain.out / "table.png", name, rows, training_curves(chain))
    cells = [
        (
            row["model"],
            f"{row['value']:.4f}",
            interval(row, ".4f").strip(),
            "" if row["pairs"] is None else f"{row['pairs']:,}",
            "" if (margin := row["margin"]) is None else f"{margin['first']:+.3f} -> {margin['last']:+.3f}",
            "" if (rate := row["win_rate"]) is None else f"{rate['rate']:.1%}{interval(rate, '.1%')}",
            row["decision"] or "",
        )
        for row in rows
    ]
    head = ("model", name, "interval", "pairs", "margin first -> last", "win rate against SFT", "decision")
    print_table(f"{args.out}: {name} on held-out rows, 95 % interval", head, cells, left=len(head), width=140)
    if watched := [(row["model"], row["rows"]) for row in rows if "rows" in row]:
        show_rows(args.out, watched)
    print(f"{chain.out / 'table.json'}, {chain.out / 'table.png'}")


def show_rows(out: str, watched: list[tuple[str, dict[str, Any]]]) -> None:
    """What the model of the round before has written for each round."""

    def shown(entry: dict[str, Any], form: str) -> str:
        return "" if entry["value"] is None else f"{entry['value']:{form}}{interval(entry, form)}"

    cells = [
        (
            name,
            f"{found['human']:,} + {found['synthetic']:,}",
            *(shown(found[key], ".3f") for key in ("distinct_1", "distinct_2")),
            shown(found["answer_words"], ".1f"),
            *(shown(found["hallucinated"][key], ".1%") for key in ("given", "used")),
            "" if found["changed"] is None else f"{found['changed']:.1%}",
        )
        for name, found in watched
    ]
    head = (
        "rows of",
        "human + synthetic",
        "distinct-1",
        "distinct-2",
        "words",
        "invented, written",
        "invented, gated",
        "changed",
    )
    print_table(f"{out}: rows that the model of the round before has written", head, cells, left=len(head), width=180)


def check(args: Any) -> None:
    """Say of every trained round whether its margin has grown; ends with 1 where one has not."""
    chain = Chain(args.out)
    margins = {row["model"]: row["margin"] for row in table(chain) if row["margin"] is not None}
    if not margins:
        raise ValueError(f"{args.out}: no round with a logged margin is evaluated yet")
    manifest = read_json(chain.folder("1") / "model" / "run.json")
    took = "" if args.seconds is None else f", {args.seconds:.0f} s"
    print(f"\nSPIN: {manifest['world_size']} ranks, ZeRO-{manifest['zero_stage']}{took}")
    for name, margin in margins.items():
        print(
            f"  {'holds' if grows(margin) else 'FAILS'}  {name}: the reward margin grows, {margin['first']:+.4f} -> {margin['last']:+.4f}"
        )
    if not all(map(grows, margins.values())):
        sys.exit("Not every claim holds.")


def grows(margin: dict[str, float]) -> bool:
    return margin["last"] > margin["first"]


def forget(args: Any) -> None:
    number = number_of(args)
    for path in Chain(args.out).forget(number):
        print(f"kept as {path}")
    print(f"rounds from {number} on are out of the state and are made again")


ACTIONS: dict[str, Callable[[Any], None]] = {
    "start": start,
    "take": take,
    "done": done,
    "record": record,
    "decide": decide,
    "table": show,
    "check": check,
    "forget": forget,
}


if __name__ == "__main__":
    run_tool(make_parser(), lambda args: ACTIONS[args.action](args))
