"""Short synthetic clips: one story a clip, the ground truth of each frame, and words about how it changes.

Order clips (`make_order_clip`) differ in the order of their frames alone: twins of the same pictures, one the
reverse of the other. The ego vehicle stands still and nothing else moves or ages, so that the frames without their order say
nothing about what came first: a model that sees them shuffled answers every second question right. Twins share one group and
so one split, which also makes the answers of each split exactly even.
"""

from dataclasses import replace

import numpy as np

from drive_vlm.builders.synthetic.sample import CLOTHES, pick, sample
from drive_vlm.builders.synthetic.scene import VEHICLES, Scene, SceneObject, finish
from drive_vlm.builders.synthetic.words import Question, Template, ask, end_of, short_caption

# Time between two frames.
FRAME_SECONDS = 0.5
# Metres a second while ego drives.
_SPEED = 4.0
# Story -> the cause its scene is drawn with, and its share of the clips.
_STORIES = {
    "lead brakes": ("follow", 0.22),
    "lead pulls away": ("follow", 0.13),
    "light to red": ("green", 0.22),
    "light to green": ("light", 0.13),
    "pedestrian crosses": ("clear", 0.14),
    "steady": ("follow", 0.08),
    "free road": ("clear", 0.08),
}
_MOVING = (*VEHICLES, "cyclist")
ORDER_TEMPLATES: dict[str, tuple[str, ...]] = {
    "light_order": (
        "Does the traffic light change from red to green or from green to red?",
        "In which order does the traffic light show its colours?",
    ),
    "light_end": ("Which colour does the traffic light show at the end?", "What is the last colour of the light?"),
    "lead_order": (
        "Does the vehicle ahead come closer or move away?",
        "How does the gap to the vehicle ahead change over time?",
    ),
    "lead_end": ("Is the vehicle ahead near or far at the end?", "How far away is the vehicle ahead at last?"),
}
# Metres to the vehicle ahead of an order clip.
_NEAR, _FAR = 7.5, 16.0


def make_clip(seed: int, index: int, num_frames: int = 8, size: tuple[int, int] = (224, 224)) -> list[Scene]:
    """The clip number `index` of the world `seed`: `num_frames` scenes FRAME_SECONDS apart that share one group.

    A clip of another length has the same story, faster or slower. Raises ValueError for fewer than 2 frames.
    """
    if num_frames < 2:
        raise ValueError(f"a clip needs at least 2 frames, got {num_frames}")
    rng = np.random.default_rng([seed, index, 5])
    story = pick(rng, {name: share for name, (_, share) in _STORIES.items()})
    first = sample(rng, _STORIES[story][0], seed, index, f"clip-{seed}-{index:06d}", size)
    shares = np.linspace(0.0, 1.0, num_frames).tolist()
    speeds = [_SPEED * _pace(story, share) for share in shares]
    travelled = [FRAME_SECONDS * sum(speeds[:frame]) for frame in range(num_frames)]
    start = _stage(story, first, rng)
    return [
        _frame(story, start, frame, share, travelled[frame], travelled[-1] - travelled[frame])
        for frame, share in enumerate(shares)
    ]


def _pace(story: str, share: float) -> float:
    """Ego's speed as a share of its cruising speed, at `share` of the clip."""
    if story in ("lead brakes", "light to red"):
        return float(np.clip(2.0 * (1.0 - share) - 0.2, 0.0, 1.0))
    if story in ("lead pulls away", "light to green"):
        return float(np.clip(2.0 * share - 0.8, 0.0, 1.0))
    return 0.15 if story == "pedestrian crosses" else 1.0


def _stage(story: str, scene: Scene, rng: np.random.Generator) -> Scene:
    """Put on the road what the story needs: a walker at the kerb, nothing that contradicts or hides what changes."""
    objects = list(scene.objects)
    if story in ("lead brakes", "lead pulls away", "pedestrian crosses", "free road"):
        objects = [o for o in objects if o.name != "traffic light"]
        scene = replace(scene, light="none")
    if story == "pedestrian crosses":
        objects = [o for o in objects if o.name != "pedestrian"]
        color = CLOTHES["pedestrian"][rng.integers(len(CLOTHES["pedestrian"]))]
        objects.append(SceneObject("pedestrian", color, -3.2, 8.5))
    # A vehicle close ahead would hide the distant light.
    if story in ("light to red", "light to green"):
        objects = [replace(o, distance=max(o.distance, 12.0)) if o.name in VEHICLES else o for o in objects]
    return replace(scene, objects=tuple(objects))


def _frame(story: str, start: Scene, frame: int, share: float, travelled: float, left: float) -> Scene:
    """The world at `share` of the clip, with `travelled` metres behind ego and `left` metres still to come."""
    light = start.light
    if story == "light to red":
        light = "green" if share < 0.35 else "yellow" if share < 0.65 else "red"
    elif story == "light to green":
        light = "red" if share < 0.5 else "green"
    objects = [_move(story, thing, light, share, left) for thing in start.objects]
    scene = replace(start, frame=frame, id=f"{start.group}-{frame:02d}", light=light, travelled=round(travelled, 3))
    return finish(replace(scene, objects=tuple(objects)))


def _move(story: str, thing: SceneObject, light: str, share: float, left: float) -> SceneObject:
    """`thing` as it stands at `share` of the clip: what does not drive comes nearer by what ego travels."""
    if thing.name == "traffic light":
        return replace(thing, state=light, color=light, distance=thing.distance + left)
    if story == "pedestrian crosses" and thing.name == "pedestrian":
        return replace(thing, lateral=-3.2 + 6.4 * share, distance=thing.distance + left)
    if thing.name not in _MOVING:
        return replace(thing, distance=thing.distance + left)
    if abs(thing.lateral) > 1.75:
        return replace(thing, distance=thing.distance + 1.0 * share)
    if story == "lead brakes":
        return replace(thing, distance=16.0 - 8.5 * share, state="braking" if share > 0.4 else "moving")
    if story == "lead pulls away":
        return replace(thing, distance=7.5 + 8.5 * share, state="braking" if share < 0.4 else "moving")
    if story in ("light to red", "light to green"):
        return replace(thing, state="braking" if light != "green" else "moving")
    return thing


def clip_caption(scenes: list[Scene]) -> str:
    """What happens, in the order in which it happens: "At first ..., then ..., finally ..."."""
    first = short_caption(scenes[0])
    words = [f"At first, {first[0].lower()}{first[1:]}"]
    changes = []
    if (change := _light_change(scenes)) not in (None, "no change"):
        changes.append(f"the light changes from {change}")
    motion, lead = _lead_motion(scenes), scenes[0].lead
    if lead is not None and motion not in (None, "keeps distance"):
        changes.append(f"the {lead.name} ahead {motion}")
    if _crossed(scenes) == "yes":
        changes.append("a pedestrian crosses the lane")
    if changes:
        words.append(f"Then {' and '.join(changes)}.")
    words.append(f"Finally, the ego vehicle {end_of(scenes)}.")
    return " ".join(words)


def clip_questions(scenes: list[Scene]) -> list[Question]:
    """Questions that need the order of the frames, one wording each."""
    return ask(CLIP_TEMPLATES, scenes, [scenes[0].seed, scenes[0].index, 6])


def _light_change(scenes: list[Scene]) -> str | None:
    """None without a light in the first or the last frame."""
    first, last = scenes[0].light, scenes[-1].light
    if "none" in (first, last):
        return None
    return "no change" if first == last else f"{first} to {last}"


def _lead_motion(scenes: list[Scene]) -> str | None:
    first, last = scenes[0].lead, scenes[-1].lead
    if first is None or last is None:
        return None
    gained = last.distance - first.distance
    return "comes closer" if gained < -2.0 else "moves away" if gained > 2.0 else "keeps distance"


def _crossed(scenes: list[Scene]) -> str | None:
    """Whether a pedestrian passed through the ego lane; None without any pedestrian."""
    walkers = [o for scene in scenes for o in scene.objects if o.name == "pedestrian"]
    return None if not walkers else "yes" if any(o.on_road and o.lane == "ego" for o in walkers) else "no"


CLIP_TEMPLATES: dict[str, Template[list[Scene]]] = {
    "light_change": Template(
        "perception",
        ("How does the traffic light change?", "What happens to the traffic light during the clip?"),
        _light_change,
    ),
    "lead_motion": Template(
        "prediction", ("How does the vehicle ahead move?", "Does the gap to the vehicle ahead change?"), _lead_motion
    ),
    "pedestrian_crossed": Template(
        "perception",
        ("Does the pedestrian cross the ego lane?", "Did the pedestrian pass through the ego lane?"),
        _crossed,
    ),
    "ego_end": Template(
        "behavior",
        ("What does the ego vehicle do at the end?", "How does the clip end for the ego vehicle?"),
        end_of,
    ),
}


def make_order_clip(seed: int, index: int, num_frames: int = 8, size: tuple[int, int] = (224, 224)) -> list[Scene]:
    """The order clip number `index`: 2k and 2k + 1 are twins with the same frames in opposite orders.

    Every second pair of twins shows a traffic light that changes once between green and red, the others a vehicle ahead
    whose distance changes. `frame` numbers a picture among those of both twins; the place in the clip is in `id`.
    Raises ValueError for fewer than 2 frames.
    """
    if num_frames < 2:
        raise ValueError(f"a clip needs at least 2 frames, got {num_frames}")
    pair, backwards = divmod(index, 2)
    stage = _light_frames if pair % 2 == 0 else _lead_frames
    attempt = 0
    while not (frames := stage(np.random.default_rng([seed, pair, 9, attempt]), seed, pair, num_frames, size)):
        attempt += 1
    name = f"{frames[0].group}-{'ab'[backwards]}"
    ordered = reversed(frames) if backwards else frames
    return [replace(scene, id=f"{name}-{place:02d}") for place, scene in enumerate(ordered)]


def _light_frames(rng: np.random.Generator, seed: int, pair: int, count: int, size: tuple[int, int]) -> list[Scene]:
    """A light that is green, then red; nothing when something hides it."""
    start = _start(rng, "green", seed, pair, size)
    things = [replace(o, distance=max(o.distance, 12.0)) if o.name in VEHICLES else o for o in start.objects]
    change = int(rng.integers(max(1, count // 4), max(1, count - count // 4), endpoint=True)) if count > 2 else 1
    frames = []
    for frame in range(count):
        color = "green" if frame < change else "red"
        lit = [replace(o, state=color, color=color) if o.name == "traffic light" else o for o in things]
        frames.append(finish(replace(start, frame=frame, light=color, objects=tuple(lit))))
    return frames if all(scene.light != "none" for scene in frames) else []


def _lead_frames(rng: np.random.Generator, seed: int, pair: int, count: int, size: tuple[int, int]) -> list[Scene]:
    """A vehicle ahead that comes closer; nothing when another object of the lane hides it."""
    start = finish(_start(rng, "follow", seed, pair, size))
    frames = []
    for frame in range(count):
        distance = _FAR + (_NEAR - _FAR) * frame / (count - 1)
        others = [o for o in start.objects if o is not start.lead and o.name != "traffic light"]
        lead = [replace(start.lead, distance=distance)] if start.lead else []
        frames.append(finish(replace(start, frame=frame, light="none", objects=(*others, *lead))))
    seen = [scene.lead.distance if scene.lead else 0.0 for scene in frames]
    return frames if seen == sorted(seen, reverse=True) and (seen[0], seen[-1]) == (_FAR, _NEAR) else []


def _start(rng: np.random.Generator, cause: str, seed: int, pair: int, size: tuple[int, int]) -> Scene:
    return sample(rng, cause, seed, pair, f"order-{seed}-{pair:06d}", size)


def video_id(scenes: list[Scene]) -> str:
    """The name of one clip: its first frame's id without the place. Of twins it differs, their `group` is one."""
    return scenes[0].id.rsplit("-", 1)[0]


def order_questions(scenes: list[Scene]) -> list[Question]:
    """The two questions about an order clip, one wording each."""
    picks = np.random.default_rng([scenes[0].seed, scenes[0].index, 10]).integers(2, size=len(ORDER_TEMPLATES))
    first, last = scenes[0], scenes[-1]
    if first.light != "none":
        answers = {"light_order": f"{first.light} to {last.light}", "light_end": last.light}
    else:
        gaps = [scene.lead.distance for scene in scenes if scene.lead]
        motion, end = ("comes closer", "near") if gaps[-1] < gaps[0] else ("moves away", "far")
        answers = {"lead_order": motion, "lead_end": end}
    return [
        Question("order", name, wordings[pick], answers[name])
        for pick, (name, wordings) in zip(picks.tolist(), ORDER_TEMPLATES.items(), strict=True)
        if name in answers
    ]
