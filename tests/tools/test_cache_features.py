"""tools/cache_features.py through the command line: what the tower gives, once for each video, after a kill, in shards."""

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "cache_features.py"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path, synthetic_data: Path) -> Path:
    """A copy of clips and 12 pictures with rows.jsonl: 3 questions for each clip, 12 for pictures, one text, one of two."""
    shutil.copytree(synthetic_data / "clips", tmp_path / "clips")
    shutil.copytree(synthetic_data / "images", tmp_path / "images")
    rows = read_rows(synthetic_data / "clips_train.jsonl") + read_rows(synthetic_data / "train.jsonl")[:12]
    text = {"id": "text", "conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]}
    two = rows[-1] | {"id": "two", "image": [rows[-1]["image"], rows[-7]["image"]]}
    two["conversations"] = [{"from": "human", "value": "<image><image>What?"}, {"from": "gpt", "value": "a car"}]
    write_rows(tmp_path / "rows.jsonl", [*rows, text, two])
    return tmp_path


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cache_features", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["cache_features"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(
    tool: ModuleType,
    tiny_video_model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Any]:
    """`build(*flags, code=0, out="out", rows="rows.jsonl") -> (content of --json, text)`: the command, in this process."""

    def start(*flags: object, code: int = 0, out: str = "out", rows: str = "rows.jsonl") -> Any:
        report, ended = data / "report.json", 0
        report.unlink(missing_ok=True)
        words = ["--model", tiny_video_model, "--data", data / rows, "--num_frames", 3, "--stored", "float32"]
        words += ["--out", data / out, "--json", report, *flags]
        monkeypatch.setattr(sys, "argv", ["cache_features.py", *map(str, words)])
        capfd.readouterr()
        try:
            tool.main()
        except SystemExit as stopped:
            ended = int(stopped.code or 0)
        text = "".join(capfd.readouterr())
        assert ended == code, text
        return json.loads(report.read_text()) if report.exists() else None, text

    return start


def entries(folder: Path) -> dict[str, bytes]:
    """Key -> the bytes of its features."""
    found = {}
    for index in folder.glob("features-*.jsonl"):
        content = index.with_suffix(".bin").read_bytes()
        for row in read_rows(index):
            found[row["key"]] = content[row["offset"] : row["end"]]
    return found


def test_features_are_the_towers_and_are_made_once(build: Callable, data: Path, tiny_video_model: Path) -> None:
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.caches.feature_cache import FeatureCache, cache_settings
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.models import load_family
    from drive_vlm.models.vision_features import tower_identity

    counts, _ = build()
    rows = read_rows(data / "rows.jsonl")
    media = {json.dumps(row.get("video") or row.get("image")) for row in rows} - {"null"}
    assert counts["rows"] == len(rows) and counts["rows_without_picture"] == 1
    assert counts["written"] == counts["entries"] == len(media) < len(rows) / 2
    assert counts["bytes"] == sum(path.stat().st_size for path in (data / "out").glob("*.bin"))

    family = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32)
    settings = cache_settings(tower_identity(family), family.vision.fingerprint(), 3)
    cache = FeatureCache(data / "out", settings, "")
    pixels = Encoder(family.tokenizer, family.template, family.vision, 3)
    (source,) = open_sources([str(data / "rows.jsonl")])
    for i in (0, len(rows) - 1):
        sample = read_sample(source, i)
        tensors, tiles = pixels.load_vision(sample, None)
        with torch.no_grad():
            expected = family.model.model.tower_features(tensors["pixel_values"])
        assert torch.allclose(cache.load(sample), expected, atol=1e-5)
        assert cache.layouts(sample) == tiles

    before = entries(data / "out")
    again, text = build()
    assert again["kept"] == len(media) and again["written"] == 0 and "0 entries with 0 pictures" in text
    video = data / rows[0]["video"]
    shutil.copy(data / next(row["video"] for row in rows if "video" in row and row["video"] != rows[0]["video"]), video)
    renewed, _ = build()
    assert (renewed["written"], renewed["renewed"], renewed["kept"]) == (1, 1, len(media) - 1)
    assert entries(data / "out").keys() == before.keys() and len(list((data / "out").glob("*.bin"))) == 2


def test_videos_without_rows_are_the_entries_of_rows_about_them(build: Callable, data: Path) -> None:
    clips = [data / row["video"] for row in read_rows(data / "rows.jsonl") if "video" in row]
    result, _ = build("--data", data / "clips")
    assert result["written"] == len(set((data / "clips").iterdir())) >= len(set(clips))
    result, _ = build()
    assert result["kept"] == len(set(clips)) and result["written"] == result["entries"] - result["kept"]


def test_shards_together_are_the_whole(build: Callable, data: Path) -> None:
    build()
    first, _ = build("--shard", "0/2", out="joined")
    second, _ = build("--shard", "1/2", out="other")
    assert first["written"] + second["written"] == first["entries"] == second["entries"]
    for path in (data / "other").glob("features-*"):
        shutil.move(path, data / "joined")
    whole, joined = entries(data / "out"), entries(data / "joined")
    assert {key: len(part) for key, part in joined.items()} == {key: len(part) for key, part in whole.items()}
    again, _ = build(out="joined")
    assert again["kept"] == again["entries"] and again["written"] == 0
    _, text = build("--shard", "2/2", code=2)
    assert "--shard 2/2: write I/N" in text


@pytest.mark.fresh("SIGKILL ends the writer itself, which writes no line after it")
@pytest.mark.slow
def test_a_killed_build_goes_on(build: Callable, data: Path, tiny_video_model: Path) -> None:
    picture = next((data / "images").iterdir())
    row = next(row for row in read_rows(data / "rows.jsonl") if isinstance(row.get("image"), str))
    count = 600
    for i in range(count):
        os.link(picture, data / f"{i}{picture.suffix}")
    write_rows(data / "many.jsonl", [row | {"id": str(i), "image": f"{i}{picture.suffix}"} for i in range(count)])
    words = [TOOL, "--model", tiny_video_model, "--data", data / "many.jsonl", "--num_frames", 3, "--out", data / "out"]
    words += ["--stored", "float32", "--batch_size", 1, "--workers", 1]
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not any(path.stat().st_size > 4000 for path in (data / "out").glob("*.jsonl")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = sum(path.read_bytes().count(b"\n") for path in (data / "out").glob("*.jsonl"))
    assert 0 < finished < count, "it was not killed in the middle"
    report, _ = build(rows="many.jsonl")
    assert report["kept"] == finished and report["written"] == count - finished
    assert len(set(entries(data / "out").values())) == 1, "the same picture has the same features"
    assert len(entries(data / "out")) == count


def test_bad_videos_stop_or_are_counted(build: Callable, data: Path) -> None:
    rows = read_rows(data / "rows.jsonl")[:2]
    (data / "empty").mkdir()
    (data / "broken.mp4").write_bytes((data / rows[0]["video"]).read_bytes()[:3000])
    bad = [rows[0] | {"id": name, "video": name} for name in ("empty", "broken.mp4", "none.mp4")]
    write_rows(data / "bad.jsonl", [*rows, *bad, {"id": "no turns", "video": rows[0]["video"]}])
    _, text = build(rows="bad.jsonl", code=2)
    assert "bad.jsonl:6: no column that holds a conversation" in text
    write_rows(data / "bad.jsonl", [*rows, *bad])
    _, text = build(rows="bad.jsonl", code=2)
    assert "bad.jsonl:3: the video" in text and "zero frames" in text
    counts, _ = build("--on_bad_row", "skip", rows="bad.jsonl")
    assert sorted(row["reason"] for row in counts["bad"]) == ["video_corrupt", "video_empty", "video_missing"]
    assert counts["written"] == 1


def test_a_bad_row_is_recorded_once(build: Callable, data: Path) -> None:
    """Whether its header says it, or the decoder; a video that is fixed is done."""
    rows = read_rows(data / "rows.jsonl")[:2]
    clip = data / rows[0]["video"]
    whole = (data / read_rows(data / "rows.jsonl")[-1]["image"][0]).read_bytes()
    (data / "cut.png").write_bytes(whole[: len(whole) // 2])
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a car"}]
    bad = [rows[0] | {"id": "none", "video": "none.mp4"}, {"id": "cut", "image": "cut.png", "conversations": turns}]
    write_rows(data / "bad.jsonl", [*rows, *bad])
    first, _ = build("--on_bad_row", "skip", rows="bad.jsonl")
    assert sorted(row["reason"] for row in first["bad"]) == ["image_corrupt", "video_missing"]
    files = sorted((data / "out").iterdir())
    for _ in range(2):
        again, _ = build("--on_bad_row", "skip", rows="bad.jsonl")
        assert again["bad"] == first["bad"] and again["kept"] == first["written"]
        assert sorted((data / "out").iterdir()) == files
    if clip.is_dir():
        shutil.copytree(clip, data / "none.mp4")
    else:
        shutil.copy(clip, data / "none.mp4")
    again, _ = build("--on_bad_row", "skip", rows="bad.jsonl")
    assert again["written"] == 1 and len(again["bad"]) == 1


def test_a_video_without_a_count_in_its_header_is_counted_once(build: Callable, data: Path) -> None:
    import av
    import numpy as np

    from drive_vlm.data.vision import _timing

    with av.open(str(data / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_rows(data / "clip.jsonl", [read_rows(data / "rows.jsonl")[0] | {"video": "clip.mkv"}])
    for written, counted in ((1, 1), (0, 0)):
        _timing.cache_clear()
        counts, _ = build(rows="clip.jsonl")
        assert counts["written"] == written and _timing.cache_info().misses == counted


def test_an_estimate_writes_nothing(build: Callable, data: Path) -> None:
    _, text = build("--estimate")
    assert "pictures or frames to do" in text and not (data / "out").exists()
    build("--num_frames", 2)
    before = sorted((data / "out").iterdir())
    _, text = build("--num_frames", 2, "--estimate")
    assert text.startswith("0 entries") and sorted((data / "out").iterdir()) == before


def test_an_out_that_is_no_folder_stops(build: Callable, data: Path) -> None:
    (data / "file").write_text("")
    for out in ("file", "file/below"):
        _, text = build(out=out, code=2)
        assert f"{data / 'file'} is a file, a feature cache is a folder" in text


def test_more_frames_than_the_model_knows_are_refused_in_the_words_of_training(build: Callable, data: Path) -> None:
    from drive_vlm.models.siglip_qwen.tiling import too_many_frames

    frame = next((data / "images").iterdir())
    (data / "long").mkdir()
    for i in range(40):
        shutil.copy(frame, data / "long" / f"{i}{frame.suffix}")
    row = read_rows(data / "rows.jsonl")[0]
    write_rows(data / "long.jsonl", [row | {"video": "long"}])
    _, text = build("--num_frames", 40, rows="long.jsonl", code=2)
    assert too_many_frames(40, 16) in text and not (data / "out").exists()
    counts, _ = build("--num_frames", 40)
    assert counts["written"] == counts["entries"], "short videos fit"


def test_the_command_that_fixes_the_cache_builds_the_same(tool: ModuleType) -> None:
    from drive_vlm.config import from_namespace

    asked = {"model": "my model", "data": ["a b.jsonl", "c.json"], "out": "it's", "image_root": "/p q", "max_tiles": 4}
    config = tool.FeatureConfig(**asked, stored="float32", num_frames=5, batch_size=3)
    words = shlex.split(config.command())
    assert words[:2] == ["python", "tools/cache_features.py"]
    parser = tool.CommandParser()
    tool.add_dataclass(parser, tool.FeatureConfig)
    again = from_namespace(tool.FeatureConfig, parser.parse_args(words[2:]))
    assert again == dataclasses.replace(config, batch_size=tool.FeatureConfig.batch_size)


def test_the_command_that_a_training_names_is_one_for_a_shell(tool: ModuleType) -> None:
    from drive_vlm.config import DataConfig, ModelConfig
    from drive_vlm.sampling.features import build_command

    data = DataConfig(data=["a b.jsonl"], feature_cache="it's a cache", num_frames=4)
    words = ["--model", "m", "--data", "a b.jsonl", "--num_frames", "4", "--out", "it's a cache"]
    assert shlex.split(build_command(ModelConfig("m"), data)) == ["python", "tools/cache_features.py", *words]


def test_other_settings_never_mix(build: Callable, data: Path, tiny_model: Path) -> None:
    build()
    before = entries(data / "out")
    for flags, named in (
        (("--num_frames", 4), "num_frames: 3 then, 4 now"),
        (("--stored", "bfloat16"), "stored: float32 then, bfloat16 now"),
        (("--dtype", "bfloat16"), "computed: float32 then, bfloat16 now"),
        (("--model", tiny_model), "tower.weights"),
    ):
        _, text = build(*flags, code=2)
        assert named in text and "python tools/cache_features.py" in text
    assert entries(data / "out") == before


def test_too_little_space_is_reported_before(
    tool: ModuleType, data: Path, tiny_video_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tool.FeatureConfig(
        model=str(tiny_video_model), data=[str(data / "rows.jsonl")], out=str(data / "out"), num_frames=3
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"entries with .* pictures or frames to do, 0.01 MiB each as float16"):
        tool.run(config)
    assert not entries(data / "out")


@pytest.mark.slow
def test_ranks_share_the_work(build: Callable, data: Path, run: Callable, tiny_video_model: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", TOOL]
    words = ["--model", tiny_video_model, "--data", data / "rows.jsonl", "--num_frames", 3, "--stored", "float32"]
    done = run([*launch, *words, "--out", data / "out", "--json", data / "ranks.json"], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((data / "ranks.json").read_text())
    assert counts["written"] == counts["entries"] and len(list((data / "out").glob("*.bin"))) == 2
    again, _ = build()
    assert again["kept"] == again["entries"]


@pytest.mark.slow
@pytest.mark.kit
def test_real_clips_and_videos_go_through(kit: Path, run: Callable, tiny_video_model: Path, tmp_path: Path) -> None:
    """CamVid's folders of frames and two dashcam videos: frames by the sampling of training, features of every one."""
    folders = []
    for clip in sorted(path for path in (kit / "noncommercial" / "camvid").iterdir() if path.is_dir()):
        folders.append(tmp_path / clip.name)  # the kit keeps masks next to the frames
        folders[-1].mkdir()
        for frame in clip.glob("0*.png"):
            shutil.copy(frame, folders[-1])
    files = [
        Path(shutil.copy(kit / "permissive" / "udacity" / name, tmp_path))
        for name in ("solidWhiteRight.mp4", "test_video.mp4")
    ]
    turns = [{"from": "human", "value": "<video>\nDescribe the video."}, {"from": "gpt", "value": "A car drives."}]
    paths = [path.name for path in [*folders, *files]]
    rows = write_rows(tmp_path / "rows.jsonl", [{"id": p, "video": p, "conversations": turns} for p in paths])
    words = [sys.executable, TOOL, "--model", tiny_video_model, "--data", rows]
    done = run([*words, "--num_frames", 8, "--out", tmp_path / "out", "--json", tmp_path / "report.json"])
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["written"] == len(paths) and report["pictures"] == 8 * len(paths)
    found = [row for index in (tmp_path / "out").glob("*.jsonl") for row in read_rows(index)]
    frames = {Path(json.loads(row["key"])[1]).name: row["frames"] for row in found}
    assert frames["solidWhiteRight.mp4"] == [int((i + 0.5) * 221 / 8) for i in range(8)]
    assert frames["test_video.mp4"] == [int((i + 0.5) * 38 / 8) for i in range(8)]
