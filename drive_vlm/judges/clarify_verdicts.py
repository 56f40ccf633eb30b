"""A judge's verdicts on replies that may ask back: strategy 1 to 4, and whether what they say is true, by the picture and the boxes.

1. Markup, thinking and marks of verdicts are taken off the reply (`plain_reply`): what is left cannot give the judge orders by its form.
2. Every prompt is a phrasing of one question, and one vote. The votes' median strategy (of an even number the lower one), their
   commonest factual verdict (CANNOT_TELL where two are equally common) and the majority of "asked" are the verdict.
3. A vote that cannot be read in `attempts` replies leaves the reply without a verdict: it is counted, and is never the worst score.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.evaluation.clarify_replies import (
    CANNOT_TELL,
    FAIL,
    PASS,
    ClarifyRow,
    Verdict,
    parse_verdict,
    plain_reply,
)
from drive_vlm.judges.judge import Judge, Judgement, Request, judge_all
from drive_vlm.judges.verdicts import Turns, fill, read_prompt
from drive_vlm.store.cache import cache_key
from drive_vlm.store.keyed_lines import JudgedRow, JudgedRows, read_lines

PLACES = ("question", "facts", "reply")
_WAY_OUT = "Name a file that --verdicts wrote, or remove the line."


class VerdictRow(JudgedRow):
    """A line of the verdict file. strategy, factual and asked are null where a vote could not be read."""

    id: str
    prediction: str
    strategy: int | None
    factual: str | None
    asked: bool | None
    attempts: int


@dataclass(frozen=True)
class Judged:
    """A reply to be judged. `id` names the row, `images` are the files that the judge sees, `pictures` what the row calls them."""

    id: str
    row: ClarifyRow
    text: str
    images: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


def read_phrasings(folder: str) -> list[Turns]:
    """The prompts of a folder in the order of their names, one vote each. Raises ValueError where there is none."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".txt", ".json"))
    if not files:
        raise ValueError(
            f"--judge_prompts {folder}: no .txt or .json in this folder; each is one phrasing and one vote"
        )
    return [read_prompt(path, PLACES) for path in files]


def fact_list(row: ClarifyRow) -> str:
    """What the boxes know, in words: the things, which of them the question is about, and the right answers."""
    lines = []
    for number, thing in enumerate(row.candidates, 1):
        known = ", ".join(f"{name} {value}" for name, value in thing.attributes.items())
        lines.append(f"{number}. {thing.name} ({thing.category}{f'; {known}' if known else ''})")
    if row.ambiguous:
        lines.append(
            "The question fits all of these, and their answers differ."
            if lines
            else "The question fits several things."
        )
        lines += [f"About {thing.name}: {answer}" for thing, answer in zip(row.candidates, row.answers, strict=False)]
    else:
        meant = f"is about {row.candidates[row.target].name}" if row.target is not None else "needs no question back"
        lines.append(f"The question {meant}. The right answer: {row.answer}")
    return "\n".join(lines)


def judge_replies(
    judge: Judge, prompts: Sequence[Turns], wanted: Sequence[Judged], out: str | Path, attempts: int
) -> tuple[list[Verdict | None], int]:
    """(verdicts in the order of `wanted`, rows of `out` that no longer fit). A reply that two systems give is judged once.

    Raises ChatError where the judge cannot be asked; what was judged is kept in `out`, and the same call goes on.
    """
    described = judge.describe()
    values = [
        {"question": item.row.question, "facts": fact_list(item.row), "reply": plain_reply(item.text)}
        for item in wanted
    ]
    keys = [
        cache_key(described, list(prompts), shown, item.id, item.text, item.pictures)
        for item, shown in zip(wanted, values, strict=True)
    ]
    facts = [{"id": item.id, "prediction": item.text} for item in wanted]
    kept = JudgedRows(out, keys, attempts, VerdictRow, facts, "--verdicts")
    todo = kept.missing()
    requests = [Request(fill(prompt, values[i]), wanted[i].images) for i in todo for prompt in prompts]
    blocks = judge_all(judge, requests, parse_verdict, attempts)
    rows = kept.add_blocks(todo, _whole_rows(blocks, len(prompts)), lambda _, votes: _verdict_row(votes))
    return [_verdict_of(row) for row in rows], kept.stale


def _whole_rows(blocks: Iterable[Sequence[Judgement[Verdict]]], votes: int) -> Iterator[list[list[Judgement[Verdict]]]]:
    """The votes of each row, as soon as they are whole: a block of the judge may end between them."""
    rest: list[Judgement[Verdict]] = []
    for block in blocks:
        rest += block
        whole = len(rest) // votes * votes
        yield [rest[start : start + votes] for start in range(0, whole, votes)]
        rest = rest[whole:]


def _verdict_row(votes: Sequence[Judgement[Verdict]]) -> dict[str, Any]:
    read = [vote.value for vote in votes if vote.value is not None]
    verdict = combined(read) if len(read) == len(votes) else None
    unread: dict[str, int] = next((vote.unread_after() for vote in votes if vote.value is None), {})
    return unread | {
        "strategy": verdict and verdict.strategy,
        "factual": verdict and verdict.factual,
        "asked": verdict and verdict.asked,
        "attempts": max(vote.attempts for vote in votes),
        "replies": [vote.reply for vote in votes],
    }


def combined(votes: Sequence[Verdict]) -> Verdict:
    """The verdict of one or more votes: see the module."""
    counts = Counter(vote.factual for vote in votes).most_common(2)
    factual = CANNOT_TELL if len(counts) > 1 and counts[0][1] == counts[1][1] else counts[0][0]
    asked = 2 * sum(vote.asked for vote in votes) > len(votes)
    return Verdict(statistics.median_low(vote.strategy for vote in votes), factual, asked, votes[0].why)


def _verdict_of(row: dict[str, Any]) -> Verdict | None:
    """Raises ValueError for a line that holds no verdict."""
    if row["strategy"] is None:
        return None
    if (
        row["strategy"] not in (1, 2, 3, 4)
        or row["factual"] not in (PASS, FAIL, CANNOT_TELL)
        or not isinstance(row["asked"], bool)
    ):
        raise ValueError(
            f"id {row['id']!r}: strategy {row['strategy']}, factual {row['factual']}, asked {row['asked']} is no verdict"
        )
    return Verdict(row["strategy"], row["factual"], row["asked"], "")


def read_verdicts(path: str) -> dict[tuple[str, str], Verdict]:
    """The verdicts of an earlier run by (id, reply). Raises ValueError with file:line for a line that is none, and without any."""
    from drive_vlm.store.forms import check_fields

    def parse(row: Any) -> tuple[tuple[str, str], Verdict | None]:
        check_fields(row, VerdictRow)
        return (row["id"], row["prediction"]), _verdict_of(row)

    found = dict(row for _, row in read_lines(Path(path), "no verdict", _WAY_OUT, parse))
    if not found:
        raise ValueError(f"{path}: no verdicts; name a file that --verdicts wrote")
    return {key: verdict for key, verdict in found.items() if verdict is not None}
