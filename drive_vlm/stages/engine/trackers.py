"""What the trackers of --report_to get next to the Trainer's numbers: the project's own flags, and answered rows with pictures.

transformers' callbacks (5.23) start each tracker, send its arguments and every log, and end it. TRACKERS is the table of what
is sent here; a tracker that is not in it gets the numbers alone. All of it happens on the main rank.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from drive_vlm.config import plain
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.vision import load_image, load_video
from drive_vlm.stages.engine.faults import random_states, restore_random_states

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import TrainingArguments

NAME = "eval/samples"
COLUMNS = ("id", "question", "answer", "prediction")
# Pixels of the longer side of a picture that is sent, frames of a video.
_SIDE, _FRAMES = 320, 4


@dataclasses.dataclass(frozen=True)
class Shown:
    """An answered row for people to look at; the pictures that can be opened, side by side, or none."""

    id: str
    question: str
    answer: str
    prediction: str
    picture: "Image | None"

    @property
    def texts(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in COLUMNS}


@dataclasses.dataclass(frozen=True)
class Tracker:
    """`samples(its callback, step, rows)` and `config(its callback, flags)` send to a tracker that its callback has started."""

    samples: Callable[[Any, int, Sequence[Shown]], None]
    config: Callable[[Any, Mapping[str, Any]], None]


def _tensorboard_samples(callback: Any, step: int, rows: Sequence[Shown]) -> None:
    import numpy as np

    writer = callback.tb_writer
    for number, row in enumerate(rows):
        # Markdown, in which four blanks begin text that stays as it is.
        text = json.dumps(row.texts, indent=1, ensure_ascii=False)
        writer.add_text(f"{NAME}/{number}", "\n".join(f"    {line}" for line in text.splitlines()), step)
        if row.picture is not None:
            writer.add_image(f"{NAME}/{number}", np.asarray(row.picture), step, dataformats="HWC")


def _tensorboard_config(callback: Any, flags: Mapping[str, Any]) -> None:
    text = json.dumps(flags, indent=1, ensure_ascii=False)
    callback.tb_writer.add_text("drive_vlm", "\n".join(f"    {line}" for line in text.splitlines()))


def _wandb_samples(callback: Any, step: int, rows: Sequence[Shown]) -> None:
    wandb = callback._wandb
    table = wandb.Table(columns=list(COLUMNS), data=[list(row.texts.values()) for row in rows])
    # Not inside the table: an offline run's folder would not hold them.
    pictures = [
        wandb.Image(row.picture, caption="\n".join(f"{name}: {text}" for name, text in row.texts.items()))
        for row in rows
        if row.picture is not None
    ]
    wandb.log({NAME: table, "train/global_step": step} | ({f"{NAME}_pictures": pictures} if pictures else {}))


def _wandb_config(callback: Any, flags: Mapping[str, Any]) -> None:
    callback._wandb.config.update({"drive_vlm": dict(flags)}, allow_val_change=True)


def _trackio_samples(callback: Any, step: int, rows: Sequence[Shown]) -> None:
    trackio = callback._trackio
    data = [
        [None if row.picture is None else trackio.Image(row.picture, caption=row.id), *row.texts.values()]
        for row in rows
    ]
    trackio.log({NAME: trackio.Table(columns=["picture", *COLUMNS], data=data), "train/global_step": step})


def _trackio_config(callback: Any, flags: Mapping[str, Any]) -> None:
    callback._trackio.config.update({"drive_vlm": dict(flags)}, allow_val_change=True)


def _mlflow_samples(callback: Any, step: int, rows: Sequence[Shown]) -> None:
    mlflow = callback._ml_flow
    folder = f"eval_samples/step-{step}"
    mlflow.log_dict({"rows": [row.texts for row in rows]}, f"{folder}/rows.json")
    for number, row in enumerate(rows):
        if row.picture is not None:
            mlflow.log_image(row.picture, artifact_file=f"{folder}/{number}.png")


def _mlflow_config(callback: Any, flags: Mapping[str, Any]) -> None:
    callback._ml_flow.log_dict(dict(flags), "drive_vlm.json")


# transformers' callback class -> what it is sent.
TRACKERS: dict[str, Tracker] = {
    "TensorBoardCallback": Tracker(_tensorboard_samples, _tensorboard_config),
    "WandbCallback": Tracker(_wandb_samples, _wandb_config),
    "TrackioCallback": Tracker(_trackio_samples, _trackio_config),
    "MLflowCallback": Tracker(_mlflow_samples, _mlflow_config),
}


def _running(callbacks: Sequence[TrainerCallback]) -> list[tuple[Tracker, TrainerCallback]]:
    """The trackers that have been started."""
    found = [(TRACKERS[type(one).__name__], one) for one in callbacks if type(one).__name__ in TRACKERS]
    return [
        (tracker, one)
        for tracker, one in found
        if getattr(one, "tb_writer", None) or getattr(one, "_initialized", False)
    ]


def send_samples(callbacks: Sequence[TrainerCallback], step: int, rows: Sequence[tuple[Sample, str]]) -> None:
    """Rows with what the model says to each, to every tracker that runs."""
    if rows and (running := _running(callbacks)):
        # A tracker may draw the names of its files.
        states = random_states()
        shown = [_shown(*row) for row in rows]
        for tracker, callback in running:
            tracker.samples(callback, step, shown)
        restore_random_states(states)


def place_tensorboard(callbacks: Sequence[Any], output_dir: str) -> None:
    """TensorBoard's files go to output_dir/tensorboard, where TENSORBOARD_LOGGING_DIR does not say otherwise."""
    for one in callbacks:
        # transformers 5 has no argument for it. The variable would stay set, and send the next run of this process here.
        if type(one).__name__ == "TensorBoardCallback" and one.logging_dir is None:
            one.logging_dir = os.path.join(output_dir, "tensorboard")


class SendsFlags(TrainerCallback):
    """Sends the project's own flags, which transformers does not know, once the trackers have started."""

    def __init__(self, callbacks: Sequence[TrainerCallback], facts: Mapping[str, Any]) -> None:
        self._callbacks, self._facts = callbacks, facts

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            flags = {name: value for name, value in plain(self._facts["config"]).items() if name != "training"}
            for tracker, callback in _running(self._callbacks):
                tracker.config(callback, {"stage": self._facts["stage"], **flags})


def _shown(sample: Sample, said: str) -> Shown:
    question = " ".join(turn.text for turn in sample.turns if turn.role == "user").strip()
    return Shown(sample.id, question, sample.reference, said, _picture(sample))


def _picture(sample: Sample) -> "Image | None":
    """The row's pictures, or frames of its video, in a strip. None where it has none, or they cannot be opened: a run on cached
    features needs none of them."""
    from PIL import Image

    try:
        if sample.video:
            pictures = load_video(sample.video, _FRAMES, sample.where)
        else:
            pictures = [load_image(path, sample.where) for path in sample.images]
    except BadRow:
        return None
    if not pictures:
        return None
    for picture in pictures:
        picture.thumbnail((_SIDE, _SIDE))
    strip = Image.new("RGB", (sum(one.width for one in pictures), max(one.height for one in pictures)))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip
