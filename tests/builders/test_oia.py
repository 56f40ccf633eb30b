"""BDD-OIA's rows: the toy subset and the frames of a clip; the command line is tested in tests/tools/test_build_bddoia.py."""

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.oia import Labelled, cut_frames, oia_row, toy_subset
from drive_vlm.data.vision import load_video
from drive_vlm.evaluation.oia_labels import read_answer


def labelled(video, clip, actions, reason):
    name = f"{video:08x}-{video:08x}{clip}.jpg"
    one_hot = [[int(i in chosen) for i in range(size)] for chosen, size in ((actions, 4), (reason, 21))]
    return Labelled(name, *map(tuple, one_hot))


def test_toy_subset_has_one_action_and_one_reason_and_cuts_no_video():
    rows = [labelled(i, clip, (i % 4,), (i % 21,)) for i in range(400) for clip in ("", "_1")]
    rows += [labelled(1000 + i, "", (0, 2), (1,)) for i in range(50)]
    rows += [labelled(2000 + i, "", (0,), (1, 2)) for i in range(50)] + [labelled(3000, "", (0,), ())]
    found = toy_subset(rows, seed=0)
    assert all(sum(row.actions) == sum(row.reason) == 1 for part in found.values() for row in part)
    by_action = {name: np.sum([row.actions for row in part], axis=0).tolist() for name, part in found.items()}
    # 200 clips for each action: 40 for testing, an eighth of the other 160.
    assert by_action == {"train": [20] * 4, "test": [40] * 4}
    videos = {name: {row.video for row in part} for name, part in found.items()}
    assert not videos["train"] & videos["test"]
    assert toy_subset(reversed(rows), seed=0) == found != toy_subset(rows, seed=1)


def test_a_rare_action_keeps_a_training_row():
    found = toy_subset([labelled(1, "", (2,), (9,))], seed=0)
    assert [row.id for row in found["train"]] == ["00000001-00000001"] and found["test"] == []


@pytest.mark.parametrize("total", [3, 8, 9, 40, 151])
def test_the_last_frame_of_a_clip_is_taken_by_training(tmp_path, total):
    clip = tmp_path / "clip"
    clip.mkdir()
    for number in range(total):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(clip / f"{number:03d}.png")
    assert cut_frames(str(clip), tmp_path / "frames", 8, "row") is True
    assert cut_frames(str(clip), tmp_path / "frames", 8, "row") is False
    shown = [int(np.asarray(frame)[0, 0, 0]) for frame in load_video(str(tmp_path / "frames"), 8, "row")]
    assert len(shown) == min(total, 8) and shown == sorted(set(shown)) and shown[-1] == total - 1
    for fewer in range((len(shown) + 1) // 2, 8):
        last = load_video(str(tmp_path / "frames"), fewer, "row")[-1]
        assert int(np.asarray(last)[0, 0, 0]) == total - 1
    # What the frames are cut for: of a longer video training leaves the last frame out.
    if total > 16:
        assert int(np.asarray(load_video(str(clip), 8, "row")[-1])[0, 0, 0]) < total - 1


def test_a_row_says_what_read_answer_reads():
    place = {"id": "1", "group": "g", "image": "a.jpg"}
    for target, form in (("text", "text"), ("json", "json")):
        row = oia_row(place, (0, 1, 0, 1), [int(i in (3, 13)) for i in range(21)], target, "Why?", "A van ahead.")
        assert row["conversations"][0]["value"] == "<image>\nWhy?"
        answer = read_answer(row["conversations"][1]["value"])
        assert (answer.form, answer.actions) == (form, ("stop/slow down", "turn right"))
        assert answer.reasons == ("obstacle: car", "on the right-turn lane")
        assert answer.description == ("A van ahead." if target == "json" else "")
    prompt = oia_row({"id": "1", "group": "g", "video": "v"}, (1, 0, 0, 0), (0,) * 21, "labels")
    assert prompt["conversations"] == [{"from": "human", "value": "<video>"}] and "description" not in prompt
