"""CLIP scores of generated answers: cosine of prediction and reference, and of prediction and picture.

Per sample a CSV row; per data set mean, spread, quantiles, a 95 % bootstrap interval that resamples whole scenes (or
pictures), and the same scores against the reference and picture of another sample: only the distance to that shuffled
baseline says something. Several --predictions compare checkpoints on the samples they have in common.

`image` of a row is relative to --image_root. A row that says "images/x.jpg" with --image_root data/images is also found, as
long as only one of data/images/images/x.jpg and data/images/x.jpg exists.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch import stop
from drive_vlm.report.tables import console, interval, table, write_csv

if TYPE_CHECKING:
    from drive_vlm.clip.encoder import ClipEncoder
    from drive_vlm.clip.score import ClipScores
    from drive_vlm.data.predictions import Prediction

EXAMPLES = """
python tools/clip_eval.py --predictions results/generated.jsonl --image_root data/test/images/ --out results/scores.csv
python tools/clip_eval.py --predictions before.jsonl after.jsonl --image_root data/images --out scores.csv --plot scores.png
python tools/clip_eval.py --predictions p.jsonl --image_root data/images --out scores.csv --clip_model runs/clip
"""
METRICS = {"text_text": "prediction - reference", "text_image": "prediction - picture"}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/clip_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    add("--image_root", required=True, help="folder that the rows' pictures are relative to")
    add("--out", required=True, help="CSV with one line for each sample and checkpoint")
    flag("--clip_model", "ViT-B-32", "open_clip model, or a directory written by tools/train_clip.py")
    add("--clip_pretrained", help="tag of open_clip or local weights file (ViT-B-32: laion2b_s34b_b79k unless given)")
    flag("--batch_size", 64, "pictures or texts encoded at once")
    flag("--workers", 2, "threads that decode pictures")
    flag("--device", "cpu", "cpu, cuda, cuda:1 ...")
    flag("--seed", 0, "of the shuffled baseline and the bootstrap")
    add("--plot", help="write the distributions and differences to this PNG")
    add("--json", help="write every number to this file")
    return parser


def find_images(item: "Prediction", root: Path) -> list[Path]:
    """The pictures of one row below `root`; raises ValueError with file:line and id when one is not there."""
    from drive_vlm.data.samples import resolve_below

    name = f"{item.where}: id {item.id!r}"
    if not item.images:
        raise ValueError(f'{name}: the row has no "image"; the text-image score needs one, so leave text-only rows out')
    found = []
    for image in item.images:
        direct = Path(resolve_below(str(root), image, name))
        first, *rest = Path(image).parts
        without_root = [root.joinpath(*rest)] if rest and first == root.resolve().name else []
        there = [path for path in (direct, *without_root) if path.is_file()]
        if len(there) == 2:
            raise ValueError(f"{name}: {image!r} may be {there[0]} or {there[1]}; rename one, or give {root.parent}")
        if not there:
            tried = " and ".join(str(path) for path in (direct, *without_root))
            raise ValueError(
                f"{name}: no picture {tried}; --image_root must be the folder that {image!r} is relative to"
            )
        found += there
    return found


def score_files(files: list[list["Prediction"]], images: list[list[Path]], encoder: "ClipEncoder", args: Any) -> list:
    """One ClipScores for each file. All files go through CLIP together: what they share is encoded once."""
    from drive_vlm.clip.encoder import ImageError
    from drive_vlm.clip.score import clip_scores

    rows = [item for items in files for item in items]
    paths = [path for _ in files for path in images]
    where = {path: item for item, row in zip(files[0], images, strict=True) for path in row}
    total = len({text for item in rows for text in (item.prediction, item.reference)}) + len(where)

    def shown(count: int) -> None:
        stop.check("Nothing is written yet: give the same command again.")
        progress.advance(task, count)

    try:
        with _progress() as progress:
            task = progress.add_task("CLIP: texts and pictures", total=total)
            scores = clip_scores(
                encoder,
                [item.prediction for item in rows],
                [item.reference for item in rows],
                paths,
                batch_size=args.batch_size,
                workers=args.workers,
                progress=shown,
            )
            # Equal pictures under two names were counted twice.
            progress.update(task, completed=total)
    except ImageError as error:
        by_file = {path.resolve(): item for path, item in where.items()}
        item = by_file[error.path]
        raise ValueError(f"{item.where}: id {item.id!r}: {error}; replace the file or take the row out") from error
    size = len(files[0])
    return [scores.part(slice(start, start + size)) for start in range(0, len(rows), size)]


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True))


def data_set_summaries(items: list["Prediction"], scores: "ClipScores", seed: int) -> dict[str, Any]:
    """{data set: {metric: {n, mean, ..., shuffled_mean, above_shuffled {difference, low, high}}}}, and "all"."""
    from drive_vlm.clip.score import shuffled_partners
    from drive_vlm.evaluation.statistics import paired_difference, summarize

    members: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        members.setdefault(item.dataset, []).append(index)
    if len(members) > 1:
        members["(all)"] = list(range(len(items)))
    result: dict[str, Any] = {}
    for dataset, indices in members.items():
        groups = [items[i].group for i in indices]
        part = scores.part(indices)
        partners = shuffled_partners(["|".join(items[i].images) for i in indices], seed)
        shuffled = part.shuffled(partners) if partners is not None else {}
        result[dataset] = {}
        for metric in METRICS:
            values = getattr(part, metric)
            entry = summarize(values, groups, seed).to_dict()
            entry["shuffled_mean"] = entry["above_shuffled"] = None
            if shuffled:
                entry["shuffled_mean"] = float(shuffled[metric].mean())
                entry["above_shuffled"] = paired_difference(shuffled[metric], values, groups, seed).to_dict()
            result[dataset][metric] = entry
    return result


def compare(names: list[str], files: list[list["Prediction"]], scores: list["ClipScores"], seed: int) -> list[dict]:
    """Each further checkpoint against the first, on the same samples."""
    from drive_vlm.evaluation.statistics import paired_difference

    groups = [item.group for item in files[0]]
    return [
        {
            "first": names[0],
            "second": name,
            **{
                metric: paired_difference(getattr(scores[0], metric), getattr(other, metric), groups, seed).to_dict()
                for metric in METRICS
            },
        }
        for name, other in zip(names[1:], scores[1:], strict=True)
    ]


def csv_rows(names: list[str], files: list[list["Prediction"]], scores: list["ClipScores"]) -> Iterator[list[Any]]:
    for name, items, part in zip(names, files, scores, strict=True):
        for i, item in enumerate(items):
            cosines = [f"{part.text_text[i]:.6f}", f"{part.text_image[i]:.6f}"]
            yield [item.id, item.dataset, name, *cosines, int(part.truncated[i])]


def show(result: dict[str, Any], args: Any) -> None:
    screen = console(150)
    head = (
        "checkpoint",
        "data set",
        "n",
        "mean",
        "95 % interval",
        "sd",
        "5 %",
        "25 %",
        "50 %",
        "75 %",
        "95 %",
        "shuffled",
    )
    for metric, title in METRICS.items():
        rows = [
            (name, dataset, *_cells(entry[metric]))
            for name, checkpoint in result["checkpoints"].items()
            for dataset, entry in checkpoint["datasets"].items()
        ]
        screen.print(table(f"{metric}: cosine {title}", (*head, "above it"), rows, left=2, whole=True))
    for entry in result["comparisons"]:
        for metric in METRICS:
            change = entry[metric]
            screen.print(
                f"{metric}: {entry['second']} - {entry['first']} = {change['difference']:+.4f}{_interval(change)} "
                f"({change['wins']} better, {change['ties']} equal, {change['losses']} worse of {change['n']})"
            )
    for name, checkpoint in result["checkpoints"].items():
        counts = [f"{count} {word}" for word, count in checkpoint["counts"].items() if count]
        if counts:
            screen.print(f"{name}: {', '.join(counts)}")
    encoded = result["encoded"]
    screen.print(f"{result['clip']}: encoded {encoded['texts']} texts and {encoded['images']} pictures")
    print(f"scores: {args.out}" + (f", plot: {args.plot}" if args.plot else ""))


def _cells(entry: dict[str, Any]) -> list[str]:
    numbers = [entry[key] for key in ("sd", "q05", "q25", "q50", "q75", "q95", "shuffled_mean")]
    above = entry["above_shuffled"]
    cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
    gap = "-" if above is None else f"{above['difference']:+.3f}{_interval(above)}"
    return [str(entry["n"]), f"{entry['mean']:.4f}", _interval(entry).strip(), *cells, gap]


def _interval(entry: dict[str, Any]) -> str:
    return interval(entry) or " [one group]"


def run(args: Any) -> dict[str, Any]:
    """Read, score, write the CSV and the plot; returns what --json holds."""
    from drive_vlm.clip.encoder import ClipEncoder
    from drive_vlm.data.predictions import read_checkpoints

    root = Path(args.image_root)
    if not root.is_dir():
        raise ValueError(f"--image_root {root}: no such folder")
    names, files, left_out = read_checkpoints(args.predictions)
    images = [find_images(item, root) for item in files[0]]
    encoder = ClipEncoder.load(args.clip_model, args.clip_pretrained, args.device)
    scores = score_files(files, images, encoder, args)
    head = ("id", "dataset", "checkpoint", "text_text", "text_image", "truncated")
    write_csv(args.out, head, csv_rows(names, files, scores))
    result: dict[str, Any] = {
        "clip": encoder.name,
        "encoded": {"texts": encoder.encoded_texts, "images": encoder.encoded_images},
        "checkpoints": {
            name: {
                "file": path,
                "datasets": data_set_summaries(items, part, args.seed),
                "counts": {
                    "ids left out, missing in another file": missing,
                    "predictions or references cut to the context": int(part.truncated.sum()),
                    "empty predictions": sum(not item.prediction.strip() for item in items),
                },
            }
            for name, path, items, part, missing in zip(names, args.predictions, files, scores, left_out, strict=True)
        },
        "comparisons": compare(names, files, scores, args.seed),
    }
    if args.plot:
        from drive_vlm.report.clip import plot_scores

        plot_scores(Path(args.plot), names, scores, result)
    return result


if __name__ == "__main__":
    with stop.listening():
        run_tool(make_parser(), run, show)
