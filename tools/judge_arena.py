"""A judge compares the answers of any number of prediction files, two at a time: win rates, Elo and Bradley-Terry.

The judge sees the question, the reference, the pictures and two answers, in both orders; where the orders disagree the
battle is a tie. Equal answers tie without being asked. Replies that cannot be read are asked for again, then counted
and left out. Every battle is kept in --out as soon as it is judged and every reply on disk, so that a rerun goes on
where the last one ended and a second run asks nothing.
"""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, run_tool
from drive_vlm.judges import open_comparer
from drive_vlm.judges.judge import Compared, Comparer, Comparison, JudgeConfig, resolve_images, spent_line
from drive_vlm.judges.verdicts import FIRST, SECOND, TIE, Turns, read_prompt
from drive_vlm.launch.stop import listening
from drive_vlm.report.tables import console, interval, table
from drive_vlm.store.keyed_lines import JudgedRow, JudgedRows

if TYPE_CHECKING:
    from drive_vlm.data.predictions import Prediction

PROMPT = Path(__file__).parent / "prompts" / "arena.txt"
PLACES = ("question", "reference", "answer_a", "answer_b")
EXAMPLES = """
python tools/judge_arena.py --predictions direct.jsonl sft.jsonl round1.jsonl --judge_model gpt-4o --image_root data --out arena.jsonl
python tools/judge_arena.py --predictions sft.jsonl round*.jsonl --pairs vs-first --battles 500 --judge_model qwen-vl --judge_url http://localhost:8000/v1 --out arena.jsonl --plot arena.png
python tools/judge_arena.py --predictions a.jsonl b.jsonl --judge_backend hf --judge_model models/judge --no_images --out arena.jsonl
python tools/judge_arena.py --predictions a.jsonl b.jsonl --judge_backend reference --out arena.jsonl
"""


@dataclass(frozen=True)
class Planned:
    """A battle to be judged: two models' answers to one question."""

    models: tuple[str, str]
    items: "tuple[Prediction, Prediction]"
    images: tuple[str, ...]


class VerdictRow(JudgedRow):
    """What is read again of a line of --out; `facts_of` says the rest."""

    winner: str | None
    verdicts: NotRequired[list[str | None]]
    attempts: NotRequired[list[int]]


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/judge_arena.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each model")
    add("--out", required=True, help="JSONL of battles; battles that are in it are not judged again")
    flag("--pairs", ("all", "vs-first"), "all: every pair of models; vs-first: each against the first file's")
    add("--battles", type=int, help="judge a random sample of N battles (default: every question)")
    flag("--seed", 0, "of the sample and the bootstrap")
    add("--image_root", help="folder that picture paths start from (default: the first file's folder)")
    flag("--no_images", False, "the judge reads the texts alone")
    flag("--judge_prompt", str(PROMPT), "prompt file (.txt, or .json with example turns)")
    flag("--category_column", "category", "column of the table by category")
    add("--json", help="write every number to this file")
    add("--plot", help="PNG with the ratings and the matrix of win rates")
    add_dataclass(parser, JudgeConfig, "judge")
    return parser


def plan_battles(args: Any) -> tuple[list[Planned], dict[str, int]]:
    """The battles of the flags in a fixed order, and how many ids each model has that others lack."""
    from drive_vlm.data.predictions import read_checkpoints

    if len(args.predictions) < 2:
        raise ValueError("--predictions needs at least two files to compare")
    names, files, left_out = read_checkpoints(args.predictions)
    if TIE in names:
        raise ValueError(f"--predictions: no model may be called {TIE!r}; rename the file")
    pairs = list(itertools.combinations(range(len(names)), 2))
    if args.pairs == "vs-first":
        pairs = [(0, other) for other in range(1, len(names))]
    places = [(row, pair) for row in range(len(files[0])) for pair in pairs]
    if args.battles is not None and not 0 < args.battles <= len(places):
        raise ValueError(f"--battles {args.battles}: there are {len(places):,} pairs of answers to choose from")
    if args.battles is not None:
        # The first N of one shuffled order: a larger sample holds the smaller one.
        random.Random(args.seed).shuffle(places)
        places = sorted(places[: args.battles])
    root = args.image_root or str(Path(args.predictions[0]).resolve().parent)
    planned = []
    for row, (first, second) in places:
        items = files[first][row], files[second][row]
        images = () if args.no_images else resolve_images(items[0].images, root, items[0].where)
        planned.append(Planned((names[first], names[second]), items, images))
    return planned, dict(zip(names, left_out, strict=True))


def question_of(item: "Prediction") -> str:
    question = item.row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f'{item.where}: id {item.id!r}: no "question" to show to the judge')
    return question


def judge_battles(
    planned: list[Planned], prompt: Turns, comparer: Comparer, args: Any
) -> tuple[list[dict[str, Any]], int]:
    """Rows of all battles in order, and how many rows of an earlier run no longer fit."""
    from drive_vlm.store.cache import cache_key

    described = comparer.describe()
    keys = [
        cache_key(described, prompt, battle.models, battle.items[0].key, question_of(battle.items[0]), battle.items[0].reference,
                  [item.prediction for item in battle.items], [] if args.no_images else battle.items[0].images)
        for battle in planned
    ]  # fmt: skip
    facts = [facts_of(battle, args.category_column) for battle in planned]
    kept = JudgedRows(args.out, keys, args.judge_attempts, VerdictRow, facts)
    for row in kept.rows.values():
        if row["winner"] not in (*row["models"], TIE, None) or len(row.get("verdicts", "ab")) != 2:
            raise ValueError(
                f"{args.out}: id {row['id']!r}: no verdict of {' and '.join(row['models'])}. Remove the line."
            )
    todo = kept.missing()
    equal = [i for i in todo if same(planned[i])]
    kept.add({"key": keys[i]} | verdict_row(planned[i], None) for i in equal)
    open_ = [i for i in todo if not same(planned[i])]
    blocks = comparer.compare([comparison(planned[i]) for i in open_])
    rows = kept.add_blocks(open_, blocks, lambda i, result: verdict_row(planned[i], result))
    return rows, kept.stale


def same(battle: Planned) -> bool:
    """Whether the two answers are equal but for blanks: a tie that needs no judge."""
    first, second = (item.prediction.split() for item in battle.items)
    return first == second


def comparison(battle: Planned) -> Comparison:
    first, second = battle.items
    values = {"question": question_of(first), "reference": first.reference}
    return Comparison(values, first.prediction, second.prediction, battle.images)


def facts_of(battle: Planned, category_column: str) -> dict[str, Any]:
    """What a line of --out says besides its verdict."""
    item = battle.items[0]
    return {
        "id": item.id,
        "dataset": item.dataset,
        "category": str(item.row.get(category_column) or "(none)"),
        "group": item.group,
        "models": list(battle.models),
        "words": [len(answer.prediction.split()) for answer in battle.items],
    }


def verdict_row(battle: Planned, compared: Compared | None) -> dict[str, Any]:
    """The verdict in a line of --out. `winner` is a model, "tie", or null where an order could not be read."""
    if compared is None:
        return {"winner": TIE, "equal_answers": True}
    orders = (compared.shown, compared.swapped)
    return compared.unread_after() | {
        "winner": {FIRST: battle.models[0], SECOND: battle.models[1], TIE: TIE, None: None}[compared.winner],
        "verdicts": [order.value for order in orders],
        "attempts": [order.attempts for order in orders],
        "replies": [order.reply for order in orders],
    }  # fmt: skip


def show(result: dict[str, Any], args: Any) -> None:
    screen, models, rows = console(), result["models"], []
    for name in sorted(models, key=lambda name: -models[name]["bradley_terry"]["rating"]):
        entry = models[name]
        ratings = (f"{e['rating']:.0f}{interval(e, '.0f')}" for e in (entry["bradley_terry"], entry["elo"]))
        rate = entry["win_rate"]
        rows.append([name, str(rate["n"]), percent(rate), *ratings, f"{entry['mean_words']:.0f}"])
    head = ("model", "battles", "win rate", "Bradley-Terry", "Elo (over orders)", "words")
    screen.print(table("arena, 95 % intervals", head, rows))
    for title, groups in (
        ("win rate of the row against the column", result["pairs"]),
        ("win rate by category", result["by_category"]),
    ):
        if len(groups) < 2:
            continue
        columns = sorted({column for entries in groups.values() for column in entries}, key=list(models).index)
        rows = [
            [name, *(percent(entries[column]) if column in entries else "-" for column in columns)]
            for name, entries in groups.items()
        ]
        screen.print(table(title, ("", *columns), rows))
    for line in remarks(result):
        screen.print(line)
    for name, count in result["ids_left_out"].items():
        if name not in models:
            print(f"{name}: none of its battles could be read, so it has no rating")
        if count:
            print(f"{name}: {count} ids left out, missing in another file")
    if dropped := result["battles_of_other_settings_dropped"]:
        print(f"{dropped} battles of another judge, prompt or answer were dropped from {args.out}")
    print(spent_line(result["judge"]))


def percent(rate: dict[str, Any]) -> str:
    return f"{rate['rate']:.1%}{interval(rate, '.1%')}"


def remarks(result: dict[str, Any]) -> list[str]:
    """What was counted on the way, and how far the judge can be trusted."""
    counts, agree, first = result["counts"], result["position_bias"]["agree"], result["position_bias"]["first"]
    lines = [
        f"{counts['battles']:,} battles: {counts.get('decided', 0):,} decided, {counts.get('tie', 0):,} ties "
        f"({counts['equal_answers']:,} of them equal answers, not asked), {counts['unreadable']:,} unreadable and left out, "
        f"{counts['asked_again']:,} asked again; {counts['with_pictures']:,} shown with pictures"
    ]
    if agree["n"]:
        lines.append(f"both orders agree in {share(agree)} of {agree['n']:,} battles")
    if first["n"]:
        lines.append(
            f"position bias: of {first['n']:,} battles where the judge chose the same place twice, the first in {share(first)}"
        )
    if result["length_bias"]["n"]:
        lines.append(
            f"length bias: the longer answer won {share(result['length_bias'])} of {result['length_bias']['n']:,} decided battles"
        )
    return lines


def share(entry: dict[str, Any]) -> str:
    return f"{entry['share']:.0%}{interval(entry, '.0%')}"


def plot(path: str, result: dict[str, Any]) -> None:
    from drive_vlm.evaluation.arena import Rating, WinRate
    from drive_vlm.report.arena import plot_arena

    ratings = {name: Rating(**entry["bradley_terry"]) for name, entry in result["models"].items()}
    rates = {
        name: {other: WinRate(**rate) for other, rate in others.items()} for name, others in result["pairs"].items()
    }
    plot_arena(Path(path), ratings, rates, f"{result['counts']['battles']:,} battles, judge {result['judge']['name']}")


def run(args: Any) -> dict[str, Any]:
    """Plan, judge, summarise, plot; returns what --json holds."""
    from drive_vlm.report.arena import summarise

    config = from_namespace(JudgeConfig, args)
    args.no_images |= config.judge_backend == "reference"
    prompt = read_prompt(args.judge_prompt, PLACES)
    comparer = open_comparer(config, prompt)
    planned, left_out = plan_battles(args)
    rows, stale = judge_battles(planned, prompt, comparer, args)
    result = summarise(rows, args.seed)
    result["counts"]["with_pictures"] = sum(bool(battle.images) for battle in planned)
    result["judge"] = {
        "name": config.judge_model or config.judge_backend,
        "prompt": args.judge_prompt,
        "sees_images": not args.no_images,
        **comparer.spent(),
    }
    result["files"] = dict(zip(left_out, args.predictions, strict=True))
    result["ids_left_out"] = left_out
    result["battles_of_other_settings_dropped"] = stale
    if args.plot:
        plot(args.plot, result)
    return result


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
