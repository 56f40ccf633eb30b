"""generate --mode over videos, folders of frames and rows: which rows are asked what, and what is written."""

import json
import shutil
import sys

import pytest

from drive_vlm.config import ModelConfig
from drive_vlm.data.samples import VIDEO, BadRow
from drive_vlm.data.videos import MODES
from drive_vlm.generate import GenerateConfig, generate, read_rows


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def clips(synthetic_data, tmp_path_factory):
    """One video in a folder, two beside it, and the frames of one as pictures."""
    from drive_vlm.data.vision import load_video

    root = tmp_path_factory.mktemp("videos")
    source = sorted((synthetic_data / "clips").glob("*.mp4"))
    (root / "day").mkdir()
    (root / "frames").mkdir()
    for video, name in zip(source, ("day/one.mp4", "two.mp4", "three.mp4"), strict=False):
        shutil.copyfile(video, root / name)
    for i, frame in enumerate(load_video(str(source[1]), 8, "here")):
        frame.save(root / "frames" / f"{i:02d}.png")
    return root


def config(*data, **more):
    return GenerateConfig(data=list(map(str, data)), out="x.jsonl", **more)


def row(name, mode=None, **more):
    turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": f"{name} happens."}]
    return {"id": name, "video": "two.mp4", "conversations": turns} | ({"mode": mode} if mode else {}) | more


@pytest.mark.parametrize("mode", MODES)
def test_files_and_folders_become_rows(clips, mode):
    samples, bad = read_rows(config(clips / "day", clips / "two.mp4", clips / "frames", mode=mode))
    assert not bad
    assert [(s.id, s.group, s.columns["dataset"]) for s in samples] == [
        ("one", "one", "day"), ("two", "two", "two.mp4"), ("frames", "frames", "frames"),
    ]  # fmt: skip
    for sample in samples:
        assert [turn.parts for turn in sample.turns] == [(VIDEO, MODES[mode])]
        assert sample.reference == "" and sample.columns["mode"] == mode


def test_rows_of_a_file_are_asked_by_mode(clips, capsys):
    path = clips / "rows.jsonl"
    lines = [row("a", "detailed"), row("b", "concise"), row("c")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples, _ = read_rows(config(path, mode="concise"))
    assert [(s.id, s.turns[0].text, s.reference) for s in samples] == [
        ("b", MODES["concise"], "b happens."),
        ("c", MODES["concise"], ""),  # its answer belongs to another question
    ]
    assert "1 rows of another mode than concise are left out" in capsys.readouterr().out
    samples, _ = read_rows(config(path))
    assert [s.turns[0].text for s in samples] == ["What happens?"] * 3
    path.write_text(json.dumps(row("a", "detailed")) + "\n")
    with pytest.raises(ValueError, match="all 1 rows are of another mode"):
        read_rows(config(path, mode="concise"))


def test_what_cannot_be_asked(clips, tmp_path):
    with pytest.raises(
        ValueError, match=r"two.mp4 is a video or a folder: say what to ask, --mode detailed or --mode concise"
    ):
        read_rows(config(clips / "two.mp4"))
    shutil.copyfile(clips / "two.mp4", tmp_path / "two.mp4")
    with pytest.raises(ValueError, match=r"id 'two' came before at .*give the folder above both"):
        read_rows(config(clips / "two.mp4", tmp_path / "two.mp4", mode="concise"))
    (tmp_path / "text.jsonl").write_text(
        json.dumps({"id": "t", "conversations": [{"from": "human", "value": "Hi"}]}) + "\n"
    )
    with pytest.raises(BadRow, match="--mode concise asks about videos and the row has none"):
        read_rows(config(tmp_path / "text.jsonl", mode="concise"))
    _, bad = read_rows(config(tmp_path / "text.jsonl", mode="concise", on_bad_row="skip"))
    assert [item.reason for item in bad] == ["no_video"]


@pytest.mark.slow
@pytest.mark.supports("internvl generate")
def test_the_command_line_over_videos_and_frames(run, tiny_model, clips, tmp_path):
    out = tmp_path / "texts.jsonl"
    words = [
        sys.executable,
        "-m",
        "drive_vlm",
        "generate",
        "--model",
        tiny_model,
        "--max_new_tokens",
        4,
        "--num_frames",
        3,
    ]
    data = ["--data", clips / "day", clips / "two.mp4", clips / "frames", "--out", out]
    done = run([*words, "--mode", "detailed", *data])
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert [(r["id"], r["mode"], r["question"]) for r in rows] == [
        (n, "detailed", MODES["detailed"]) for n in ("one", "two", "frames")
    ]
    assert [r["video"] for r in rows] == [str(clips / n) for n in ("day/one.mp4", "two.mp4", "frames")]
    assert rows[1]["prediction"] == rows[2]["prediction"] != "", "frames of a video and the video are the same pictures"
    other = run([*words, "--mode", "concise", *data])
    assert other.returncode == 2 and "other settings (mode: " in other.stderr
    other = run([*words, "--mode", "detailed", "--shuffle_frames", *data])
    assert other.returncode == 2 and "other settings (shuffle_frames: " in other.stderr
    (clips / "broken.mp4").write_bytes(b"no video")
    broken = [
        "--mode",
        "concise",
        "--data",
        clips / "broken.mp4",
        clips / "gone.mp4",
        clips / "two.mp4",
        "--out",
        tmp_path / "b.jsonl",
    ]
    done = run([*words, *broken])
    assert done.returncode == 2 and "broken.mp4 cannot be decoded" in done.stderr
    done = run([*words, *broken, "--on_bad_row", "skip"])
    assert done.returncode == 0, done.stderr
    assert [r["id"] for r in rows_of(tmp_path / "b.jsonl")] == ["two"]
    reasons = [r["reason"] for r in json.loads((tmp_path / "b.bad_rows.json").read_text())]
    assert reasons == ["video_corrupt", "video_missing"]


@pytest.mark.slow
@pytest.mark.supports("siglip_qwen generate", "siglip_qwen generate features")
def test_answers_from_cached_features_are_those_of_the_pictures(run, tiny_video_model, clips, synthetic_data, tmp_path):
    """Rows of videos, of a folder of frames, of a picture and of none; --mode over a video and a folder that are in the cache."""
    picture = next((synthetic_data / "images").iterdir())
    shutil.copyfile(picture, clips / picture.name)
    rows = [row("a", "detailed"), row("b", "concise", video="frames"), row("c", "concise", video="day/one.mp4")]
    turns = [{"from": "human", "value": "What is ahead?"}, {"from": "gpt", "value": "Nothing."}]
    asked = [{"from": "human", "value": "<image>\nWhat is ahead?"}, turns[1]]
    rows += [{"id": "d", "image": picture.name, "conversations": asked}, {"id": "e", "conversations": turns}]
    data, features = clips / "mixed.jsonl", tmp_path / "features"
    data.write_text("".join(json.dumps(one) + "\n" for one in rows))
    cache = [
        "tools/cache_features.py",
        "--model",
        tiny_video_model,
        "--data",
        data,
        "--num_frames",
        3,
        "--out",
        features,
    ]
    done = run([sys.executable, *cache, "--stored", "float32"])
    assert done.returncode == 0, done.stderr

    def answers(name, *given, **more):
        asked = GenerateConfig(
            [str(path) for path in given], str(tmp_path / name), num_frames=3, max_new_tokens=6, batch_size=3, **more
        )
        generate(ModelConfig(str(tiny_video_model)), asked)
        return [(line["id"], line["prediction"]) for line in rows_of(tmp_path / name)]

    pixels = answers("pixels.jsonl", data)
    assert [id for id, _ in pixels] == list("abcde") and len({text for _, text in pixels}) > 1
    assert answers("features.jsonl", data, feature_cache=str(features)) == pixels

    media = (clips / "two.mp4", clips / "frames")
    seen = answers("seen.jsonl", *media, mode="concise")
    words = [
        sys.executable,
        "-m",
        "drive_vlm",
        "generate",
        "--model",
        tiny_video_model,
        "--mode",
        "concise",
        "--max_new_tokens",
        6,
    ]
    words += [
        "--num_frames",
        3,
        "--batch_size",
        3,
        "--feature_cache",
        features,
        "--out",
        tmp_path / "cached.jsonl",
        "--data",
    ]
    done = run([*words, *media])
    assert done.returncode == 0, done.stderr
    cached = rows_of(tmp_path / "cached.jsonl")
    assert [(line["id"], line["prediction"]) for line in cached] == seen and seen[0][1] == seen[1][1] != ""
    assert {(line["mode"], line["question"]) for line in cached} == {("concise", MODES["concise"])}
    done = run([*words, clips / "three.mp4"])
    assert done.returncode == 2 and "three.mp4 is not among the 4 entries of the feature cache" in done.stderr
    with pytest.raises(ValueError, match="num_frames: 3 then, 4 now"):
        generate(
            ModelConfig(str(tiny_video_model)),
            GenerateConfig([str(data)], str(tmp_path / "x.jsonl"), num_frames=4, feature_cache=str(features)),
        )
    with pytest.raises(ValueError, match="--blank_images needs the pictures themselves"):
        answers("x.jsonl", data, feature_cache=str(features), blank_images=True)


def test_an_answer_about_another_video_of_the_same_name_is_not_kept(run, tmp_path):
    for folder in ("monday", "tuesday"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0001.mp4").touch()
    out = tmp_path / "texts.jsonl"
    row = {"id": "0001", "dataset": "monday", "prediction": "It rains.", "reference": "", "video": str(tmp_path / "monday/0001.mp4")}  # fmt: skip
    out.write_text(json.dumps(row | {"question": MODES["detailed"]}) + "\n")
    command = [sys.executable, "-m", "drive_vlm", "generate", "--model", "nowhere", "--mode", "detailed", "--out", out]
    done = run([*command, "--data", tmp_path / "tuesday"])
    assert done.returncode == 2 and "id '0001' is answered in" in done.stderr and "monday/0001.mp4" in done.stderr
    assert json.loads(out.read_text())["prediction"] == "It rains."
    done = run([*command, "--data", tmp_path / "monday"])
    assert "is answered in" not in done.stderr
