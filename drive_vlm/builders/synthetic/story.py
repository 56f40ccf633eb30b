"""A synthetic clip in words, at two granularities: `detailed` tells what is there and what happens in its true order,
`concise` is one sentence of at most half as many words."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from drive_vlm.builders.synthetic.scene import Scene, SceneObject
from drive_vlm.builders.synthetic.words import REASON_PHRASES, main_reason

_CONNECTIVES = ("Then", "Next", "After that", "Afterwards")
_GAP = 2.0  # metres by which the vehicle ahead must come closer or move away before it is told


def detailed(scenes: list[Scene]) -> str:
    """Setting, the objects of the first frame with their attributes, every event in order, and how the clip ends."""
    first = scenes[0]
    sentences = [f"The video shows a city road on a {_weather(first)} {first.time}", *_first_view(first)]
    events = list(_events(scenes))
    for number, event in enumerate(events):
        sentences.append(f"{_CONNECTIVES[number % len(_CONNECTIVES)]}, {event}")
    if not events:
        lead = first.lead
        steady = f"the {_named(lead)} keeps its distance" if lead else "the lane ahead stays the same"
        sentences.append(f"Meanwhile, {steady}")
    reason = REASON_PHRASES[main_reason(scenes[-1])]
    sentences.append(f"Finally, the ego vehicle {_end(scenes)} because of {reason}")
    return " ".join(f"{sentence}." for sentence in sentences)


def concise(scenes: list[Scene]) -> str:
    """The one thing that changes (or what is ahead, when nothing does) and how the clip ends."""
    told = list(_key_events(scenes))
    key = told[0] if told else _ahead(scenes[0])
    return f"On a {_weather(scenes[0])} {scenes[0].time}, {key} and the ego vehicle {_end(scenes)}."


def _first_view(scene: Scene) -> Iterator[str]:
    """Sentences about what the first frame shows: the own lane, the lanes beside it, the roadside, light and sign."""
    if not scene.ahead:
        yield "The lane ahead is free"
    for place, things in (
        ("ahead", scene.ahead),
        *((f"in the {s} lane", scene.lane_objects(s)) for s in ("left", "right")),
    ):
        for words in dict.fromkeys(f"{_one(thing)} {_verb(thing)}" for thing in things):  # cones stand in groups
            yield f"{words[0].upper()}{words[1:]} {place}"
    walkers = [o for o in scene.objects if o.name == "pedestrian" and not o.on_road]
    for walker in walkers:
        yield f"A {_named(walker)} stands on the {'left' if walker.lateral < 0 else 'right'} pavement"
    if scene.light != "none":
        yield f"The traffic light is {scene.light}"
    for sign in (o for o in scene.objects if o.name == "traffic sign"):
        yield f"A {_named(sign)} stands on the right"


def _events(scenes: list[Scene]) -> Iterator[str]:
    """What changes from frame to frame, causes before ego's answer to them."""
    seen: Counter[str] = Counter()
    gap_told = False
    for number, scene in enumerate(scenes):
        now = Counter(_named(o) for o in scene.objects)
        if number:
            before = scenes[number - 1]
            yield from _light_event(before, scene)
            yield from _lead_event(before, scene)
            if not gap_told and (told := _gap_event(scenes[0], scene)):
                gap_told = True
                yield told
            yield from _walker_event(before, scene)
            yield from (f"a {name} comes into view" for name in now if now[name] > seen[name] and "light" not in name)
            yield from _ego_event(scenes, number)
        seen |= now


def _key_events(scenes: list[Scene]) -> Iterator[str]:
    """The change of the light over the whole clip, the walker who crosses, the vehicle ahead: most telling first."""
    first, last = scenes[0], scenes[-1]
    if "none" not in (first.light, last.light) and first.light != last.light:
        yield f"the traffic light changes from {first.light} to {last.light}"
    if any(list(_walker_event(a, b)) for a, b in pairwise(scenes)):
        yield "a pedestrian crosses the lane"
    if event := _gap_event(first, last):
        yield event.replace("the", "a", 1)


def _light_event(before: Scene, scene: Scene) -> Iterator[str]:
    if before.light == scene.light:
        return
    if before.light == "none":
        yield f"a {scene.light} traffic light comes into view"
    elif scene.light == "none":
        yield "the traffic light passes out of view"
    else:
        yield f"the traffic light turns {scene.light}"


def _lead_event(before: Scene, scene: Scene) -> Iterator[str]:
    old, new = before.lead, scene.lead
    if old and new and _named(old) == _named(new) and old.state != new.state:
        yield f"the {_named(new)} ahead {'brakes' if new.state == 'braking' else 'accelerates'}"


def _gap_event(first: Scene, scene: Scene) -> str | None:
    """The words for a gap to the same vehicle ahead that has changed by more than _GAP metres since the first frame."""
    old, new = first.lead, scene.lead
    if not old or not new or _named(old) != _named(new) or abs(new.distance - old.distance) <= _GAP:
        return None
    return f"the {_named(new)} ahead {'comes closer' if new.distance < old.distance else 'moves away'}"


def _walker_event(before: Scene, scene: Scene) -> Iterator[str]:
    def in_lane(where: Scene) -> SceneObject | None:
        return next((o for o in where.ahead if o.name == "pedestrian"), None)

    old, new = in_lane(before), in_lane(scene)
    if new and not old:
        yield f"the {_named(new)} steps into the lane and crosses"
    elif old and not new:
        yield f"the {_named(old)} leaves the lane"


def _ego_event(scenes: list[Scene], number: int) -> Iterator[str]:
    """Ego starts or slows down; a clip in which it stands still from start to end has no such event."""
    before, scene = scenes[number - 1], scenes[number]
    if before.actions[1] != scene.actions[1] and scenes[-1].travelled > 0:
        yield f"the ego vehicle {'slows down' if scene.actions[1] else 'starts moving'}"


def _ahead(scene: Scene) -> str:
    return f"{_one(scene.ahead[0])} {_verb(scene.ahead[0])} ahead" if scene.ahead else "the lane ahead is free"


def _one(thing: SceneObject) -> str:
    return f"{thing.color} cones" if thing.name == "cone" else f"a {_named(thing)}"


def _verb(thing: SceneObject) -> str:
    driving = "brakes" if thing.state == "braking" else "drives"
    return {"cone": "stand", "pedestrian": "walks", "cyclist": "rides"}.get(thing.name, driving)


def _named(thing: SceneObject) -> str:
    """The object with its attribute: "red truck", "pedestrian in orange", "red stop sign", "traffic light"."""
    if thing.name in ("pedestrian", "cyclist"):
        return f"{thing.name} in {thing.color}"
    if thing.name == "traffic sign":
        return f"{thing.color} {thing.state} sign"
    return thing.name if thing.name == "traffic light" else f"{thing.color} {thing.name}"


def _weather(scene: Scene) -> str:
    return "rainy" if scene.weather == "rain" else "clear"


def _end(scenes: list[Scene]) -> str:
    return "stops" if scenes[-1].actions[1] else "drives on"
