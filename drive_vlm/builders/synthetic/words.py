"""Words about the synthetic world: captions and questions of a scene, and a clip's text at two granularities.

Questions are of DriveLM's four categories. Each answer follows from what is in sight, is one to four words long, and is
never hinted at by its question. Of a clip, `detailed` says what is there and what happens in its true order, `concise` is
one sentence of at most half as many words.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from drive_vlm.builders.synthetic.scene import VEHICLES, Scene, SceneObject

# Metres between the nearest and the next vehicle before we ask which is nearest.
_DISTANCE_GAP = 1.5
_CONNECTIVES = ("Then", "Next", "After that", "Afterwards")
# Metres by which the vehicle ahead must come closer or move away before a text mentions it.
_GAP = 2.0


@dataclass(frozen=True)
class Question:
    """One question/answer pair. `template` is its stable name, `category` one of DriveLM's four."""

    # perception | prediction | planning | behavior
    category: str
    template: str
    question: str
    answer: str


S = TypeVar("S")


@dataclass(frozen=True)
class Template(Generic[S]):
    """A kind of question about a scene (or a clip: list[Scene]). `answer` is None where it has no answer there."""

    category: str
    wordings: tuple[str, ...]
    answer: Callable[[S], str | None]


def ask(templates: Mapping[str, Template[S]], subject: S, stream: Sequence[int]) -> list[Question]:
    """Every question that `subject` answers, in the order of `templates`, one wording each, drawn from the generator `stream`."""
    picks = np.random.default_rng(stream).random(len(templates)).tolist()
    found = []
    for pick, (name, template) in zip(picks, templates.items(), strict=True):
        answer = template.answer(subject)
        if answer is not None:
            wording = template.wordings[int(pick * len(template.wordings))]
            found.append(Question(template.category, name, wording, answer))
    return found


def short_caption(scene: Scene) -> str:
    """One sentence: time, weather, what is ahead, the light."""
    parts = [_ahead_phrase(scene)]
    if scene.light != "none":
        parts.append(f"a {scene.light} traffic light")
    return f"A {_weather(scene)} {scene.time} scene with {' and '.join(parts)}."


def long_caption(scene: Scene) -> str:
    """Two to five sentences: conditions, what is ahead, the neighbouring lanes, the roadside, what ego does and why."""
    sentences = [f"It is a {_weather(scene)} {scene.time} on a city road with {_ahead_phrase(scene)}."]
    around = [
        f"{_list_phrase(scene.lane_objects(side))} in the {side} lane"
        for side in ("left", "right")
        if scene.lane_objects(side)
    ]
    around += [
        f"a pedestrian on the {o.lane} pavement" for o in scene.objects if o.name == "pedestrian" and not o.on_road
    ]
    if around:
        sentences.append(f"There is {' and '.join(around)}.")
    signals = [f"the traffic light is {scene.light}"] if scene.light != "none" else []
    if scene.sign != "none":
        signals.append(f"a {scene.sign} sign stands on the right")
    if signals:
        sentences.append(f"{' and '.join(signals).capitalize()}.")
    turns = [side for side, allowed in zip(("left", "right"), scene.actions[2:], strict=True) if allowed]
    if turns:
        sentences.append(f"It may turn {' or '.join(turns)}.")
    sentences.append(f"The ego vehicle {end_of([scene])} because of {REASON_PHRASES[main_reason(scene)]}.")
    return " ".join(sentences)


def questions(scene: Scene) -> list[Question]:
    """Every question that this scene answers, one wording each, in the order of TEMPLATES."""
    return ask(TEMPLATES, scene, [scene.seed, scene.index, 4, scene.frame])


# Index of a reason (evaluation/oia_labels.py) -> the words of a caption, and of an answer.
REASON_PHRASES = {
    **{0: "the moving traffic ahead", 1: "the clear road", 2: "the green light", 3: "the braking vehicle ahead"},
    **{4: "a person in the lane", 5: "a cyclist in the lane", 6: "cones in the lane", 7: "the traffic light"},
    8: "the stop sign",
}
_REASON_ANSWERS = {
    **{0: "traffic moves", 1: "road is clear", 2: "green light", 3: "vehicle brakes"},
    **{4: "pedestrian ahead", 5: "cyclist ahead", 6: "cones ahead", 7: "traffic light", 8: "stop sign"},
}


def main_reason(scene: Scene) -> int:
    """The index of the reason that decides: what is in the lane, then light and sign, then the vehicle ahead."""
    return next(index for index in (4, 5, 6, 7, 8, 3, 2, 0, 1) if scene.reason[index])


def _weather(scene: Scene) -> str:
    return "rainy" if scene.weather == "rain" else "clear"


def _list_phrase(things: list[SceneObject]) -> str:
    nearest = min(things, key=lambda o: o.distance)
    return "cones" if nearest.name == "cone" else f"a {nearest.color} {nearest.name}"


def _ahead_phrase(scene: Scene) -> str:
    if not scene.ahead:
        return "a free lane ahead"
    braking = " braking" if scene.ahead[0].state == "braking" else ""
    return f"{_list_phrase(scene.ahead)}{braking} ahead"


def _yes(value: bool | int) -> str:
    return "yes" if value else "no"


def _of_lead(answer: Callable[[SceneObject], str]) -> Callable[[Scene], str | None]:
    return lambda scene: answer(scene.lead) if scene.lead else None


def _ahead_type(scene: Scene) -> str:
    if not scene.ahead:
        return "nothing"
    return "cones" if scene.ahead[0].name == "cone" else scene.ahead[0].name


def _pedestrian_place(scene: Scene) -> str:
    walker = next((o for o in scene.objects if o.name == "pedestrian"), None)
    return "no pedestrian" if walker is None else {"left": "left", "ego": "ahead", "right": "right"}[walker.lane]


def _pedestrian_crossing(scene: Scene) -> str | None:
    walkers = [o for o in scene.objects if o.name == "pedestrian"]
    return _yes(any(o.on_road for o in walkers)) if walkers else None


def _nearest_lane(scene: Scene) -> str | None:
    near = sorted((o for o in scene.objects if o.name in VEHICLES), key=lambda o: o.distance)
    if not near or (len(near) > 1 and near[1].distance - near[0].distance < _DISTANCE_GAP):
        return None
    return {"left": "left lane", "ego": "own lane", "right": "right lane"}[near[0].lane]


def _line(side: str) -> Callable[[Scene], str]:
    return lambda scene: {"open": "dashed", "solid": "solid", "none": "no lane"}[getattr(scene, side)]


def _behavior(scene: Scene) -> str:
    if scene.actions[1]:
        return "stopping"
    return "following" if scene.reason[0] else "driving freely"


TEMPLATES: dict[str, Template[Scene]] = {
    "time_of_day": Template(
        "perception",
        ("Is it day or night?", "What time of day is it?", "At what time of day was this taken?"),
        lambda scene: scene.time,
    ),
    "weather": Template(
        "perception", ("What is the weather like?", "How is the weather?", "What are the weather conditions?"), _weather
    ),
    "light_state": Template(
        "perception",
        (
            "What does the traffic light show?",
            "What colour is the traffic light?",
            "What is the state of the traffic light?",
        ),
        lambda scene: "no light" if scene.light == "none" else scene.light,
    ),
    "sign_type": Template(
        "perception",
        ("Which traffic sign is there?", "What kind of traffic sign stands on the right?"),
        lambda scene: "no sign" if scene.sign == "none" else scene.sign,
    ),
    "ahead_type": Template(
        "perception",
        ("What is in the ego lane ahead?", "What is directly ahead?", "Which object is in front of the ego vehicle?"),
        _ahead_type,
    ),
    "lead_type": Template(
        "perception",
        ("What type of vehicle is ahead?", "Which kind of vehicle drives in front?"),
        _of_lead(lambda lead: lead.name),
    ),
    "lead_color": Template(
        "perception",
        ("What colour is the vehicle ahead?", "Which colour does the vehicle in front have?"),
        _of_lead(lambda lead: lead.color),
    ),
    "lead_distance": Template(
        "perception",
        ("How far away is the vehicle ahead?", "Is the vehicle in front near or far?"),
        _of_lead(lambda lead: "near" if lead.distance < 10.5 else "far"),
    ),
    "left_lane": Template(
        "perception",
        ("Is anything in the left lane?", "Is the lane to the left occupied?", "Does something occupy the left lane?"),
        lambda scene: _yes(bool(scene.lane_objects("left"))),
    ),
    "right_lane": Template(
        "perception",
        (
            "Is anything in the right lane?",
            "Is the lane to the right occupied?",
            "Does something occupy the right lane?",
        ),
        lambda scene: _yes(bool(scene.lane_objects("right"))),
    ),
    "left_line": Template(
        "perception", ("What marks the left side of the ego lane?", "Which line is on the left?"), _line("left")
    ),
    "count_vehicles": Template(
        "perception",
        ("How many vehicles are there?", "How many cars, trucks and buses are in sight?"),
        lambda scene: str(sum(o.name in VEHICLES for o in scene.objects)),
    ),
    "pedestrian_location": Template(
        "perception", ("Where is the pedestrian?", "On which side is a pedestrian?"), _pedestrian_place
    ),
    "nearest_vehicle": Template(
        "perception", ("In which lane is the nearest vehicle?", "Where is the closest vehicle?"), _nearest_lane
    ),
    "pedestrian_crossing": Template(
        "prediction",
        ("Will the pedestrian be in the way of the ego vehicle?", "Is the pedestrian about to cross the ego lane?"),
        _pedestrian_crossing,
    ),
    "lead_braking": Template(
        "prediction",
        ("Will the vehicle ahead slow down?", "Is the vehicle in front braking?"),
        _of_lead(lambda lead: _yes(lead.state == "braking")),
    ),
    "lead_turn": Template(
        "prediction",
        ("Where will the vehicle ahead go?", "Which way does the vehicle in front intend to go?"),
        _of_lead(lambda lead: "straight" if lead.signal == "none" else lead.signal),
    ),
    "ego_action": Template(
        "planning",
        ("Should the ego vehicle go or stop?", "What should the ego vehicle do now?", "Go or stop?"),
        lambda scene: "stop" if scene.actions[1] else "go",
    ),
    "turn_left": Template(
        "planning",
        ("May the ego vehicle turn left?", "Is a left turn possible here?"),
        lambda scene: _yes(scene.actions[2]),
    ),
    "turn_right": Template(
        "planning",
        ("May the ego vehicle turn right?", "Is a right turn possible here?"),
        lambda scene: _yes(scene.actions[3]),
    ),
    "ego_reason": Template(
        "behavior",
        ("What decides what the ego vehicle does?", "Why does the ego vehicle act as it does?"),
        lambda scene: _REASON_ANSWERS[main_reason(scene)],
    ),
    "ego_behavior": Template(
        "behavior", ("Predict the behavior of the ego vehicle.", "How does the ego vehicle behave?"), _behavior
    ),
}


def end_of(scenes: list[Scene]) -> str:
    """What the ego vehicle does at last."""
    return "stops" if scenes[-1].actions[1] else "drives on"


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
    sentences.append(f"Finally, the ego vehicle {end_of(scenes)} because of {reason}")
    return " ".join(f"{sentence}." for sentence in sentences)


def concise(scenes: list[Scene]) -> str:
    """The one thing that changes (or what is ahead, when nothing does) and how the clip ends."""
    events = list(_key_events(scenes))
    key = events[0] if events else _ahead(scenes[0])
    return f"On a {_weather(scenes[0])} {scenes[0].time}, {key} and the ego vehicle {end_of(scenes)}."


def _first_view(scene: Scene) -> Iterator[str]:
    """Sentences about what the first frame shows: the own lane, the lanes next to it, the roadside, light and sign."""
    if not scene.ahead:
        yield "The lane ahead is free"
    for place, things in (
        ("ahead", scene.ahead),
        *((f"in the {s} lane", scene.lane_objects(s)) for s in ("left", "right")),
    ):
        # Cones stand in groups: equal sentences are said once.
        for words in dict.fromkeys(f"{_one(thing)} {_verb(thing)}" for thing in things):
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
    gap_said = False
    for number, scene in enumerate(scenes):
        now = Counter(_named(o) for o in scene.objects)
        if number:
            before = scenes[number - 1]
            yield from _light_event(before, scene)
            yield from _lead_event(before, scene)
            if not gap_said and (gap := _gap_event(scenes[0], scene)):
                gap_said = True
                yield gap
            yield from _walker_event(before, scene)
            yield from (f"a {name} comes into view" for name in now if now[name] > seen[name] and "light" not in name)
            yield from _ego_event(scenes, number)
        seen |= now


def _key_events(scenes: list[Scene]) -> Iterator[str]:
    """The change of the light over the whole clip, the walker who crosses, the vehicle ahead: the most important first."""
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
