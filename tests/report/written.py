"""Files of a run that tests write by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_events(folder: Path, begun: float, times: dict[int, float]) -> None:
    """A TensorBoard file that begins at `begun` and logs a loss at each step, in seconds since 1970."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"events.out.tfevents.{begun:.0f}.host.1.0", "wb") as file:
        writer = RecordWriter(file)
        for step, moment in [(0, begun), *times.items()]:
            value = Summary.Value(tag="train/loss" if moment != begun else "args/text_summary", simple_value=1.0)
            writer.write(Event(wall_time=moment, step=step, summary=Summary(value=[value])).SerializeToString())
