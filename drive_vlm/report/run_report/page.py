"""Put the blocks of a report into its templates and write one file that needs nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drive_vlm.report.run_report import run_block, score_block
from drive_vlm.report.run_report.bird_view import read_track
from drive_vlm.report.run_report.confusion import confusions
from drive_vlm.report.run_report.curves import draw_panels
from drive_vlm.report.run_report.examples import Example, make_examples
from drive_vlm.report.run_report.pictures import Pictures
from drive_vlm.report.run_report.run_files import RunFiles, clock, duration, read_run, run_names
from drive_vlm.report.run_report.score_files import ScoreFile, read_score_file
from drive_vlm.report.run_report.scored import METRICS, Scored, read_scored
from drive_vlm.report.run_report.timeline import Timeline, read_faults, read_timeline
from drive_vlm.report.run_report.training_rows import MOST_HASHED, Shared, TrainingRows, read_training, shared_with
from drive_vlm.report.run_report.verdict import ALONE, Verdict, verdict_of_file, verdict_of_rows
from drive_vlm.store.cache import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
# Bytes of the whole page; of pictures, which leaves room for the rest; of the scores of all rows that are kept in it.
LARGEST, _PICTURES, _ROW_SCORES = 10_000_000, 7_000_000, 1_000_000


@dataclass
class ReportConfig:
    """What a report is made of; the flags of `python -m drive_vlm report`."""

    runs: list[str]
    out: Path
    predictions: list[str] = field(default_factory=list)
    blind_predictions: str | None = None
    scores: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    image_root: str | None = None
    metric: str = "accuracy"
    row_scores: str | None = None
    row_score: str | None = None
    lower_is_better: bool = False
    by: list[str] = field(default_factory=list)
    rows: int = 30
    title: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.runs or self.predictions or self.scores):
            raise ValueError("nothing to report: give a run directory, --predictions or --scores")
        if (self.row_scores is None) != (self.row_score is None):
            raise ValueError("--row_scores names the CSV and --row_score its column: give both or neither")
        if self.lower_is_better and self.row_score is None:
            raise ValueError("--lower_is_better says something of --row_score, which is not given")
        for flag in ("row_scores", "blind_predictions", "by"):
            if getattr(self, flag) and not self.predictions:
                raise ValueError(f"--{flag} says something of --predictions, which are not given")


@dataclass(frozen=True)
class Read:
    """Everything that was read for a report."""

    runs: list[RunFiles]
    timelines: list[Timeline | None]
    scored: Scored | None
    files: list[ScoreFile]
    training: TrainingRows | None
    roots: list[Path]


def read_all(config: ReportConfig) -> Read:
    """Raises ValueError for whatever cannot be read."""
    paths = [Path(name) for name in config.runs]
    runs = [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    train = config.train or sorted(
        {
            str(path)
            for run in runs
            for entry in run.data_files()
            if (path := run.located(str(entry.get("path")))).is_file()
        }
    )
    training = read_training(train, None) if train and config.predictions else None
    scored = None
    if config.predictions:
        scored = read_scored(
            config.predictions,
            config.metric,
            config.row_scores,
            config.row_score,
            config.lower_is_better,
            config.blind_predictions,
            training.majority if training else lambda rows: None,
            config.seed,
        )
    roots = picture_roots(config, runs, train)
    return Read(
        runs,
        [read_timeline(run) for run in runs],
        scored,
        [read_score_file(path) for path in config.scores],
        training,
        roots,
    )


def picture_roots(config: ReportConfig, runs: Sequence[RunFiles], train: Sequence[str]) -> list[Path]:
    """Where pictures are looked for: --image_root alone, or the image roots of the runs and the folders of the given files."""
    if config.image_root is not None:
        root = Path(config.image_root)
        if not root.is_dir():
            raise ValueError(f"--image_root {root}: no such folder")
        return [root]
    roots = [
        run.located(str(entry["image_root"])) for run in runs for entry in run.data_files() if entry.get("image_root")
    ]
    roots += [Path(path).parent for path in [*config.predictions, *train]]
    return [root for root in dict.fromkeys(roots) if root.is_dir()]


def write_report(config: ReportConfig, command: str) -> dict[str, Any]:
    """Write the page; returns {"file", "bytes", "rows", "pictures", "verdict" ...}. Raises ValueError for a page above LARGEST."""
    read = read_all(config)
    pictures = Pictures(read.roots, _PICTURES)
    examples = make_examples(read.scored, config.rows, pictures) if read.scored and config.rows else []
    verdicts = [verdict_of_rows(read.scored)] if read.scored and not exact_match_of_points(read.scored) else []
    # A file that says of the same rows what was just scored would say it twice.
    verdicts += [
        found
        for file in read.files
        if (found := verdict_of_file(file)) and not any(found.same_as(other) for other in verdicts)
    ]
    context = {
        "title": config.title or f"Report: {', '.join(run.name for run in read.runs) or 'answers'}",
        "command": command,
        "read": read,
        "verdicts": verdicts,
        "tone": verdicts[0].tone if verdicts else ALONE,
        "pictures": pictures,
        "examples": examples,
        **_run_context(read),
        **_score_context(read, config),
    }
    text = render(context)
    size = len(text.encode())
    if size > LARGEST:
        raise ValueError(
            f"the page would have {size:,} bytes, more than {LARGEST:,}: give fewer runs, --scores or --rows"
        )
    write_atomically(config.out, lambda file: file.write(text.encode()))
    return {
        "file": str(config.out),
        "bytes": size,
        "runs": [run.name for run in read.runs],
        "rows": len(read.scored.rows) if read.scored else 0,
        "rows_shown": len(examples),
        "pictures": pictures.shown,
        "pictures_not_found": pictures.problems,
        "pictures_without_room": pictures.no_room,
        "verdicts": [_plain(verdict) for verdict in verdicts],
    }


def exact_match_of_points(scored: Scored) -> bool:
    """Whether most rows answer with a trajectory and are compared letter by letter: no verdict can come of that."""
    tracks = sum(read_track(item.reference) is not None for item in scored.rows)
    return scored.metric in METRICS and 2 * tracks > len(scored.rows)


def _plain(verdict: Verdict) -> dict[str, Any]:
    names = ("title", "system", "value", "low", "high", "n", "tone", "words")
    return {name: getattr(verdict, name) for name in names}


def _run_context(read: Read) -> dict[str, Any]:
    runs, timelines = read.runs, read.timelines
    return {
        "ran": run_block.ran_table(runs, timelines) if runs else None,
        "differences": run_block.flag_differences(runs),
        "versions": run_block.version_details(runs),
        "judge_cost": run_block.judge_cost(runs, read.files),
        "panels": draw_panels(runs),
        "samples": [table for run in runs if (table := run_block.sample_rows(run)) is not None],
        "data": run_block.data_table(runs),
        "left_out": run_block.left_out_table(runs),
        "bad_rows": run_block.bad_examples(runs),
        "tokens": run_block.token_table(runs),
        "lines": [
            (run.name, timeline, read_faults(run)) for run, timeline in zip(runs, timelines, strict=True)
        ],
        "commands": run_block.commands(runs),
    }  # fmt: skip


def _score_context(read: Read, config: ReportConfig) -> dict[str, Any]:
    scored = read.scored
    columns = scored.columns(config.by) if scored else {}
    shared: Shared | None = None
    if scored and read.training:
        shared = shared_with(read.training, scored.rows, read.roots)
    return {
        "scored": scored,
        "by_column": score_block.tables_by_column(scored, columns) if scored else [],
        "comparisons": score_block.comparisons(scored) if scored else [],
        "confusions": confusions(scored) if scored and scored.binary else [],
        "file_tables": [(file, score_block.file_tables(file)) for file in read.files],
        "judges": [(file.name, file.judges) for file in read.files if file.judges],
        "priors": read.training.priors() if read.training else [],
        "shared": shared,
        "unseen": read.training.unseen(scored.rows) if scored and read.training else 0,
        "most_hashed": MOST_HASHED,
        "row_scores": row_scores(scored) if scored else None,
        "points": scored is not None and exact_match_of_points(scored),
    }


def row_scores(scored: Scored) -> str | None:
    """The scores of all rows as JSON for the page's own download; None where they would make the page too heavy.

    "<" is written as an escape: no text of a row can end the element that the JSON stands in.
    """
    systems = [*scored.systems, *scored.baselines]
    rows = [
        {"id": item.id, "dataset": item.dataset, **{system.name: float(system.values[i]) for system in systems}}
        for i, item in enumerate(scored.rows)
    ]
    text = json.dumps({"metric": scored.metric, "rows": rows}, ensure_ascii=True)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text if len(text) <= _ROW_SCORES else None


def render(context: dict[str, Any]) -> str:
    """The page. Jinja2 escapes every value that is not markup made here; a name that is missing in `context` is an error.

    The page's policy allows its own script by hash and no other, no handler in an attribute, and nothing from a network.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": clock,
        "duration": duration,
        "score": score_block.shown,
        "interval": score_block.interval,
        "anchor": anchor,
    }
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    }
    # Half a surrogate pair, which broken texts hold, has no UTF-8 form.
    return environment.get_template("report.html").render(context | own).encode("utf-8", "replace").decode("utf-8")


def anchor(example: Example) -> str:
    """The element's id of a row: its number, since a row's own id may be anything."""
    return f"row-{example.number}"
