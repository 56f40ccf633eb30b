"""Synthetic questions and answers -> training rows that passed the gates, with where each comes from; the last step of synthesis.

Reads the files of tools/synth_questions.py, whose lines carry what all steps before found. Writes to OUT
  rows.jsonl         rows for sft, make_pairs and check_data; their pictures start from OUT
  held_out.jsonl     with --held_out: rows of whole groups, and of whatever looks like their pictures
  rejected.jsonl     every row that was taken out, with the gate, the reason and a detail
  data_audit.json    used + rejected = given; counts by gate and reason, histograms before and after, figures, cost
  images, images_w_boxes   the pictures (a link), and those of region rows with the rectangle drawn
  sample.html        a page to look at a sample: boxes, sources, what was taken out and why
Gates: form, grounding, positions, duplicates, decontamination, judge, balance (docs/synthesis.md). The judge is asked when it is
named in --gates, and must not be the author of the rows.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.builders.synthesis.gate import GateRules
from drive_vlm.config import CommandParser, add_dataclass, from_namespace, output_folder, plain, run_tool
from drive_vlm.judges.judge import JudgeConfig, spent_line
from drive_vlm.launch.stop import listening
from drive_vlm.report.tables import interval, print_table
from drive_vlm.store.lock import sole_writer

if TYPE_CHECKING:
    from drive_vlm.builders.synthesis.gate import GateRun, Gates
    from drive_vlm.builders.synthesis.gates.candidate import Candidate
    from drive_vlm.builders.synthesis.gates.decontamination import EvaluationRows
    from drive_vlm.builders.synthesis.gates.objects import ObjectReader
    from drive_vlm.builders.synthesis.gates.pictures import Print
    from drive_vlm.builders.synthesis.gates.rubric import RubricGate
    from drive_vlm.builders.synthesis.human import HumanRows
    from drive_vlm.builders.synthesis.rows import Line
    from drive_vlm.data.samples import BadRow
    from drive_vlm.rewards.text.open_names import OpenNames

EXAMPLES = """
python tools/synth_gate.py --data synth/questions.jsonl --out data/synth --can_see synth/detect.jsonl --decontaminate data/coda/test.jsonl
python tools/synth_gate.py --data synth/questions.jsonl --out data/synth --gates form,grounding,judge --judge_model Qwen/Qwen3-VL-32B --judge_url http://localhost:8000/v1
python tools/synth_gate.py --data synth/questions.jsonl --out data/round1 --round 1 --human data/coda/train.jsonl --human_share 0.3 --held_out 40
"""
# Roles that write no text of a row.
SILENT = ("detector", "segmenter", "embedder", "judge")


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_gate.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", nargs="+", required=True, help="files of tools/synth_questions.py; shards are given together")
    add("--out", type=output_folder, required=True, help="folder to write")
    add("--image_root", help="folder that picture paths start from (default: what the step's settings say)")
    add_dataclass(parser, GateRules, "gates")
    add(
        "--fixed_questions",
        help="text file with a question a line: they are asked about every picture, as CODA-LM's three are, so that their lengths, the "
        "objects that they name and how often they come are not looked at",
    )
    add(
        "--can_see",
        nargs="+",
        default=[],
        metavar="NAMES",
        help="what the sources could have named: coco, a text file, the file of the detect step, the folder of a data base (default: the "
        "labels that the lines hold); other objects of a text are neither right nor wrong",
    )
    flag("--spacy_model", "en_core_web_sm", "name or folder of the spaCy model that reads the texts")
    flag("--text_processes", 1, "processes that read texts")
    add(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="ROWS",
        help="evaluation rows that no row may share anything with",
    )
    add("--decontaminate_root", help="folder that their pictures start from (default: each file's own)")
    add("--picture_vectors", help="folder with vectors.npy and names.jsonl of whole pictures, for look-alikes")
    add("--decontaminate_vectors", help="the same of the evaluation pictures")
    add_dataclass(parser, JudgeConfig, "judge")
    add(
        "--judge_prompt", default=str(Path(__file__).parent / "prompts" / "synthesis" / "rubric.txt"), help="the rubric"
    )
    flag("--judge_may_be_author", False, "let a model judge rows that it wrote itself")
    add(
        "--max_cost",
        type=float,
        help="stop before a request of the judge that may bring its cost above this; replies are kept",
    )
    add(
        "--picture_tokens", type=int, help="what the judge's server counts for a picture, for --max_cost and --estimate"
    )
    flag("--estimate", False, "run the free gates, say what the judge may cost, ask nobody and write nothing")
    human_flags(parser)
    flag("--held_out", 0, "groups that go to held_out.jsonl", least=0)
    flag("--round", 0, "number of the round, which each row holds", least=0)
    flag(
        "--reasoning",
        ("apart", "first"),
        "reasoning of an answer: a column of its own, or in front of the answer and learned",
    )
    flag(
        "--pictures",
        ("link", "copy"),
        "OUT/images: a link to the image root, or a copy of each picture that a row names",
    )
    flag("--page_pictures", 24, "pictures in sample.html; 0: no page", least=0)
    flag("--workers", 4, "threads that read and draw pictures")
    flag("--seed", 0, "of the choices under caps, of the split, of the sample and of intervals")
    flag("--on_bad_row", ("error", "skip"), "a line whose picture cannot be read: stop, or leave it out and count it")
    add("--json", help="write the audit here as well")
    return parser


def human_flags(parser: CommandParser) -> None:
    """What is mixed into the synthetic rows."""
    add, flag = parser.add_argument, parser.flag
    add("--human", nargs="+", default=[], metavar="ROWS", help="rows that people wrote, mixed into rows.jsonl")
    add("--human_root", help="folder that their pictures start from (default: the file's own)")
    flag("--human_share", 0.0, "share of human rows in rows.jsonl", least=0, most=0.99)
    flag(
        "--on_few_human",
        ("error", "cut"),
        "too few human rows for the share: stop, or leave synthetic rows out, counted",
    )


def check_flags(rules: GateRules, args: Any) -> None:
    """Raises ValueError for flags that do not go together."""
    if ("judge" in rules.chosen) != bool(args.judge_model):
        raise ValueError(
            f"--gates {rules.gates} {'needs' if not args.judge_model else 'has no gate judge for'} --judge_model"
            + ("" if args.judge_model else ", a name at --judge_url")
        )
    if args.judge_backend == "reference":
        raise ValueError("--judge_backend reference compares answers and rates none; give openai or hf")
    if bool(args.human) != (args.human_share > 0):
        raise ValueError("--human and --human_share belong together: give rows and a share above 0")
    if args.decontaminate and "decontamination" not in rules.chosen:
        raise ValueError("--decontaminate needs the gate decontamination in --gates")
    if args.decontaminate_vectors and not (args.picture_vectors and args.decontaminate):
        raise ValueError("--decontaminate_vectors needs --picture_vectors and --decontaminate")


def read_held(args: Any, ngram: int) -> "EvaluationRows | None":
    """The evaluation rows of --decontaminate; None without any."""
    from drive_vlm.builders.synthesis.gates.decontamination import EvaluationRows
    from drive_vlm.builders.synthesis.gates.pictures import read_vectors, take_prints
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample

    if not args.decontaminate:
        return None
    files = open_sources(args.decontaminate, args.decontaminate_root)
    samples = [read_sample(file, i, need_answer=False) for file in files for i in range(len(file.rows))]
    paths = {path: path for sample in samples for path in sample.images}
    vectors = read_vectors(args.decontaminate_vectors) if args.decontaminate_vectors else {}
    # Vectors are named by paths below the root, prints by files.
    by_file = {
        os.path.abspath(os.path.join(file.root, name)): value for file in files for name, value in vectors.items()
    }
    known = {path: by_file[os.path.abspath(path)] for path in paths if os.path.abspath(path) in by_file}
    missing = sorted(paths.keys() - known.keys()) if vectors else []
    if missing:
        raise ValueError(
            f"--decontaminate_vectors: no vector of {missing[0]} and of {len(missing) - 1} other evaluation pictures"
        )
    return EvaluationRows.of(samples, take_prints(paths, known, args.workers), ngram)


def open_rubric(args: Any, authors: list[str]) -> "RubricGate":
    """The judge's gate, with a purse where the judge is a server. Raises ValueError where the judge is the author."""
    from drive_vlm.builders.synthesis.cost import Budget
    from drive_vlm.builders.synthesis.gates.rubric import PLACES, RubricGate, refuse_author
    from drive_vlm.builders.synthesis.rows import draw_region
    from drive_vlm.judges import open_judge
    from drive_vlm.judges.judge import ServerJudge
    from drive_vlm.judges.verdicts import read_prompt

    config = from_namespace(JudgeConfig, args)
    if not args.judge_may_be_author:
        refuse_author(config.judge_model, authors)
    prompt = read_prompt(args.judge_prompt, PLACES)
    judge = open_judge(config)
    if isinstance(judge, ServerJudge):
        judge.client.purse = Budget(args.max_cost, config.price_in, config.price_out, args.picture_tokens)
    elif args.max_cost is not None:
        raise ValueError("--max_cost is for a judge on a server: one in this process has no price")
    return RubricGate(
        judge, prompt, config.judge_attempts, args.judge_threshold, lambda row: draw_region(row, args.out)
    )


def open_reader(args: Any, lines: "list[Line]") -> "OpenNames":
    from drive_vlm.builders.synthesis.can_see import names_seen, read_names
    from drive_vlm.rewards.text.open_names import OpenNames

    return OpenNames(
        read_names(args.can_see) if args.can_see else names_seen(lines), args.spacy_model, processes=args.text_processes
    )


def open_lines(args: Any, note_bad: "Callable[[BadRow], None]") -> "tuple[list[Line], str, dict[str, str], list[str]]":
    """(lines, image root, role -> model, models that wrote text)."""
    from drive_vlm.builders.synthesis.rows import fixed_questions, model_name, read_question_lines
    from drive_vlm.builders.synthesis.settings import models_of, read_settings

    settings = [found for path in args.data if (found := read_settings(Path(path)))]
    roots = sorted({found.image_root for found in settings if found.image_root})
    if args.image_root is None and len(roots) != 1:
        problem = (
            f"pictures of --data start from {' and '.join(roots)}"
            if roots
            else "no settings file says where pictures start from"
        )
        raise ValueError(f"--image_root is needed: {problem}")
    root = args.image_root or roots[0]
    models = models_of(args.data)
    authors = [model_name(model, False) for role, model in models.items() if role not in SILENT]
    lines = list(read_question_lines(args.data, root, note_bad, fixed_questions(args.fixed_questions)))
    return lines, root, {role: model_name(model) for role, model in models.items()}, authors


def prints_of(args: Any, lines: "list[Line]", note_bad: "Callable[[BadRow], None]") -> "list[Print]":
    from drive_vlm.builders.synthesis.gates.pictures import read_vectors, take_prints

    vectors = read_vectors(args.picture_vectors) if args.picture_vectors else None
    if vectors is not None and (missing := [line.image for line in lines if line.image not in vectors]):
        raise ValueError(f"--picture_vectors: no vector of {missing[0]!r} and of {len(missing) - 1} other pictures")
    return take_prints({line.image: line.path for line in lines}, vectors, args.workers, note_bad)


def open_gates(
    args: Any, rules: GateRules, lines: "list[Line]", authors: list[str], note_bad: "Callable[[BadRow], None]"
) -> "Gates":
    """Everything that the chosen gates need: reader, prints of pictures, evaluation rows, judge."""
    from drive_vlm.builders.synthesis.gate import Gates

    # First what can be refused at once.
    rubric = open_rubric(args, authors) if "judge" in rules.chosen else None
    held = read_held(args, rules.ngram)
    reader = open_reader(args, lines) if rules.read_texts else None
    prints = {one.name: one for one in prints_of(args, lines, note_bad)}
    return Gates(rules, reader, prints, held, rubric, args.seed)


def people_of(args: Any, gates: "Gates", done: "GateRun", held_out: frozenset[str]) -> "HumanRows | None":
    """The rows of --human that may be used: none of a held-out group or picture, none that evaluation rows hold."""
    from drive_vlm.builders.synthesis.human import read_human, usable_human

    if not args.human:
        return None
    samples, root = read_human(args.human, args.human_root)
    images = {row.image for row, _ in done.passed if row.group in held_out}
    pictures = [gates.prints[image] for image in sorted(images)]
    return usable_human(samples, root, gates.held, held_out, pictures, args.seed, args.workers)


def run(args: Any) -> dict[str, Any]:
    """Read, gate, write; returns the audit, after --estimate what the judge may cost."""
    rules = from_namespace(GateRules, args)
    check_flags(rules, args)
    bad: list[BadRow] = []

    def note_bad(error: "BadRow") -> None:
        if args.on_bad_row == "error":
            raise error
        bad.append(error)

    lines, root, models, authors = open_lines(args, note_bad)
    gates = open_gates(args, rules, lines, authors, note_bad)
    lines = [line for line in lines if line.image in gates.prints]
    if not lines:
        raise ValueError(
            f"--data {' '.join(args.data)}: no line with a picture that can be read" + (f"; {bad[0]}" if bad else "")
        )
    if args.estimate:
        return {"estimate": estimate_judge(gates, lines, args)}
    with sole_writer(args.out / "rows.jsonl"):
        return gate_rows(args, gates, lines, root, models, bad)


def gate_rows(
    args: Any, gates: "Gates", lines: "list[Line]", root: str, models: dict[str, str], bad: "list[BadRow]"
) -> dict[str, Any]:
    """Pass the rows of `lines` through the gates and write what comes of them; the audit."""
    from drive_vlm.builders.synthesis.gate import run_gates
    from drive_vlm.builders.synthesis.gate_files import (
        Output,
        audit_of,
        fit_human,
        held_out_of,
        write_audit,
        write_rows,
    )
    from drive_vlm.builders.synthesis.gates.pictures import merged_groups
    from drive_vlm.data.table import audit_bad_rows

    given = [row for line in lines for row in line.candidates]
    before = {row.image: row.group for row in given}
    groups = merged_groups([gates.prints[image] for image in before], before)
    done = run_gates(given, gates.chosen()).regrouped(groups)
    held_out = held_out_of(done, args.held_out, args.seed)
    human, taken = people_of(args, gates, done, held_out), 0
    how = Output(
        args.out, root, args.round, models, args.seed, args.reasoning == "first", args.pictures == "copy",
        args.human_share, args.on_few_human == "cut", args.workers,
    )  # fmt: skip
    if human is not None:
        done, taken = fit_human(done, held_out, human, how)
    writer = write_rows(done, lines, held_out, human, taken, how)
    audit = audit_of(done, given, lines, how, args.data) | gates.audit
    audit |= {"files": dict(writer.counts), "leaks": writer.leaks(), "held_out_groups": sorted(held_out)}
    audit["groups"] = {"before": len(set(before.values())), "after": len(set(groups.values()))}
    audit["human"] = None if human is None else {"given": human.total, "left_out": dict(human.left_out), "used": taken}
    audit["can_see"] = None if gates.reader is None else sorted(gates.reader.visible)
    audit["figures"] = None if gates.reader is None else figures_of(given, done, gates.reader, args.seed)
    audit["spent"] = None if gates.rubric is None else gates.rubric.judge.spent()
    audit["bad_lines"] = audit_bad_rows(bad)
    audit["rules"] = plain(gates.rules)
    write_audit(args.out, audit)
    write_page(args, done, lines, audit)
    return audit


def figures_of(given: "list[Candidate]", done: "GateRun", reader: "ObjectReader", seed: int) -> dict[str, Any]:
    """{"given", "used"} -> the figures of the rows before and after the gates; null of an empty set."""
    from drive_vlm.builders.synthesis.facts import facts_of
    from drive_vlm.evaluation.synthesis import figures

    sets = {"given": given, "used": [row for row, _ in done.passed]}
    return {
        name: plain(figures([facts_of(row, reader) for row in rows], seed)) if rows else None
        for name, rows in sets.items()
    }


def write_page(args: Any, done: "GateRun", lines: "list[Line]", audit: dict[str, Any]) -> None:
    """OUT/sample.html, or nothing of an earlier run in its place."""
    page = args.out / "sample.html"
    page.unlink(missing_ok=True)
    if args.page_pictures:
        from synth_gate_page import sample_of

        from drive_vlm.report.synthesis import write_sample

        write_sample(page, sample_of(done, lines, args.page_pictures, args.seed), audit)


def estimate_judge(gates: "Gates", lines: "list[Line]", args: Any) -> dict[str, Any]:
    """What the judge may cost, after the free gates that run before it; nobody is asked."""
    from drive_vlm.builders.synthesis.cost import LETTERS_A_TOKEN, PerPicture, estimate
    from drive_vlm.builders.synthesis.gate import run_gates
    from drive_vlm.builders.synthesis.gates.rubric import request_of

    chosen = gates.chosen()
    given = [row for line in lines for row in line.candidates]
    if gates.rubric is None:
        raise ValueError("--estimate: the gates that run here are free; it is for --gates with judge")
    names = list(chosen)
    left = [row for row, _ in run_gates(given, {name: chosen[name] for name in names[: names.index("judge")]}).passed]
    letters = sum(len(text) for row in left for _, text in request_of(row, gates.rubric.prompt, "").turns)
    # What a server counts for a picture nobody knows before it is asked.
    tokens = (
        None if args.picture_tokens is None else letters / LETTERS_A_TOKEN / max(1, len(left)) + args.picture_tokens
    )
    basis = f"{letters:,} letters, {LETTERS_A_TOKEN} a token, replies of --judge_max_tokens, each read at once"
    per = PerPicture(1.0, tokens, float(args.judge_max_tokens), None, None, basis)
    return plain(estimate("judge (a row each)", len(left), per, args.price_in, args.price_out))


def show(audit: dict[str, Any], args: Any) -> str | int | None:
    """Print counts, figures and what was written; the exit status, 1 where no row is left or the splits leak."""
    if "estimate" in audit:
        from synth_paid import show_estimates

        from drive_vlm.builders.synthesis.cost import Estimate

        show_estimates([Estimate(**audit["estimate"])])
        return None
    rows = [
        [
            name,
            f"{entry['given']:,}",
            f"{entry['passed']:,}",
            ", ".join(f"{why} {n:,}" for why, n in entry["rejected"].items()),
        ]
        for name, entry in audit["gates"].items()
    ]
    if rows:
        print_table("gates", ("gate", "given", "passed", "taken out"), rows)
    print(
        f"{audit['given']:,} rows given = {audit['used']:,} used + {audit['rejected']:,} rejected, of {audit['pictures']:,} pictures"
    )
    print_decontamination(audit)
    for name, figures in (audit["figures"] or {}).items():
        print(f"{name}: {figure_line(figures)}")
    if audit["spent"]:
        print(f"{spent_line(audit['spent'])}; {audit['judge']['unread']:,} rows unread")
    if human := audit["human"]:
        gone = ", ".join(f"{count:,} {reason}" for reason, count in human["left_out"].items()) or "none"
        print(f"human rows: {human['used']:,} of {human['given']:,} used; left out: {gone}")
    for reason, count in audit["bad_lines"]["by_reason"].items():
        print(f"left out with their rows: {count:,} pictures, {reason}")
    merged = audit["groups"]["before"] - audit["groups"]["after"]
    print(f"{merged:,} groups were joined to others, since they hold the same pictures")
    for name, count in audit["files"].items():
        print(f"{args.out / name}: {count:,} rows")
    if not audit["files"].get("rows.jsonl"):
        return f"no row is left to train on; see {args.out / 'rejected.jsonl'}"
    return f"{len(audit['leaks']):,} leaks between the splits, e.g. {audit['leaks'][0]}" if audit["leaks"] else None


def print_decontamination(audit: dict[str, Any]) -> None:
    found = audit.get("decontamination")
    if found is None:
        return
    if not found["evaluation_rows"]:
        print("decontamination: no evaluation rows were given (--decontaminate), so nothing was compared")
        return
    pictures = ", ".join(
        f"{'not compared' if count is None else f'{count:,}'} by {how}" for how, count in found["pictures"].items()
    )
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found["rows"].items())
    print(
        f"decontamination against {found['evaluation_rows']:,} rows and {found['evaluation_pictures']:,} pictures: pictures {pictures}; "
        f"rows {counts}; {found['templates']:,} questions of the benchmark's templates were not compared"
    )


def figure_line(figures: dict[str, Any] | None) -> str:
    """The figures of a set of rows in one line."""
    if figures is None:
        return "no rows"
    words = []
    for name, entry in figures.items():
        value = "undefined" if entry["value"] is None else f"{entry['value']:.3f}{interval(entry)}"
        words.append(f"{name} {value}")
    return ", ".join(words)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
