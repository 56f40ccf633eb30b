"""What the gate step writes: rows.jsonl and held_out.jsonl, rejected.jsonl, data_audit.json, and the pictures that rows name."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.builders.splits import held_out_groups, split_position
from drive_vlm.builders.synthesis.gate import GateRun
from drive_vlm.builders.synthesis.gates.balance import histograms
from drive_vlm.builders.synthesis.human import FOLDER, HumanRows, human_row, most_synthetic, wanted_human
from drive_vlm.builders.synthesis.rows import (
    PLAIN,
    Line,
    draw_region,
    keep_regions,
    place_pictures,
    rejected_row,
    training_row,
)
from drive_vlm.store.cache import write_json
from drive_vlm.store.fingerprint import content_hash
from drive_vlm.store.keyed_lines import write_lines

ROWS, HELD_OUT, REJECTED, AUDIT = "rows.jsonl", "held_out.jsonl", "rejected.jsonl", "data_audit.json"


@dataclass(frozen=True)
class Output:
    """How rows are written.

    Attributes:
        out, root: the folder to write, the image root.
        number: of the round.
        models: role -> name and revision.
        first: reasoning stands before the answer.
        copy: pictures are copied, in place of a link to their folder.
        human_share: of the training rows.
        cut: synthetic rows are left out where there are too few human ones; else that is an error.
    """

    out: Path
    root: str
    number: int
    models: Mapping[str, str]
    seed: int
    first: bool = False
    copy: bool = False
    human_share: float = 0.0
    cut: bool = False
    workers: int = 4


def held_out_of(run: GateRun, count: int, seed: int) -> frozenset[str]:
    """The groups that go to held_out.jsonl. Raises ValueError where nothing would be left to train on."""
    groups = sorted({row.group for row, _ in run.passed})
    if not count:
        return frozenset()
    try:
        return frozenset(held_out_groups(groups, count, seed))
    except ValueError as error:
        raise ValueError(f"--held_out: {error}") from error


def fit_human(run: GateRun, held_out: frozenset[str], human: HumanRows, how: Output) -> tuple[GateRun, int]:
    """(the run, how many human rows join): with --on_few_human cut, synthetic training rows are left out until the share is right."""
    training = [row for row, _ in run.passed if row.group not in held_out]
    wanted = wanted_human(len(training), how.human_share)
    if wanted <= len(human.samples):
        return run, wanted
    if not how.cut:
        raise ValueError(
            f"--human_share {how.human_share:g} of {len(training):,} synthetic rows needs {wanted:,} human rows, {len(human.samples):,} "
            f"of {human.total:,} can be used (left out: {dict(human.left_out) or 'none'}). Give more, a smaller share, --cap_rows, or "
            "--on_few_human cut"
        )
    most = most_synthetic(len(human.samples), how.human_share)
    order = sorted(training, key=lambda row: (split_position(row.id, how.seed), row.id))
    detail = f"{len(human.samples):,} human rows are enough for {most:,} synthetic ones"
    return run.without("human_share", "too_few_human", {row.id: detail for row in order[most:]}), len(human.samples)


def write_rows(
    run: GateRun, lines: Sequence[Line], held_out: frozenset[str], human: HumanRows | None, taken: int, how: Output
) -> RowWriter:
    """Draw, link and write everything; the writer, for its counts and leaks. Raises ValueError for ids of human rows that synthetic rows
    have too."""
    sources = {line.image: line for line in lines}
    ids = {row.id for row, _ in run.passed}
    people = human.samples[:taken] if human is not None else ()
    if clash := next((sample for sample in people if sample.id in ids), None):
        raise ValueError(f"{clash.where}: a synthetic row has the id {clash.id!r} too; make the human ids others")
    with RowWriter(how.out) as writer:
        regions = [row for row, _ in run.passed if row.region is not None]
        with ThreadPoolExecutor(how.workers) as threads:
            list(threads.map(lambda row: draw_region(row, how.out), regions))
        keep_regions(regions, how.out)
        place_pictures((row.image for row, _ in run.passed), how.root, how.out / PLAIN, how.copy)
        rows: dict[str, list[Row]] = {ROWS: [], **({HELD_OUT: []} if held_out else {})}
        for row, scores in run.passed:
            name = HELD_OUT if row.group in held_out else ROWS
            rows[name].append(training_row(row, sources[row.image], scores, how.models, how.number, how.first))
        if human is not None:
            names = [os.path.relpath(path, human.root) for sample in people for path in sample.images]
            place_pictures(names, human.root, how.out / FOLDER, how.copy)
            rows[ROWS] += [human_row(sample, human.root, how.number) for sample in people]
        for name, content in rows.items():
            writer.add(name, content, split=name)
        rejected = ((item.row, item.gate, item.outcome) for item in run.rejected)
        # Not by the writer, which warns of a file without a row.
        write_lines(
            how.out / REJECTED, [rejected_row(row, gate, o.reason, o.detail, o.scores) for row, gate, o in rejected]
        )
        if not held_out:
            # Of an earlier run, whose groups are in the training rows now.
            (how.out / HELD_OUT).unlink(missing_ok=True)
    return writer


def audit_of(
    run: GateRun, given: Sequence[Any], lines: Sequence[Line], how: Output, data: Sequence[str]
) -> dict[str, Any]:
    """What data_audit.json says of the rows: used + rejected = given."""
    used = [row for row, _ in run.passed]
    assert len(used) + len(run.rejected) == len(given), "rows were lost"
    reasons: dict[str, Counter[str]] = {}
    for item in run.rejected:
        reasons.setdefault(item.gate, Counter())[item.outcome.reason] += 1
    return {
        "pictures": len(lines),
        "pictures_without_rows": sum(not line.candidates for line in lines),
        "given": len(given),
        "used": len(used),
        "rejected": len(run.rejected),
        "gates": run.counts,
        "reasons": {gate: dict(sorted(counts.items())) for gate, counts in reasons.items()},
        "histograms": {"before": histograms(given), "after": histograms(used)},
        "round": how.number,
        "models": dict(how.models),
        "inputs": {str(path): content_hash(path) for path in data},
    }


def write_audit(out: Path, audit: dict[str, Any]) -> None:
    write_json(out / AUDIT, audit)
