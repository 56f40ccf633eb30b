"""Clips in words at two granularities, twins that only the order of their frames tells apart, COCO's view of the truth."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from drive_vlm.builders.synthetic.clip import (
    ORDER_TEMPLATES,
    clip_caption,
    make_clip,
    make_order_clip,
    order_questions,
    video_id,
)
from drive_vlm.builders.synthetic.render import render
from drive_vlm.builders.synthetic.rows import raw_caption_row, split_entry_rows
from drive_vlm.builders.synthetic.scene import COCO_LABELS, SceneObject, coco_classes, coco_labels
from drive_vlm.builders.synthetic.words import concise, detailed
from drive_vlm.data.videos import MODES
from drive_vlm.rewards.text.driving_text import TextParser

CLIPS = [make_clip(3, index, 8, (64, 64)) for index in range(150)]
TWINS = [make_order_clip(3, index, 8, (64, 64)) for index in range(80)]


def test_texts_word_for_word():
    clip = make_clip(2, 2, 8, (64, 64))
    assert [scene.light for scene in clip] == ["green"] * 3 + ["yellow"] * 2 + ["red"] * 3
    assert detailed(clip) == (
        "The video shows a city road on a rainy day. A blue bus drives ahead. The traffic light is green. "
        "A yellow warning sign stands on the right. Then, the traffic light turns yellow. Next, the blue bus ahead brakes. "
        "After that, the ego vehicle slows down. Afterwards, the traffic light turns red. "
        "Finally, the ego vehicle stops because of the traffic light."
    )
    assert concise(clip) == ("On a rainy day, the traffic light changes from green to red and the ego vehicle stops.")
    assert coco_classes(clip) == ["bus", "traffic light"]  # COCO has no warning sign


def test_concise_is_one_sentence_and_at_most_half_as_long():
    for clip in CLIPS + TWINS:
        long, short = detailed(clip), concise(clip)
        assert short.count(".") == 1 and long.count(".") >= 4
        assert 2 * len(short.split()) <= len(long.split()), (short, long)
        assert 2 * len(short) <= len(long), (short, long)


def test_events_are_told_in_their_true_order():
    told = Counter()
    for clip in CLIPS + TWINS:
        text = detailed(clip)
        turns = [b.light for a, b in pairwise(clip) if a.light != b.light and "none" not in (a.light, b.light)]
        assert re.findall(r"traffic light turns (\w+)", text) == turns
        brakes = [b.lead.state for a, b in pairwise(clip) if a.lead and b.lead and a.lead.state != b.lead.state]
        words = {"brakes": "braking", "accelerates": "moving"}
        assert [words[word] for word in re.findall(r", the \w+ \w+ ahead (brakes|accelerates)", text)] == brakes
        said = Counter(word for word in ("turns", "comes closer", "moves away", "crosses") if word in text)
        told += said
        gaps = [scene.lead.distance for scene in clip if scene.lead]
        if "comes closer" in text:
            assert gaps[-1] < gaps[0] - 2
        if "moves away" in text:
            assert gaps[-1] > gaps[0] + 2
    assert min(told.values()) >= 5 and len(told) == 4, told


@pytest.mark.slow
def test_the_rewards_parser_reads_the_exact_truth_out_of_the_texts(spacy_model):
    """A reference that named an object too much or too little would teach a model to do so."""
    parser = TextParser(spacy_model)
    clips = CLIPS[:60] + TWINS[:40]
    long, short = (parser.parse([write(clip) for clip in clips]) for write in (detailed, concise))
    for clip, all_of_it, some in zip(clips, long, short, strict=True):
        truth = set(coco_classes(clip))
        assert all_of_it.classes == truth, (detailed(clip), truth)
        assert some.classes <= truth and not some.denied and not all_of_it.denied
        assert all_of_it.temporal > some.temporal and all_of_it.temporal >= 3


def test_twins_hold_the_same_pictures_in_opposite_orders():
    for index in range(0, 16, 2):
        a, b = (make_order_clip(7, index + side, 6, (64, 64)) for side in (0, 1))
        first, second = ([render(scene).tobytes() for scene in clip] for clip in (a, b))
        assert first == second[::-1] and len(set(first)) > 1
        assert a[0].group == b[0].group and video_id(a) != video_id(b)
        assert len({scene.id for scene in a + b}) == 12
        asked = [{q.template: (q.question, q.answer) for q in order_questions(clip)} for clip in (a, b)]
        assert asked[0].keys() == asked[1].keys() and len(asked[0]) == 2
        for name in asked[0]:
            assert asked[0][name][0] == asked[1][name][0], "the wording must not tell the twins apart"
            assert asked[0][name][1] != asked[1][name][1]


def test_answers_about_the_order_follow_from_the_frames_and_are_even():
    said: dict[str, Counter] = {name: Counter() for name in ORDER_TEMPLATES}
    for clip in TWINS:
        for question in order_questions(clip):
            said[question.template][question.answer] += 1
            first, last = clip[0], clip[-1]
            wanted = {
                "light_order": f"{first.light} to {last.light}",
                "light_end": last.light,
                "lead_order": "comes closer" if first.lead and first.lead.distance > 10 else "moves away",
                "lead_end": "near" if last.lead and last.lead.distance < 10 else "far",
            }
            assert question.answer == wanted[question.template]
        assert all(scene.travelled == 0 for scene in clip)
    for name, counts in said.items():
        assert len(counts) == 2 and len(set(counts.values())) == 1, (name, counts)


@pytest.mark.parametrize("frames", [2, 3, 5, 16])
def test_twins_of_any_length(frames):
    clip = make_order_clip(1, 0, frames, (64, 64))
    assert len(clip) == frames and {scene.light for scene in clip} == {"green", "red"}
    assert np.diff([scene.light == "red" for scene in clip]).sum() == 1
    with pytest.raises(ValueError, match="at least 2 frames"):
        make_order_clip(1, 0, 1)


@pytest.mark.parametrize(
    ("name", "state", "labels"),
    [
        ("car", "moving", ("car",)),
        ("pedestrian", "none", ("person",)),
        ("cyclist", "none", ("bicycle", "person")),
        ("cone", "none", ()),
        ("traffic sign", "stop", ("stop sign",)),
        ("traffic sign", "warning", ()),
        ("traffic light", "red", ("traffic light",)),
    ],
)
def test_coco_labels(name, state, labels):
    assert coco_labels(name, state) == labels and set(labels) <= set(COCO_LABELS)
    assert SceneObject(name, "red", 0.0, 9.0, state).name == name


def test_rows_of_a_clip():
    media = {"video": "clips/order-000001.mp4"}
    rows = split_entry_rows(TWINS[1], media)
    assert [row["id"] for row in rows] == ["order-3-000000-b-detailed", "order-3-000000-b-concise"]
    assert [row["mode"] for row in rows] == list(MODES) == ["detailed", "concise"]
    for row in rows:
        assert row["conversations"][0]["value"] == f"<video>\n{MODES[row['mode']]}"
        assert row["group"] == "order-3-000000" and row["video"] == media["video"]
        assert row["truth_classes"] == coco_classes(TWINS[1])
    raw = raw_caption_row(TWINS[1], media)
    assert raw["caption"] == raw["conversations"][1]["value"] == clip_caption(TWINS[1])
