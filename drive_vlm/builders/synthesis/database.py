"""The visual-text data base: crops that somebody has named, as vectors, with the check that none is of an evaluation picture.

DIR/vectors.npy    float16[N, D], each of length 1
DIR/names.jsonl    {"row", "name", "image", "group", "licence"} of each vector
DIR/settings.json  the embedder and how it saw the crops, which queries must share
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from drive_vlm.builders.synthesis.embed import PACKED, Views, embed_crops, open_vectors, pack
from drive_vlm.builders.synthesis.embedders import Embed
from drive_vlm.builders.synthesis.pictures import Picture, load_all
from drive_vlm.builders.synthesis.records import Crop, field_of, plain_record
from drive_vlm.builders.synthesis.search import VectorIndex
from drive_vlm.builders.synthesis.step import Made, Make
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.store.cache import array_bytes, write_atomically, write_json
from drive_vlm.store.fingerprint import same_model
from drive_vlm.store.forms import check_fields, read_dataclass
from drive_vlm.store.keyed_lines import check_same, read_lines, short, write_lines


@dataclasses.dataclass(frozen=True)
class DatabaseSettings:
    """Of DIR/settings.json: the embedder's fingerprint, how it sees crops, and the numbers of rows and names."""

    embedder: dict[str, Any]
    views: dict[str, Any]
    rows: int
    names: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of names.jsonl."""

    row: int
    name: str
    image: str
    group: str | None
    licence: str


def naming(embed: Embed, views: Views, licence: str, whole: bool = False) -> Make:
    """The make of the data base: boxes with labels where a picture's line has some, else the whole picture under its folder's name.
    With `whole` the picture as well as its boxes: of evaluation pictures, anything may have been cut out."""

    def make(pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        for picture, shown in zip(pictures, load_all(pictures), strict=True):
            if isinstance(shown, ValueError):
                yield shown
                continue
            line, folder = picture.line, Path(picture.path).resolve().parent.name
            boxes = field_of(line, "boxes", picture.where) if "boxes" in line else []
            named = [(item.box, item.rle, name_of(item.label)) for item in boxes]
            if whole or "boxes" not in line:
                named.append(([0.0, 0.0, float(shown.width), float(shown.height)], None, name_of(folder)))
            kept = [item for item in named if min(item[0][2] - item[0][0], item[0][3] - item[0][1]) >= views.least_side]
            vectors = embed_crops(embed, shown, [(box, rle) for box, rle, _ in kept], views.context)
            items = [plain_record(Crop(box, "box", i, i)) | {"name": name} for i, (box, _, name) in enumerate(kept)]
            dropped = {"too_few_pixels": len(named) - len(kept)} if len(kept) < len(named) else {}
            fields = {"items": items, PACKED: pack(vectors), "content": picture.content()}
            yield Made(fields | {"licence": line.get("licence") or licence}, dropped)

    return make


def name_of(text: str) -> str:
    """A label, or a folder, as a name: traffic_cone is traffic cone."""
    return " ".join(text.replace("_", " ").split())


def write_database(
    out: Path, crops: Path, embedder: dict[str, Any], views: dict[str, Any], left_out: set[int]
) -> DatabaseSettings:
    """DIR of the step's file `crops`, without the vectors `left_out`. Raises ValueError where nothing is left."""
    entries: list[Entry] = []
    numbers: list[int] = []
    for entry, number in _entries(crops):
        if number not in left_out:
            entries.append(dataclasses.replace(entry, row=len(entries)))
            numbers.append(number)
    if not entries:
        raise ValueError(
            f"{out}: no crop is left for the data base. Give pictures in folders by name, or lines with boxes."
        )
    settings = DatabaseSettings(embedder, views, len(entries), len({entry.name for entry in entries}))
    vectors = np.asarray(open_vectors(crops)[numbers])
    # The settings last: a folder without them is no data base.
    (out / "settings.json").unlink(missing_ok=True)
    # A threshold is one of the crops it was found with.
    (out / "calibration.json").unlink(missing_ok=True)
    write_atomically(out / "vectors.npy", lambda file: file.write(array_bytes(vectors)))
    write_lines(out / "names.jsonl", map(dataclasses.asdict, entries))
    write_json(out / "settings.json", dataclasses.asdict(settings))
    return settings


def _entries(crops: Path) -> Iterator[tuple[Entry, int]]:
    """(entry, number of its vector) of each item of the step's file."""
    for line in JsonlFile(crops):
        for item in line["items"]:
            yield Entry(-1, item["name"], line["image"], line["group"], line["licence"]), item["vector"]


class _EntryForm(TypedDict):
    row: int
    name: str
    image: str
    group: str | None
    licence: str


class Database:
    """One or several folders of a data base, read: `entries` by row, `index` over their vectors."""

    def __init__(self, folders: Sequence[str], faiss: bool = False) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.settings = [_read_settings(folder) for folder in self.folders]
        first = self.settings[0]
        for folder, other in zip(self.folders, self.settings, strict=True):
            check_embedder(folder, other, first.embedder, first.views, str(self.folders[0]))
        self.entries: list[Entry] = []
        shards = []
        for folder, settings in zip(self.folders, self.settings, strict=True):
            shards.append(np.load(folder / "vectors.npy", mmap_mode="r"))
            entries = _read_names(folder / "names.jsonl")
            if not len(shards[-1]) == len(entries) == settings.rows:
                raise ValueError(
                    f"{folder}: {len(shards[-1]):,} vectors, {len(entries):,} names, settings say {settings.rows:,}. Build it again."
                )
            self.entries += entries
        self.names = [entry.name for entry in self.entries]
        self.index = VectorIndex(shards, faiss)

    def check_queries(self, embedder: Any, views: dict[str, Any], where: str) -> None:
        """Raises ValueError where the queries of the file `where` come from another embedder than the data base."""
        check_embedder(self.folders[0], self.settings[0], embedder, views, where)


def check_embedder(folder: Path, settings: DatabaseSettings, embedder: Any, views: dict[str, Any], where: str) -> None:
    """Raises ValueError unless data base and queries are of one embedder that saw crops in one way."""
    way_out = "Embed both with one model and the same flags (synth_embed.py, synth_database.py)."
    if not isinstance(embedder, dict) or same_model(settings.embedder, embedder) is None:
        raise ValueError(
            f"{folder} was built by another embedder than {where} ({short(settings.embedder)} there, {short(embedder)} here): their "
            f"vectors cannot be compared. {way_out}"
        )
    check_same(f"{folder} and {where} saw their crops in two ways", settings.views, views, way_out)


def _read_settings(folder: Path) -> DatabaseSettings:
    path = folder / "settings.json"
    if not path.is_file():
        raise ValueError(
            f"--database {folder}: no data base in it ({path.name} is not there). Build one with tools/synth_database.py."
        )
    return read_dataclass(path, DatabaseSettings, "Build it again with tools/synth_database.py")


def _read_names(path: Path) -> list[Entry]:
    def parse(row: Any) -> Entry:
        check_fields(row, _EntryForm)
        return Entry(row["row"], row["name"], row["image"], row["group"], row["licence"])

    return [
        entry
        for _, entry in read_lines(path, "not a name of a data base", "Build it again.", parse, torn="a torn line")
    ]


# ---- leaks


@dataclasses.dataclass(frozen=True)
class Leak:
    """A crop of the data base that is of an evaluation picture. `kind`: "group", "content" (the picture's bytes) or
    "look-alike" (its embedding); `score` of the last."""

    vector: int
    kind: str
    image: str
    held_out: str
    score: float | None = None

    def __str__(self) -> str:
        alike = f", similarity {self.score:.3f}" if self.score is not None else ""
        return f"{self.kind}: {self.image} = {self.held_out}{alike}"


def find_leaks(crops: Path, held_out: Path, alike: float) -> list[Leak]:
    """Each crop of the step's file `crops` that is of a picture of `held_out`, a file of the same step over the evaluation pictures;
    the first kind that fits counts. `alike`: similarity from which two crops show one thing."""
    groups, contents = {}, {}
    wanted: list[str] = []
    for line in JsonlFile(held_out):
        if line["group"] is not None:
            groups[line["group"]] = f"group {line['group']}"
        contents[line["content"]] = line["image"]
        wanted += [line["image"]] * len(line["items"])
    vectors, known = open_vectors(crops), open_vectors(held_out)
    nearest, rows = (
        VectorIndex([known]).search(vectors, 1) if len(known) and len(vectors) else (np.zeros((len(vectors), 0)),) * 2
    )
    leaks = []
    for line in JsonlFile(crops):
        for item in line["items"]:
            number = item["vector"]
            kinds = {"group": groups.get(line["group"]), "content": contents.get(line["content"])}
            kind = next((kind for kind, found in kinds.items() if found), None)
            if kind is not None:
                leaks.append(Leak(number, kind, line["image"], str(kinds[kind])))
            elif nearest.shape[1] and nearest[number, 0] >= alike:
                score = float(nearest[number, 0])
                leaks.append(Leak(number, "look-alike", line["image"], wanted[int(rows[number, 0])], score))
    return leaks


def leak_counts(leaks: Sequence[Leak]) -> dict[str, int]:
    """Counts by kind, printed when they are zero too."""
    found = Counter(leak.kind for leak in leaks)
    return {kind: found[kind] for kind in ("group", "content", "look-alike")}
