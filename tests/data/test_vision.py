"""Pictures and frames: sizes from headers, upright, never a substitute; whatever a broken file raises becomes a BadRow."""

import io
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from both_ways import load_image, load_video
from PIL import Image

from drive_vlm.data import vision
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import checked_image_size, frame_indices, image_size, video_length


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_size_and_pixels(orientation: int, tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    image.save(path, exif=exif)
    shown = load_image(str(path), "f:1")
    assert image_size(str(path)) == (shown.height, shown.width) == ((30, 20) if orientation > 4 else (20, 30))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 6)).save(path)
    assert load_image(str(path), "f:1").mode == "RGB"


def test_sizes_come_from_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: object) -> None:
        raise AssertionError("pixels were decoded")

    names = [f"headers{suffix}" for suffix in (".jpg", ".png", ".webp", ".bmp")]
    for name in names:
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert [image_size(str(tmp_path / name)) for name in names] == [(20, 30)] * 4


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for look in (checked_image_size, load_image):
        for name, reason in (
            ("absent.jpg", "image_missing"),
            ("text.jpg", "image_corrupt"),
            ("empty.jpg", "image_corrupt"),
        ):
            with pytest.raises(BadRow) as caught:
                look(str(tmp_path / name), "rows.jsonl:3")
            assert caught.value.reason == reason and str(caught.value).startswith("rows.jsonl:3: the picture")
    with pytest.raises(BadRow):
        load_image(str(tmp_path), "f:1")  # a folder


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_whatever_a_damaged_file_raises_is_a_bad_row(kind: str, tmp_path: Path) -> None:
    """Cut at every tenth, and 60 times with bytes changed at random: a BadRow or a picture, nothing else."""
    random = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    picture.save(buffer, kind, **({"exif": exif} if kind in ("jpeg", "png", "webp") else {}))
    whole, path = np.frombuffer(buffer.getvalue(), dtype=np.uint8), tmp_path / "damaged"
    variants = [whole[: len(whole) * i // 10] for i in range(10)]
    for _ in range(60):
        damaged = whole.copy()
        damaged[random.integers(0, min(len(whole), 200), 4)] = random.integers(0, 255, 4)
        variants.append(damaged)
    bad = 0
    for i, variant in enumerate(variants):
        path = tmp_path / f"damaged{i}"
        path.write_bytes(variant.tobytes())
        for look in (checked_image_size, load_image):
            try:
                look(str(path), "f:1")
            except BadRow:
                bad += 1
    assert bad >= 10


def test_a_truncated_jpeg_has_a_header_but_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert checked_image_size(str(path), "f:1") == (90, 120)
    with pytest.raises(BadRow, match=r"rows\.jsonl:5: the picture .*cut\.jpg cannot be read \(.*truncated") as caught:
        load_image(str(path), "rows.jsonl:5")
    assert caught.value.reason == "image_corrupt"


def test_frame_indices_are_spread_evenly() -> None:
    assert frame_indices(3, 8) == [0, 1, 2]
    assert frame_indices(16, 4) == [2, 6, 10, 14]
    for total in range(1, 60):
        for count in range(1, 12):
            chosen = frame_indices(total, count)
            assert len(chosen) == min(total, count) and sorted(set(chosen)) == chosen and chosen[-1] < total


def encode(path: Path, frames: list[np.ndarray]) -> Path:
    """A video of these frames uint8[H, W, 3], as the extension says."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An mp4 of ten frames, each brighter than the one before."""
    return encode(tmp_path / "clip.mp4", [np.full((32, 32, 3), 20 + 20 * i, dtype=np.uint8) for i in range(10)])


def test_frames_of_a_video_file(clip: Path) -> None:
    assert video_length(str(clip), "f:1") == 10
    frames = load_video(str(clip), 4, "f:1")
    brightness = [np.asarray(frame).mean() for frame in frames]
    assert brightness == pytest.approx([20 + 20 * i for i in frame_indices(10, 4)], abs=6)
    assert len(load_video(str(clip), 50, "f:1")) == 10


def test_frames_of_a_folder(pictures: Path) -> None:
    (pictures / "clip" / "notes.txt").write_text("no frame")
    assert video_length(str(pictures / "clip"), "f:1") == 6
    assert [frame.size for frame in load_video(str(pictures / "clip"), 3, "f:1")] == [(60, 40)] * 3


def test_numbers_of_frames_without_leading_zeros_are_in_order(tmp_path: Path) -> None:
    for i in (1, 2, 9, 10, 12, 100):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"cam0_frame_{i}.png")
    (tmp_path / "cam0_frame_01.png").write_bytes((tmp_path / "cam0_frame_1.png").read_bytes())
    frames = load_video(str(tmp_path), 16, "f:1")
    assert [frame.getpixel((0, 0)) for frame in frames] == [(i, i, i) for i in (1, 1, 2, 9, 10, 12, 100)]


def test_videos_without_frames(pictures: Path, clip: Path) -> None:
    import wave

    (pictures / "text.mp4").write_text("not a video")
    (pictures / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with wave.open(str(pictures / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    cases = {
        "empty": "video_empty", "absent.mp4": "video_missing", "text.mp4": "video_corrupt",
        "sound.mp4": "video_empty", "cut.mp4": "video_corrupt",
    }  # fmt: skip
    for name, reason in cases.items():
        with pytest.raises(BadRow) as caught:
            load_video(str(pictures / name), 4, "rows.jsonl:2")
        assert (name, caught.value.reason) == (name, reason) and str(caught.value).startswith("rows.jsonl:2: ")


def test_frames_that_an_edit_list_hides_are_not_counted(clip: Path, tmp_path: Path) -> None:
    """What `ffmpeg -ss 0.5 -c copy` writes: samples from the key frame on, shown from the cut on."""
    import av

    cut = tmp_path / "cut.mp4"
    with av.open(str(clip)) as source, av.open(str(cut), "w", options={"movflags": "faststart"}) as out:
        copied = source.streams.video[0]
        stream = out.add_stream_from_template(copied)
        for packet in source.demux(copied):
            if packet.dts is not None:
                packet.pts, packet.dts = (time - round(0.5 / copied.time_base) for time in (packet.pts, packet.dts))
                packet.stream = stream
                out.mux(packet)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames == 10
    assert video_length(str(cut), "f:1") == 5
    brightness = [np.asarray(frame).mean() for frame in load_video(str(cut), 8, "f:1")]
    assert brightness == pytest.approx([20 + 20 * i for i in range(5, 10)], abs=6)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])  # the header is whole, samples are missing
    with pytest.raises(BadRow, match=r"cut\.mp4 cannot be decoded"):
        load_video(str(cut), 8, "f:1")


def test_a_video_whose_header_promises_too_much(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drive_vlm.data.vision.video_length", lambda path, where: 12)
    with pytest.raises(BadRow, match="frame 10 of 12 is missing"):
        load_video(str(clip), 12, "f:1")


CORNERS = ("red", "green", "blue", "white")  # as stored: top left, top right, bottom left, bottom right


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), CORNERS),
        ((0, 1, -1, 0), ("blue", "red", "white", "green")),  # a quarter to the right, as a phone held upright writes it
        ((-1, 0, 0, -1), ("white", "blue", "green", "red")),
        ((0, -1, 1, 0), ("green", "white", "red", "blue")),
        ((-1, 0, 0, 1), ("green", "red", "white", "blue")),  # mirrored, as some rear cameras write it
        ((1, 0, 0, -1), ("blue", "white", "red", "green")),
        ((0, 1, 1, 0), ("red", "blue", "green", "white")),
        ((0, -1, -1, 0), ("white", "green", "blue", "red")),
    ],
)
def test_frames_are_upright(matrix: tuple[int, ...], shown: tuple[str, ...], tmp_path: Path) -> None:
    """The display matrix in the header of an mp4: x' = a x + c y, y' = b x + d y, y down."""
    stored = Image.new("RGB", (64, 32))
    for i, colour in enumerate(CORNERS):
        stored.paste(colour, (i % 2 * 32, i // 2 * 16, i % 2 * 32 + 32, i // 2 * 16 + 16))
    path = encode(tmp_path / "turned.mp4", [np.asarray(stored)] * 3)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # version 0 of the box: the matrix follows the volume
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    for frame in load_video(str(path), 2, "f:1"):
        assert frame.size == ((64, 32) if matrix[0] else (32, 64))
        right, bottom = frame.width - 8, frame.height - 8
        for colour, place in zip(shown, ((8, 8), (right, 8), (8, bottom), (right, bottom)), strict=True):
            seen, told = np.array(frame.getpixel(place)), np.array(Image.new("RGB", (1, 1), colour).getpixel((0, 0)))
            assert np.abs(seen - told).max() < 40, (colour, place, seen)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of each frame that is decoded, one after the other."""
    av = pytest.importorskip("av")
    seen: list[str] = []
    whole = av.open

    class Counted:
        def __init__(self, path: str, *mode: str, **options: object) -> None:
            self.path, self.container = path, whole(path, *mode, **options)

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *_: object) -> None:
            self.container.close()

        def decode(self, stream: object) -> Iterator[object]:
            for frame in self.container.decode(stream):
                seen.append(self.path)
                yield frame

    monkeypatch.setattr(av, "open", Counted)
    return seen


def test_frames_are_counted_once_where_no_header_tells_them(tmp_path: Path, decoded: list[str]) -> None:
    def grey(count: int) -> list[np.ndarray]:
        return [np.full((32, 32, 3), 20 * i, dtype=np.uint8) for i in range(count)]

    path = encode(tmp_path / "clip.mkv", grey(6))
    assert [video_length(str(path), "f:1") for _ in range(3)] == [6, 6, 6]
    assert len(decoded) == 6
    assert len(vision.load_video(str(path), 6, "f:2")) == 6
    assert len(decoded) == 12
    encode(path, grey(9))
    assert video_length(str(path), "f:1") == 9, "another file of the same name is counted anew"


def test_a_colon_in_a_name_is_no_protocol(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(clip, tmp_path / "t:x.mp4")
    monkeypatch.chdir(tmp_path)
    assert video_length("t:x.mp4", "f:1") == 10 and len(load_video("t:x.mp4", 2, "f:1")) == 2


def test_videos_without_pyav_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    for read in (lambda path: video_length(path, ""), lambda path: load_video(path, 2, "")):
        with pytest.raises(ValueError, match=r"PyAV, which is missing .*pip install drive-vlm\[video\]"):
            read(str(tmp_path / "a.mp4"))
