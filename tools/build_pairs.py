"""Rows and a model's own answers -> preference pairs for DPO and SPIN.

By default (SPIN) chosen is the row's answer and rejected what the previous round's model said. With --positives best
the model's own best answer is chosen and its worst rejected, by a metric or a judge; give several generations of the
same rows then. Empty and identical answers and repeated pairs are dropped and counted; near-duplicates and the lengths
of both sides are reported, since a length bias is learned before anything else. --judge_filter keeps the pairs whose
chosen answer a judge prefers in both orders. Nothing is written until all is done; what a judge said is kept.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from drive_vlm.builders.pair_sources import (
    Answered,
    best_pairs,
    check_ids,
    gold_pairs,
    read_answered,
    read_pairs,
    without,
)
from drive_vlm.config import CommandParser, add_dataclass, from_namespace, run_tool
from drive_vlm.data.preference.pairs import NEAR, length_statistics, near_duplicates, repeated, unusable
from drive_vlm.data.samples import Sample
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import Comparison, JudgeConfig, PromptComparer, Request, check_images, judge_all, spent_line
from drive_vlm.judges.verdicts import FIRST, SECOND, fill, parse_rating, read_prompt
from drive_vlm.launch.stop import listening
from drive_vlm.store.cache import write_json
from drive_vlm.store.keyed_lines import JudgedRow, JudgedRows, write_lines

PROMPTS = Path(__file__).parent / "prompts"
EXAMPLES = """
python tools/build_pairs.py --data train.jsonl --predictions round0.jsonl --round 1 --out pairs1.jsonl
python tools/build_pairs.py --data train.jsonl --predictions round1.jsonl --round 2 --mix pairs1.jsonl --out pairs2.jsonl
python tools/build_pairs.py --data train.jsonl --predictions s0.jsonl s1.jsonl s2.jsonl --positives best --score judge --judge_model qwen-vl --judge_url http://localhost:8000/v1 --out pairs.jsonl
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_pairs.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", nargs="+", required=True, help="JSONL rows with answers, the prompts of the generations")
    add(
        "--predictions",
        nargs="+",
        required=True,
        help="predictions of the previous round's model; several files are several answers a row",
    )
    add("--out", required=True, help="pairs JSONL; OUT.audit.json is written next to it")
    flag("--round", 1, "number of the round, kept in every pair and its id", least=0)
    flag("--positives", ("gold", "best"), "chosen answers: the rows' own, or the best generated")
    flag("--score", ("rouge_l", "judge"), "what says which generated answer is best (--positives best)")
    flag(
        "--min_margin",
        0.0,
        "with --positives best: drop pairs whose scores differ by no more than this (ROUGE-L 0-1, judge 1-10)",
    )
    add("--mix", nargs="+", default=[], help="pairs of earlier rounds to put behind the new ones")
    flag(
        "--drop_near_duplicates",
        False,
        f"leave out pairs whose answers are at least {NEAR:.0%} alike, instead of only reporting them",
    )
    flag("--judge_filter", False, "keep the pairs whose chosen answer the judge prefers in both orders")
    flag("--on_missing", ("error", "skip"), "rows without a generated answer: stop, or count them")
    add(
        "--judge_prompt",
        help="prompt file of the judge (default: tools/prompts/prefer.txt, rate.txt for --score judge)",
    )
    add("--image_root", help="folder that picture paths start from (default: the data file's own folder)")
    flag("--no_images", False, "the judge reads the texts alone")
    add_dataclass(parser, JudgeConfig, "judge")
    return parser


def question_of(sample: Sample) -> str:
    return " ".join(turn.text for turn in sample.turns if turn.role == "user").strip()


class RatingRow(JudgedRow):
    rating: int | None


class PreferenceRow(JudgedRow):
    preferred: Literal["chosen", "rejected", "tie", "unread"]


class Judged:
    """A judge whose replies are kept in OUT.judged.jsonl, so that a rerun goes on where the last one ended."""

    def __init__(self, args: Any) -> None:
        self.args, self.judge = args, open_judge(from_namespace(JudgeConfig, args))
        self.path = f"{args.out}.judged.jsonl"
        default = PROMPTS / ("rate.txt" if args.positives == "best" and args.score == "judge" else "prefer.txt")
        rates = default.name == "rate.txt"
        self.prompt = read_prompt(
            args.judge_prompt or default, ("question", "prediction") if rates else ("question", "answer_a", "answer_b")
        )

    def kept(
        self,
        items: Sequence[Any],
        run: Callable[[list[Any]], Any],
        row: Callable[[Any], dict[str, Any]],
        form: type[JudgedRow],
    ) -> list[dict[str, Any]]:
        """Rows of all `items` in order; those that no earlier run judged go through `run`, which yields blocks."""
        from drive_vlm.store.cache import cache_key

        described = self.judge.describe()
        rows = JudgedRows(
            self.path, [cache_key(described, self.prompt, item) for item in items], self.args.judge_attempts, form
        )
        todo = rows.missing()
        blocks = run([items[i] for i in todo])
        return rows.add_blocks(todo, blocks, lambda _, result: row(result) | result.unread_after())

    def images(self, sample: Sample) -> tuple[str, ...]:
        return () if self.args.no_images else check_images(sample.images, sample.where)


def scores_of(sources: list[Answered], judged: Judged | None) -> list[list[float | None]]:
    """A score for each answer of each row: ROUGE-L against the row's answer, or the judge's rating (None: unread)."""
    flat = [(source, answer) for source in sources for answer in source.answers]
    if judged is None:
        from drive_vlm.evaluation.text_overlap import rouge_l, tokenize

        if bare := [source.sample.where for source in sources if not source.sample.reference]:
            raise ValueError(f"{bare[0]}: no answer to compare with; use --score judge, or rows with answers")
        values: list[float | None] = list(
            rouge_l(
                [tokenize(answer) for _, answer in flat], [[tokenize(source.sample.reference)] for source, _ in flat]
            )
        )
    else:
        values = ratings_of(flat, judged)
    rest = iter(values)
    return [[next(rest) for _ in source.answers] for source in sources]


def ratings_of(flat: list[tuple[Answered, str]], judged: Judged) -> list[float | None]:
    items = [
        (question_of(source.sample), source.sample.reference or "(none)", answer, judged.images(source.sample))
        for source, answer in flat
    ]

    def run(open_: list[Any]) -> Any:
        names = ("question", "reference", "prediction")
        requests = [Request(fill(judged.prompt, dict(zip(names, item[:3], strict=True))), item[3]) for item in open_]
        return judge_all(judged.judge, requests, parse_rating, judged.args.judge_attempts)

    rows = judged.kept(items, run, lambda rating: {"rating": rating.value, "reply": rating.reply}, RatingRow)
    return [row["rating"] for row in rows]


def preferred(pairs: list[dict[str, Any]], samples: dict[str, Sample], judged: Judged) -> list[str]:
    """For each pair the answer that the judge prefers: "chosen", "rejected", "tie" or "unread"."""
    items = [
        (question_of(samples[pair["row_id"]]), pair["chosen"], pair["rejected"], judged.images(samples[pair["row_id"]]))
        for pair in pairs
    ]

    def run(open_: list[Any]) -> Any:
        found = [
            Comparison({"question": question}, chosen, rejected, images) for question, chosen, rejected, images in open_
        ]
        return PromptComparer(judged.judge, judged.prompt, judged.args.judge_attempts).compare(found)

    names = {FIRST: "chosen", SECOND: "rejected", "tie": "tie", None: "unread"}
    rows = judged.kept(
        items,
        run,
        lambda result: {"preferred": names[result.winner], "replies": [result.shown.reply, result.swapped.reply]},
        PreferenceRow,
    )
    return [row["preferred"] for row in rows]


def make(args: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs, and the audit, which says what became of every row."""
    by_judge = args.positives == "best" and args.score == "judge"
    if by_judge and args.judge_filter:
        raise ValueError("--judge_filter and --score judge are two ways to ask the same judge; use one of them")
    if args.positives == "best" and len(args.predictions) < 2:
        raise ValueError(
            "--positives best needs at least two --predictions of the same rows, sampled with different seeds"
        )
    mixed = read_pairs(args.mix)
    judged = Judged(args) if by_judge or args.judge_filter else None
    sources, missing, root = read_answered(
        args.data, args.predictions, args.image_root, need_answer=args.positives == "gold"
    )
    if missing and args.on_missing == "error":
        raise ValueError(
            f"{len(missing):,} of {len(sources) + len(missing):,} rows have no generated answer, e.g. {missing[0]!r}; generate them, or count them and "
            "leave them out with --on_missing skip"
        )
    samples = {source.sample.id: source.sample for source in sources}
    dropped: Counter[str] = Counter()
    if args.positives == "best":
        pairs, dropped = best_pairs(
            sources, scores_of(sources, judged if by_judge else None), args.round, args.min_margin
        )
    else:
        pairs = gold_pairs(sources, args.round)
    pairs = without(pairs, [unusable(pair["chosen"], pair["rejected"]) for pair in pairs], dropped)
    if args.drop_near_duplicates:
        near = {item["id"] for item in near_duplicates(pairs)}
        pairs = without(pairs, ["near_duplicate" if pair["id"] in near else None for pair in pairs], dropped)
    if judged is not None and args.judge_filter:
        verdicts = preferred(pairs, samples, judged)
        pairs = without(pairs, [None if verdict == "chosen" else f"judge_{verdict}" for verdict in verdicts], dropped)
    new = len(pairs)
    pairs += mixed
    again = repeated(pairs)
    pairs = without(pairs, ["repeated" if place in again else None for place in range(len(pairs))], dropped)
    check_ids(pairs)
    if not pairs:
        raise ValueError(f"no pair is left: {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())}")
    near_now = near_duplicates(pairs)
    return pairs, {
        "round": args.round,
        "image_root": root,
        "positives": args.positives,
        "rows": len(sources) + len(missing),
        "rows_without_generation": missing,
        "new_pairs": new,
        "mixed_pairs": len(mixed),
        "pairs": len(pairs),
        "by_round": dict(Counter(str(pair.get("round")) for pair in pairs)),
        "dropped": dict(dropped),
        "near_duplicates": {"threshold": NEAR, "count": len(near_now), "pairs": near_now[:100]},
        "words": length_statistics(pairs),
        "judge": {"name": args.judge_model, **judged.judge.spent()} if judged else None,
    }


def run(args: Any) -> dict[str, Any]:
    """Make the pairs, write them and then their audit, which is returned."""
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    pairs, audit = make(args)
    # The audit first: pairs without one would look like a finished file.
    write_json(out.with_name(f"{out.name}.audit.json"), audit)
    write_lines(out, pairs)
    return audit


def show(audit: dict[str, Any], args: Any) -> None:
    words = audit["words"]
    print(
        f"{args.out}: {audit['pairs']:,} pairs ({audit['new_pairs']:,} new, {audit['mixed_pairs']:,} of earlier rounds) from {audit['rows']:,} rows"
    )
    print(f"image root: {audit['image_root']}")
    for reason, count in audit["dropped"].items():
        print(f"dropped: {count:,} {reason}")
    if audit["rows_without_generation"]:
        print(f"{len(audit['rows_without_generation']):,} rows have no generated answer")
    if audit["near_duplicates"]["count"]:
        first = audit["near_duplicates"]["pairs"][0]
        print(
            f"near-duplicates: {audit['near_duplicates']['count']:,} pairs at least {NEAR:.0%} alike, e.g. {first['id']} ({first['similarity']:.0%})"
        )
    longer = "-" if words["chosen_longer"] is None else f"{words['chosen_longer']:.0%}"
    print(
        f"words: chosen {words['chosen']['mean']:.1f}, rejected {words['rejected']['mean']:.1f} on average; chosen is the longer one in "
        f"{longer} of the pairs of different length"
    )
    if audit["judge"]:
        print(spent_line(audit["judge"]))


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
