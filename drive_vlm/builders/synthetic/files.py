"""Files of a built synthetic data set: pictures, videos, row files, and the summary that is printed at the end."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drive_vlm.builders.row_writer import RowWriter, meta_entry
from drive_vlm.store.cache import write_json


def save_image(path: Path, pixels: np.ndarray, jpeg_quality: int) -> None:
    """Write uint8[H, W, 3] as JPEG or, where `path` ends so, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": jpeg_quality} if path.suffix == ".jpg" else {"compress_level": 1}
    Image.fromarray(pixels).save(path, **options)


def save_video(path: Path, frames: list[np.ndarray], rate: float) -> None:
    """Encode frames uint8[T][H, W, 3] as MPEG-4 at `rate` frames a second. Needs PyAV (`pip install av`)."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=round(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 24 * width * height
        stream.gop_size = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


class Summary:
    """Rows and groups by file, answers by template: what is printed at the end."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.groups: Counter[str] = Counter()
        self.answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Count the rows of one scene or clip in the file `name`."""
        self.rows[name] += len(rows)
        self.groups[name] += 1
        for row in rows:
            if "template" in row and row["category"] not in ("caption", "dialog"):
                self.answers[row["category"], row["template"]][row["conversations"][1]["value"]] += 1

    def show(self) -> None:
        """Rows by file, then each template's majority answer: what a model that sees nothing could reach."""
        from rich.console import Console
        from rich.table import Table

        sizes = Table("file", "rows", "scenes or clips", title="rows")
        for name, count in sorted(self.rows.items()):
            sizes.add_row(name, f"{count:,}", f"{self.groups[name]:,}")
        balance = Table("category", "template", "rows", "answers", "majority", "share", title="balance of the answers")
        for (category, template), counts in sorted(self.answers.items()):
            (answer, most), total = counts.most_common(1)[0], counts.total()
            balance.add_row(category, template, f"{total:,}", str(len(counts)), answer, f"{most / total:.2f}")
        Console(markup=False, emoji=False).print(sizes, balance, sep="\n")


def write_files(out: Path, found: Iterator[dict[str, Any]]) -> Summary:
    """Write all rows; meta.json comes last, so it marks a complete build.

    Each of `found` holds `split`, `truth` (lines of scenes.jsonl) and `rows` by the prefix of their file's name.
    """
    summary = Summary()
    with RowWriter(out) as writer:
        for result in found:
            split_rows = {f"{prefix}{result['split']}.jsonl": rows for prefix, rows in result["rows"].items()}
            for name, rows in {"scenes.jsonl": result["truth"], **split_rows}.items():
                if rows:
                    writer.add(name, rows)
                    summary.add(name, rows)
    counts = sorted((name, count) for name, count in writer.counts.items() if name != "scenes.jsonl")
    meta = {f"synthetic_{name.removesuffix('.jsonl')}": meta_entry(".", name, count) for name, count in counts}
    write_json(out / "meta.json", meta)
    return summary
