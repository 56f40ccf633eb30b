"""tools/cache_detections.py with the real YOLO class: random weights built offline, and the kit's YOLOv8n on real pictures."""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from drive_vlm.data.caches.feature_cache import TRANSFORM
from drive_vlm.data.vision import frame_indices, load_image, load_video
from drive_vlm.rewards.detections import DetectionCache
from drive_vlm.store.lock import sole_writer

TOOL = Path(__file__).parents[2] / "tools" / "cache_detections.py"
TURNS = [{"from": "human", "value": "<video>What happens?"}, {"from": "gpt", "value": "A car stops."}]
PICTURE = [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A car."}]


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("cache_detections", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["cache_detections"] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOL.parent)  # as when it is started
        spec.loader.exec_module(module)
    yield module


@contextlib.contextmanager
def pictures_as_they_are() -> Iterator[None]:
    """Importing ultralytics wraps PIL's open for all tests of this process; not here."""
    own_open = Image.open
    yield
    Image.open = own_open


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLOv8n with random weights, as ultralytics saves it."""
    folder = tmp_path_factory.mktemp("yolo")
    os.environ |= {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    import torch

    with pictures_as_they_are():
        from ultralytics import YOLO

    torch.manual_seed(0)
    YOLO("yolov8n.yaml").save(folder / "random.pt")
    return folder / "random.pt"


@pytest.fixture
def detect(
    tool: ModuleType, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """`detect(*flags, code=0) -> (content of --json, text)`: the command, in this process, on rows.jsonl."""

    def start(*flags: object, code: int = 0, rows: str = "rows.jsonl", out: str = "out.jsonl") -> Any:
        report, ended = tmp_path / "report.json", 0
        report.unlink(missing_ok=True)
        words = ["--data", tmp_path / rows, "--out", tmp_path / out, "--json", report, "--weights", weights]
        words += ["--num_frames", 3, "--imgsz", 64, *flags]
        monkeypatch.setattr(sys, "argv", ["cache_detections.py", *map(str, words)])
        capfd.readouterr()
        try:
            tool.main()
        except SystemExit as stopped:
            ended = int(stopped.code or 0)
        text = "".join(capfd.readouterr())
        assert ended == code, text
        return json.loads(report.read_text()) if report.exists() else None, text

    return start


@pytest.fixture
def data(tmp_path: Path, synthetic_data: Path) -> Path:
    """rows.jsonl of three clips, one named twice, and two pictures."""
    rows = []
    (tmp_path / "clips").mkdir()
    for i, path in enumerate(sorted((synthetic_data / "clips").iterdir())[:3]):
        shutil.copy(path, tmp_path / "clips")
        modes = ("detailed", "concise") if i == 0 else ("detailed",)
        rows += [{"id": f"{i}-{m}", "video": f"clips/{path.name}", "mode": m, "conversations": TURNS} for m in modes]
    for path in sorted((synthetic_data / "images").iterdir())[:2]:
        shutil.copy(path, tmp_path)
        rows.append({"id": path.name, "image": path.name, "conversations": PICTURE})
    write_rows(tmp_path / "rows.jsonl", rows)
    return tmp_path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_videos_without_rows_are_called_what_generate_calls_them(detect: Callable, data: Path) -> None:
    from drive_vlm.generate.config import GenerateConfig
    from drive_vlm.generate.rows import read_rows as rows_to_answer

    os.rename(data / "clips", data / "more clips")
    entries = [f"{data}/more clips/../more clips/", str(next((data / "more clips").iterdir()))]
    result, _ = detect("--data", *entries)
    assert result["videos"] == 3 and result["frames"] == 9
    cache = DetectionCache.load(data / "out.jsonl")
    samples, _ = rows_to_answer(GenerateConfig(data=entries[:1], out="o", mode="concise"))
    assert sorted(entry.video for entry in cache) == sorted(str(sample.columns["_video"]) for sample in samples)
    samples, _ = rows_to_answer(GenerateConfig(data=entries[:1], out="o", mode="concise", image_root=str(data)))
    detect("--data", *entries, "--image_root", data, out="below.jsonl")  # below the image root: as rows call them
    below = sorted(entry.video for entry in DetectionCache.load(data / "below.jsonl"))
    assert below == sorted(str(sample.columns["_video"]) for sample in samples)
    assert below == sorted(f"more clips/{path.name}" for path in (data / "more clips").iterdir())
    samples, _ = rows_to_answer(GenerateConfig(data=entries[:1], out="o", mode="concise"))
    looked_at = {entry.video: entry.frames[1].sha256 for entry in cache}
    for sample in samples:
        assert sample.video
        picture = load_video(sample.video, 3, "")[1]
        assert looked_at[str(sample.columns["_video"])] == hashlib.sha256(picture.tobytes()).hexdigest()


def test_frames_are_those_of_training_and_nothing_found_is_an_answer(detect: Callable, data: Path) -> None:
    result, text = detect()
    assert result["videos"] == 5 and result["frames"] == 3 * 3 + 2
    assert result["classes"] == {} and len(result["videos_without_objects"]) == 5
    assert "5 without any object" in text and not list(data.glob("*.part*"))
    cache = DetectionCache.load(data / "out.jsonl")
    for row in read_rows(data / "rows.jsonl"):
        name = row.get("video") or row["image"]
        entry = cache.entry(name)
        path = str(data / name)
        pictures = load_video(path, 3, "") if "video" in row else [load_image(path, "")]
        assert [frame.sha256 for frame in entry.frames] == [hashlib.sha256(p.tobytes()).hexdigest() for p in pictures]
        assert [frame.index for frame in entry.frames] == (frame_indices(4, 3) if "video" in row else [0])
        assert cache.classes(name) == frozenset()


def test_finished_videos_are_kept_after_a_kill(detect: Callable, data: Path, tool: ModuleType) -> None:
    """What a rank had finished when it was killed, a torn line at its end, and the rest are one whole file."""
    detect("--conf", "1e-6")
    whole = (data / "out.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    assert '"label"' in whole, "at this confidence random weights see something"
    (data / "out.jsonl").unlink()
    (data / "out.jsonl.part0").write_text(lines[1])
    (data / "out.jsonl.part3").write_text(lines[0] + lines[2][:70])
    _, text = detect("--conf", "1e-6")
    assert "5 videos and pictures, 2 finished before" in text
    assert (data / "out.jsonl").read_text() == whole
    _, text = detect("--conf", "1e-6", "--verify")
    assert "5 finished before" in text and (data / "out.jsonl").read_text() == whole


def test_what_is_found_does_not_depend_on_the_batch(detect: Callable, data: Path) -> None:
    from PIL import Image

    Image.new("RGB", (200, 90), (200, 30, 30)).save(data / "wide.png")
    write_rows(
        data / "rows.jsonl",
        [*read_rows(data / "rows.jsonl"), {"id": "w", "image": "wide.png", "conversations": PICTURE}],
    )
    detect("--conf", "1e-6", "--batch_size", 1, "--workers", 1, out="one.jsonl")
    detect("--conf", "1e-6", "--batch_size", 64, out="many.jsonl")
    one, many = (DetectionCache.load(data / name) for name in ("one.jsonl", "many.jsonl"))
    for entry in one:
        for a, b in zip(entry.frames, many.entry(entry.video).frames, strict=True):
            assert len(a.objects) == len(b.objects)
            for first, second in zip(a.objects, b.objects, strict=True):
                assert first.score == pytest.approx(second.score, abs=1e-3)


def test_shards_are_merged_into_the_whole(detect: Callable, data: Path, tool: ModuleType) -> None:
    detect()
    for i in range(2):
        detect("--shard", f"{i}/2", out="part.jsonl")
    shards = sorted(data.glob("part.shard-*"))
    assert [path.name for path in shards] == ["part.shard-00-of-02.jsonl", "part.shard-01-of-02.jsonl"]
    assert all(path.read_text() for path in shards)
    detect("--merge", *shards, out="merged.jsonl")
    assert (data / "merged.jsonl").read_text() == (data / "out.jsonl").read_text()
    _, text = detect("--shard", "2/2", code=2)
    assert "--shard 2/2: write I/N" in text


def test_other_settings_are_named(detect: Callable, data: Path, weights: Path) -> None:
    detect()
    before = (data / "out.jsonl").read_text()
    other = data / "other.pt"
    other.write_bytes(weights.read_bytes() + b"\0")
    for flags, named in (
        (("--conf", 0.5), "conf: 0.3 then, 0.5 now"),
        (("--imgsz", 96), "imgsz: 64 then, 96 now"),
        (("--num_frames", 2), "--num_frames 2 takes [1, 3] of it"),
    ):
        _, text = detect(*flags, code=2)
        assert named in text
    assert (data / "out.jsonl").read_text() == before


def test_what_was_replaced_is_made_again(detect: Callable, data: Path) -> None:
    """A clip of as many frames and a picture, without --verify; a new time alone changes nothing."""
    detect("--conf", "1e-6")
    before = DetectionCache.load(data / "out.jsonl")
    rows = read_rows(data / "rows.jsonl")
    clip, other, picture = (data / rows[i].get("video", rows[i].get("image")) for i in (0, 2, -1))
    shutil.copy(other, clip)
    shutil.copy(data / rows[-2]["image"], picture)
    os.utime(other, (1, 1))
    _, text = detect("--conf", "1e-6")
    assert "5 videos and pictures, 3 finished before; 2 made again: changed" in text
    after = DetectionCache.load(data / "out.jsonl")
    assert len(after) == 5
    for made, like in ((rows[0]["video"], rows[2]["video"]), (rows[-1]["image"], rows[-2]["image"])):
        assert after.entry(made).frames == before.entry(like).frames != before.entry(made).frames
    _, text = detect("--conf", "1e-6")
    assert "5 finished before\n" in text


def test_verify_looks_at_what_size_and_time_do_not_tell(detect: Callable, data: Path) -> None:
    detect()
    rows = read_rows(data / "rows.jsonl")
    lines = read_rows(data / "out.jsonl")
    line = next(line for line in lines if line["video"] == rows[0]["video"])
    reported, line["frames"][0]["sha256"] = line["frames"][0]["sha256"], "00"
    write_rows(data / "out.jsonl", lines)
    _, text = detect()
    assert "5 finished before" in text
    _, text = detect("--verify")
    assert "4 finished before; 1 made again: changed" in text
    assert DetectionCache.load(data / "out.jsonl").entry(rows[0]["video"]).frames[0].sha256 == reported


def test_lines_of_an_older_cache_are_read_and_made_again(detect: Callable, data: Path) -> None:
    detect()
    whole = (data / "out.jsonl").read_text()
    write_rows(
        data / "out.jsonl", [{k: v for k, v in line.items() if k != "file"} for line in read_rows(data / "out.jsonl")]
    )
    assert len(DetectionCache.load(data / "out.jsonl")) == 5
    _, text = detect()
    assert "0 finished before; 5 made again: from an older cache" in text
    assert (data / "out.jsonl").read_text() == whole


def test_lines_decoded_by_another_version_are_made_again(detect: Callable, data: Path) -> None:
    """Frames of a rotated video have been sideways: the transform tells, and GRPO reads both kinds."""
    detect()
    whole = (data / "out.jsonl").read_text()
    assert all(line["transform"] == TRANSFORM for line in read_rows(data / "out.jsonl"))
    for older in ({}, {"transform": TRANSFORM - 1}):
        lines = [{k: v for k, v in line.items() if k != "transform"} | older for line in read_rows(data / "out.jsonl")]
        write_rows(data / "out.jsonl", lines)
        assert len(DetectionCache.load(data / "out.jsonl")) == 5
        _, text = detect()
        assert "0 finished before; 5 made again: from a version that decodes in another way" in text
        assert (data / "out.jsonl").read_text() == whole


def test_a_second_run_is_refused_at_once(detect: Callable, data: Path) -> None:
    with sole_writer(data / "out.jsonl"):
        _, text = detect(code=2)
        assert "out.jsonl: another run is writing to it" in text and not list(data.glob("out.jsonl*"))
        _, text = detect("--merge", data / "none.jsonl", code=2)
        assert "another run is writing to it" in text
        detect("--shard", "0/2")  # has a file of its own
    detect()


def test_a_lost_part_is_reported(detect: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drive_vlm.rewards import detections

    write = detections.append_detections

    def write_and_lose(path: Path, entries: Any) -> None:
        write(path, entries)
        if ".part" in path.name:
            path.unlink()

    monkeypatch.setattr(detections, "append_detections", write_and_lose)
    _, text = detect(code=2)
    assert "5 of 5 videos and pictures are not in it (first 'clips/" in text


def test_another_data_root_is_seen_in_what_is_made_again(detect: Callable, data: Path) -> None:
    rows = read_rows(data / "rows.jsonl")
    videos = [row["video"] for row in rows if "video" in row]
    for root, video in (("a", videos[0]), ("b", videos[-1])):
        (data / root / "clips").mkdir(parents=True)
        shutil.copy(data / video, data / root / "clips" / "x.mp4")
        write_rows(data / root / "rows.jsonl", [rows[0] | {"video": "clips/x.mp4"}])
        _, text = detect(rows=f"{root}/rows.jsonl")
    assert f"1 made again: changed (first 'clips/x.mp4', {data / 'b' / 'clips' / 'x.mp4'})" in text


@pytest.mark.parametrize(
    ("flags", "reported"),
    [
        (("--imgsz", 16), "--imgsz 16 --conf 0.3: need at least 32"),
        (("--conf", 1.5), "--conf: must be at most 1, got 1.5"),
        (("--conf", "nan"), "--conf: must be at least 0, got nan"),
        (("--out", "{data}"), "is a folder. Give the path of a file"),
        (("--out", "{data}/rows.jsonl/out.jsonl"), "rows.jsonl/out.jsonl: cannot be written to"),
        (("--weights", "{data}/cut.pt"), "cut.pt: not YOLO weights, or not the whole file"),
    ],
)
def test_what_cannot_work_is_refused(
    flags: tuple[str, Any], reported: str, detect: Callable, data: Path, weights: Path
) -> None:
    (data / "cut.pt").write_bytes(weights.read_bytes()[:1000])
    _, text = detect(flags[0], str(flags[1]).format(data=data), code=2)
    assert reported in text and not (data / "out.jsonl").exists()


def test_bad_videos_stop_or_are_counted(detect: Callable, data: Path) -> None:
    rows = read_rows(data / "rows.jsonl")
    (data / "empty").mkdir()
    rows += [{"id": name, "video": name, "conversations": TURNS} for name in ("none.mp4", "empty")]
    write_rows(data / "rows.jsonl", rows)
    _, text = detect(code=2)
    assert f"rows.jsonl:{len(rows) - 1}: the video" in text and "does not exist" in text
    result, _ = detect("--on_bad_row", "skip")
    assert sorted(row["reason"] for row in result["bad"]) == ["video_empty", "video_missing"]
    assert result["videos"] == 5


def test_weights_are_checked_before_they_are_loaded(
    detect: Callable, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = detect("--weights", "yolov8x.pt", code=2)
    assert "--weights yolov8x.pt: no such file" in text and "YOLO('yolov8x.pt')" in text
    (data / "evil.pt").write_bytes(b"not weights")
    _, text = detect("--weights", data / "evil.pt", "--sha256", "00", code=2)
    assert "not --sha256 00. It was not loaded" in text
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    _, text = detect(code=2)
    assert "pip install drive-vlm[yolo]" in text and "AGPL-3.0" in text


def test_names_are_those_that_rewards_see(detect: Callable, data: Path) -> None:
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.stages.rl.prompts import columns_of

    rows = read_rows(data / "rows.jsonl")
    rows[0]["video"] = "./" + rows[0]["video"]
    rows[1]["video"] = rows[1]["video"].replace("/", "//")
    rows[-1]["image"] = "clips/../" + rows[-1]["image"]
    write_rows(data / "rows.jsonl", rows)
    result, _ = detect()
    assert result["videos"] == 5, "one clip has one line, however it is written"
    cache = DetectionCache.load(data / "out.jsonl")
    (source,) = open_sources([str(data / "rows.jsonl")])
    for i in range(len(rows)):
        reported = columns_of(read_sample(source, i), source.root)
        assert (reported["video"] or reported["image"]) in cache


def test_one_name_for_two_files_stops(detect: Callable, data: Path) -> None:
    rows = read_rows(data / "rows.jsonl")
    (data / "more" / "clips").mkdir(parents=True)
    shutil.copy(data / rows[0]["video"], data / "more" / "clips")
    write_rows(data / "more" / "rows.jsonl", rows[:1])
    _, text = detect("--data", data / "rows.jsonl", data / "more" / "rows.jsonl", code=2)
    assert f"{rows[0]['video']!r} is {data / 'more' / rows[0]['video']}, but" in text


@pytest.mark.slow
def test_ranks_share_the_work_and_leave_the_home_directory_alone(
    detect: Callable, data: Path, weights: Path, run: Callable
) -> None:
    detect("--conf", "1e-6")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", TOOL]
    words = ["--data", data / "rows.jsonl", "--weights", weights, "--num_frames", 3, "--imgsz", 64, "--conf", "1e-6"]
    home = data / "home"
    home.mkdir()
    env = {"CUDA_VISIBLE_DEVICES": "", "HOME": str(home), "DRIVE_VLM_CACHE": str(data / "cache"), "YOLO_CONFIG_DIR": ""}
    done = run([*launch, *words, "--out", data / "ranks.jsonl"], **env)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [[entry.video for entry in DetectionCache.load(data / name)] for name in ("ranks.jsonl", "out.jsonl")]
    assert names[0] == names[1] and not list(data.glob("*.part*"))
    assert not [path for path in home.rglob("*") if "ltralytics" in path.name], "nothing in the home directory"


@pytest.fixture
def yolov8n(kit: Path) -> tuple[Path, str]:
    """The kit's weights and the SHA-256 that its manifest gives: a pickle is loaded only when they agree."""
    manifest = json.loads((kit / "MANIFEST.json").read_text())
    expected = next(item["sha256"] for item in manifest if item["path"] == "models/yolov8n.pt")
    path = kit / "models" / "yolov8n.pt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected
    return path, expected


def test_pictures_are_opened_by_pillow_all_the_same(weights: Path) -> None:
    """A process of its own, where nothing was imported before."""
    code = (
        "import sys; from PIL import Image; own = Image.open; sys.path.insert(0, 'tools')\n"
        "from pathlib import Path; from yolo_detector import open_detector\n"
        f"open_detector(Path({str(weights)!r}), None, 64, 0.25, 1); assert 'ultralytics' in sys.modules and Image.open is own"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TOOL.parents[1], timeout=300)


@pytest.mark.kit
def test_the_bus_and_its_persons_are_found(detect: Callable, yolov8n: tuple[Path, str], tmp_path: Path) -> None:
    with pictures_as_they_are():
        from ultralytics.utils import ASSETS

    shutil.copy(ASSETS / "bus.jpg", tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"id": "bus", "image": "bus.jpg", "conversations": PICTURE}])
    path, digest = yolov8n
    result, _ = detect("--weights", path, "--sha256", digest, "--imgsz", 640)
    assert DetectionCache.load(tmp_path / "out.jsonl").classes("bus.jpg") >= {"bus", "person"}
    assert result["classes"]["bus"]["objects"] == 1 and result["classes"]["person"]["objects"] >= 3


@pytest.mark.slow
@pytest.mark.kit
def test_real_clips_and_videos(detect: Callable, kit: Path, yolov8n: tuple[Path, str], tmp_path: Path) -> None:
    """CamVid's folders of frames and two dashcam videos, all with traffic in them."""
    names = []
    for clip in sorted(path for path in (kit / "noncommercial" / "camvid").iterdir() if path.is_dir()):
        (tmp_path / clip.name).mkdir()
        for frame in clip.glob("0*.png"):  # the kit keeps masks next to the frames
            shutil.copy(frame, tmp_path / clip.name)
        names.append(clip.name)
    for name in ("solidWhiteRight.mp4", "test_video.mp4"):
        shutil.copy(kit / "permissive" / "udacity" / name, tmp_path)
        names.append(name)
    write_rows(tmp_path / "rows.jsonl", [{"id": n, "video": n, "conversations": TURNS} for n in names])
    path, digest = yolov8n
    result, _ = detect("--weights", path, "--sha256", digest, "--imgsz", 640, "--num_frames", 8)
    assert result["videos"] == 5 and result["frames"] == 5 * 8
    cache = DetectionCache.load(tmp_path / "out.jsonl")
    assert all("car" in cache.classes(name) for name in names), {name: cache.classes(name) for name in names}
