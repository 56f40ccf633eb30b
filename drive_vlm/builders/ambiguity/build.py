"""The whole build: a truth file in, rows by split, dialogues and audit.json out."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.ambiguity.instances import KeepRules, Picture, SalienceRules, keep_instances
from drive_vlm.builders.ambiguity.leak import leak_problem, text_leak
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
from drive_vlm.builders.ambiguity.rows import NoNames, RowMaker, all_values, clarify, facts, names_of, row_id
from drive_vlm.builders.ambiguity.select import Circle, Selection, Single, unbalanced
from drive_vlm.builders.ambiguity.sources import SOURCES
from drive_vlm.builders.row_writer import Row, RowWriter, meta_entry
from drive_vlm.builders.splits import assign_split, parse_fractions, split_position
from drive_vlm.config import field, plain
from drive_vlm.data.samples import BadRow
from drive_vlm.store.cache import write_json

Reader = Callable[[Path, Path], Iterator[Picture | BadRow]]
DETECTIONS = "detections"
OTHER_TYPES = (MISSING, "deictic")


@dataclass(frozen=True, kw_only=True)
class AmbiguityBuild(KeepRules, SalienceRules):
    """The arguments of tools/build_ambiguity.py."""

    source: str = field(
        help="what --data is: scenes.jsonl of tools/build_synthetic.py; DriveLM's JSON with key objects; BDD100K's box labels; a "
        "cache of tools/cache_detections.py over single pictures",
        choices=(*SOURCES, DETECTIONS),
    )
    data: Path = field(help="the file with the boxes")
    out: Path = field(help="folder for SPLIT.jsonl, dialogues_SPLIT.jsonl, their *.meta.json, and audit.json")
    image_root: Path | None = field(
        None, help="folder that picture paths start from (default: the folder of --data; DriveLM: that of samples/)"
    )
    attributes: list[str] = field(list(ATTRIBUTES), help=f"what is asked, of {', '.join(ATTRIBUTES)}")
    types: list[str] = field(
        [],
        help='further types of questions: missing_referent (nothing fits; the right answer says so), deictic ("that one")',
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
    rows: int | None = field(None, help="rows of all splits together, at most", least=4)
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

    @property
    def root(self) -> Path:
        return self.image_root or self.data.parent


def build(config: AmbiguityBuild, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Read, ask, choose, check, write; the audit. Raises ValueError for what a user can fix, and for a text that leaks."""
    shares = parse_fractions(config.splits, "--splits")
    left_out = {"instances": Counter[str](), "questions": Counter[str]()}
    with RowWriter(config.out, config.on_bad_row) as writer:
        pictures = read_pictures(config, readers[config.source], writer, left_out["instances"])
        found = [ask(config, picture, left_out["questions"]) for picture in pictures]
        check_found(config, pictures, found, left_out)
        maker = RowMaker(all_values(pictures), config.source, config.seed)
        parts: dict[str, list[int]] = {split: [] for split in shares}
        for number, picture in enumerate(pictures):
            parts[assign_split(picture.group, shares, config.seed)].append(number)
        rows = {split: rows_of(config, maker, pictures, found, parts[split], shares[split]) for split in shares}
        everything = [row for part in rows.values() for row in part]
        check_rows(config, everything, found)
        leak = text_leak(everything, seed=config.seed)
        problem = leak_problem(leak)
        if problem and config.on_leak == "error":
            way_out = "--balance text takes each text as often ambiguous as clear; --on_leak warn writes the rows all the same"
            raise ValueError(f"{problem}. {way_out}")
        for split, part in rows.items():
            writer.add(f"{split}.jsonl", part, split)
            writer.add(f"dialogues_{split}.jsonl", (maker.dialogue(row) for row in part if row["ambiguous"]))
    for name, count in writer.counts.items():
        entry = meta_entry(str(config.root.resolve()), name, count)
        write_json(
            config.out / f"{name.removesuffix('.jsonl')}.meta.json", {f"ambiguity_{name.removesuffix('.jsonl')}": entry}
        )
    audit = audit_of(config, pictures, found, rows, left_out) | {"leak": leak | {"problem": problem}} | writer.audit()
    write_json(config.out / "audit.json", audit)
    return audit


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
    for question in questions(picture, config.attributes, config, "deictic" in config.types, left_out):
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
    all_pairs = [pair for number in numbers for pair in pairs(number, found[number])]
    ambiguous = {pair.asked.key: (pair.asked.attribute, pair.asked.asked) for pair in all_pairs}
    singles = [
        Single(number, question)
        for number in numbers
        for question in [
            *(question for question in found[number] if question.kind != AMBIGUOUS),
            *(missing(pictures[number], ambiguous.values()) if MISSING in config.types else ()),
        ]
    ]
    most = None if config.rows is None else round(config.rows * share)
    if config.balance == "text":
        circles = Selection(all_pairs, singles, config.pairs_per_picture).circles(most)
    else:
        circles = unbalanced(all_pairs, singles, most)
    return [row for number, circle in enumerate(circles) for row in rows_of_circle(maker, pictures, circle, number)]


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
        yield maker.row(pictures[single.picture], single.question, number, single.question.kind)


def check_rows(config: AmbiguityBuild, rows: Sequence[Row], found: Sequence[Sequence[Question]]) -> None:
    """Raises ValueError where no row was chosen."""
    if rows:
        return
    kinds = Counter(question.kind for part in found for question in part)
    raise ValueError(
        f"{config.data}: {kinds[AMBIGUOUS]:,} ambiguous questions, but no text of a question stands in an ambiguous and in a clear "
        f"picture of one split (clear: {kinds.total() - kinds[AMBIGUOUS]:,}). Give more pictures, or --balance none --on_leak warn"
    )


def audit_of(
    config: AmbiguityBuild,
    pictures: Sequence[Picture],
    found: Sequence[Sequence[Question]],
    rows: Mapping[str, Sequence[Row]],
    left_out: Mapping[str, Counter[str]],
) -> dict[str, Any]:
    """What was read, found, left out and written."""
    by_split: dict[str, dict[str, Counter[str]]] = {}
    for split, part in rows.items():
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in part:
            for name, value in facts(row).items():
                counts[name][f"{row['type']} {value}" if name in ("side", "candidates") else value] += 1
        by_split[split] = counts
    return {
        "arguments": plain(config),
        "pictures": len(pictures),
        "groups": len({picture.group for picture in pictures}),
        "instances": {
            "kept": sum(len(picture.instances) for picture in pictures),
            "by_class": dict(Counter(thing.name for picture in pictures for thing in picture.instances)),
            "left_out": dict(left_out["instances"]),
        },
        "questions": {
            "found": dict(Counter(question.kind for part in found for question in part)),
            "left_out": dict(left_out["questions"]),
            "written": sum(map(len, rows.values())),
        },
        "splits": plain(by_split),
    }
