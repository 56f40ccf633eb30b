"""The synthetic world: same bytes everywhere, truth that agrees with the pixels, answers that follow from the truth."""

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from drive_vlm.builders.synthetic.clip import CLIP_TEMPLATES, clip_caption, clip_questions, make_clip
from drive_vlm.builders.synthetic.render import LAMPS, render
from drive_vlm.builders.synthetic.sample import make_scene
from drive_vlm.builders.synthetic.scene import (
    SIZES,
    Camera,
    Scene,
    SceneObject,
    derive_truth,
    finish,
    front,
)
from drive_vlm.builders.synthetic.words import TEMPLATES, long_caption, questions, short_caption
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, REASON_TEXTS

SCENES = [make_scene(11, index) for index in range(600)]
PEOPLE_AND_VEHICLES = ("car", "truck", "bus", "pedestrian", "cyclist", "cone")


def digest(indices, size=(96, 128)):
    """One hash over pixels, truth and words."""
    sha = hashlib.sha256()
    for index in indices:
        scene = make_scene(5, index, size)
        sha.update(render(scene).tobytes())
        sha.update(repr((scene, questions(scene), long_caption(scene))).encode())
    return sha.hexdigest()


def test_another_process_renders_the_same_bytes():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_synthetic; print(test_synthetic.digest(range(6)))"
    command = [sys.executable, "-c", code, __file__.rsplit("/", 1)[0]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == digest(range(6))


def test_order_does_not_matter_but_seed_and_index_do():
    forward = [render(make_scene(5, i, (64, 64))) for i in range(4)]
    backward = [render(make_scene(5, i, (64, 64))) for i in reversed(range(4))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert len({p.tobytes() for p in forward} | {render(make_scene(6, 0, (64, 64))).tobytes()}) == 5


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (180, 320), (320, 180), (33, 47)])
def test_any_size_renders_and_keeps_boxes_inside(size):
    for index in range(40):
        scene = make_scene(1, index, size)
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= size[1]
            assert 0 <= y1 < y2 <= size[0]
            assert 0.35 <= thing.visible <= 1
    pixels = render(scene)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8


def test_a_tiny_picture_is_refused():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        make_scene(0, 0, (16, 224))


def test_removing_an_object_changes_the_pixels_in_its_box():
    checked = Counter()
    for scene in (s for s in SCENES if (s.time, s.weather) == ("day", "clear")):
        full = render(scene).astype(int)
        for thing in scene.objects:
            if thing.name not in PEOPLE_AND_VEHICLES or thing.visible < 0.99:
                continue
            rest = tuple(o for o in scene.objects if o is not thing)
            change = np.abs(full - render(replace(scene, objects=rest))).sum(axis=2)
            x1, y1, x2, y2 = thing.box
            inside = change[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2].sum() / change.sum()
            ys, xs = np.nonzero(change > 90)
            seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert inside > 0.75, (scene.id, thing, inside)
            assert overlap(seen, thing.box) > 0.6, (scene.id, thing, seen)
            checked[thing.name] += 1
    assert all(checked[name] >= 5 for name in PEOPLE_AND_VEHICLES), checked


def overlap(a, b):
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_the_lit_lamp_has_the_colour_of_the_light_state():
    checked = Counter()
    for scene in SCENES[:250]:
        light = next((o for o in scene.objects if o.name == "traffic light"), None)
        if light is None:
            assert scene.light == "none"
            continue
        pixels = render(scene)
        x1, y1, x2, y2 = front(Camera.of(scene.size), light)
        medians = {}
        for row, color in enumerate(LAMPS):
            y, x = y1 + (row + 0.5) * (y2 - y1) / 3, (x1 + x2) / 2
            medians[color] = np.median(pixels[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3], axis=(0, 1))
        assert np.abs(medians[scene.light] - LAMPS[scene.light]).max() < 60, (scene.id, medians)
        assert all(medians[c].max() < 110 for c in LAMPS if c != scene.light), (scene.id, medians)
        checked[scene.light] += 1
    assert min(checked[color] for color in LAMPS) >= 10


def test_night_is_darker_than_day_and_colours_can_be_told():
    brightness = defaultdict(list)
    for scene in SCENES[:120]:
        brightness[scene.time].append(render(scene).mean())
    assert min(brightness["day"]) > max(brightness["night"]) + 15


def test_a_hidden_object_is_dropped_and_a_half_hidden_one_is_flagged():
    base = replace(SCENES[0], objects=(), light="none", sign="none", left="open", right="open", lane_arrow="none")
    truck = SceneObject("truck", "red", 0.0, 7.0, "moving")
    hidden = SceneObject("car", "blue", 0.0, 14.0, "moving")
    beside = SceneObject("car", "green", 2.8, 12.0, "moving")
    scene = finish(replace(base, objects=(hidden, truck, beside)))
    assert [o.name for o in scene.objects] == ["car", "truck"]
    assert scene.objects[0].color == "green"
    assert scene.objects[0].visible < 1.0
    assert scene.objects[1].visible == 1.0
    assert answers(scene)["count_vehicles"] == "2"


def scene_with(*objects: SceneObject, **attributes: str) -> Scene:
    plain = {"light": "none", "sign": "none", "left": "open", "right": "open", "lane_arrow": "none"}
    return finish(replace(SCENES[0], objects=objects, **{**plain, **attributes}))


def answers(scene):
    return {q.template: q.answer for q in questions(scene)}


LIGHT = SceneObject("traffic light", "red", 1.0, 14.0, "red")


@pytest.mark.parametrize(
    ("scene", "actions", "reasons", "words"),
    [
        (scene_with(), (1, 0, 0, 0), {1}, "road is clear"),
        (scene_with(LIGHT, light="red"), (0, 1, 0, 0), {7}, "traffic light"),
        (scene_with(replace(LIGHT, state="green"), light="green"), (1, 0, 0, 0), {2}, "green light"),
        (scene_with(replace(LIGHT, signal="left"), light="red"), (0, 1, 1, 0), {7, 11}, "traffic light"),
        (scene_with(SceneObject("car", "red", 0.0, 9.0, "moving")), (1, 0, 0, 0), {0}, "traffic moves"),
        (scene_with(SceneObject("car", "red", 0.0, 9.0, "braking")), (0, 1, 0, 0), {3}, "vehicle brakes"),
        (scene_with(SceneObject("bus", "red", 0.0, 9.0, "moving", "right")), (1, 0, 0, 1), {0, 12}, "traffic moves"),
        (scene_with(SceneObject("pedestrian", "pink", 0.5, 8.0)), (0, 1, 0, 0), {4}, "pedestrian ahead"),
        (scene_with(SceneObject("pedestrian", "pink", 6.0, 12.0)), (1, 0, 0, 0), {1}, "road is clear"),
        (scene_with(SceneObject("cyclist", "lime", 0.0, 8.0)), (0, 1, 0, 0), {5}, "cyclist ahead"),
        (scene_with(SceneObject("cone", "orange", 0.0, 8.0)), (0, 1, 0, 0), {6}, "cones ahead"),
        (scene_with(lane_arrow="both"), (1, 0, 1, 1), {1, 10, 13}, "road is clear"),
        (scene_with(lane_arrow="left", left="solid", right="none"), (1, 0, 0, 0), {1, 17, 19}, "road is clear"),
        (
            scene_with(SceneObject("truck", "blue", -3.5, 10.0, "moving"), lane_arrow="left"),
            *((1, 0, 0, 0), {1, 15}, "road is clear"),
        ),
    ],
)
def test_actions_and_reasons_by_hand(scene, actions, reasons, words):
    assert scene.actions == actions
    assert {i for i, on in enumerate(scene.reason) if on} == reasons
    assert answers(scene)["ego_reason"] == words


def test_labels_are_in_the_order_of_bdd_oia():
    for scene in SCENES:
        assert (len(scene.actions), len(scene.reason)) == (len(ACTION_TEXTS), len(REASON_TEXTS)) == (4, 21)
        said = dict(zip(ACTION_TEXTS + REASON_TEXTS, scene.actions + scene.reason, strict=True))
        ahead, lead = {o.name for o in scene.ahead}, scene.lead
        assert said["obstacle: person"] == ("pedestrian" in ahead) and said["obstacle: rider"] == ("cyclist" in ahead)
        assert said["obstacle: car"] == (lead is not None and lead.state == "braking")
        assert said["traffic light"] == (scene.light in ("red", "yellow")) and said["traffic sign"] == (
            scene.sign == "stop"
        )
        assert said["road is clear"] <= (lead is None) and said["follow traffic"] <= (lead is not None)
        assert said["traffic light is green"] <= (scene.light == "green")
        for side in ("left", "right"):
            assert said[f"no lane on the {side}"] == (getattr(scene, side) == "none")
            assert said[f"solid line on the {side}"] == (getattr(scene, side) == "solid")
            assert said[f"obstacle on the {side} lane"] == bool(scene.lane_objects(side))
            assert said[f"front car turning {side}"] <= (lead is not None and lead.signal == side)
            assert said[f"on the {side}-turn lane"] <= (scene.lane_arrow in (side, "both"))
            arrows = [o.signal for o in scene.objects if o.name == "traffic light"]
            assert said[f"traffic light allows {side} turn"] <= any(arrow in (side, "both") for arrow in arrows)
            allowed = (f"front car turning {side}", f"on the {side}-turn lane", f"traffic light allows {side} turn")
            assert said[f"turn {side}"] == any(said[reason] for reason in allowed)
        assert said["stop/slow down"] != said["move forward"]


def test_vectors_are_consistent_over_many_scenes():
    seen = np.zeros(21, dtype=int)
    for scene in SCENES:
        forward, stop, left, right = scene.actions
        reason = np.array(scene.reason)
        seen += reason
        assert (scene.actions, scene.reason) == derive_truth(scene)
        assert forward + stop == 1
        assert stop == reason[3:9].any()
        assert forward == reason[0:3].any()
        for turn, permit, block in ((left, 9, 15), (right, 12, 18)):
            assert turn == reason[permit : permit + 3].any()
            assert not (turn and reason[block : block + 3].any())
            assert turn or reason[block : block + 3].any()  # every scene says why a turn is not possible
    assert (seen >= 5).all(), seen


def test_answers_follow_from_the_truth():
    for scene in SCENES:
        said = answers(scene)
        vehicles = [o for o in scene.objects if o.name in ("car", "truck", "bus")]
        assert said["time_of_day"] == scene.time
        assert said["light_state"] == {"none": "no light"}.get(scene.light, scene.light)
        assert said["count_vehicles"] == str(len(vehicles))
        assert said["left_lane"] == ("yes" if any(o.lane == "left" and o.on_road for o in scene.objects) else "no")
        assert said["ego_action"] == ("go" if scene.actions[0] else "stop")
        assert said["turn_left"] == ("yes" if scene.actions[2] else "no")
        assert ("lead_type" in said) == (scene.lead is not None)
        if scene.lead:
            assert (said["lead_type"], said["lead_color"]) == (scene.lead.name, scene.lead.color)
        assert all(1 <= len(answer.split()) <= 4 for answer in said.values())


def test_balance_and_paraphrases_of_each_template():
    counts, wordings, categories = defaultdict(Counter), defaultdict(set), defaultdict(set)
    for scene in SCENES:
        for question in questions(scene):
            counts[question.template][question.answer] += 1
            wordings[question.template].add(question.question)
            categories[question.template].add(question.category)
    assert set(counts) == set(TEMPLATES)
    shares = {name: max(c.values()) / c.total() for name, c in counts.items()}
    assert {name: share for name, share in shares.items() if share > 0.68} == {}
    core = (
        "time_of_day",
        "weather",
        "light_state",
        "lead_type",
        "lead_color",
        "ahead_type",
        "ego_action",
        "ego_reason",
    )
    assert {name: shares[name] for name in core if shares[name] > 0.6} == {}
    assert {name for name in counts if len(wordings[name]) < 2} == set()
    assert {name for name in counts if len(categories[name]) != 1} == set()
    assert set.union(*categories.values()) == {"perception", "prediction", "planning", "behavior"}


def test_captions_name_what_is_seen_and_long_is_longer():
    for scene in SCENES:
        short, long = short_caption(scene), long_caption(scene)
        assert len(short) < len(long)
        assert short.count(".") == 1
        assert 2 <= long.count(".") <= 5
        assert scene.time in short
        assert scene.light == "none" or scene.light in short
        if scene.ahead and scene.ahead[0].name != "cone":
            assert f"{scene.ahead[0].color} {scene.ahead[0].name}" in short


def test_classes_colours_and_distances_are_as_documented():
    for thing in (o for scene in SCENES for o in scene.objects):
        assert thing.name in SIZES
        assert thing.lane in ("left", "ego", "right")
        assert 3 < thing.distance < 30


def test_a_clip_is_one_group_with_consistent_motion():
    for index in range(40):
        clip = make_clip(2, index, 8, (64, 64))
        assert [scene.frame for scene in clip] == list(range(8))
        assert len({scene.group for scene in clip}) == 1
        assert len({scene.id for scene in clip}) == 8
        steps = np.diff([scene.travelled for scene in clip])
        assert (steps >= 0).all()
        for before, after, step in zip(clip, clip[1:], steps, strict=False):
            for name in ("traffic light", "traffic sign"):
                near, far = ([o.distance for o in s.objects if o.name == name] for s in (after, before))
                if near and far:
                    assert far[0] - near[0] == pytest.approx(step, abs=2e-3)
        assert clip_caption(clip).startswith("At first, a")
        assert "Finally, the ego vehicle" in clip_caption(clip)


def test_clips_tell_each_story_and_their_pixels_move():
    clips = [make_clip(2, index, 6, (64, 64)) for index in range(80)]
    said = defaultdict(Counter)
    for clip in clips:
        for question in clip_questions(clip):
            said[question.template][question.answer] += 1
    assert set(said) == set(CLIP_TEMPLATES)
    assert {"green to red", "red to green"} <= set(said["light_change"])
    assert set(said["lead_motion"]) == {"comes closer", "moves away", "keeps distance"}
    assert set(said["ego_end"]) == {"stops", "drives on"}
    assert set(said["pedestrian_crossed"]) == {"yes", "no"}
    first, last = render(clips[0][0]), render(clips[0][-1])
    assert np.abs(first.astype(int) - last).mean() > 2


def test_a_clip_of_one_frame_is_refused():
    with pytest.raises(ValueError, match="at least 2 frames"):
        make_clip(0, 0, 1)
