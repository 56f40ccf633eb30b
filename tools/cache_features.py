"""Run the frozen vision tower once over every picture and video of the rows, for training with --feature_cache.

What is written is the tower's output, before temporal embeddings and projector: both may train from it. Of Qwen-VL it is what
the projector (its mergers) makes of it: train with --freeze vision_tower projector. Videos that several rows name are done once. Finished ones are kept when the command is run again, changed files are done again, and
ranks (torchrun) and job arrays (--shard) write into the same folder at the same time.
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, add_dataclass, field, image_root_field, links_field, run_tool
from drive_vlm.launch.stop import listening, until_stopped
from drive_vlm.launch.topology import read_topology
from drive_vlm.sampling.process_group import gather, join_ranks, leave_ranks
from drive_vlm.store.shards import parse_shard, shard_of

if TYPE_CHECKING:
    from drive_vlm.data.caches.feature_work import Work
    from drive_vlm.data.caches.feature_writer import FeatureWriter
    from drive_vlm.data.samples import BadRow

EXAMPLES = """
python tools/cache_features.py --model MODEL --data train.jsonl val.jsonl --num_frames 16 --out features
torchrun --nproc_per_node 8 tools/cache_features.py --model MODEL --data train.jsonl --num_frames 16 --out features
python tools/cache_features.py --model MODEL --data train.jsonl --num_frames 16 --out features --shard 2/8   # one of a job array
python -m drive_vlm sft --model MODEL --data train.jsonl --freeze vision_tower --num_frames 16 --feature_cache features
"""
_GIB = 2**30


@dataclasses.dataclass
class FeatureConfig:
    """What to run over which rows, and where the features go."""

    model: str = field(help="model directory or hub id that will train; only its vision tower runs")
    data: list[str] = field(
        help="rows: .jsonl, LLaVA .json or InternVL meta .json; also videos, folders of frames, and folders of both"
    )
    out: str = field(help="folder of the cache; entries that are in it and still valid are kept")
    image_root: str | None = image_root_field()
    links: str = links_field()
    num_frames: int = field(8, help="frames taken from a video, evenly spread; the same as in training")
    max_tiles: int | None = field(None, help="tiles a row may use for its pictures; the same as in training", least=1)
    min_pixels: int | None = field(
        None, help="pixels that a smaller picture is scaled up to (Qwen-VL); the same as in training", least=1
    )
    max_pixels: int | None = field(
        None, help="pixels that a larger picture or frame is scaled down to (Qwen-VL); the same as in training", least=1
    )
    stored: str = field(
        "float16", help="number type on disk (float32 equals training from pixels exactly)", choices=("float16", "bfloat16", "float32")
    )  # fmt: skip
    dtype: str = field(
        "auto", help="the tower's number type; auto: bfloat16 on a GPU, else float32", choices=("auto", "float32", "bfloat16")
    )  # fmt: skip
    attn_implementation: str = field("sdpa", help="attention kernel", choices=("sdpa", "flash", "eager"))
    batch_size: int = field(32, help="pictures or frames in one pass of the tower")
    workers: int = field(4, help="threads that decode")
    shard: str | None = field(None, help="I/N: do the I-th of N equal runs of entries (from 0), for job arrays")
    on_bad_row: str = field(
        "error", help="error: stop at a bad row or video; skip: leave it out and count it", choices=("error", "skip")
    )
    estimate: bool = field(False, help="print what is to be done and the space it takes, then stop; nothing is written")
    trust_remote_code: bool = field(False, help="run Python code that comes with the model's configuration")
    json: str | None = field(None, help="write counts, bytes and bad rows to this file")

    def command(self) -> str:
        """The command again, with all that decides what is in the cache."""
        words = ["--model", self.model, "--data", *self.data, "--num_frames", str(self.num_frames), "--out", self.out]
        for name in ("image_root", "links", "max_tiles", "min_pixels", "max_pixels", "stored", "dtype"):
            if getattr(self, name) != getattr(FeatureConfig, name):
                words += [f"--{name}", str(getattr(self, name))]
        return shlex.join(["python", "tools/cache_features.py", *words])


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/cache_features.py", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, FeatureConfig)
    return parser


@dataclasses.dataclass
class Counts:
    """What this process found and did."""

    rows: int = 0
    rows_without_picture: int = 0
    entries: int = 0
    kept: int = 0
    renewed: int = 0
    written: int = 0
    pictures: int = 0
    bytes: int = 0
    bad: list[dict[str, str]] = dataclasses.field(default_factory=list)


def read_work(config: FeatureConfig, counts: Counts) -> list["Work"]:
    """The distinct pictures of all rows, in the order of the rows. Raises BadRow unless bad rows are skipped."""
    from drive_vlm.data.caches.feature_work import Work, media_of_rows
    from drive_vlm.data.samples import BadRow

    found: dict[str, Work] = {}
    for one in media_of_rows(config.data, config.image_root, Path(config.out), config.links):
        counts.rows += 1
        if isinstance(one, BadRow):
            note_bad(one, config, counts)
        elif one is None:
            counts.rows_without_picture += 1
        else:
            found.setdefault(*one)
    counts.entries = len(found)
    return list(found.values())


def note_bad(error: Any, config: FeatureConfig, counts: Counts) -> None:
    if config.on_bad_row == "error":
        raise error
    counts.bad.append(error.facts())


@dataclasses.dataclass
class Tower:
    """The vision tower on its device; `run(vision tensors of P tiles) -> float[P, L, Dv]`."""

    encoder: Any
    settings: dict[str, Any]
    run: Callable[[Any], Any]
    shape: tuple[int, int]


def load_tower(config: FeatureConfig) -> Tower:
    """Load the model, keep its tower. Raises ValueError for a model that cannot be cached."""
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.caches.feature_cache import cache_settings
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.models import load_family
    from drive_vlm.models.vision_features import tower_features, tower_identity, vision_tower

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", read_topology().local_rank) if cuda else torch.device("cpu")
    kind = config.dtype if config.dtype != "auto" else "bfloat16" if cuda else "float32"
    names = ("attn_implementation", "max_tiles", "min_pixels", "max_pixels", "trust_remote_code")
    model = ModelConfig(config.model, **{name: getattr(config, name) for name in names})
    family = load_family(model, getattr(torch, kind))
    tower = vision_tower(family).to(device).eval()
    assert family.vision is not None, "a family with a tower has a picture side"
    dtype = next(tower.parameters()).dtype

    def run(vision: dict[str, Any]) -> Any:
        moved = {name: one.to(device, dtype if one.is_floating_point() else None) for name, one in vision.items()}
        with torch.inference_mode():
            return tower_features(family, moved)

    settings = cache_settings(tower_identity(family), family.vision.fingerprint(), config.num_frames)
    shape = run(family.vision.dummy_inputs()).shape
    encoder = Encoder(family.tokenizer, family.template, family.vision, config.num_frames)
    return Tower(encoder, settings | {"stored": config.stored, "computed": kind}, run, (shape[1], shape[2]))


def still_to_do(
    work: list["Work"], tower: Tower, config: FeatureConfig, counts: Counts
) -> tuple[list["Work"], list[tuple["Work", "BadRow"]]]:
    """Entries that are not in the cache, failed before, or whose files have changed, their `tiles` filled in from headers; and
    those whose headers cannot be read. Raises ValueError for a video of more frames than the model can be trained with."""
    from drive_vlm.data.caches.feature_cache import SETTINGS, FeatureCache
    from drive_vlm.data.caches.feature_work import look_up
    from drive_vlm.data.samples import BadRow

    out = Path(config.out)
    cache = FeatureCache(out, tower.settings, config.command()) if (out / SETTINGS).is_file() else None
    look = partial(look_up, encoder=tower.encoder, cache=cache, directory=out)
    todo, unreadable = [], []
    with ThreadPoolExecutor(16) as headers:
        for item, state in zip(work, headers.map(look, work), strict=True):
            if isinstance(state, BadRow):
                note_bad(state, config, counts)
                unreadable.append((item, state))
            elif state == "kept":
                counts.kept += 1
            else:
                counts.renewed += state == "changed"
                todo.append(item)
    return todo, unreadable


def check_space(todo: list["Work"], tower: Tower, config: FeatureConfig) -> str:
    """What the entries of all ranks will take, in words. Raises ValueError when the disk has less free."""
    import torch

    from drive_vlm.data.caches.feature_writer import folder_of
    from drive_vlm.models.vision import tiles_in

    width = 4 if config.stored == "float32" else 2
    each = tower.shape[0] * tower.shape[1] * width
    totals = torch.tensor([len(todo), sum(tiles_in(one) for item in todo for one in item.tiles)], dtype=torch.int64)
    if read_topology().world_size > 1:
        torch.distributed.all_reduce(totals)
    entries, tiles = totals.tolist()
    what = "pictures or frames" if tower.encoder.vision.apart else "tokens of pictures or frames"
    free = shutil.disk_usage(folder_of(config.out)).free
    text = (
        f"{entries:,} entries with {tiles:,} {what} to do, {each / 2**20:.2f} MiB each as {config.stored} "
        f"{list(tower.shape)}: {tiles * each / _GIB:.2f} GiB, {free / _GIB:.2f} GiB are free in {config.out}"
    )
    if tiles * each > free:
        raise ValueError(f"{text}. Free some space, give another --out, or fewer --num_frames.")
    return text


def build(
    todo: list["Work"],
    unreadable: list[tuple["Work", "BadRow"]],
    tower: Tower,
    config: FeatureConfig,
    counts: Counts,
) -> None:
    """Decode, run the tower over full batches, write each entry as soon as its features are there."""
    import torch
    from rich.progress import track

    from drive_vlm.data.caches.feature_work import decoded
    from drive_vlm.data.caches.feature_writer import FeatureWriter, start_cache
    from drive_vlm.data.samples import BadRow
    from drive_vlm.models.vision import tiles_in

    def pictures(item: "Work") -> int:
        """What a pass of the tower holds --batch_size of."""
        return sum(map(tiles_in, item.tiles)) if adapter.apart else len(item.tiles)

    def flush() -> None:
        if not batch:
            return
        tensors = adapter.collate_vision([vision for _, vision in batch])
        features = torch.cat([tower.run(part).cpu() for part in adapter.passes(tensors, config.batch_size)])
        parts = features.split([len(vision["pixel_values"]) for _, vision in batch])
        for (item, _), part in zip(batch, parts, strict=True):
            counts.bytes += writer.write(item.sample, item.max_tiles, part, item.tiles, item.identity, item.frames)
            counts.written += 1
            counts.pictures += pictures(item)
        batch.clear()

    out, adapter = Path(config.out), tower.encoder.vision
    start_cache(out, tower.settings, tower.shape, config.command())
    batch: list[tuple[Work, dict[str, Any]]] = []
    bar = track(
        decoded(todo, tower.encoder, config.workers), "features", len(todo), disable=not read_topology().is_main
    )
    with FeatureWriter(out, config.stored) as writer:
        for item, error in unreadable:
            record_bad(writer, item, error)
        for item, vision in until_stopped(bar):
            if isinstance(vision, BadRow):
                note_bad(vision, config, counts)
                record_bad(writer, item, vision)
                continue
            batch.append((item, vision))
            if sum(pictures(item) for item, _ in batch) >= config.batch_size:
                flush()
        flush()


def record_bad(writer: "FeatureWriter", item: "Work", error: "BadRow") -> None:
    """Write what the cache does not hold already: each time that something is written there is a new pair of files."""
    if item.recorded != (error.reason, error.problem, error.way_out):
        writer.write_bad(item.sample, item.max_tiles, error)


def all_counts(counts: Counts) -> Counts:
    """Sums over the ranks; what every rank read is counted once."""
    parts = gather(counts)
    for name in ("kept", "renewed", "written", "pictures", "bytes"):
        setattr(counts, name, sum(getattr(part, name) for part in parts))
    counts.bad = list({tuple(bad.values()): bad for part in parts for bad in part.bad}.values())
    return counts


def run(config: FeatureConfig) -> Counts | None:
    """Bring the cache up to date for this process's share of the rows; None on other ranks. Raises ValueError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from drive_vlm.data.caches.feature_writer import folder_of

    topology, counts = read_topology(), Counts()
    shard = parse_shard(config.shard)
    if min(config.batch_size, config.workers, config.num_frames) < 1:
        raise ValueError("--batch_size, --workers and --num_frames must be at least 1.")
    folder_of(config.out)
    work = shard_of(read_work(config, counts), shard)[topology.rank :: topology.world_size]
    join_ranks()
    tower = load_tower(config)
    todo, unreadable = still_to_do(work, tower, config, counts)
    text = check_space(todo, tower, config)
    if topology.is_main:
        print(text, flush=True)
    if not config.estimate:
        build(todo, unreadable, tower, config, counts)
    counts = all_counts(counts)
    leave_ranks()
    return counts if topology.is_main else None


def show(counts: Counts, config: FeatureConfig) -> None:
    print(
        f"{config.out}: {counts.written:,} entries written ({counts.pictures:,} pictures, {counts.bytes / _GIB:.3f} GiB; {counts.renewed} of "
        f"changed files), {counts.kept:,} kept, {len(counts.bad)} bad; {counts.rows:,} rows, {counts.rows_without_picture:,} without a picture"
    )
    for bad in counts.bad[:10]:
        print(f"  {bad['where']}: {bad['reason']}: {bad['problem']}")


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show, FeatureConfig)


if __name__ == "__main__":
    main()
