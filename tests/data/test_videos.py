"""Which videos a path names."""

import pytest

from drive_vlm.data.videos import find_videos, is_media


@pytest.fixture
def tree(tmp_path):
    for name in ("b.mp4", "a.MOV", "notes.txt", "day/c.mp4", "day/frames/00.jpg", "day/frames/01.jpg", "night/x/0.png"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "clips"


def test_a_folder_is_searched_and_a_folder_of_frames_is_one_video(tree):
    found = find_videos(tree)
    assert [name for name, _ in found] == ["a", "b", "day/c", "day/frames", "night/x"]
    assert [path for _, path in found] == [
        str(tree / n) for n in ("a.MOV", "b.mp4", "day/c.mp4", "day/frames", "night/x")
    ]
    assert find_videos(tree / "day" / "frames") == [("frames", str(tree / "day" / "frames"))]
    assert find_videos(tree / "b.mp4") == [("b", str(tree / "b.mp4"))]
    assert find_videos(tree / "gone.mp4") == [("gone", str(tree / "gone.mp4"))]


@pytest.mark.parametrize("below", ["", "day", "day/deep"])
def test_a_picture_hides_no_videos(tree, below, capsys):
    folder = tree / below
    folder.mkdir(exist_ok=True)
    before = find_videos(tree)
    (tree / "day" / "deep").mkdir(exist_ok=True)
    (tree / "day" / "deep" / "z.mp4").write_bytes(b"x")
    (folder / "cover.png").write_bytes(b"x")
    found = find_videos(tree)
    assert set(found) == {*before, ("day/deep/z", str(tree / "day/deep/z.mp4"))}
    assert capsys.readouterr().out == f"{tree}: 6 videos; 1 pictures next to videos are left out\n"


def test_videos_that_differ_in_their_extension_keep_it(tree):
    for name in ("b.mov", "day/frames.mp4"):
        (tree / name).write_bytes(b"x")
    found = [name for name, _ in find_videos(tree)]
    assert found == ["a", "b.mov", "b.mp4", "day/c", "day/frames", "day/frames.mp4", "night/x"]


def test_a_folder_without_videos_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no video in this folder.*\.mp4"):
        find_videos(tmp_path / "empty")


def test_rows_are_no_media(tree):
    assert is_media(tree) and is_media("x.mp4") and is_media("X.MKV")
    assert not is_media("rows.jsonl") and not is_media("meta.json")


def test_a_folder_of_videos_with_a_page_and_a_file_of_metadata_is_media(tmp_path):
    for name in ("README.md", "metadata.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert not is_media(tmp_path)
    (tmp_path / "a.mp4").touch()
    assert is_media(tmp_path)
    (tmp_path / "train.parquet").touch()
    assert not is_media(tmp_path)
