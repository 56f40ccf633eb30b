"""Short synthetic clips: one story a clip, the ground truth of each frame, and words about how it changes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from drive_vlm.builders.synthetic.sample import CLOTHES, pick, sample
from drive_vlm.builders.synthetic.scene import VEHICLES, Scene, SceneObject, finish
from drive_vlm.builders.synthetic.words import Question, short_caption

FRAME_SECONDS = 0.5  # time between two frames
_SPEED = 4.0  # metres a second while ego drives
_STORIES = {  # story -> the cause its scene is drawn with, and its share of the clips
    "lead brakes": ("follow", 0.22),
    "lead pulls away": ("follow", 0.13),
    "light to red": ("green", 0.22),
    "light to green": ("light", 0.13),
    "pedestrian crosses": ("clear", 0.14),
    "steady": ("follow", 0.08),
    "free road": ("clear", 0.08),
}
_MOVING = (*VEHICLES, "cyclist")


def make_clip(seed: int, index: int, num_frames: int = 8, size: tuple[int, int] = (224, 224)) -> list[Scene]:
    """The clip number `index` of the world `seed`: `num_frames` scenes FRAME_SECONDS apart that share one group.

    A clip of other length tells the same story faster or slower. Raises ValueError for fewer than 2 frames.
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
    if story in ("light to red", "light to green"):  # a vehicle close ahead would hide the distant light
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


@dataclass(frozen=True)
class _ClipTemplate:
    category: str
    wordings: tuple[str, ...]
    answer: Callable[[list[Scene]], str | None]


def clip_caption(scenes: list[Scene]) -> str:
    """What happens, in the order in which it happens: "At first ..., then ..., finally ..."."""
    words = [f"At first, {_lower(short_caption(scenes[0]))}"]
    changes = [text for text in (_light_words(scenes), _lead_words(scenes), _walker_words(scenes)) if text]
    if changes:
        words.append(f"Then {' and '.join(changes)}.")
    end = "stops" if scenes[-1].actions[1] else "drives on"
    words.append(f"Finally, the ego vehicle {end}.")
    return " ".join(words)


def clip_questions(scenes: list[Scene]) -> list[Question]:
    """Questions that need the order of the frames, one wording each."""
    picks = np.random.default_rng([scenes[0].seed, scenes[0].index, 6]).random(len(CLIP_TEMPLATES)).tolist()
    found = []
    for share, (name, template) in zip(picks, CLIP_TEMPLATES.items(), strict=True):
        answer = template.answer(scenes)
        if answer is not None:
            found.append(
                Question(template.category, name, template.wordings[int(share * len(template.wordings))], answer)
            )
    return found


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


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


def _light_words(scenes: list[Scene]) -> str | None:
    change = _light_change(scenes)
    return f"the light changes from {change}" if change not in (None, "no change") else None


def _lead_words(scenes: list[Scene]) -> str | None:
    motion, lead = _lead_motion(scenes), scenes[0].lead
    return None if lead is None or motion in (None, "keeps distance") else f"the {lead.name} ahead {motion}"


def _walker_words(scenes: list[Scene]) -> str | None:
    return "a pedestrian crosses the lane" if _crossed(scenes) == "yes" else None


CLIP_TEMPLATES: dict[str, _ClipTemplate] = {
    "light_change": _ClipTemplate(
        "perception",
        ("How does the traffic light change?", "What happens to the traffic light during the clip?"),
        _light_change,
    ),
    "lead_motion": _ClipTemplate(
        "prediction",
        ("How does the vehicle ahead move?", "Does the gap to the vehicle ahead change?"),
        _lead_motion,
    ),
    "pedestrian_crossed": _ClipTemplate(
        "perception",
        ("Does the pedestrian cross the ego lane?", "Did the pedestrian pass through the ego lane?"),
        _crossed,
    ),
    "ego_end": _ClipTemplate(
        "behavior",
        ("What does the ego vehicle do at the end?", "How does the clip end for the ego vehicle?"),
        lambda scenes: "stops" if scenes[-1].actions[1] else "drives on",
    ),
}
