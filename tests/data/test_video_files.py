"""Frames are even by time, the same for every tool; a file that was cut off, or a folder of frames and masks, is refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from both_ways import load_video
from PIL import Image

from drive_vlm.builders.detection_items import PendingItem, load_frames
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import frames_at, video_frames, video_length

av = pytest.importorskip("av")

TICK = Fraction(1, 1000)
# 20 frames of a second, one that stands for 9 more, and 20 frames of 6 seconds.
UNEVEN = [i / 20 for i in range(20)] + [10 + i * 0.3 for i in range(20)]
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".webm": "libvpx", ".mpg": "mpeg2video"}


def record(path: Path, times: list[float], aspect: Fraction | None = None, title: str = "") -> Path:
    """A video whose frame `i` has the brightness 20 + 5 i and is shown from `times[i]` seconds on."""
    with av.open(str(path), "w") as container:
        if title:
            container.metadata["title"] = title
        # MPEG-2 knows a few rates only.
        rate, tick = (25, Fraction(1, 25)) if path.suffix == ".mpg" else (20, TICK)
        stream = container.add_stream(CODECS[path.suffix], rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 64, 48, "yuv420p", tick
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), min(20 + 5 * i, 255), dtype=np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(path: Path, count: int) -> list[int]:
    """The numbers of the frames that `load_video` gives, read from their brightness."""
    return [round((np.asarray(frame).mean() - 20) / 5) for frame in load_video(str(path), count, "f:1")]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_are_even_by_time(suffix: str, tmp_path: Path) -> None:
    path = record(tmp_path / f"a{suffix}", UNEVEN)
    chosen = video_frames(str(path), 8, "f:1")
    # 15.7 to 16 seconds long, as the container has it: the middles of eight shares are 1, 3 ... 15.
    assert chosen[:5] == [19] * 5 and len(chosen) == 8
    for i, number in enumerate(chosen):
        assert UNEVEN[number] - 0.1 <= 2 * i + 1 and (number == 39 or 2 * i + 1 <= UNEVEN[number + 1] + 0.5)
    assert np.abs(np.array(numbers(path, 8)) - chosen).max() <= 1 and video_length(str(path), "f:1") == 40
    item = PendingItem("a", str(path), "f:1", is_video=True)
    assert load_frames(item, 8).indices == chosen, "detections are of the frames that training sees"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_one_frame_rate_is_spread_by_number(suffix: str, tmp_path: Path) -> None:
    path = record(tmp_path / f"a{suffix}", [i / 30 for i in range(24)])
    assert video_frames(str(path), 4, "f:1") == [3, 9, 15, 21]
    assert video_frames(str(path), 30, "f:1") == list(range(24))


def test_frames_at_takes_what_is_on_the_screen() -> None:
    assert frames_at(np.array([0.0, 1, 2, 3, 4]), 4) == [0, 1, 2, 3]
    assert frames_at(np.array([5.0, 6, 14, 15]), 5) == [1, 1, 1, 1, 2]
    assert frames_at(np.array([0.0, 9, 9.5, 10]), 2) == [0, 0]


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts", ".mpg"])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_a_video_that_was_cut_off_is_not_taken_for_the_whole(suffix: str, share: float, tmp_path: Path) -> None:
    path = record(tmp_path / f"a{suffix}", [i / 20 for i in range(40)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share) // 188 * 188 + 100])
    with pytest.raises(BadRow, match=r"the file was cut off|has zero frames"):
        load_video(str(path), 4, "f:1")


@pytest.mark.parametrize(("suffix", "packet"), [(".ts", 188), (".mpg", 2048)])
def test_a_cut_between_packets_leaves_a_shorter_video(suffix: str, packet: int, tmp_path: Path) -> None:
    """Nothing in such a file says how long it was (docs/data.md): a recording that ended there has the same bytes."""
    path = record(tmp_path / f"a{suffix}", [i / 25 for i in range(200)])
    assert video_length(str(path), "f:1") == 200
    content = path.read_bytes()
    told = set()
    for packets in range(len(content) // packet // 2, len(content) // packet):
        cut = tmp_path / f"{packets}{suffix}"
        cut.write_bytes(content[: packets * packet])
        try:
            told.add(video_length(str(cut), "f:1"))
        except BadRow as error:
            assert "the file was cut off" in str(error)
    assert told and max(told) <= 200


def test_a_video_with_longer_sound_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        picture, sound = (
            container.add_stream("libx264", rate=10),
            container.add_stream("pcm_s16le", rate=8000, layout="mono"),
        )
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            container.mux(picture.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(picture.encode())
        for _ in range(5):
            second = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
            second.sample_rate = 8000
            container.mux(sound.encode(second))
    assert video_length(str(path), "f:1") == 10


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_title_in_another_encoding_hides_no_video(suffix: str, tmp_path: Path) -> None:
    path = record(tmp_path / f"a{suffix}", [i / 20 for i in range(6)], title="TITLEXXX")
    assert b"TITLEXXX" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"TITLEXXX", "行车记录".encode("gbk")))
    assert video_length(str(path), "f:1") == 6 and numbers(path, 6) == list(range(6))


@pytest.mark.parametrize(("aspect", "size"), [((4, 3), (85, 48)), ((1, 2), (32, 48)), ((1, 1), (64, 48))])
def test_pixels_become_square(aspect: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", [0.0, 0.05], Fraction(*aspect))
    assert [frame.size for frame in load_video(str(path), 2, "f:1")] == [size] * 2


def test_a_playlist_is_no_video(tmp_path: Path) -> None:
    """Its text may name any other file."""
    record(tmp_path / "b.mp4", [0.0, 0.05, 0.1])
    texts = {"a.mp4": "ffconcat version 1.0\nfile b.mp4\n", "c.mp4": "#EXTM3U\n#EXTINF:1,\nb.mp4\n#EXT-X-ENDLIST\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadRow, match="cannot be decoded"):
            video_length(str(tmp_path / name), "f:1")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["001.jpg", "001_mask.png", "002.jpg", "002_mask.png"], "002.jpg and 002_mask.png"),
        (["001.jpg", "001.png", "002.jpg", "002.png"], "001.jpg and 001.png"),
        (["cam_front_1.jpg", "cam_back_1.jpg"], "cam_back_1.jpg and cam_front_1.jpg"),
        (["000.png", "cover.png"], "000.png and cover.png"),
    ],
)
def test_frames_next_to_other_pictures_are_refused(names: list[str], named: str, tmp_path: Path) -> None:
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for look in (video_length, lambda path, where: load_video(path, 2, where)):
        with pytest.raises(BadRow, match=rf"rows:4: the folder .* holds {named}: it is not clear") as caught:
            look(str(tmp_path), "rows:4")
        assert caught.value.reason == "video_mixed"


def test_what_a_system_stores_next_to_frames_is_no_frame(tmp_path: Path) -> None:
    for name in ("01.jpg", "02.jpg", "03.JPG"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "._01.jpg").write_bytes(b"x")
    assert video_length(str(tmp_path), "f:1") == 3
