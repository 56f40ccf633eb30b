"""CODA-LM: its tasks, questions and classes, and the score of rated answers (Chen et al., arXiv 2404.10595).

A judge rates each answer from 1 to 10. A task's score is the mean rating times 10, as the paper's tables have it; region
perception is the mean over all regions (not over classes); the final score is the mean of the three tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.statistics import group_sums, pooled

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
    tasks = {task: _score(rated, [task], seed) for task in TASKS}
    regions = [item for item in rated if item.task == REGION]
    classes = {name: [item for item in regions if region_class(item.category) == name] for name in (*CLASSES, UNKNOWN)}
    empty = [task for task in TASKS if tasks[task].score is None]
    return CodaLMScore(
        tasks=tasks,
        region_classes={name: _score(items, [REGION], seed) for name, items in classes.items() if items},
        final=_score(rated, TASKS, seed) if not empty else Score(None, None, None, 0, 0),
        images=len({item.image for item in rated}),
        note=f"no final score: nothing rated for {', '.join(empty)}" if empty else "",
    )


def _score(rated: Sequence[Rated], tasks: Sequence[str], seed: int) -> Score:
    """Mean of the means of `tasks`; the interval draws images with all their answers, so that tasks stay together."""
    asked = [item for item in rated if item.task in tasks]
    known = [item for item in asked if item.rating is not None]
    if not known:
        return Score(None, None, None, 0, len(asked))
    of_task = np.array([[item.task == task for task in tasks] for item in known], dtype=float)
    ratings = np.array([SCALE * (item.rating or 0) for item in known])[:, None] * of_task
    sums = group_sums(np.hstack([ratings, of_task]), [item.image for item in known])

    def mean(sums: np.ndarray) -> dict[str, np.ndarray]:
        """NaN in a draw without any answer to one of the tasks."""
        total, count = np.split(sums, 2, axis=-1)
        with np.errstate(invalid="ignore"):
            return {"score": (total / count).mean(axis=-1)}

    found = pooled(sums, mean, seed)["score"]
    return Score(found.value, found.low, found.high, len(known), len(asked) - len(known))
