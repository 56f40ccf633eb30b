"""CODA-LM: its tasks, questions and classes, and the score of rated answers (Chen et al., arXiv 2404.10595).

A judge rates each answer from 1 to 10. A task's score is the mean rating times 10, as the paper's tables have it; region
perception is the mean over all regions (not over classes); the final score is the mean of the three tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.statistics import CONFIDENCE, RESAMPLES, bootstrap_interval

GENERAL, SUGGESTION, REGION = "general_perception", "driving_suggestion", "region_perception"
TASKS = (GENERAL, SUGGESTION, REGION)
SCALE = 10
# Published sizes, in images.
SPLITS = {"Train": 4884, "Val": 4384, "Test": 500, "Mini": 50}

# The questions are part of the benchmark: another wording measures something else. From convert2vqa.py of
# DLUT-LYZ/CODA-LM; it asks them in English for the Chinese annotations too.
_SCENE = (
    "There is an image of traffic captured from the perspective of the ego car. Focus on objects influencing the ego "
    "car's driving behavior: vehicles (cars, trucks, buses, etc.), vulnerable road users (pedestrians, cyclists, "
    "motorcyclists), traffic signs (no parking, warning, directional, etc.), traffic lights (red, green, yellow), "
    "traffic cones, barriers, miscellaneous(debris, dustbin, animals, etc.). You must not discuss any objects beyond the "
    "seven categories above. "
)
QUESTIONS = {
    GENERAL: _SCENE
    + "Please describe each object's appearance, position, direction, and explain why it affects the ego "
    "car's behavior.",
    SUGGESTION: _SCENE + "Please provide driving suggestions for the ego car based on the current scene.",
    REGION: "Please describe the object inside the red rectangle in the image and explain why it affect ego car driving.",
}

# Categories of the regions as the annotations spell them, by the class of the published per-class scores.
CLASSES = {
    "vehicle": "car truck tram tricycle bus trailer construction_vehicle recreational_vehicle",
    "vru": "pedestrian cyclist bicycle moped motorcycle stroller wheelchair cart",
    "traffic_sign": "warning_sign traffic_sign",
    "traffic_light": "traffic_light",
    "traffic_cone": "traffic_cone",
    "barrier": "barrier bollard",
    "miscellaneous": "dog cat sentry_box traffic_box traffic_island debris suitcace dustbin concrete_block machinery chair "
    "phone_booth basket cardboard carton garbage garbage_bag plastic_bag stone tire misc",
}
UNKNOWN = "unknown"
_CLASS_OF = {category: name for name, categories in CLASSES.items() for category in categories.split()}


def region_class(category: str) -> str:
    """The class of a region's category; UNKNOWN for a category that the published evaluation does not have.

    >>> region_class("bollard")
    'barrier'
    """
    return _CLASS_OF.get(category, UNKNOWN)


@dataclass(frozen=True)
class Rated:
    """A judged answer: `rating` 1-10, None where no reply could be read; `category` is a region's, `image` its picture."""

    task: str
    image: str
    category: str
    rating: int | None


@dataclass(frozen=True)
class Score:
    """Mean rating times 10 with its 95 % interval over images; None without a rating. `unread` ratings are left out."""

    score: float | None
    low: float | None
    high: float | None
    rated: int
    unread: int


@dataclass(frozen=True)
class CodaLMScore:
    """`final` is None, with a `note`, where a task has no rating."""

    tasks: dict[str, Score]
    region_classes: dict[str, Score]
    final: Score
    images: int
    note: str


def score(rated: Sequence[Rated], seed: int = 0) -> CodaLMScore:
    """The benchmark's numbers of all rated answers. Raises ValueError for an unknown task."""
    if strange := {item.task for item in rated} - set(TASKS):
        raise ValueError(f"unknown CODA-LM task {', '.join(sorted(strange))}; expected {', '.join(TASKS)}")
    tasks = {task: _score([item for item in rated if item.task == task], seed) for task in TASKS}
    regions = [item for item in rated if item.task == REGION]
    classes = {
        name: _score([item for item in regions if region_class(item.category) == name], seed)
        for name in (*CLASSES, UNKNOWN)
    }
    empty = [task for task in TASKS if tasks[task].score is None]
    return CodaLMScore(
        tasks=tasks,
        region_classes={name: entry for name, entry in classes.items() if entry.rated + entry.unread},
        final=_final(rated, seed) if not empty else Score(None, None, None, 0, 0),
        images=len({item.image for item in rated}),
        note=f"no final score: nothing rated for {', '.join(empty)}" if empty else "",
    )


def _score(items: Sequence[Rated], seed: int) -> Score:
    known = [item for item in items if item.rating is not None]
    values = [SCALE * item.rating for item in known if item.rating is not None]
    if not values:
        return Score(None, None, None, 0, len(items))
    low, high = bootstrap_interval(values, [item.image for item in known], seed)
    lower, upper = (None if np.isnan(end) else end for end in (low, high))
    return Score(float(np.mean(values)), lower, upper, len(known), len(items) - len(known))


def _final(rated: Sequence[Rated], seed: int) -> Score:
    """Mean of the tasks' means; the interval draws images with all their answers, so that tasks stay together."""
    known = [item for item in rated if item.rating is not None]
    images = {image: place for place, image in enumerate(dict.fromkeys(item.image for item in known))}
    sums, counts = np.zeros((2, len(images), len(TASKS)))
    for item in known:
        place = images[item.image], TASKS.index(item.task)
        sums[place] += SCALE * (item.rating or 0)
        counts[place] += 1
    point = float((sums.sum(axis=0) / counts.sum(axis=0)).mean())
    unread = len(rated) - len(known)
    if len(images) < 2:
        return Score(point, None, None, len(known), unread)
    drawn = np.random.default_rng(seed).multinomial(len(images), np.full(len(images), 1 / len(images)), RESAMPLES)
    drawn_counts = drawn @ counts
    means = (drawn @ sums)[(drawn_counts > 0).all(axis=1)] / drawn_counts[(drawn_counts > 0).all(axis=1)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means.mean(axis=1), [tail, 1 - tail]).tolist()
    return Score(point, low, high, len(known), unread)
