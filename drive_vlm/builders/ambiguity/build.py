"""The whole build: a truth file in, rows by split, dialogues and audit.json out."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.ambiguity.clarifyvlm import Pipeline, read_annotations, read_published, write_questions
from drive_vlm.builders.ambiguity.instances import KeepRules, Picture, SalienceRules, keep_instances
from drive_vlm.builders.ambiguity.leak import leak_problem, options_of, text_leak
from drive_vlm.builders.ambiguity.questions import (
    AMBIGUOUS,
    ATTRIBUTES,
    MISSING,
    Pair,
    Question,
    missing,
    pairs,
    questions,
)
from drive_vlm.builders.ambiguity.replies import Asker, TeacherFlags
from drive_vlm.builders.ambiguity.rows import NoNames, RowMaker, all_values, clarify, facts, names_of, row_id
from drive_vlm.builders.ambiguity.select import Circle, Selection, Single, in_turn, matched, unbalanced
from drive_vlm.builders.ambiguity.sources import SOURCES as TRUTHS
from drive_vlm.builders.ambiguity.teacher import Rephraser, rephrase_all
from drive_vlm.builders.ambiguity.two_readings import INTENT, SPELLING, two_readings
from drive_vlm.builders.row_writer import Row, RowWriter, meta_entry
from drive_vlm.builders.splits import assign_split, parse_fractions, split_position
from drive_vlm.config import field, plain
from drive_vlm.data.samples import BadRow
from drive_vlm.store.cache import write_json

Reader = Callable[[Path, Path], Iterator[Picture | BadRow]]
# Sources that are not read by SOURCES: the tool gives the reader of a detection cache, since rewards/ owns it.
DETECTIONS, PUBLISHED = "detections", "clarifyvlm_rows"
# --source -> its reader.
SOURCES: dict[str, Reader] = {**TRUTHS, "clarifyvlm_boxes": read_annotations}
OTHER_TYPES = (MISSING, "deictic", SPELLING, INTENT)


@dataclass(frozen=True, kw_only=True)
class AmbiguityBuild(KeepRules, SalienceRules, TeacherFlags):
    """The arguments of tools/build_ambiguity.py."""

    source: str = field(
        help="what --data is: scenes.jsonl of tools/build_synthetic.py; DriveLM's JSON with key objects; BDD100K's box labels; a "
        "cache of tools/cache_detections.py over single pictures; ClarifyVLM's *_annotations.jsonl (boxes) or published rows",
        choices=(*SOURCES, DETECTIONS, PUBLISHED),
    )
    data: Path = field(help="the file with the boxes")
    out: Path = field(help="folder for SPLIT.jsonl, dialogues_SPLIT.jsonl, their *.meta.json, and audit.json")
    image_root: Path | None = field(None, help="folder that picture paths start from (default: the folder of --data)")
    pipeline: str = field(
        "templates",
        help="templates: questions from attributes; clarifyvlm: --teacher describes the boxes and writes questions and answers",
        choices=("templates", "clarifyvlm"),
    )
    teacher_prompts: Path | None = field(
        None, help="folder of the teacher's prompts (default: prompts next to the tool)"
    )
    attributes: list[str] = field(list(ATTRIBUTES), help=f"what is asked, of {', '.join(ATTRIBUTES)}")
    types: list[str] = field(
        [],
        help='further types of questions: missing_referent (nothing fits; the right answer says so), deictic ("that one"), spelling (a '
        'misspelt word that may be either of two kinds), intent ("the first": from the left, or from us)',
    )
    system_prompt: str = field(
        "none",
        help="what each row's system turn says: none; accurate (answer what is asked); rules (answer, ask back, or say that a "
        "thing is not there); or a text file",
    )
    splits: list[str] = field(["train:0.9", "val:0.1"], help="NAME:SHARE of the groups (scenes, videos); they sum to 1")
    balance: str = field(
        "text",
        help="text: each question text stands as often in ambiguous as in clear rows; none: a pair for each picture and attribute",
        choices=("text", "none"),
    )
    on_leak: str = field(
        "error",
        help="when a classifier that reads the question alone knows what is ambiguous: error writes nothing, warn says it",
        choices=("error", "warn"),
    )
    pairs_per_picture: int = field(2, help="ambiguous questions with a twin that a picture may have", least=1)
    max_rows: int | None = field(None, help="rows of all splits together, at most", least=4)
    limit: int | None = field(None, help="take the first N usable pictures", least=1)
    seed: int = field(0, help="seed of the split, the choice of rows and the order of options", least=0)
    on_bad_row: str = field(
        "error",
        help="error: stop at a picture whose boxes or labels cannot be used; skip: leave it out, counted",
        choices=("error", "skip"),
    )
    on_missing: str = field(
        "error", help="a picture that is not there: error stops, skip leaves it out, counted", choices=("error", "skip")
    )
    json: str | None = field(None, help="write the counts here")

    def __post_init__(self) -> None:
        for flag, given, known in (("attributes", self.attributes, ATTRIBUTES), ("types", self.types, OTHER_TYPES)):
            if unknown := set(given) - set(known):
                raise ValueError(f"--{flag} {' '.join(sorted(unknown))}: not known; of {', '.join(known)}")
        parse_fractions(self.splits, "--splits")
        if self.source == PUBLISHED and (self.teacher or self.pipeline == "clarifyvlm"):
            raise ValueError(
                f"--source {PUBLISHED}: these rows are taken as they are; leave --teacher and --pipeline out"
            )
        if self.source == "clarifyvlm_boxes" and self.pipeline != "clarifyvlm":
            raise ValueError(
                "--source clarifyvlm_boxes: these boxes have no attributes; give --pipeline clarifyvlm and --teacher"
            )
        if self.pipeline == "clarifyvlm" and not self.teacher:
            raise ValueError("--pipeline clarifyvlm: a teacher writes the questions; give --teacher and --base_url")

    @property
    def root(self) -> Path:
        return self.image_root or self.data.parent


@dataclass
class Made:
    """The rows of each split, dialogues of ambiguous ones, and what the audit says of them."""

    rows: dict[str, list[Row]]
    audit: dict[str, Any]
    dialogues: dict[str, list[Row]] = dataclasses.field(default_factory=dict)


def build(config: AmbiguityBuild, readers: Mapping[str, Reader], prompts: Path) -> dict[str, Any]:
    """Read, ask, choose, check, write; the audit. Raises ValueError for what a user can fix, and for a text that leaks.

    readers: of each --source with boxes; prompts: the folder of the teacher's prompts unless --teacher_prompts names one.
    """
    prompts = config.teacher_prompts or prompts
    with RowWriter(config.out, config.on_bad_row) as writer:
        if config.source == PUBLISHED:
            made = from_published(config, writer)
        elif config.pipeline == "clarifyvlm":
            made = from_pipeline(config, readers[config.source], writer, prompts)
        else:
            made = from_boxes(config, readers[config.source], writer, prompts)
        everything = [row for part in made.rows.values() for row in part]
        leak = text_leak(everything, seed=config.seed)
        # Said, not refused: the options matter to a four-choice score alone, whose report has a blind baseline.
        with_options = [row for row in everything if row.get("choices")]
        options = text_leak(with_options, options_of, seed=config.seed)["balanced_accuracy"]
        problem = leak_problem(leak)
        if problem and config.on_leak == "error":
            way_out = "--balance text takes each text as often ambiguous as clear; --on_leak warn writes the rows all the same"
            raise ValueError(f"{problem}. {way_out}")
        system = system_text(config.system_prompt, prompts)
        for split, part in made.rows.items():
            writer.add(f"{split}.jsonl", [with_system(row, system) for row in part], split)
        for split, part in made.dialogues.items():
            writer.add(f"dialogues_{split}.jsonl", [with_system(row, system) for row in part])
    for name, count in writer.counts.items():
        stem = name.removesuffix(".jsonl")
        entry = meta_entry(str(config.root.resolve()), name, count)
        write_json(config.out / f"{stem}.meta.json", {f"ambiguity_{stem}": entry})
    counts = {
        "arguments": plain(config),
        "splits": plain({split: counts_of(part) for split, part in made.rows.items()}),
    }
    audit = counts | made.audit | {"leak": leak | {"problem": problem, "options": options}} | writer.audit()
    write_json(config.out / "audit.json", audit)
    return audit


def system_text(name: str, prompts: Path) -> str:
    """The text of --system_prompt; "" for none. Raises ValueError for a file that is not there, not text, or empty."""
    if name == "none":
        return ""
    file = prompts / f"clarify_system_{name}.txt" if name in ("accurate", "rules") else Path(name)
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--system_prompt {name}: none, accurate, rules or a text file; {file}: {error}") from error
    if not text:
        raise ValueError(f"--system_prompt {name}: {file} is empty")
    return text


def with_system(row: Row, text: str) -> Row:
    """The row with a system turn before the others; as it is without a text."""
    return {**row, "messages": [{"role": "system", "content": text}, *row["messages"]]} if text else row


def from_boxes(config: AmbiguityBuild, reader: Reader, writer: RowWriter, prompts: Path) -> Made:
    """Rows by templates, from boxes with attributes; a teacher may put them into other words."""
    shares = parse_fractions(config.splits, "--splits")
    left_out = {"instances": Counter[str](), "questions": Counter[str]()}
    pictures = read_pictures(config, reader, writer, left_out["instances"])
    found = [ask(config, picture, left_out["questions"]) for picture in pictures]
    check_found(config, pictures, found, left_out)
    values = all_values(pictures)
    maker = RowMaker(values, config.source, config.seed)
    parts: dict[str, list[int]] = {split: [] for split in shares}
    for number, picture in enumerate(pictures):
        parts[assign_split(picture.group, shares, config.seed)].append(number)
    rows = {split: rows_of(config, maker, pictures, found, parts[split], shares[split]) for split in shares}
    check_rows(config, rows, found)
    audit = audit_of(pictures, found, rows, left_out)
    if config.teacher:
        asker = Asker(config, config.out, config.seed)
        rephraser = Rephraser(asker, prompts, values)
        rows = {split: rephrase_all(rephraser, part, config.workers) for split, part in rows.items()}
        changed = sum("template_question" in row for part in rows.values() for row in part)
        audit["teacher"] = {"rephrased": changed} | asker.audit()
    dialogues = {split: [maker.dialogue(row) for row in part if row["ambiguous"]] for split, part in rows.items()}
    return Made(rows, audit, dialogues)


def from_pipeline(config: AmbiguityBuild, reader: Reader, writer: RowWriter, prompts: Path) -> Made:
    """Rows as ClarifyVLM's two calls to a teacher write them."""
    left_out: Counter[str] = Counter()
    pictures = read_pictures(config, reader, writer, left_out)
    asker = Asker(config, config.out, config.seed)
    rows = write_questions(Pipeline(asker, prompts, config.root, config.source, config.seed), pictures, config.workers)
    if not rows:
        raise ValueError(f"{config.teacher}: no reply could be used; rejected: {_counts(asker.rejected)}")
    audit = boxes_audit(pictures, left_out) | {"teacher": {"written": len(rows)} | asker.audit()}
    return Made(by_split(config, rows[: config.max_rows]), audit)


def from_published(config: AmbiguityBuild, writer: RowWriter) -> Made:
    """ClarifyVLM's published rows, in this project's form."""
    rows = []
    for row in itertools.islice(read_published(config.data, config.root), config.limit):
        if isinstance(row, BadRow):
            writer.reject(row, config.on_missing == "skip" and row.reason == "image_missing")
        else:
            rows.append(row)
    if not rows:
        raise ValueError(f"{config.data}: no row that can be used{f'; {writer.bad[0]}' if writer.bad else ''}")
    return Made(by_split(config, rows[: config.max_rows]), {})


def by_split(config: AmbiguityBuild, rows: Sequence[Row]) -> dict[str, list[Row]]:
    shares = parse_fractions(config.splits, "--splits")
    parts: dict[str, list[Row]] = {split: [] for split in shares}
    for row in rows:
        parts[assign_split(row["group"], shares, config.seed)].append(row)
    return parts


def read_pictures(config: AmbiguityBuild, reader: Reader, writer: RowWriter, left_out: Counter[str]) -> list[Picture]:
    """The usable pictures with the instances that count, in an order that follows from the seed."""

    def usable() -> Iterator[Picture]:
        for picture in reader(config.data, config.root):
            if isinstance(picture, BadRow):
                writer.reject(picture, config.on_missing == "skip" and picture.reason == "image_missing")
            else:
                yield keep_instances(picture, config, left_out)

    pictures = list(itertools.islice(usable(), config.limit))
    if not pictures:
        raise ValueError(f"{config.data}: no picture that can be used{f'; {writer.bad[0]}' if writer.bad else ''}")
    return sorted(pictures, key=lambda picture: (split_position(picture.id, config.seed), picture.id))


def ask(config: AmbiguityBuild, picture: Picture, left_out: Counter[str]) -> list[Question]:
    """All questions about a picture that can become rows; an ambiguous one whose candidates cannot be named is left out."""
    found = []
    asked = questions(picture, config.attributes, config, "deictic" in config.types, left_out)
    for question in (*asked, *two_readings(picture, config.attributes, config.types, config, left_out)):
        if question.kind == AMBIGUOUS:
            try:
                clarify(picture, question, names_of(picture, question))
            except NoNames:
                left_out["no_names"] += 1
                continue
        found.append(question)
    return found


def check_found(
    config: AmbiguityBuild,
    pictures: Sequence[Picture],
    found: Sequence[Sequence[Question]],
    left_out: Mapping[str, Counter[str]],
) -> None:
    """Raises ValueError, with the counts, where nothing is ambiguous."""
    if any(question.kind == AMBIGUOUS for part in found for question in part):
        return
    kept = sum(len(picture.instances) for picture in pictures)
    facts = (
        f"{config.data}: {len(pictures):,} pictures with {kept:,} instances; left out: {_counts(left_out['instances'])}"
    )
    if all(len(Counter(thing.name for thing in picture.instances)) == len(picture.instances) for picture in pictures):
        raise ValueError(
            f"{facts}. No picture has two instances of one class, so no question is ambiguous. --min_side, --min_area, "
            "--min_visible and --min_score say what counts"
        )
    raise ValueError(
        f"{facts}. No question is ambiguous: where a picture has two instances of a class, one stands out, the answers are the "
        f"same, or an attribute is missing (left out: {_counts(left_out['questions'])}). --attributes side needs boxes alone"
    )


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "none"


def rows_of(
    config: AmbiguityBuild,
    maker: RowMaker,
    pictures: Sequence[Picture],
    found: Sequence[Sequence[Question]],
    numbers: Sequence[int],
    share: float,
) -> list[Row]:
    """The rows of one split, made of the pictures with these `numbers`."""
    plain_ones = {number: [question for question in found[number] if not question.type] for number in numbers}
    all_pairs = [pair for number in numbers for pair in pairs(number, plain_ones[number])]
    ambiguous = {pair.asked.key: (pair.asked.attribute, pair.asked.asked) for pair in all_pairs}
    singles = [
        Single(number, question)
        for number in numbers
        for question in [
            *(question for question in plain_ones[number] if question.kind != AMBIGUOUS),
            *(missing(pictures[number], ambiguous.values()) if MISSING in config.types else ()),
        ]
    ]
    most = None if config.max_rows is None else round(config.max_rows * share)
    if config.balance == "text":
        circles = Selection(all_pairs, singles, config.pairs_per_picture).circles(most)
    else:
        circles = unbalanced(all_pairs, singles, most)
    others = matched(Single(number, question) for number in numbers for question in found[number] if question.type)
    chosen = in_turn(circles, others, most)
    return [row for number, circle in enumerate(chosen) for row in rows_of_circle(maker, pictures, circle, number)]


def rows_of_circle(maker: RowMaker, pictures: Sequence[Picture], circle: Circle, number: int) -> Iterator[Row]:
    """The rows of a circle, all in wording `number`."""

    def ambiguous(pair: Pair, question: Question) -> Row:
        picture = pictures[pair.picture]
        return maker.row(picture, question, number, AMBIGUOUS, row_id(picture, pair.twin))

    for pair in circle.pairs:
        yield ambiguous(pair, pair.asked)
        yield maker.row(pictures[pair.picture], pair.twin, number, "twin", row_id(pictures[pair.picture], pair.asked))
    for question, of in circle.extras:
        yield ambiguous(circle.pairs[of], question)
    for single in circle.singles:
        question = single.question
        yield maker.row(pictures[single.picture], question, number, question.type or question.kind)


def check_rows(config: AmbiguityBuild, rows: Mapping[str, Sequence[Row]], found: Sequence[Sequence[Question]]) -> None:
    """Raises ValueError where no row was chosen."""
    if any(rows.values()):
        return
    kinds = Counter(question.kind for part in found for question in part)
    raise ValueError(
        f"{config.data}: {kinds[AMBIGUOUS]:,} ambiguous questions, but no text of a question stands in an ambiguous and in a clear "
        f"picture of one split (clear: {kinds.total() - kinds[AMBIGUOUS]:,}). Give more pictures, or --balance none --on_leak warn"
    )


def counts_of(rows: Sequence[Row]) -> dict[str, Counter[str]]:
    """Rows of a split by label, level, type, class, attribute; candidates and sides by type as well."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for name, value in facts(row).items():
            counts[name][f"{row['type']} {value}" if name in ("side", "candidates") else value] += 1
    return counts


def audit_of(
    pictures: Sequence[Picture],
    found: Sequence[Sequence[Question]],
    rows: Mapping[str, Sequence[Row]],
    left_out: Mapping[str, Counter[str]],
) -> dict[str, Any]:
    """What was read, found and left out."""
    asked = {
        "found": dict(Counter(f"{question.type} {question.kind}".strip() for part in found for question in part)),
        "left_out": dict(left_out["questions"]),
        "written": sum(map(len, rows.values())),
    }
    return boxes_audit(pictures, left_out["instances"]) | {"questions": asked}


def boxes_audit(pictures: Sequence[Picture], left_out: Counter[str]) -> dict[str, Any]:
    return {
        "pictures": len(pictures),
        "groups": len({picture.group for picture in pictures}),
        "instances": {
            "kept": sum(len(picture.instances) for picture in pictures),
            "by_class": dict(Counter(thing.name for picture in pictures for thing in picture.instances)),
            "left_out": dict(left_out),
        },
    }
