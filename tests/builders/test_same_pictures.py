"""One picture under two names is a leak, whatever its id and group."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.same_pictures import look_alikes, same_files
from drive_vlm.builders.splits import Leak
from drive_vlm.data.samples import Sample


def sample(*images: Path, video: Path | None = None) -> Sample:
    return Sample("1", (), tuple(map(str, images)), str(video) if video else None, None, {}, "rows:1")


def scene(seed: int) -> Image.Image:
    """A smooth random picture of 96 x 64."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def train(tmp_path: Path) -> list[Path]:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    paths = [tmp_path / "train" / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        scene(i).save(path)
    return paths


def test_equal_files_are_found_and_others_are_not(train: list[Path], tmp_path: Path) -> None:
    copy, other = tmp_path / "val" / "x.png", tmp_path / "val" / "y.png"
    shutil.copy(train[2], copy)
    other.write_bytes(train[1].read_bytes()[:-1] + b"x")  # the same size
    found = same_files([sample(*train)], [sample(other), sample(copy), sample(train[0])])
    assert found == [Leak("content", f"{train[2]} = {copy}", ("train", "eval"))]
    assert same_files([sample(*train[:2])], [sample(copy)]) == []


def test_a_frame_of_a_video_is_found_and_a_copied_video_too(train: list[Path], tmp_path: Path) -> None:
    copy, clip = tmp_path / "val" / "x.png", tmp_path / "val" / "b.mp4"
    shutil.copy(train[3], copy)
    (tmp_path / "train" / "a.mp4").write_bytes(b"video")
    clip.write_bytes(b"video")
    rows = [sample(video=tmp_path / "train" / "a.mp4"), sample(video=tmp_path / "train")]
    (tmp_path / "train" / "gone.png").symlink_to("nowhere")
    found = same_files(rows[:1], [sample(video=clip), sample(tmp_path / "absent.png")])
    assert [leak.value for leak in found] == [f"{tmp_path / 'train' / 'a.mp4'} = {clip}"]
    (tmp_path / "train" / "gone.png").unlink()
    assert [leak.value for leak in same_files(rows, [sample(copy)])] == [f"{train[3]} = {copy}"]


@pytest.mark.parametrize("change", ["encoded", "scaled", "darker"])
def test_near_identical_pictures_are_found(change: str, train: list[Path], tmp_path: Path) -> None:
    copy, others = tmp_path / "val" / "x.jpg", [tmp_path / "val" / f"{i}.jpg" for i in range(10, 40)]
    picture = scene(1)
    picture = picture.resize((48, 32)) if change == "scaled" else picture
    picture = picture.point(lambda value: int(value * 0.8)) if change == "darker" else picture
    picture.save(copy, quality=60)
    for i, path in enumerate(others):
        scene(10 + i).save(path)
    for path in (tmp_path / "train" / "flat.png", tmp_path / "val" / "flat.jpg"):
        Image.new("RGB", (96, 64), "grey").save(path)
    (tmp_path / "val" / "broken.jpg").write_bytes(b"x")
    held_out = sample(*others, copy, tmp_path / "val" / "flat.jpg", tmp_path / "val" / "broken.jpg", train[0])
    found = look_alikes([sample(*train, tmp_path / "train" / "flat.png")], [held_out], 4, 2)
    assert found == [Leak("look-alike", f"{train[1]} = {copy}", ("train", "eval"))]


def test_frames_of_videos_are_compared_and_equal_files_are_not_named_twice(train: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "val" / "x.jpg"
    scene(2).save(copy, quality=80)
    found = look_alikes([sample(video=tmp_path / "train")], [sample(copy)], 4, 2)
    assert [leak.value for leak in found] == [f"{tmp_path / 'train'} = {copy}"]
    shutil.copy(train[2], copy)
    assert look_alikes([sample(*train)], [sample(copy)], 4, 2) == []
