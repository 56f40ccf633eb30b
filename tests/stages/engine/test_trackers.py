"""What the trackers of --report_to hold after a short training: the project's flags, the numbers, answered rows with pictures."""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def tracked(inside: Callable, world: Any, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`tracked(*trackers)`: two steps and an evaluation after each; the rows that are shown, as their file has them."""

    def train(*trackers: str) -> list[dict[str, Any]]:
        held = world.eval.with_name("tracked.jsonl")
        rows = [json.loads(line) for line in world.eval.read_text().splitlines()]
        pictures = list({row["image"]: row for row in rows if isinstance(row.get("image"), str)}.values())[:2]
        held.write_text(
            "".join(json.dumps(row) + "\n" for row in [*pictures, next(row for row in rows if not row.get("image"))])
        )
        inside(
            "sft", "--model", world.model, "--data", world.train, "--output_dir", tmp_path / "run", "--freeze", "vision_tower",
            "--max_steps", 2, "--logging_steps", 1, "--per_device_train_batch_size", 4, "--disable_tqdm", "true", "--use_cpu", "true",
            "--eval_generate", held, "--eval_metric", "word_f1", "--eval_steps", 1, "--save_strategy", "no", "--eval_max_new_tokens", 4,
            "--eval_samples", 3, "--project", "driving", "--run_name", "first", "--report_to", *trackers,
        )  # fmt: skip
        return [
            json.loads(line) for line in (tmp_path / "run" / "eval_answers" / "step-2.jsonl").read_text().splitlines()
        ]

    return train


def test_tensorboard_shows_rows_and_pictures(tracked: Callable, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = tracked("tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"eval/word_f1", "eval/word_f1_low", "eval/word_f1_high", "eval/word_f1_rows"} <= set(tags["scalars"])
    assert tags["images"] == ["eval/samples/0", "eval/samples/1"]
    assert [(picture.step, picture.width, picture.height) for picture in events.Images("eval/samples/1")] == [
        (1, 64, 64),
        (2, 64, 64),
    ]
    shown = [events.Tensors(f"eval/samples/{i}/text_summary")[-1].tensor_proto.string_val[0].decode() for i in range(3)]
    for row, text in zip(rows, shown, strict=True):
        assert json.loads(text) == {
            "id": row["id"], "question": row["question"], "answer": row["reference"], "prediction": row["prediction"],
        }  # fmt: skip
    flags = json.loads(events.Tensors("drive_vlm/text_summary")[0].tensor_proto.string_val[0])
    assert (
        flags["stage"] == "sft"
        and flags["scores"]["eval_metric"] == ["word_f1"]
        and flags["model"]["freeze"] == ["vision_tower"]
    )


def test_wandb_offline(tracked: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (pip install drive-vlm[trackers])")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_PROJECT", "driving")
    rows = tracked("wandb", "tensorboard")
    config = dict(wandb.run.config)
    wandb.finish()
    assert config["drive_vlm"]["stage"] == "sft" and config["drive_vlm"]["data"]["num_frames"] == 8
    assert config["learning_rate"] == 5e-5
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    media = folder / "files" / "media"
    assert len(list((media / "images" / "eval").glob("samples_pictures_*.png"))) == 4
    tables = [json.loads(path.read_text()) for path in (media / "table" / "eval").glob("samples_*.table.json")]
    assert [table["columns"] for table in tables] == [["id", "question", "answer", "prediction"]] * 2
    wanted = [[row["id"], row["question"], row["reference"], row["prediction"]] for row in rows]
    assert wanted in [table["data"] for table in tables]
    (record,) = folder.glob("run-*.wandb")
    # wandb's own process writes it, and may still do so when finish() has returned.
    end = time.monotonic() + 60
    while b"eval/word_f1_high" not in record.read_bytes() and time.monotonic() < end:
        time.sleep(0.2)
    assert b"eval/word_f1_high" in record.read_bytes() and b"eval/samples" in record.read_bytes()
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_trackio_on_this_machine(tracked: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed (pip install drive-vlm[trackers])")
    # TRACKIO_DIR is read as trackio is imported, which TRL may have done before.
    folders = {"TRACKIO_DIR": tmp_path / "trackio", "MEDIA_DIR": tmp_path / "trackio" / "media"}
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "trackio"]:
        for name, folder in folders.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, folder)
    (tmp_path / "trackio").mkdir()
    rows = tracked("trackio")
    with sqlite3.connect(tmp_path / "trackio" / "driving.db") as store:
        logged = [json.loads(row[0]) for row in store.execute("select metrics from metrics order by id")]
        (config,) = [json.loads(row[0]) for row in store.execute("select config from configs")]
    assert config["drive_vlm"]["scores"]["eval_samples"] == 3 and config["learning_rate"] == 5e-5
    scored = [line for line in logged if "eval/word_f1" in line]
    assert [line["train/global_step"] for line in scored] == [1, 2] and scored[1]["eval/word_f1_rows"] == 3
    tables = [line["eval/samples"]["_value"] for line in logged if "eval/samples" in line]
    assert [row["prediction"] for row in tables[1]] == [row["prediction"] for row in rows]
    pictures = [row["picture"] for row in tables[1]]
    assert pictures[2] is None
    for picture in pictures[:2]:
        assert (tmp_path / "trackio" / "media" / picture["file_path"]).read_bytes().startswith(b"\x89PNG")


def test_a_tracker_that_is_not_known_or_not_installed_is_refused(
    tracked: Callable, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        tracked("tensorboard", "wandbb")
    assert "--report_to wandbb is not known" in capsys.readouterr().err


def test_two_runs_of_one_process_keep_their_files(inside: Callable, world: Any, tmp_path: Path) -> None:
    """The folder of TensorBoard is the run's, not the one of the first run of the process."""
    for name in ("first", "second"):
        inside(
            "sft", "--model", world.model, "--data", world.train, "--output_dir", tmp_path / name, "--max_steps", 1, "--logging_steps", 1,
            "--freeze", "vision_tower", "--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu", "true",
        )  # fmt: skip
        assert len(list((tmp_path / name).rglob("events.out.tfevents.*"))) == 1
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
