"""Caption files of videos: every form, copies of a video in one group, bad rows by reason."""

import json

import pytest
from PIL import Image

from drive_vlm.builders.splits import held_out_groups
from drive_vlm.builders.video_captions import read_video_captions
from drive_vlm.data.samples import BadRow


@pytest.fixture
def write(tmp_path):
    def rows(*items):
        path = tmp_path / "captions.jsonl"
        path.write_text("".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in items))
        return [path]

    return rows


@pytest.fixture
def videos(tmp_path):
    """Folders of frames a, b, c/d; their content does not matter here."""
    root = tmp_path / "videos"
    for name in ("a", "b", "c/d"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "0.png")
    return root


def test_every_form_of_row(write, videos):
    whole = [{"idx": "1", "content": "part"}, {"idx": "-1", "content": "The whole."}]
    parts = [{"idx": "1", "content": "One."}, {"idx": "2", "content": "Two."}]
    paths = write(
        {"video": "a", "caption": " A car\nstops. "},
        {"video_path": "c/d", "captions": whole},
        {"video": "b", "q": "<video>\nWhat happens?", "a": "It rains."},
        {"video": "b", "q": "Why?", "captions": ["First.", " Second. "]},
        {"video": "./a", "captions": parts},
    )
    found, bad = read_video_captions(paths, videos)
    assert not bad
    assert [(c.id, c.video, c.caption, c.question) for c in found] == [
        ("a", "a", "A car stops.", None),
        ("c/d", "c/d", "The whole.", None),
        ("b", "b", "It rains.", "What happens?"),
        ("b-2", "b", "First. Second.", "Why?"),
        ("a-2", "a", "One. Two.", None),
    ]
    assert [c.group for c in found] == ["a", "c/d", "b", "b", "a"]


def test_bad_rows_by_reason(write, videos):
    (videos / "empty").mkdir()
    (videos / "broken.mp4").write_bytes(b"not a video")
    paths = write(
        "{broken\n", "[]\n", {"video": "a"}, {"caption": "x"}, {"video": "a", "caption": " "},
        {"video": "none.mp4", "caption": "x"}, {"video": "empty", "caption": "x"}, {"video": "broken.mp4", "caption": "x"},
        {"video": "/etc/passwd", "caption": "x"}, {"video": "../a", "caption": "x"}, {"video": "a", "caption": "a <video>"},
        {"video": "a", "caption": "x", "q": 3}, {"video": "a", "caption": "x"}, {"video": "a", "caption": "x"},
    )  # fmt: skip
    found, bad = read_video_captions(paths, videos, "skip")
    assert [row.reason for row in bad] == [
        "broken_json", "not_an_object", "missing_field", "missing_field", "empty_caption",
        "video_missing", "video_empty", "video_corrupt",
        "path_outside_root", "path_outside_root", "placeholder", "missing_field", "duplicate",
    ]  # fmt: skip
    assert [c.caption for c in found] == ["x"]
    assert bad[5].where.endswith("captions.jsonl:6") and "none.mp4 does not exist" in str(bad[5])
    assert all("--image_root" in str(bad[i]) for i in (5, 8, 9))
    with pytest.raises(BadRow, match=r"captions.jsonl:1: not valid JSON"):
        read_video_captions(paths, videos)


def test_copies_of_a_video_share_a_group(write, videos, synthetic_data):
    source = sorted((synthetic_data / "clips").glob("*.mp4"))[:2]
    for name, content in (("one", source[0]), ("copy", source[0]), ("two", source[1])):
        (videos / f"{name}.mp4").write_bytes(content.read_bytes())
    paths = write(*({"video": f"{name}.mp4", "caption": "x"} for name in ("one", "copy", "two")))
    found, _ = read_video_captions(paths, videos)
    assert [(c.id, c.group) for c in found] == [("one", "one"), ("copy", "one"), ("two", "two")]
    paths = write(
        {"video": "one.mp4", "caption": "x", "group": "twins"}, {"video": "two.mp4", "caption": "x", "group": "twins"}
    )
    assert [c.group for c in read_video_captions(paths, videos)[0]] == ["twins", "twins"]


def test_the_group_may_come_with_a_later_row(write, videos, synthetic_data):
    """A drive that spans two videos must not be split because an earlier row about one of them names no group."""
    source = sorted((synthetic_data / "clips").glob("*.mp4"))[0]
    for name in ("one", "copy"):
        (videos / f"{name}.mp4").write_bytes(source.read_bytes())
    rows = [{"video": "a", "caption": "x"}, {"video": "b", "caption": "y", "group": "trip"}]
    rows += [{"video": "a", "caption": "z", "group": "trip"}, {"video": "a", "caption": "last"}]
    rows += [{"video": "one.mp4", "caption": "x"}, {"video": "copy.mp4", "caption": "x", "group": "trip"}]
    assert [c.group for c in read_video_captions(write(*rows), videos)[0]] == ["trip"] * 6
    paths = write(*rows, {"video": "./a", "caption": "w", "group": "tour"})
    with pytest.raises(BadRow, match=r"captions.jsonl:7: a has group 'tour' here, 'trip' at .*captions.jsonl:3"):
        read_video_captions(paths, videos)
    found, [bad] = read_video_captions(paths, videos, "skip")
    assert bad.reason == "two_groups" and len(found) == 6


def test_ids_are_never_the_same(write, videos, synthetic_data):
    """A second caption of a, a video that is called a-2, and two videos that differ in their extension."""
    source = sorted((synthetic_data / "clips").glob("*.mp4"))[:3]
    for name, content in zip(("c/e.mp4", "c/e.mov", "a-2.mp4"), source, strict=True):
        (videos / name).write_bytes(content.read_bytes())
    names = ("a", "a", "a", "a-2.mp4", "c/e.mp4", "c/e.mov", "c/e.mov", "b")
    found, _ = read_video_captions(write(*({"video": v, "caption": f"x{i}"} for i, v in enumerate(names))), videos)
    assert [c.id for c in found] == ["a", "a-3", "a-4", "a-2", "c/e.mp4", "c/e.mov", "c/e.mov-2", "b"]
    assert [c.group for c in found] == ["a", "a", "a", "a-2", "c/e.mp4", "c/e.mov", "c/e.mov", "b"]


def test_a_limit_and_a_missing_folder(write, videos):
    paths = write(*({"video": name, "caption": "x"} for name in ("a", "b", "c/d")))
    assert len(read_video_captions(paths, videos, limit=2)[0]) == 2
    with pytest.raises(ValueError, match="no such folder of videos"):
        read_video_captions(paths, videos / "nowhere")


def test_held_out_groups_are_pinned_exact_and_independent_of_order():
    names = [f"v{i}" for i in range(12)]
    assert held_out_groups(names, 4, seed=0) == held_out_groups(reversed(names + names), 4, seed=0)
    assert len(held_out_groups(names, 4)) == 4 and held_out_groups(names, 4) <= held_out_groups(names, 7)
    assert held_out_groups(names, 4, seed=0) != held_out_groups(names, 4, seed=1)
    assert held_out_groups(names, 0) == set()
    with pytest.raises(ValueError, match="12 of 12 groups cannot be held out"):
        held_out_groups(names, 12)
