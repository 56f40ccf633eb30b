"""The feature cache gives back what was written, for these files and these settings only."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.data.caches.feature_cache import FeatureCache, FileIdentity, cache_settings, media_key
from drive_vlm.data.caches.feature_writer import FeatureWriter, start_cache
from drive_vlm.data.encoder import Encoder, shuffled_order
from drive_vlm.data.samples import BadRow, Sample, parse_row

TOWER = {"weights": "abc", "hidden_act": "gelu"}
PIXELS = {"family": "internvl", "tile": [56, 56], "tokens": 16, "pixels": {"image_mean": (0.5, 0.5, 0.5)}}
SETTINGS = cache_settings(TOWER, PIXELS, 4)
STORED = {"stored": "float32", "computed": "float32"}


def sample_of(root: Path, **media: Any) -> Sample:
    mark = "<video>" if "video" in media else "<image>" * len(media.get("image", ()))
    turns = [{"from": "human", "value": f"{mark}What is ahead?"}, {"from": "gpt", "value": "a truck"}]
    return parse_row({"id": "a", "conversations": turns} | media, "rows.jsonl:1", str(root))


def write(out: Path, *samples: Sample, seed: int = 0, stored: str = "float32") -> list[Any]:
    """Random features of two tiles for each sample."""
    import torch

    torch.manual_seed(seed)
    start_cache(out, SETTINGS | STORED | {"stored": stored}, (3, 5), "REBUILD")
    features = [torch.randn(2, 3, 5) for _ in samples]
    with FeatureWriter(out, stored) as writer:
        for sample, values in zip(samples, features, strict=True):
            frames = [0, 2, 3, 5] if sample.video else None
            writer.write(sample, None, values, [2], FileIdentity.of(sample, 4, content=True), frames)
    return features


def read(out: Path, settings: dict[str, Any] = SETTINGS) -> FeatureCache:
    return FeatureCache(out, settings, "REBUILD")


@pytest.mark.parametrize(("stored", "error"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_what_is_written_is_read(pictures: Path, tmp_path: Path, stored: str, error: float) -> None:
    samples = [sample_of(pictures, image=["wide.png"]), sample_of(pictures, video="clip")]
    written = write(tmp_path / "out", *samples, stored=stored)
    cache = read(tmp_path / "out")
    for sample, values in zip(samples, written, strict=True):
        found = cache.load(sample)
        assert str(found.dtype) == f"torch.{stored}" and cache.layouts(sample) == [2]
        assert (found.float() - values).abs().max() <= error
    assert cache.feature_shape == (3, 5)
    assert cache.find(samples[1]).frames == (0, 2, 3, 5), "frame numbers of 4 of 6 frames"
    assert cache.find(samples[0]).frames is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s["tower"].update(weights="def"), "tower.weights: abc then, def now"),
        (lambda s: s["tower"].update(hidden_act="relu"), "tower.hidden_act"),
        (lambda s: s["pixels"]["pixels"].update(image_mean=[0.4, 0.5, 0.5]), "pixels.pixels.image_mean"),
        (lambda s: s["pixels"].update(tile=[64, 64]), "pixels.tile: [56, 56] then, [64, 64] now"),
        (lambda s: s.update(num_frames=8), "num_frames: 4 then, 8 now"),
        (lambda s: s.update(transform=99), "transform"),
        (lambda s: s.update(format=2), "format"),
    ],
)
def test_other_settings_stop_and_are_named(
    pictures: Path, tmp_path: Path, change: Callable[[dict], None], named: str
) -> None:
    write(tmp_path / "out", sample_of(pictures, video="clip"))
    now = copy.deepcopy(SETTINGS)
    change(now)
    with pytest.raises(ValueError, match="other settings") as stopped:
        read(tmp_path / "out", now)
    assert named in str(stopped.value) and "REBUILD" in str(stopped.value)
    assert str(stopped.value).count(" then, ") == 1, "only what differs is named"


def test_another_projector_keeps_the_cache() -> None:
    assert cache_settings(TOWER, PIXELS | {"tokens": 64}, 4) == SETTINGS


def test_writing_with_another_number_type_stops(pictures: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", sample_of(pictures, video="clip"))
    with pytest.raises(ValueError, match="stored: float32 then, float16 now"):
        start_cache(tmp_path / "out", SETTINGS | STORED | {"stored": "float16"}, (3, 5), "REBUILD")


def test_changed_files_stop(pictures: Path, tmp_path: Path) -> None:
    """Another size, or another time with other content, is another file; another time alone is not."""
    sample = sample_of(pictures, image=["wide.png"])
    write(tmp_path / "out", sample)
    path = pictures / "wide.png"
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.utime(path, ns=(times[0], times[1] + 10**9))
    assert read(tmp_path / "out").load(sample).shape == (2, 3, 5)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"wide.png has changed .*hash differ.*REBUILD"):
        read(tmp_path / "out").load(sample)
    path.write_bytes(content + b"x")
    with pytest.raises(ValueError, match=rf"{len(content):,} bytes then, 1 of {len(content) + 1:,} bytes now"):
        read(tmp_path / "out").check([(sample, None)])


def test_a_folder_of_frames_is_known_by_all_its_frames(pictures: Path, tmp_path: Path) -> None:
    sample = sample_of(pictures, video="clip")
    write(tmp_path / "out", sample)
    shutil.copy(pictures / "clip" / "0.png", pictures / "clip" / "6.png")
    with pytest.raises(ValueError, match=r"clip has changed .*6 files of .* bytes then, 7 of"):
        read(tmp_path / "out").find(sample)


def test_what_is_missing_stops_with_the_command(pictures: Path, tmp_path: Path) -> None:
    one, other = sample_of(pictures, image=["wide.png"]), sample_of(pictures, image=["tall.jpg"])
    write(tmp_path / "out", one)
    cache = read(tmp_path / "out")
    with pytest.raises(ValueError, match=r"tall.jpg is not among the 1 entries .*REBUILD") as stopped:
        cache.check([(other, None)])
    assert not isinstance(stopped.value, BadRow), "no row is left out for want of its features"
    with pytest.raises(ValueError, match=r"not among"):
        cache.find(one, max_tiles=1)
    (pictures / "wide.png").unlink()
    with pytest.raises(BadRow, match=r"wide.png cannot be found") as gone:
        cache.find(one)
    assert gone.value.reason == "image_missing"
    with pytest.raises(ValueError, match=r"no feature cache .*REBUILD"):
        read(tmp_path / "nowhere")


def test_data_and_cache_move_together(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    shutil.copytree(pictures / "clip", tmp_path / "here" / "clip")
    (written,) = write(tmp_path / "here" / "out", sample_of(tmp_path / "here", video="clip"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")  # the folder's files get new times
    shutil.rmtree(tmp_path / "here")
    cache = read(tmp_path / "there" / "out")
    assert (cache.load(sample_of(tmp_path / "there", video="clip")) == written).all()


def test_torn_and_lost_ends_are_no_entries(pictures: Path, tmp_path: Path) -> None:
    samples = [sample_of(pictures, image=[name]) for name in ("wide.png", "tall.jpg", "square.png")]
    write(tmp_path / "out", *samples)
    (index,) = (tmp_path / "out").glob("*.jsonl")
    lines = index.read_bytes()
    index.write_bytes(lines[:-9])  # killed while the third line was written
    assert len(read(tmp_path / "out")) == 2
    index.write_bytes(lines)
    (data,) = (tmp_path / "out").glob("*.bin")
    os.truncate(data, data.stat().st_size - 200)  # power lost: the line is there, its bytes are not
    cache = read(tmp_path / "out")
    assert len(cache) == 1 and cache.load(samples[0]).shape == (2, 3, 5)
    index.write_bytes(b"not json\n" + lines)
    with pytest.raises(ValueError, match=r"jsonl:1: damaged"):
        read(tmp_path / "out")


def test_two_caches_are_joined_by_copying_their_files(pictures: Path, tmp_path: Path) -> None:
    samples = [sample_of(pictures, image=[name]) for name in ("wide.png", "tall.jpg")]
    written = [write(tmp_path / name, s, seed=i)[0] for i, (name, s) in enumerate(zip("ab", samples, strict=True))]
    for path in (tmp_path / "b").glob("features-*"):
        shutil.copy(path, tmp_path / "a")
    cache = read(tmp_path / "a")
    assert all((cache.load(s) == values).all() for s, values in zip(samples, written, strict=True))


def test_the_newest_entry_counts(pictures: Path, tmp_path: Path) -> None:
    sample = sample_of(pictures, video="clip")
    first, second = (write(tmp_path / "out", sample, seed=seed)[0] for seed in (0, 1))
    found = read(tmp_path / "out").load(sample)
    assert (found == second).all() and not (found == first).all()


def test_bad_pictures_stay_bad_in_training(pictures: Path, tmp_path: Path) -> None:
    sample = sample_of(pictures, video="empty")
    write(tmp_path / "out")
    with FeatureWriter(tmp_path / "out", "float32") as writer:
        writer.write_bad(sample, None, BadRow("video_empty", "x:1", "zero frames", "Replace it"))
    with pytest.raises(BadRow, match=r"rows.jsonl:1: zero frames") as bad:
        read(tmp_path / "out").find(sample)
    assert bad.value.reason == "video_empty"


def test_numbers_beyond_float16_are_refused(pictures: Path, tmp_path: Path) -> None:
    import torch

    sample = sample_of(pictures, video="clip")
    write(tmp_path / "out", stored="float16")
    with (
        FeatureWriter(tmp_path / "out", "float16") as writer,
        pytest.raises(ValueError, match=r"not finite as float16 \(largest 1e\+05\)"),
    ):
        writer.write(
            sample, None, torch.full((1, 3, 5), 1e5), [1], FileIdentity.of(sample, 4, content=True), [0, 2, 3, 5]
        )


def test_the_same_pictures_have_one_key(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the root is written; other pictures, another order or tile limit have another key."""
    monkeypatch.chdir(pictures)
    keys = {media_key(sample_of(Path(root), image=["wide.png"]), 4, tmp_path / "out") for root in (pictures, ".")}
    assert len(keys) == 1 and str(tmp_path) not in keys.pop()
    variants = [(["wide.png"], 1), (["tall.jpg"], 4), (["wide.png", "tall.jpg"], 4), (["tall.jpg", "wide.png"], 4)]
    assert len({media_key(sample_of(pictures, image=n), limit, tmp_path) for n, limit in variants}) == 4


def test_loader_workers_may_take_it_along(pictures: Path, tmp_path: Path) -> None:
    import pickle

    sample = sample_of(pictures, video="clip")
    (written,) = write(tmp_path / "out", sample)
    cache = read(tmp_path / "out")
    cache.load(sample)
    copied = pickle.dumps(cache)
    assert len(copied) < 20_000 and (pickle.loads(copied).load(sample) == written).all()
    assert json.dumps(cache.facts())


def test_frames_are_shuffled_in_the_cache_too(pictures: Path, tmp_path: Path, parts: Any) -> None:
    """The control for the order of events must not quietly see the true order because features are cached."""
    name = next(str(i) for i in range(20) if shuffled_order(str(i), 2) == [1, 0])
    sample = sample_of(pictures, video="clip", id=name)
    (written,) = write(tmp_path / "out", sample)
    for shuffle, wanted in ((False, written), (True, written.flip(0))):
        encoder = Encoder(
            parts.tokenizer, parts.template, parts.vision, features=read(tmp_path / "out"), shuffle_frames=shuffle
        )
        assert (encoder.load_vision(sample, None)[0]["vision_features"] == wanted).all()
