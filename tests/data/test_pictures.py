"""Pixels mean the same however a picture stores them: deep ones are scaled, transparent ones laid on white, turned ones upright,
and what has no known range is refused, in the header as well as in the pixels."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from both_ways import load_image, load_video
from PIL import Image

from drive_vlm.clip.encoder import ClipEncoder, ImageError
from drive_vlm.data import picture_modes
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import checked_image_size, picture_bytes

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (6, 1))


def grey_of(path: Path) -> np.ndarray:
    """uint8[H, W] of a picture whose three channels are equal."""
    pixels = np.asarray(load_image(str(path), "f:1"))
    assert pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif", "a.jp2", "a.pgm"])
def test_16_bits_are_scaled_to_8(name: str, tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 257
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 64 6 65535\n" + deep.astype(">u2").tobytes())
    elif name == "big-endian.tif":
        Image.frombytes("I;16B", (64, 6), deep.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(deep).save(tmp_path / name)
    assert checked_image_size(str(tmp_path / name), "f:1") == (6, 64)
    assert (grey_of(tmp_path / name) == RAMP).all()


def tiff(tags: dict[int, int], pixels: bytes, width: int, height: int) -> bytes:
    """A little-endian TIFF of one strip whose tags (of one short number) are `tags`."""
    tags = {256: width, 257: height, 259: 1, 273: 8, 277: 1, 278: height, 279: len(pixels)} | tags
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_tiff_of_12_bits_and_with_white_as_zero(tmp_path: Path) -> None:
    packed = np.array([[0x00, 0x08, 0x00]] * 2, dtype=np.uint8)  # 0x000, 0x800: black, half
    (tmp_path / "12.tif").write_bytes(tiff({258: 12, 262: 1}, packed.tobytes(), 2, 2))
    assert grey_of(tmp_path / "12.tif").tolist() == [[0, 128]] * 2
    inverse = (RAMP.astype("<u2") * 257).tobytes()
    (tmp_path / "white.tif").write_bytes(tiff({258: 16, 262: 0}, inverse, 64, 6))
    assert (grey_of(tmp_path / "white.tif") == 255 - RAMP).all()


@pytest.mark.parametrize("kind", ["float", "int32", "int16", "lab"])
def test_pixels_without_a_known_range_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    if kind == "lab":
        Image.new("LAB", (8, 6)).save(path)
    elif kind == "int16":
        path.write_bytes(tiff({258: 16, 262: 1, 339: 2}, RAMP.astype("<i2").tobytes(), 64, 6))
    else:
        Image.fromarray(np.full((6, 8), 0.5, np.float32) if kind == "float" else np.full((6, 8), 7, np.int32)).save(
            path
        )
    for look in (checked_image_size, load_image):
        with pytest.raises(
            BadRow, match=r"rows:2: the pixels of .*a\.tif are .*range is not known\. Write it"
        ) as caught:
            look(str(path), "rows:2")
        assert caught.value.reason == "image_mode"
    encoder = object.__new__(ClipEncoder)
    with pytest.raises(ImageError, match="range is not known"):
        encoder.read_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "palette", "RGB key", "L key", "I;16 key", "webp"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    """The left half is black and clear, the right half grey 100 and opaque."""
    path, options = tmp_path / ("a.webp" if mode == "webp" else "a.png"), {}
    grey = np.repeat(np.array([[0, 100]], dtype=np.uint8), 4, axis=0).repeat(4, axis=1)
    alpha = np.where(grey == 0, 0, 255).astype(np.uint8)
    if mode in ("RGBA", "webp"):
        picture, options = (
            Image.fromarray(np.stack([grey] * 3 + [alpha], axis=-1)),
            {"lossless": True} if mode == "webp" else {},
        )
    elif mode in ("LA", "PA"):
        picture = Image.fromarray(np.stack([grey, alpha], axis=-1))
        path = tmp_path / ("a.png" if mode == "LA" else "a.tif")
    elif mode == "palette":
        picture = Image.fromarray((grey > 0).astype(np.uint8), "L").convert("P")
        picture.putpalette([0, 0, 0, 100, 100, 100])
        options = {"transparency": b"\x00\xff"}
    elif mode == "RGB key":
        picture, options = Image.fromarray(np.stack([grey] * 3, axis=-1)), {"transparency": (0, 0, 0)}
    elif mode == "L key":
        picture, options = Image.fromarray(grey), {"transparency": 0}
    else:
        picture, options = Image.fromarray(grey.astype(np.uint16) * 257), {"transparency": 0}
    picture.save(path, **options)
    assert (grey_of(path) == np.where(grey == 0, 255, 100)).all()


def png_with_late(picture: Image.Image, kind: bytes, content: bytes) -> bytes:
    """A PNG whose chunk `kind` stands behind the pixels, as some editors write it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return buffer.getvalue()[:-12] + chunk + buffer.getvalue()[-12:]


XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize("form", ["jpg", "webp", "tif", "png", "late png", "late xmp"])
def test_orientation_is_the_same_in_header_and_pixels(form: str, tmp_path: Path) -> None:
    stored = np.zeros((20, 30, 3), dtype=np.uint8)
    stored[:10, :15] = 250  # light in the corner that is shown at the top left, where the orientation is 1
    picture, path = Image.fromarray(stored), tmp_path / f"a.{form.split()[0]}"
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    for orientation, corner in corners.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        if form == "late png":
            path.write_bytes(png_with_late(picture, b"eXIf", exif.tobytes()[6:]))
        elif form == "late xmp":
            path.write_bytes(png_with_late(picture, b"iTXt", XMP % orientation))
        else:
            picture.save(path, exif=exif)
        path = path.rename(tmp_path / f"{orientation}{path.name[-8:]}")
        shown = load_image(str(path), "f:1")
        assert (
            checked_image_size(str(path), "f:1")
            == (shown.height, shown.width)
            == ((30, 20) if orientation > 4 else (20, 30))
        )
        assert np.asarray(shown)[corner].mean() > 200, orientation
        sent = Image.open(io.BytesIO(picture_bytes(str(path), "f:1")))
        assert (sent.format == "PNG") == (orientation > 1 or form not in ("jpg", "webp"))
        assert orientation == 1 or (np.asarray(sent) == np.asarray(shown)).all(), "a server sees what a model sees"


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")
    assert checked_image_size(str(tmp_path / "a.jpg"), "f:1") == (20, 30)
    assert load_image(str(tmp_path / "a.jpg"), "f:1").size == (30, 20)


@pytest.mark.parametrize("name", ["a.eps", "a.ico", "a.pcx", "a.tga"])
def test_other_formats_are_refused_by_name(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "a.jpg")
    for look in (checked_image_size, load_image):
        with pytest.raises(BadRow, match="not a whole picture of the formats JPEG, PNG"):
            look(str(tmp_path / "a.jpg"), "f:1")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    from drive_vlm.data.vision import video_length

    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "device.jpg"):
        for look in (checked_image_size, load_image, video_length, lambda path, where: load_video(path, 2, where)):
            with pytest.raises(BadRow, match=r"f:1: .*it is not a regular file"):
                look(str(tmp_path / name), "f:1")


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_avif_is_a_bad_row(tmp_path: Path) -> None:
    """Its codec raises RuntimeError and others."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "AVIF")
    damaged = bytearray(buffer.getvalue())
    start = damaged.index(b"mdat") + 4
    damaged[start : start + 40] = b"\xff" * 40
    (tmp_path / "a.avif").write_bytes(damaged)
    with pytest.raises(BadRow, match=r"f:1: the picture .*a\.avif cannot be read") as caught:
        load_image(str(tmp_path / "a.avif"), "f:1")
    assert caught.value.reason == "image_corrupt"


def test_bytes_behind_the_end_of_a_png_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (9, 9, 9)).save(path)
    path.write_bytes(path.read_bytes() + b"hello world, from an editor")
    assert checked_image_size(str(path), "row") == (20, 30) and (grey_of(path) == 9).all()


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], np.ndarray]:
    """uint8[H, W, 3] of a picture, or the reason and text of its BadRow, as on a machine without simplejpeg."""

    def read(path: Path) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(picture_modes, "_jpeg_decoder", lambda: None)
            return np.asarray(load_image(str(path), "f:1"))

    return read


def noisy(height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3]: a slope with noise, so that every way of rounding would show."""
    slope = np.linspace(0, 200, width)[None, :, None] + np.array([0, 20, 55])
    return (slope + np.random.default_rng(height).integers(-40, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("options", [
    {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"quality": 5}, {"quality": 100},
    {"restart_marker_blocks": 3}, {"keep_rgb": True}, {"optimize": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 48), (33, 130)])
def test_a_jpeg_has_pillows_pixels(options: dict, size: tuple[int, int], by_pillow: Callable, tmp_path: Path) -> None:
    """The faster decoder gives what Pillow gives, level by level, for every way to store colours and for grey pictures."""
    assert picture_modes._jpeg_decoder() is not None, "the test extra installs simplejpeg"
    for mode in ("RGB",) if "keep_rgb" in options else ("RGB", "L"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(noisy(*size)).convert(mode).save(path, "JPEG", **options)
        with Image.open(path) as opened:
            assert picture_modes.plain_jpeg(opened, path.read_bytes()) is not None, "Pillow would have decoded it"
        assert (np.asarray(load_image(str(path), "f:1")) == by_pillow(path)).all()


def test_other_jpegs_are_left_to_pillow(by_pillow: Callable, tmp_path: Path) -> None:
    """Four colours, two pictures in one file, a warning of libjpeg that Pillow takes, and bytes behind the end."""
    plain, path = io.BytesIO(), tmp_path / "a.jpg"
    Image.fromarray(noisy(48, 64)).save(plain, "JPEG")
    whole = plain.getvalue()
    four = io.BytesIO()
    Image.fromarray(noisy(48, 64)).convert("CMYK").save(four, "JPEG")
    # A byte that belongs to nothing in front of the second marker.
    odd = whole[:20] + b"\0" + whole[20:]
    for content in (four.getvalue(), whole + whole, odd, whole + b"junk"):
        path.write_bytes(content)
        assert (np.asarray(load_image(str(path), "f:1")) == by_pillow(path)).all()


@pytest.mark.parametrize("keep", [0, 3, 200, 0.5, 0.98, -2])
def test_a_jpeg_that_was_cut_off_is_refused_in_pillows_words(keep: float, by_pillow: Callable, tmp_path: Path) -> None:
    written, path = io.BytesIO(), tmp_path / "cut.jpg"
    Image.fromarray(noisy(96, 128)).save(written, "JPEG")
    content = written.getvalue()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    said = []
    for read in (lambda path: np.asarray(load_image(str(path), "f:1")), by_pillow):
        try:
            said.append(read(path).tobytes())
        except BadRow as error:
            said.append((error.reason, str(error)))
    # Pillow itself takes a picture that lacks nothing but its end marker.
    assert said[0] == said[1] and (keep == -2 or said[0][0] == "image_corrupt")


def test_real_jpegs_have_pillows_pixels(kit: Path, by_pillow: Callable) -> None:
    """Of cameras: a few of each folder of the kit."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(kit.rglob("*.jpg")):
        folders.setdefault(path.parent, []).append(path)
    assert folders
    for path in (path for paths in folders.values() for path in paths[:3]):
        assert (np.asarray(load_image(str(path), "f:1")) == by_pillow(path)).all(), path.name
