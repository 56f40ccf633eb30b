"""How models deal with questions that fit several things: when they ask back, how well, what comes of it, and how they fail.

Each of --predictions is a checkpoint's answers to rows of tools/build_ambiguity.py. Replies are read by words and boxes
(drive_vlm/evaluation/clarify_replies.py); definitions: drive_vlm/evaluation/clarify.py and docs/clarify.md. The baselines
"always ask" and "never ask" stand in every table. Intervals are 95 %, from a bootstrap over the rows' "group".

Accuracy after a question back: --dialogues are answers to the builder's dialogues_SPLIT.jsonl, whose question is the row's own.
For the model's own questions, --write_dialogues writes what a simulated user replies to them, `generate` answers that, and
--after reads it: final accuracy and utility. --write_choices and --choices do the same for the four options of a row.
Flags with one file a checkpoint take them in the order of --predictions; "none" stands for a checkpoint without one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clarify_inputs import Rows, image_root, no_answer, one_each, read_after, read_human, read_rows, read_training

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, output_file, output_folder, run_tool
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import JudgeConfig, resolve_images, spent_line
from drive_vlm.launch.stop import listening
from drive_vlm.report.tables import write_csv

if TYPE_CHECKING:
    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.clarify import Reply
    from drive_vlm.evaluation.clarify_raters import Label
    from drive_vlm.evaluation.clarify_replies import Verdict

EXAMPLES = """
python tools/clarify_eval.py --predictions base.jsonl sft.jsonl grpo.jsonl --json scores.json --plots plots --gallery failures.html --image_root data/world
python tools/clarify_eval.py --predictions sft.jsonl grpo.jsonl --data val.jsonl --write_dialogues sft_own.jsonl grpo_own.jsonl --write_choices options.jsonl
python tools/clarify_eval.py --predictions sft.jsonl grpo.jsonl --data val.jsonl --after sft_after.jsonl grpo_after.jsonl --dialogues sft_d.jsonl grpo_d.jsonl
python tools/clarify_eval.py --predictions grpo.jsonl --samples t1_seed0.jsonl t1_seed1.jsonl t1_seed2.jsonl t1_seed3.jsonl
python tools/clarify_eval.py --predictions grpo.jsonl --judge_model gpt-5-mini --verdicts verdicts.jsonl --human labels.csv
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/clarify_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    add("--data", help="the rows themselves, found by id; every row must then have a prediction")
    flag(
        "--on_missing",
        ("error", "skip"),
        "rows of --data without a prediction, and questions back without an answer: stop, or count them and leave them out",
    )
    add("--blind_predictions", help="predictions of the last checkpoint with blank pictures (generate --blank_images)")
    add("--dialogues", nargs="+", help="answers to the builder's dialogues, one file for each checkpoint")
    add("--write_dialogues", nargs="+", type=output_file, help="write what the user replies to each checkpoint's own questions (needs --data)")  # fmt: skip
    add("--after", nargs="+", help="answers to those, one file for each checkpoint")
    add("--samples", nargs="+", action="append", help="files of sampled answers, one for each seed: P(ask); repeat the flag for each checkpoint")  # fmt: skip
    add("--write_choices", type=output_file, help="write the rows with their options A to D in four rotations (needs --data)")  # fmt: skip
    add("--choices", nargs="+", help="answers to those, one file for each checkpoint")
    add("--blind_choices", help="answers of the last checkpoint to those with blank pictures")
    add(
        "--verdicts",
        type=output_file,
        help="JSONL of the judge's verdicts; replies that are in it are not judged again",
    )
    add("--other_verdicts", nargs="+", help="verdict files of other judges, compared with the rest")
    add("--judge_prompts", help="folder of prompts; each is a phrasing and a vote (default: three of our own)")
    add("--human", help="CSV or JSONL of people's labels: id, strategy, factual, asked; with several --predictions also checkpoint")  # fmt: skip
    add("--image_root", help="folder that picture paths start from (default: that of --data, else of the first file)")
    flag("--no_images", False, "the judge reads the texts alone")
    add("--by", nargs="+", default=[], help="further columns of the rows to split the scores by, e.g. weather")
    flag("--bins", 10, "of the calibration")
    add(
        "--training",
        nargs="+",
        help="folders of runs with --rewards clarify: their curves, as training.png of --plots",
    )
    add("--csv", type=output_file, help="write one line for each row and checkpoint")
    add("--plots", type=output_folder, help="write the pictures into this folder")
    add("--gallery", type=output_file, help="write an HTML page with examples of each kind of failure")
    flag("--examples", 4, "examples of a kind in the gallery")
    add("--json", help="write every number to this file")
    flag("--seed", 0, "of the bootstrap, and of what the simulated user means")
    add_dataclass(parser, JudgeConfig, "judge")
    return parser


# --- what is written for a second generate


def write_followups(args: Any, rows: Rows, asked: list[list[bool]]) -> dict[str, Any]:
    """Write the files of --write_dialogues and --write_choices; returns {file: {rows, left_out: [why]}}."""
    from drive_vlm.builders.ambiguity.followups import NotPossible, four_choice_rows, own_dialogue
    from drive_vlm.store.keyed_lines import write_lines

    if (args.write_dialogues or args.write_choices) and not args.data:
        raise ValueError("--write_dialogues and --write_choices need --data: the turns of the rows stand there")
    written: dict[str, Any] = {}

    def write(
        path: Path,
        pairs: "Iterable[tuple[dict[str, Any], Prediction]]",
        make: "Callable[[dict[str, Any], Prediction], list[dict[str, Any]]]",
    ) -> None:
        found, left_out = [], []
        for row, item in pairs:
            try:
                found += make(row, item)
            except NotPossible as error:
                left_out.append(str(error))
        if left_out and args.on_missing == "error":
            raise ValueError(
                f"{left_out[0]} ({len(left_out):,} rows in all; --on_missing skip leaves them out and counts them)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, found)
        written[str(path)] = {"rows": len(found), "left_out": left_out}

    def dialogue(row: dict[str, Any], item: "Prediction") -> list[dict[str, Any]]:
        return [own_dialogue(row, item.prediction, args.seed, item.where)]

    for path, items, back in zip(one_each(args, "write_dialogues"), rows.items, asked, strict=True):
        if path is not None:
            pairs = [(row, item) for row, item, ask in zip(rows.columns, items, back, strict=True) if ask]
            write(path, pairs, dialogue)
    if args.write_choices:
        both = zip(rows.columns, rows.items[0], strict=True)
        write(args.write_choices, both, lambda row, item: four_choice_rows(row, item.where))
    return written


# --- what is measured


def make_replies(args: Any, rows: Rows, items: "list[Prediction]", after: dict[int, str]) -> "list[Reply]":
    from drive_vlm.evaluation.clarify import Reply, about, parts_of
    from drive_vlm.evaluation.clarify_replies import read_reply

    replies = []
    for i, (item, row, columns) in enumerate(zip(items, rows.clarify, rows.columns, strict=True)):
        more = {name: str(columns.get(name, "unknown")) for name in args.by}
        second = read_reply(about(row, rows.meant[i]), after[i]) if i in after else None
        parts = parts_of(row, str(columns.get("class") or "unknown")) | more
        replies.append(Reply(row, read_reply(row, item.prediction), item.group, parts, rows.meant[i], second))
    return replies


def read_calibration(
    paths: list[str] | None, replies: "list[Reply]", items: "list[Prediction]", args: Any
) -> dict[str, Any] | None:
    """P(ask) from the sampled answers of each row, and what it is worth."""
    from drive_vlm.data.predictions import read_predictions
    from drive_vlm.evaluation import calibration as measure
    from drive_vlm.evaluation.clarify import errors_of_answers
    from drive_vlm.evaluation.clarify_replies import read_reply

    if not paths:
        return None
    files = [{item.key: item.prediction for item in read_predictions(path, need_reference=False)} for path in paths]
    whole = [i for i, item in enumerate(items) if all(item.key in file for file in files)]
    missing = [item.id for i, item in enumerate(items) if i not in set(whole)]
    no_answer(args, missing, f"rows are not in all of --samples {' '.join(paths)}")
    if not whole:
        raise ValueError(f"--samples {' '.join(paths)}: no row is in all of them")
    sampled = [[read_reply(replies[i].row, file[items[i].key]) for file in files] for i in whole]
    chances = [sum(reading.asked for reading in each) / len(files) for each in sampled]
    truth = [replies[i].row.ambiguous for i in whole]
    points = measure.risk_coverage(chances, errors_of_answers([replies[i] for i in whole], sampled))
    return {
        "files": paths,
        "rows": len(whole),
        "missing": len(missing),
        "scores": plain(measure.calibration(chances, truth, [replies[i].group for i in whole], args.bins, args.seed)),
        "reliability": [asdict(item) for item in measure.reliability(chances, truth, args.bins)],
        "risk_coverage": [asdict(item) for item in points],
        "AURC": measure.area_under_risk(points),
    }


def read_dialogues(paths: list[str | None], names: list[str], args: Any) -> dict[str, Any]:
    """Accuracy after the row's own question back of each checkpoint, on the dialogues that all have, and McNemar against the first."""
    from drive_vlm.data.predictions import common_samples, read_predictions
    from drive_vlm.evaluation.agreement import mcnemar
    from drive_vlm.evaluation.clarify import accuracy
    from drive_vlm.evaluation.clarify_replies import ClarifyRow, read_reply

    given = [path for path in paths if path is not None]
    if not given:
        return {}
    files, left_out = common_samples([read_predictions(path, need_reference=False) for path in given])
    right = [
        [
            read_reply(ClarifyRow.read(item.row, f"{item.where}: id {item.id!r}"), item.prediction).right_answer
            for item in items
        ]
        for items in files
    ]
    groups = [item.group for item in files[0]]
    found = {
        name: {"file": path, "ids_left_out": out, "accuracy": accuracy(marks, groups, args.seed).to_dict()}
        for name, path, out, marks in zip(names, given, left_out, right, strict=True)
    }
    marks_of = dict(zip(names, right, strict=True))
    tests = [
        {"first": first, "second": second, **mcnemar(marks_of[first], marks_of[second]).to_dict()}
        for first, second in compared(names)
    ]
    return {"checkpoints": found, "mcnemar": tests}


def read_choices(path: str, args: Any) -> dict[str, Any]:
    """Scores of the answers to the rows of --write_choices."""
    from drive_vlm.data.predictions import read_predictions
    from drive_vlm.evaluation.clarify_choices import Choice, choice_scores, incomplete_rows, read_letter

    found = []
    for item in read_predictions(path, need_reference=False):
        row, where = item.row, f"{item.where}: id {item.id!r}"
        options, gold, rotation = (row.get(name) for name in ("choices", "gold_choice", "rotation"))
        if not isinstance(options, list) or type(gold) is not int or type(rotation) is not int or "row" not in row:
            raise ValueError(
                f"{where}: no choices, gold_choice, rotation and row; answer the rows that --write_choices wrote"
            )
        found.append(
            Choice(
                str(row["row"]),
                item.group,
                bool(row.get("ambiguous")),
                rotation,
                gold,
                read_letter(item.prediction, options),
            )
        )
    return {
        "file": path,
        "answers": len(found),
        "rows": len({item.row for item in found}),
        "incomplete": incomplete_rows(found),
        "scores": plain(choice_scores(found, args.seed)),
    }


def judge(args: Any, names: list[str], rows: Rows) -> "tuple[list[list[Verdict | None]], dict[str, Any] | None]":
    """(verdicts of each checkpoint's replies, what --json holds of the judge); None for each reply without a judge."""
    from drive_vlm.judges.clarify_verdicts import ReplyToJudge, judge_replies, prompt_files, read_phrasings

    nobody: list[list[Verdict | None]] = [[None] * len(rows.clarify) for _ in names]
    if not args.verdicts:
        if args.judge_model:
            raise ValueError("--judge_model needs --verdicts, the file that keeps its verdicts")
        return nobody, None
    config = from_namespace(JudgeConfig, args)
    prompts = read_phrasings(prompt_files(args.judge_prompts) if args.judge_prompts else ())
    opened = open_judge(config)
    wanted = []
    for items in rows.items:
        for item, row in zip(items, rows.clarify, strict=True):
            images = () if args.no_images else resolve_images(item.images, image_root(args), item.where)
            wanted.append(ReplyToJudge(item.id, row, item.prediction, images, () if args.no_images else item.images))
    verdicts, stale = judge_replies(opened, prompts, wanted, args.verdicts, config.judge_attempts)
    size = len(rows.clarify)
    apart = [verdicts[start : start + size] for start in range(0, len(verdicts), size)]
    unread = {name: sum(verdict is None for verdict in part) for name, part in zip(names, apart, strict=True)}
    more = {
        "votes": len(prompts),
        "unread": unread,
        "verdicts_of_other_settings_dropped": stale,
        "prompts": args.judge_prompts,
    }
    return apart, {"name": config.judge_model, **more, **opened.spent()}


def raters_of(
    args: Any, names: list[str], rows: Rows, systems: "dict[str, list[Reply]]", who: str | None
) -> "dict[str, dict[tuple[str, int], Label]]":
    """Labels by rater: people, the judge of this run, those of other files, the rules."""
    from drive_vlm.data.predictions import checkpoint_names
    from drive_vlm.evaluation.clarify_raters import HUMAN, RULES, Label
    from drive_vlm.judges.clarify_verdicts import read_verdicts

    replies = {(name, i): reply for name in names for i, reply in enumerate(systems[name])}
    found: dict[str, dict[tuple[str, int], Label]] = {}
    if args.human:
        found[HUMAN] = read_human(args.human, names, rows.items[0])
    if who:
        found[f"judge {who}"] = {key: Label.of(reply.verdict) for key, reply in replies.items() if reply.verdict}
    others = args.other_verdicts or []
    for name, path in zip(checkpoint_names(others) if others else [], others, strict=True):
        verdicts = read_verdicts(path)
        texts = {
            (checkpoint, i): (item.id, item.prediction)
            for checkpoint, items in zip(names, rows.items, strict=True)
            for i, item in enumerate(items)
        }
        found[f"judge {name}"] = {key: Label.of(verdicts[text]) for key, text in texts.items() if text in verdicts}
        if not found[f"judge {name}"]:
            raise ValueError(f"--other_verdicts {path}: none is about a reply of --predictions")
    return found | {RULES: {key: Label.of(reply.reading) for key, reply in replies.items()}} if found else {}


def plain(rates: dict[str, Any]) -> dict[str, Any]:
    return {name: asdict(rate) for name, rate in rates.items()}


def entry_of(replies: "list[Reply]", args: Any) -> dict[str, Any]:
    """What --json holds of a system's replies."""
    from drive_vlm.evaluation.clarify import belief_that_pays, by_length, by_part, confusion, scores

    parts = by_part(replies, args.seed)
    return {
        "confusion": confusion(replies),
        "scores": plain(scores(replies, args.seed)),
        "lengths": [asdict(part) for part in by_length(replies, seed=args.seed)],
        "break_even": belief_that_pays(replies),
        "parts": {part: {value: plain(rates) for value, rates in entries.items()} for part, entries in parts.items()},
    }


def checkpoint(
    args: Any, rows: Rows, i: int, asked: list[bool], verdicts: "list[Verdict | None]"
) -> "tuple[list[Reply], dict[str, Any]]":
    """The replies of checkpoint number `i`, and what --json holds of it."""
    from dataclasses import replace

    items, after = rows.items[i], one_each(args, "after")[i]
    texts, unanswered = read_after(after, items, rows, asked, args)
    replies = make_replies(args, rows, items, texts)
    replies = [replace(reply, verdict=verdict) for reply, verdict in zip(replies, verdicts, strict=True)]
    return replies, entry_of(replies, args) | {
        "file": args.predictions[i],
        "cut": sum(item.row.get("finish_reason") == "length" for item in items),
        "after": after and {"file": after, "unanswered": unanswered},
        "calibration": read_calibration(one_each(args, "samples")[i], replies, items, args),
        "choices": read_choices(args.choices[i], args) if args.choices else None,
    }


def baselines(args: Any, rows: Rows, replies: "list[Reply]") -> "dict[str, list[Reply]]":
    """What systems that do not look reply, in the order of the tables."""
    from drive_vlm.builders.splits import split_position
    from drive_vlm.data.predictions import BLIND, read_blind
    from drive_vlm.evaluation.clarify import ALWAYS, NEVER, baseline

    ids = [item.id for item in rows.items[0]]
    lots = [int.from_bytes(split_position(f"{name} guess", args.seed), "big") for name in ids]
    guesses = [lot % max(1, len(row.candidates)) for lot, row in zip(lots, rows.clarify, strict=True)]
    found = {
        kind: [baseline(reply, kind, guess) for reply, guess in zip(replies, guesses, strict=True)]
        for kind in (NEVER, ALWAYS)
    }
    if args.blind_predictions:
        found[BLIND] = make_replies(args, rows, read_blind(args.blind_predictions, rows.items[-1], False), {})
    return found


def compared(names: list[str]) -> list[tuple[str, str]]:
    """Each checkpoint with the first, and with the one before it."""
    pairs = [pair for i, name in enumerate(names) for pair in ((names[0], name), (names[i - 1], name)) if i]
    return list(dict.fromkeys(pairs))


def check(args: Any, names: list[str], rows: Rows) -> None:
    """Raises ValueError for names and columns that cannot be."""
    from drive_vlm.data.predictions import BLIND
    from drive_vlm.evaluation.clarify import ALWAYS, NEVER

    if taken := {ALWAYS, NEVER, BLIND} & set(names):
        raise ValueError(f"--predictions: no checkpoint may be called {taken.pop()!r}; rename the file")
    if lost := next((name for name in args.by if not any(name in row for row in rows.columns)), None):
        raise ValueError(f"--by {lost}: no row has this column")


def run(args: Any) -> dict[str, Any]:
    """Read, judge, score, compare, write; returns what --json holds."""
    from drive_vlm.data.predictions import BLIND
    from drive_vlm.evaluation.clarify import changes, paired
    from drive_vlm.evaluation.clarify_raters import compare_raters

    for name in ("dialogues", "after", "samples", "choices", "write_dialogues"):
        one_each(args, name)
    names, rows, left_out = read_rows(args)
    check(args, names, rows)
    training = read_training(args.training) if args.training else {}
    result: dict[str, Any] = {
        "rows": len(rows.clarify),
        "missing": rows.missing,
        "checkpoints": {},
        "training": training,
    }
    asked = [[reply.reading.asked for reply in make_replies(args, rows, items, {})] for items in rows.items]
    result["written"] = write_followups(args, rows, asked)
    verdicts, result["judge"] = judge(args, names, rows)
    systems: dict[str, list[Reply]] = {}
    for i, name in enumerate(names):
        systems[name], entry = checkpoint(args, rows, i, asked[i], verdicts[i])
        result["checkpoints"][name] = entry | {"ids_left_out": left_out[i]}
    result["groups"] = len({reply.group for reply in systems[names[0]]})
    blind = baselines(args, rows, systems[names[0]])
    result["baselines"] = {name: entry_of(replies, args) for name, replies in blind.items()}
    systems |= blind
    pairs = [*compared(names), *([(BLIND, names[-1])] if BLIND in blind else [])]
    result["comparisons"] = [
        {
            "first": first,
            "second": second,
            "scores": plain(changes(systems[first], systems[second], args.seed)),
            "mcnemar": {name: test.to_dict() for name, test in paired(systems[first], systems[second]).items()},
        }
        for first, second in pairs
    ]
    result["dialogues"] = read_dialogues(one_each(args, "dialogues"), names, args)
    result["blind_choices"] = read_choices(args.blind_choices, args) if args.blind_choices else None
    raters = raters_of(args, names, rows, systems, result["judge"] and result["judge"]["name"])
    groups = {(name, i): reply.group for name in names for i, reply in enumerate(systems[name])}
    result["agreement"] = [
        {key: plain(value) if isinstance(value, dict) else value for key, value in entry.items()}
        for entry in compare_raters(raters, groups, args.seed)
    ]
    write_pictures(args, names, rows, systems, result)
    return result


# --- what is written for people

CSV_HEAD = (
    *("id", "dataset", "group", "checkpoint", "ambiguous", "level", "type", "asked", "listed", "right_strategy", "strategy", "factual"),
    *("right_answer", "final_right", "questions", "failure", "judge_strategy", "judge_factual", "question", "prediction", "after"),
)  # fmt: skip


def csv_rows(names: list[str], rows: Rows, systems: "dict[str, list[Reply]]") -> Iterator[list[Any]]:
    from drive_vlm.evaluation.clarify import failure

    for name, items in zip(names, rows.items, strict=True):
        for item, reply in zip(items, systems[name], strict=True):
            row, reading, verdict = reply.row, reply.reading, reply.verdict
            marks = [reading.asked, reading.listed, reading.right_strategy, reading.strategy, reading.factual]
            ends = ["" if reply.final_right is None else int(reply.final_right), reply.questions, failure(reply)]
            judged = [verdict.strategy, verdict.factual] if verdict else ["", ""]
            texts = [row.question, item.prediction, reply.after.text if reply.after else ""]
            first = [item.id, item.dataset, item.group, name, int(row.ambiguous), row.level, row.type]
            cells = [int(mark) if isinstance(mark, bool) else mark for mark in marks]
            yield [*first, *cells, int(reading.right_answer), *ends, *judged, *texts]


def write_pictures(
    args: Any, names: list[str], rows: Rows, systems: "dict[str, list[Reply]]", result: dict[str, Any]
) -> None:
    if args.csv:
        write_csv(args.csv, CSV_HEAD, csv_rows(names, rows, systems))
    if args.plots:
        from drive_vlm.report.clarify_pictures import plot_all

        result["pictures"] = plot_all(args.plots, result)
    if args.gallery:
        from drive_vlm.report.clarify_gallery import Example, Said, write_gallery

        examples = []
        for i, item in enumerate(rows.items[0]):
            said = {
                name: Said(items[i].prediction, systems[name][i]) for name, items in zip(names, rows.items, strict=True)
            }
            examples.append(Example(item.id, resolve_images(item.images, image_root(args), item.where), said))
        result["gallery"] = write_gallery(args.gallery, examples, args.examples)


def show(result: dict[str, Any], args: Any) -> None:
    from drive_vlm.report.clarify import print_tables

    print_tables(result)
    if result["judge"]:
        print(spent_line(result["judge"]))


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show)


if __name__ == "__main__":
    main()
