"""BDD-OIA's label files as rows: the join of the two official files, LXMERT's layout, the filters, the toy subset, clips.

    {"id": "00067cfb-e535423e_3", "group": "00067cfb-e535423e", "image": "00067cfb-e535423e_3.jpg", "conversations": [...],
     "actions": [0, 1, 0, 0], "reason": [0, 0, 0, 0, 0, 0, 0, 1, ...]}

The synthetic world writes its rows through `oia_row` as well. Texts of labels and the forms of an answer: evaluation/oia_labels.py.
"""

import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row, RowWriter, meta_entry
from drive_vlm.builders.splits import split_position
from drive_vlm.config import field
from drive_vlm.data.samples import BadRow
from drive_vlm.data.videos import find_videos
from drive_vlm.data.vision import load_frames, video_length
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, REASON_TEXTS, json_answer, label_texts, text_answer
from drive_vlm.store.cache import read_json, write_json
from drive_vlm.store.keyed_lines import read_lines

SPLITS = ("train", "val", "test")
# Rows in the published files, and those that the official loader takes (github.com/Twizwei/bddoia_project).
OFFICIAL = {"train": (16_082, 16_028), "val": (2_270, 2_259), "test": (4_572, 4_548)}
# github.com/TiezWan/Decision-Explanation-BDDOIA-LXMERT, input/gt_4a_21r_*.json; it has no fifth number.
LXMERT = {"train": (7_946, 7_946), "val": (1_117, 1_117), "test": (2_236, 2_236)}
SKIP = "--on_bad_row skip leaves such rows out and counts them"
_MISSING = "--on_missing skip leaves such rows out and counts them"
# The video of BDD100K; behind it the number of another clip of the same video.
_NAME = re.compile(r"([0-9a-f]{8}-[0-9a-f]{8})(_[0-9]+)?")
_SUFFIXES = {".jpg", ".jpeg", ".png"}
# Keys of a line of --descriptions, and those of a prediction, which are taken as well.
_DESCRIPTION = (("file_name", "id"), ("description", "prediction"))


@dataclass(frozen=True)
class Labelled:
    """One picture's labels. `confused`: the annotators marked it with the fifth number, "confuse"."""

    file_name: str
    actions: tuple[int, ...]
    reason: tuple[int, ...]
    confused: bool = False

    @property
    def id(self) -> str:
        return Path(self.file_name).stem

    @property
    def video(self) -> str:
        """The video of BDD100K that the picture is from: its first 17 characters."""
        return self.file_name[:17]


@dataclass(frozen=True)
class OiaBuild:
    """The arguments of tools/build_bddoia.py."""

    labels: Path = field(
        help="folder of SPLIT_25k_images_actions.json and SPLIT_25k_images_reasons.json (official), or of gt_4a_21r_SPLIT.json (LXMERT)"
    )
    out: Path = field(help="folder for SPLIT.jsonl, SPLIT.meta.json and audit.json")
    images: Path | None = field(None, help="folder of the lastframe pictures (default: data in the folder of --labels)")
    clips: Path | None = field(
        None,
        help="folder of the clips in place of the pictures; --num_frames of each go to OUT/frames_N, the labelled one last",
    )
    num_frames: int = field(8, help="frames cut from a clip", least=1, most=1000)
    splits: list[str] = field(list(SPLITS), help=f"splits to build, of {', '.join(SPLITS)}")
    filter: str = field(
        "official",
        help="official: rows that are not marked as confusing; any_action: rows with one of the four actions; all: every row",
        choices=("official", "any_action", "all"),
    )
    target: str = field(
        "text",
        help='text: "Action: ...; Reason: ..."; json: description, action, justification; labels: no answer, for a2c and grpo',
        choices=("text", "json", "labels"),
    )
    question: str | None = field(None, help="text of the user's turn after the picture (default: the picture alone)")
    descriptions: Path | None = field(
        None,
        help='JSON lines {"file_name", "description"}, or predictions of generate for rows of this tool; --target json needs them, '
        "since BDD-OIA has none",
    )
    toy: bool = field(
        False,
        help="small data as in the seed paper: rows of one action and one reason from all --splits, 8:2 by action into train and test, "
        "an eighth of train",
    )
    seed: int = field(0, help="seed of --toy", least=0)
    on_bad_row: str = field(
        "error",
        help="error: stop at labels, a name or a clip that cannot be used; skip: leave the row out and count it",
        choices=("error", "skip"),
    )
    on_missing: str = field(
        "error",
        help="a picture, clip or description that is not there: error stops, skip leaves the row out and counts it",
        choices=("error", "skip"),
    )
    workers: int = field(4, help="threads that look for pictures and cut clips", least=1)
    json: str | None = field(None, help="write the counts here")

    def __post_init__(self) -> None:
        if unknown := set(self.splits) - set(SPLITS):
            raise ValueError(f"--splits {' '.join(sorted(unknown))}: not known; of {', '.join(SPLITS)}")
        if self.target == "json" and self.descriptions is None:
            raise ValueError(
                "--target json: BDD-OIA has no descriptions. Give --descriptions FILE, e.g. what `generate` answers when it is "
                "asked for one; or take --target labels: a2c and grpo with the reward `structure` learn JSON without a target"
            )


# Which rows are taken. The official loader keeps rows of four numbers and those whose fifth is 0.
FILTERS: dict[str, Callable[[Labelled], bool]] = {
    "official": lambda row: not row.confused,
    "any_action": lambda row: any(row.actions),
    "all": lambda row: True,
}


def read_split(folder: Path, split: str) -> tuple[list[Labelled | BadRow], tuple[int, int]]:
    """(the rows of a split by name, a BadRow for labels or a name that cannot be used; the published numbers of rows).

    Raises ValueError, naming the file, for a file that does not have the published form, and for two whose names differ.
    """
    actions, reasons = (folder / f"{split}_25k_images_{kind}.json" for kind in ("actions", "reasons"))
    one = folder / f"gt_4a_21r_{split}.json"
    if actions.is_file() or reasons.is_file():
        return list(_read_official(actions, reasons)), OFFICIAL[split]
    if one.is_file():
        return list(_read_lxmert(one)), LXMERT[split]
    raise ValueError(
        f"{folder}: neither {actions.name} and {reasons.name} (official) nor {one.name} (LXMERT); is --labels the right "
        "folder? --splits names the splits to build"
    )


def _read_official(actions: Path, reasons: Path) -> Iterator[Labelled | BadRow]:
    content = read_json(actions)
    try:
        # By the picture's id, as the official loader does, not by its place in the list.
        numbers = [(image["file_name"], content["annotations"][image["id"]]["category"]) for image in content["images"]]
    except (KeyError, TypeError, IndexError) as error:
        raise _not_the_form(
            actions, error, '{"images": [{"id", "file_name"}], "annotations": [{"category"}]}'
        ) from error
    content = read_json(reasons)
    try:
        reason_of = [(row["file_name"], row["reason"]) for row in content]
    except (KeyError, TypeError) as error:
        raise _not_the_form(reasons, error, '[{"file_name", "reason"}]') from error
    first, second = (_by_name(pairs, file) for pairs, file in ((numbers, actions), (reason_of, reasons)))
    if first.keys() != second.keys():
        only = [sorted(a.keys() - b.keys()) for a, b in ((first, second), (second, first))]
        parts = (
            f"{len(names):,} only in {file.name} ({', '.join(names[:3])})"
            for names, file in zip(only, (actions, reasons), strict=True)
            if names
        )
        raise ValueError(f"{actions.parent}: the names differ: {'; '.join(parts)}. Both files must be of one release")
    for name in sorted(first):
        yield _labelled(name, first[name], second[name], f"{actions}: {name}", (4, 5))


def _read_lxmert(file: Path) -> Iterator[Labelled | BadRow]:
    content = read_json(file)
    try:
        rows = [(name, row["actions"], row["reason"]) for name, row in sorted(content.items())]
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_the_form(file, error, '{"ID": {"actions": [4], "reason": [21]}}') from error
    for name, actions, reason in rows:
        yield _labelled(f"{name}.jpg", actions, reason, f"{file}: {name}", (4,))


def _not_the_form(file: Path, error: Exception, form: str) -> ValueError:
    return ValueError(f"{file}: not BDD-OIA's form ({type(error).__name__}: {error}); expected {form}")


def _by_name(pairs: Sequence[tuple[Any, Any]], file: Path) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs if isinstance(name, str))
    if len(names) < len(pairs):
        again = next((name for name, count in names.items() if count > 1), "a name that is no text")
        raise ValueError(f"{file}: {len(pairs):,} rows have {len(names):,} names, e.g. {again} comes twice")
    return dict(pairs)


def _labelled(name: str, actions: Any, reason: Any, where: str, lengths: tuple[int, ...]) -> Labelled | BadRow:
    path = Path(name)
    if path.name != name or path.suffix.lower() not in _SUFFIXES or not _NAME.fullmatch(path.stem):
        problem = f"the name {name!r} is not that of a picture such as 00067cfb-e535423e.jpg or 00067cfb-e535423e_3.jpg"
        return BadRow("bad_name", where, problem, f"The video, which a split must not cut, is read from it. {SKIP}")
    for kind, values, sizes in (("actions", actions, lengths), ("reason", reason, (len(REASON_TEXTS),))):
        if not isinstance(values, list) or len(values) not in sizes:
            found = f"{len(values)} numbers" if isinstance(values, list) else f"a {type(values).__name__}"
            problem = f"{kind}: {found}, expected {' or '.join(map(str, sizes))} numbers"
            return BadRow("bad_label", where, problem, SKIP)
        if wrong := [value for value in values if value not in (0, 1)]:
            return BadRow("bad_label", where, f"{kind}: {wrong[0]!r} is neither 0 nor 1", SKIP)
    four = len(ACTION_TEXTS)
    return Labelled(name, tuple(map(int, actions[:four])), tuple(map(int, reason)), any(actions[four:]))


def read_descriptions(file: Path) -> dict[str, str]:
    """Texts by row id, of JSON lines {"id" or "file_name", "description" or "prediction"}: `generate` writes the second form.

    Raises ValueError, naming file and line, for a line of another form.
    """
    if not file.is_file():
        raise ValueError(f"--descriptions {file}: no such file")

    def parse(row: Any) -> tuple[str, str]:
        fields = row if isinstance(row, dict) else {}
        name, text = (fields.get(key, fields.get(other)) for key, other in _DESCRIPTION)
        if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
            raise ValueError('expected {"id", "description"}, both with words')
        return Path(name).stem, " ".join(text.split())

    problem, way_out = "not a description", "Give a line for each picture"
    return dict(pair for _, pair in read_lines(file, problem, way_out, parse, torn="the line is cut off"))


def oia_row(
    place: Row,
    actions: Sequence[int],
    reason: Sequence[int],
    target: str,
    question: str | None = None,
    description: str = "",
) -> Row:
    """A row of the data contract, with the labels as columns `actions` int[4] and `reason` int[21].

    place: id, group and the `image` or the `video`. target: "text" | "json" (needs `description`) | "labels", which has no
    answer. Without a question the user's turn is the picture or the video alone.
    """
    said = label_texts(actions, ACTION_TEXTS), label_texts(reason, REASON_TEXTS)
    tag = "<video>" if "video" in place else "<image>"
    turns = [{"from": "human", "value": f"{tag}\n{question}" if question else tag}]
    if target == "text":
        turns.append({"from": "gpt", "value": text_answer(*said)})
    elif target == "json":
        turns.append({"from": "gpt", "value": json_answer(description, *said)})
    row = {**place, "conversations": turns, "actions": list(actions), "reason": list(reason)}
    return {**row, "description": description} if description else row


def toy_subset(rows: Iterable[Labelled], seed: int) -> dict[str, list[Labelled]]:
    """The seed paper's small data: rows of one action and one reason, 8:2 by action, then an eighth of the training rows.

    A video lies on one side as a whole and counts under the action of its first clip, so that 8:2 holds up to one video for
    each action. Order and choice follow from hashes of (seed, name).
    """
    videos: dict[str, list[Labelled]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.file_name):
        if sum(row.actions) == sum(row.reason) == 1:
            videos[row.video].append(row)
    strata: dict[int, list[str]] = defaultdict(list)
    for video in sorted(videos, key=lambda name: (split_position(name, seed), name)):
        strata[videos[video][0].actions.index(1)].append(video)
    found: dict[str, list[Labelled]] = {"train": [], "test": []}
    for _, names in sorted(strata.items()):
        clips = [row for name in names for row in videos[name]]
        wanted = round(0.2 * len(clips))
        test: list[Labelled] = []
        train: list[Labelled] = []
        for name in names:
            (test if len(test) < wanted else train).extend(videos[name])
        found["test"] += test
        found["train"] += train[: max(1, round(len(train) / 8))]
    return {split: sorted(rows, key=lambda row: row.file_name) for split, rows in found.items()}


def find_clips(folder: Path) -> dict[str, str]:
    """Paths of the clips below `folder` by their stem, which is that of the labelled picture. Raises ValueError for two of one stem."""
    clips: dict[str, str] = {}
    for name, path in find_videos(folder):
        stem = Path(name).stem
        if stem in clips:
            raise ValueError(f"--clips {folder}: {clips[stem]} and {path} are both clips of {stem}")
        clips[stem] = path
    return clips


def cut_frames(clip: str, folder: Path, count: int, where: str) -> bool:
    """Write `count` frames of a clip as pictures 00.jpg ... to `folder`, unless it is there; whether they were written.

    They end equal shares of the clip, so that the last one is the clip's last, which the labels are of. The middles of equal
    shares, which training takes of a longer video, leave it out; of a folder of `count` frames training takes all, and still
    the last one with --num_frames from `count` / 2 on. Raises BadRow where the clip cannot be read.
    """
    if folder.is_dir():
        return False
    total = video_length(clip, where)
    wanted = [-(-(i + 1) * total // count) - 1 for i in range(count)] if total > count else list(range(total))
    # A killed build leaves no folder of some frames: it is complete, or has another name.
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for number, frame in enumerate(load_frames(clip, wanted, where)):
        frame.save(part / f"{number:02d}.jpg", quality=95)
    part.replace(folder)
    return True


def build(args: OiaBuild) -> dict[str, Any]:
    """Write the rows of all splits; the audit, which is written as well."""
    descriptions = read_descriptions(args.descriptions) if args.descriptions else None
    clips = find_clips(args.clips) if args.clips else None
    splits: dict[str, list[Labelled]] = {}
    counts: dict[str, dict[str, Any]] = {}
    with RowWriter(args.out, args.on_bad_row) as writer:
        for split in dict.fromkeys(args.splits):
            found, published = read_split(args.labels, split)
            usable = [row for row in found if isinstance(row, Labelled)]
            for row in found:
                if isinstance(row, BadRow):
                    writer.reject(row)
            splits[split] = list(filter(FILTERS[args.filter], usable))
            counts[split] = _counts(found, usable, splits[split], published)
        if args.toy:
            splits = toy_subset((row for rows in splits.values() for row in rows), args.seed)
        for split, rows in splits.items():
            writer.add(f"{split}.jsonl", _rows(rows, args, clips, descriptions, writer), split)
    root = args.out if args.clips else args.images or args.labels / "data"
    for name, count in writer.counts.items():
        entry = {f"bddoia_{name.removesuffix('.jsonl')}": meta_entry(str(root.resolve()), name, count)}
        write_json(args.out / f"{name.removesuffix('.jsonl')}.meta.json", entry)
    shared = [leak for leak in writer.leaks() if leak.startswith("group ")]
    audit = {"splits": counts, **writer.audit(), "shared_videos": len(shared), "root": str(root)}
    write_json(args.out / "audit.json", audit)
    return audit


def _counts(
    found: list[Labelled | BadRow], usable: list[Labelled], taken: list[Labelled], published: tuple[int, int]
) -> dict[str, Any]:
    return {
        "published": published[0],
        "published_official": published[1],
        "rows": len(found),
        **{name: sum(map(rule, usable)) for name, rule in FILTERS.items()},
        "taken": len(taken),
        "no_action": sum(not any(row.actions) for row in taken),
        "no_reason": sum(not any(row.reason) for row in taken),
    }


def _rows(
    rows: list[Labelled],
    args: OiaBuild,
    clips: dict[str, str] | None,
    descriptions: dict[str, str] | None,
    writer: RowWriter,
) -> Iterator[Row]:
    """The rows whose picture or clip is there; the others are counted or stop the build."""
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import Progress

    def media_of(row: Labelled) -> dict[str, str] | BadRow:
        try:
            return _image(row, args) if clips is None else _clip(row, args, clips)
        except BadRow as error:
            return error

    # The bar ends before an error is reported, whose line would else stand above it.
    with ThreadPoolExecutor(args.workers) as pool, Progress(console=Console(stderr=True)) as bar:
        shown = "pictures" if clips is None else "clips"
        found = bar.track(pool.map(media_of, rows), total=len(rows), description=shown)
        for row, media in zip(rows, found, strict=True):
            description = (descriptions or {}).get(row.id, "")
            if descriptions is not None and not description:
                problem = f"{args.descriptions} has no description of {row.file_name}"
                media = BadRow("description_missing", row.file_name, problem, f"Add a line for it. {_MISSING}")
            if isinstance(media, BadRow):
                writer.reject(media, args.on_missing == "skip" and media.reason.endswith("_missing"))
            else:
                place = {"id": row.id, "group": row.video, **media}
                yield oia_row(place, row.actions, row.reason, args.target, args.question, description)


def _image(row: Labelled, args: OiaBuild) -> dict[str, str]:
    path = (args.images or args.labels / "data") / row.file_name
    if not path.is_file():
        problem = f"the picture {path} does not exist"
        raise BadRow("image_missing", row.file_name, problem, f"Is --images the right folder? {_MISSING}")
    return {"image": row.file_name}


def _clip(row: Labelled, args: OiaBuild, clips: dict[str, str]) -> dict[str, str]:
    if row.id not in clips:
        problem = f"{args.clips} has no clip called {row.id}"
        raise BadRow("video_missing", row.file_name, problem, f"Is --clips the right folder? {_MISSING}")
    name = f"frames_{args.num_frames}/{row.id}"
    cut_frames(clips[row.id], args.out / name, args.num_frames, row.file_name)
    return {"video": name}
