"""Boxes of one object become one; labels of a detector are those of the list."""

import numpy as np
import pytest

from drive_vlm.builders.synthesis.boxes import each_object_once, overlaps
from drive_vlm.builders.synthesis.detect import named_boxes
from drive_vlm.builders.synthesis.labels import in_groups, read_labels
from drive_vlm.builders.synthesis.records import FoundBox, field_of, plain_record
from drive_vlm.builders.synthesis.segment import Limits, box_of, regions_of


def found(*items: tuple[list[float], str, float]) -> list[FoundBox]:
    return [FoundBox(box, label, score, "d") for box, label, score in items]


def test_overlap_by_hand() -> None:
    # 2 x 1 shared of 4 + 4 - 2.
    assert overlaps(np.array([[0, 0, 2, 2]]), np.array([[0, 1, 2, 3], [5, 5, 6, 6]])).tolist() == [
        [pytest.approx(1 / 3), 0]
    ]
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]


def test_each_object_is_kept_once_and_what_goes_is_counted() -> None:
    boxes, dropped = each_object_once(
        found(
            ([0, 0, 10, 10], "car", 0.5),
            ([0, 0, 10, 11], "car", 0.9),
            ([0, 0, 10, 11], "truck", 0.6),
            # Overlaps the car by .55: two labels may stand that near, as a rider and a bicycle do.
            ([0, 0, 10, 6], "person", 0.4),
            ([-50, 0, -20, 10], "car", 0.8),
            ([30, 5, 60, 25], "car", 0.7),
        ),
        40, 20, same_label=0.7, any_label=0.85,
    )  # fmt: skip
    assert [(box.label, box.score, box.box) for box in boxes] == [
        ("car", 0.9, [0, 0, 10, 11]),
        ("car", 0.7, [30, 5, 40, 20]),
        ("person", 0.4, [0, 0, 10, 6]),
    ]
    assert dropped == {"found_twice": 1, "two_labels": 1, "outside_picture": 1}


def test_words_that_are_no_label_are_counted() -> None:
    class Item:
        def __init__(self, label: str) -> None:
            self.label, self.score, self.box = label, 0.5, (0.0, 0.0, 2.0, 2.0)

    result = named_boxes([Item("Traffic-Light"), Item("tie"), Item("tie")], ["traffic light", "car"], "yolo")
    assert [box.label for box in result.boxes] == ["traffic light"] and result.unknown == {"tie": 2}
    assert [box.label for box in named_boxes([Item("tie")], [], "yolo").boxes] == ["tie"]


def test_labels_that_a_detector_cannot_tell_apart_are_refused(tmp_path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("car\n\n traffic  cone \n")
    assert read_labels([str(path), "bus"]) == ["car", "traffic cone", "bus"]
    assert in_groups(list("abcde"), 2) == [["a", "b"], ["c", "d"], ["e"]]
    for words, problem in (
        (["a.b"], "full stop"),
        (["stop sign", "Stop-Sign"], "one label"),
        (["--"], "no letter"),
        ([], "no label"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_labels(words)


def test_regions_are_counted_by_why_they_go() -> None:
    def mask(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
        drawn = np.zeros((100, 100), dtype=bool)
        drawn[y1:y2, x1:x2] = True
        return drawn

    named = found(([10, 10, 30, 30], "car", 0.9))
    masks = [
        (mask(10, 10, 29, 30), 0.9),
        (mask(50, 50, 70, 60), 0.8),
        (mask(0, 0, 4, 3), 0.7),
        (mask(0, 0, 100, 60), 1.2),
    ]
    regions, dropped = regions_of(masks, named, Limits(0.001, 0.5, 0.5))
    assert dropped == {"has_a_name": 1, "too_large": 1}
    assert [region.box for region in regions] == [[50, 50, 70, 60], [0, 0, 4, 3]]
    assert box_of(mask(0, 0, 100, 100)) == [0, 0, 100, 100]
    assert regions_of(masks[2:3], [], Limits(0.001, 0.5, 0.5))[0] and regions_of(
        masks[2:3], [], Limits(0.01, 0.5, 0.5)
    )[1] == {"too_small": 1}


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ({"box": [0, 0, 1], "label": "car", "score": 0.5, "by": "d"}, "four numbers"),
        ({"box": [3, 0, 1, 1], "label": "car", "score": 0.5, "by": "d"}, "x1 <= x2"),
        ({"box": [0, 0, 1, 1], "label": "car", "score": 1.5, "by": "d"}, "0..1"),
        ({"box": [0, 0, 1, 1], "score": 0.5, "by": "d"}, "label is missing"),
    ],
)
def test_a_damaged_field_is_named_by_file_and_line(box: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"a.jsonl:7: .*{problem}.*synth_detect.py"):
        field_of({"boxes": [box]}, "boxes", "a.jsonl:7")
    with pytest.raises(ValueError, match="regions is missing"):
        field_of({}, "regions", "a.jsonl:7")


def test_a_record_is_read_as_it_was_written() -> None:
    item = FoundBox([0.0, 0.0, 1.5, 2.0], "car", 0.25, "d")
    assert field_of({"boxes": [plain_record(item)]}, "boxes", "a") == [item]
