"""Clips whose story is told by the order of their frames alone: twins of the same pictures, one the reverse of the other.

The ego vehicle stands still and nothing else moves or ages, so that the frames without their order say nothing about
what came first: whoever sees them shuffled answers every second question right. Twins share one group and so one split,
which also makes the answers of each split exactly even.
"""

from dataclasses import replace

import numpy as np

from drive_vlm.builders.synthetic.sample import sample
from drive_vlm.builders.synthetic.scene import VEHICLES, Scene, finish
from drive_vlm.builders.synthetic.words import Question

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
_NEAR, _FAR = 7.5, 16.0  # metres to the vehicle ahead


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
    told = reversed(frames) if backwards else frames
    return [replace(scene, id=f"{name}-{place:02d}") for place, scene in enumerate(told)]


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
    answers = _light_answers(scenes) if scenes[0].light != "none" else _lead_answers(scenes)
    return [
        Question("order", name, wordings[pick], answers[name])
        for pick, (name, wordings) in zip(picks.tolist(), ORDER_TEMPLATES.items(), strict=True)
        if name in answers
    ]


def _light_answers(scenes: list[Scene]) -> dict[str, str]:
    first, last = scenes[0].light, scenes[-1].light
    return {"light_order": f"{first} to {last}", "light_end": last}


def _lead_answers(scenes: list[Scene]) -> dict[str, str]:
    gaps = [scene.lead.distance for scene in scenes if scene.lead]
    if gaps[-1] < gaps[0]:
        return {"lead_order": "comes closer", "lead_end": "near"}
    return {"lead_order": "moves away", "lead_end": "far"}
