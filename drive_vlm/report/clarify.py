"""The tables of tools/clarify_eval.py: when each system asks, what its replies are worth, how it fails, next to what no look earns."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.data.predictions import BLIND
from drive_vlm.evaluation.clarify import KINDS, LEVELS, QUESTION_COST, RIGHT
from drive_vlm.evaluation.clarify_choices import LETTERS, UNREAD
from drive_vlm.evaluation.clarify_raters import FIELDS, HUMAN, TO_REPORT, TO_TRAIN
from drive_vlm.report.tables import change, console, interval, table

if TYPE_CHECKING:
    from rich.text import Text

# Of fewer cases a rate is shown in grey.
FEW = 20
ASKING = {
    "ask_precision": "precision", "ask_recall": "recall", "ask_F1": "F1", "over_asking": "over-asking", "under_asking": "under-asking",
    "listed": "listed", "balanced_accuracy": "balanced", "youden_J": "J", "MCC": "MCC",
}  # fmt: skip
WORTH = {
    "strategic_accuracy": "right strategy", **{f"strategic_accuracy level {level}": f"level {level}" for level in LEVELS},
    "clear_accuracy": "clear rows right", "factual": "factual", "cannot_tell": "cannot tell", "strategy": "strategy 1-4",
    "reward": "reward",
}  # fmt: skip
ENDS = {"final_accuracy": "right in the end", "questions": "questions", "final_utility": "utility"}
BACK = {
    "valid": "valid",
    "discriminates": "discriminates",
    "resolves": "resolves",
    "leading": "leading",
    "echo": "echo",
}
JUDGED = {
    "judge_strategy": "strategy 1-4", "judge_strategic_accuracy": "strategy over 1", "judge_factual": "factual", "judge_reward": "published reward",
}  # fmt: skip
CALIBRATION = {"ECE_mass": "ECE", "ECE_width": "ECE, equal width", "Brier": "Brier", "AUROC": "AUROC"}
# Cells of the confusion; a clear row has nothing to list.
CELLS = (
    ("ambiguous", "asked"),
    ("ambiguous", "listed"),
    ("ambiguous", "answered"),
    ("clear", "asked"),
    ("clear", "answered"),
)
PARTS = {"ask_recall": "recall", "over_asking": "over-asking", "strategic_accuracy": "right strategy"}


def print_tables(result: dict[str, Any]) -> None:
    """Print `result`, which is what tools/clarify_eval.py writes with --json."""
    shown = console(170)
    of = f"{result['rows']:,} rows of {result['rows'] + len(result['missing']):,}, {result['groups']:,} groups, 95 % intervals"
    shown.print(_scores(f"when it asks: {of}", result, ASKING))
    shown.print(_confusions(result))
    shown.print(_scores("what its replies are worth, read by words and boxes", result, WORTH))
    shown.print(_ends(result))
    shown.print(_scores("its questions back to ambiguous rows", result, BACK))
    shown.print(_failures(result))
    if result["judge"]:
        shown.print(_scores(f"judge {result['judge']['name']}", result, JUDGED, baselines=False))
    for score in PARTS:
        shown.print(_parts(result, score))
    if any(entry["calibration"] for entry in result["checkpoints"].values()):
        shown.print(_calibration(result))
    if choice_entries(result):
        shown.print(_choices(result))
    if result["agreement"]:
        shown.print(_agreement(result["agreement"]))
    for entry in result["comparisons"]:
        shown.print(_changes(entry))
    for line in notes(result):
        shown.print(line)


def systems(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, entry): the checkpoints, then the baselines."""
    yield from result["checkpoints"].items()
    yield from result["baselines"].items()


def cell(rate: dict[str, Any] | None, percent: bool = False, line: str = "\n") -> "Text":
    """The value with n, the interval in the next `line`; grey with fewer than FEW cases, "-" where it is undefined."""
    from rich.text import Text

    if rate is None or rate["value"] is None:
        return Text("-")
    form = ".0%" if percent else ".3f"
    text = f"{rate['value']:{form}} n {rate['n']:,}{line}{interval(rate, form).strip()}".rstrip()
    return Text(text, style="bright_black" if rate["n"] < FEW else "")


def _scores(title: str, result: dict[str, Any], names: dict[str, str], baselines: bool = True) -> Any:
    rows: list[Sequence[str | Text] | None] = []
    for part in ("checkpoints", "baselines")[: 1 + baselines]:
        rows += [[name, *(cell(entry["scores"].get(score)) for score in names)] for name, entry in result[part].items()]
        rows.append(None)
    return table(title, ("", *names.values()), rows, whole=True)


def _ends(result: dict[str, Any]) -> Any:
    """What comes of the dialogues: after the row's own question back (--dialogues), and after the system's own."""
    dialogues = result["dialogues"].get("checkpoints", {})
    rows: list[Sequence[str | Text] | None] = []
    for name, entry in systems(result):
        own = cell(dialogues[name]["accuracy"] if name in dialogues else None)
        rows.append([name, own, *(cell(entry["scores"][score]) for score in ENDS)])
    heads = ("", "right after the row's own question", *ENDS.values())
    return table(
        f"in the end: two turns at most, utility = right - {QUESTION_COST} x questions", heads, rows, whole=True
    )


def _confusions(result: dict[str, Any]) -> Any:
    rows: list[Sequence[str] | None] = []
    for name, entry in systems(result):
        counts = [entry["confusion"][truth][said] for truth, said in CELLS]
        rows.append([name, *(f"{count:,}" for count in counts)])
    heads = [f"{truth}, {said}" for truth, said in CELLS]
    return table("rows by truth and reply (listed: answered for several candidates, not asked)", ("", *heads), rows)


def _failures(result: dict[str, Any]) -> Any:
    names = [name for name, _ in systems(result)]
    rows: list[Sequence[str | Text] | None] = []
    for kind, words in KINDS.items():
        if kind == RIGHT:
            rows.append(None)
        rows.append([words, *(_share(entry["scores"][f"failure {kind}"]) for _, entry in systems(result))])
    return table("kinds of failure: a row has the first that fits", ("", *names), rows, whole=True)


def _share(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return "-"
    return f"{round(rate['value'] * rate['n']):,} ({rate['value']:.0%}{interval(rate, '.0%')})"


def _parts(result: dict[str, Any], score: str) -> Any:
    """A score by what the rows are: one row for each value, one column for each checkpoint. A part with one value alone is left out."""
    checkpoints = result["checkpoints"]
    rows: list[Sequence[str | Text] | None] = []
    for part, values in next(iter(checkpoints.values()))["parts"].items():
        for value in values if len(values) > 1 else ():
            rates = [entry["parts"][part][value][score] for entry in checkpoints.values()]
            if any(rate["n"] for rate in rates):
                rows.append([part, value, *(cell(rate, percent=True, line=" ") for rate in rates)])
        rows.append(None)
    return table(
        f"{PARTS[score]} by what the rows are (grey: n < {FEW})", ("", "", *checkpoints), rows, left=2, whole=True
    )


def _calibration(result: dict[str, Any]) -> Any:
    found = {name: entry["calibration"] for name, entry in result["checkpoints"].items() if entry["calibration"]}
    rows: list[Sequence[str | Text] | None] = [
        [
            name,
            f"{len(entry['files'])}",
            *(cell(entry["scores"][score]) for score in CALIBRATION),
            _number(entry["AURC"]),
        ]
        for name, entry in found.items()
    ]
    return table(
        "sampled replies: does P(ask) mean what it says",
        ("", "samples", *CALIBRATION.values(), "AURC"),
        rows,
        whole=True,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def choice_entries(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of four options by system."""
    found = {name: entry["choices"] for name, entry in result["checkpoints"].items() if entry["choices"]}
    return found | ({BLIND: result["blind_choices"]} if result["blind_choices"] else {})


def _choices(result: dict[str, Any]) -> Any:
    names = {"accuracy": "accuracy", "accuracy ambiguous": "ambiguous", "accuracy clear": "clear"}
    names |= {f"accuracy gold {letter}": f"gold {letter}" for letter in LETTERS}
    names |= {f"said {letter}": f"said {letter}" for letter in (*LETTERS, UNREAD)} | {"consistent": "consistent"}
    rows: list[Sequence[str | Text] | None] = [
        [name, *(cell(entry["scores"].get(score), percent=True) for score in names)]
        for name, entry in choice_entries(result).items()
    ]
    return table("four options, each row in four rotations", ("", *names.values()), rows, whole=True)


def _agreement(entries: list[dict[str, Any]]) -> Any:
    rows: list[Sequence[str | Text] | None] = [
        [
            f"{entry['first']} - {entry['second']}",
            *(cell(entry[field][score]) for field in FIELDS for score in ("kappa", "exact")),
        ]
        for entry in entries
    ]
    heads = [f"{field}: {'quadratic kappa' if field == 'strategy' and score == 'kappa' else score}" for field in FIELDS for score in ("kappa", "exact")]  # fmt: skip
    return table("agreement of raters on the replies that both labelled", ("", *heads), rows, whole=True)


def _changes(entry: dict[str, Any]) -> Any:
    """Changes of the scores, bold where the interval leaves out 0, and McNemar's tests."""
    rows: list[Sequence[str | Text] | None] = [
        [words, change(entry["scores"][score]), ""] for score, words in {**ASKING, **WORTH, **ENDS}.items()
    ]
    rows.append(None)
    for name, test in entry["mcnemar"].items():
        if not test["n"]:
            continue
        words = f"only {entry['first']} {test['only_first']:,}, only {entry['second']} {test['only_second']:,} of {test['n']:,}"
        rows.append([name, words, f"p {test['p']:.3g}"])
    return table(f"{entry['second']} - {entry['first']}, on the same rows", ("", "change", "McNemar"), rows, whole=True)


def notes(result: dict[str, Any]) -> Iterator[str]:
    """What was left out, written or cut, and what a number must be read with."""
    if result["missing"]:
        yield f"{len(result['missing']):,} rows of --data have no prediction and are left out"
    for name, entry in result["checkpoints"].items():
        for key, words in {
            "ids_left_out": "ids left out, missing in another file",
            "cut": "replies were cut at the limit of new tokens",
        }.items():
            if entry[key]:
                yield f"{name}: {entry[key]:,} {words}"
        if entry["after"] and entry["after"]["unanswered"]:
            yield f"{name}: {len(entry['after']['unanswered']):,} questions back have no answer in {entry['after']['file']}"
        if entry["break_even"] is not None:
            counts = entry["confusion"]["ambiguous"].values()
            share = sum(counts) / result["rows"]
            yield f"{name}: by its own answers asking pays from a belief of {entry['break_even']:.3f} on that a question is ambiguous; {share:.3f} of the rows are"
        known = entry["scores"]["final_accuracy"]["n"]
        if not known:
            yield f"{name}: no end is known: nobody went on from its questions back (--write_dialogues, generate, --after)"
        elif known < result["rows"]:
            yield f"{name}: of {result['rows'] - known:,} rows nobody knows the end; they are left out of it"
        if entry["calibration"] and entry["calibration"]["missing"]:
            yield f"{name}: {entry['calibration']['missing']:,} rows are not in all files of --samples"
    for name, entry in choice_entries(result).items():
        if entry["incomplete"]:
            yield f"{name}: {entry['incomplete']:,} rows of four options lack a rotation and say nothing about consistency"
    for test in result["dialogues"].get("mcnemar", []):
        counts = f"only {test['first']} {test['only_first']:,}, only {test['second']} {test['only_second']:,} of {test['n']:,}"
        yield f"after the row's own question: {counts} right, McNemar p {test['p']:.3g}"
    for path, written in result["written"].items():
        yield f"{path}: {written['rows']:,} rows to answer" + (
            f", {len(written['left_out']):,} left out" if written["left_out"] else ""
        )
    if result["judge"]:
        counts = ", ".join(f"{name} {count:,}" for name, count in result["judge"]["unread"].items())
        yield f"judge: {result['judge']['votes']} votes a reply; replies without a verdict that can be read, left out: {counts}"
    for entry in result["agreement"]:
        kappa = entry["strategy"]["kappa"]["value"]
        if entry["first"] == HUMAN and entry["second"].startswith("judge") and kappa is not None:
            use = (
                "to train on"
                if kappa >= TO_TRAIN
                else "to report with"
                if kappa >= TO_REPORT
                else "neither to train nor to report with"
            )
            yield f"{entry['second']}: kappa {kappa:.3f} with people, good enough {use} (from {TO_TRAIN} and {TO_REPORT})"
    yield "baselines: always ask and never ask answer right wherever that can be, never ask by guessing which thing is meant"
