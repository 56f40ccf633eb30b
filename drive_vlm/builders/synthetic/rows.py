"""Scenes and clips of the synthetic world as rows of the data contract (InternVL/LLaVA form), and their truth as JSON."""

from typing import Any

import numpy as np

from drive_vlm.builders.oia import oia_row
from drive_vlm.builders.synthetic.clip import clip_caption, clip_questions, order_questions, video_id
from drive_vlm.builders.synthetic.scene import Scene, coco_classes
from drive_vlm.builders.synthetic.words import Question, concise, detailed, long_caption, short_caption
from drive_vlm.config import plain
from drive_vlm.data.videos import MODES, RAW_CAPTION

_ASK_CAPTION = {
    "caption_short": ("Describe the scene in one sentence.", "Give a short description of the picture."),
    "caption_long": ("Describe the scene in detail.", "Give a detailed description of the picture."),
    "clip_caption": ("Describe what happens in the clip.", "What happens, from the start to the end?"),
}
_ASK_JSON = "Describe, decide and justify in JSON."


def clip_rows(scenes: list[Scene], media: dict[str, str], rng: np.random.Generator) -> list[dict[str, Any]]:
    """One row asks for the caption of the clip, the others for what changes."""
    group, asked = scenes[0].group, _ASK_CAPTION["clip_caption"][rng.integers(2)]
    caption = Question("caption", "clip_caption", asked, clip_caption(scenes))
    return [question_row(group, media, question) for question in [caption, *clip_questions(scenes)]]


def order_rows(scenes: list[Scene], media: dict[str, str]) -> list[dict[str, Any]]:
    """The questions about an order clip; twins share `group`, their ids begin with the name of their video."""
    rows = [question_row(scenes[0].group, media, question) for question in order_questions(scenes)]
    return [{**row, "id": f"{video_id(scenes)}-{row['template']}"} for row in rows]


def split_entry_rows(scenes: list[Scene], media: dict[str, str]) -> list[dict[str, Any]]:
    """The clip's text in each of MODES, asked for by the mode's instruction; `truth_classes` are what a detector of
    COCO's classes should find in the clip."""
    texts = {"detailed": detailed(scenes), "concise": concise(scenes)}
    return [
        {
            **question_row(scenes[0].group, media, Question("caption", mode, instruction, texts[mode])),
            "id": f"{video_id(scenes)}-{mode}",
            "mode": mode,
            "truth_classes": coco_classes(scenes),
        }
        for mode, instruction in MODES.items()
    ]


def raw_caption_row(scenes: list[Scene], media: dict[str, str]) -> dict[str, Any]:
    """One caption of no granularity, as a row and as the column `caption` that caption files of video sets have."""
    caption = clip_caption(scenes)
    row = question_row(scenes[0].group, media, Question("caption", "raw_caption", RAW_CAPTION, caption))
    return {**row, "id": f"{video_id(scenes)}-raw", "caption": caption}


def question_row(group: str, media: dict[str, str], question: Question) -> dict[str, Any]:
    """A row of the data contract in the InternVL/LLaVA form."""
    tag = f"<{next(iter(media))}>"
    return {
        "id": f"{group}-{question.template}",
        **media,
        "conversations": [
            {"from": "human", "value": f"{tag}\n{question.question}"},
            {"from": "gpt", "value": question.answer},
        ],
        "group": group,
        "category": question.category,
        "template": question.template,
    }


def dialog_row(group: str, media: dict[str, str], questions: list[Question]) -> dict[str, Any]:
    """One conversation about one picture: a model reads the picture once for all of its questions."""
    first, *others = questions
    row = question_row(group, media, first)
    for question in others:
        row["conversations"] += [
            {"from": "human", "value": question.question},
            {"from": "gpt", "value": question.answer},
        ]
    return {**row, "id": f"{group}-dialog", "category": "dialog", "template": "dialog"}


def caption_row(scene: Scene, media: dict[str, str], template: str, rng: np.random.Generator) -> dict[str, Any]:
    """Both captions as columns, and a conversation that asks for the one named by `template`."""
    captions = {"caption_short": short_caption(scene), "caption_long": long_caption(scene)}
    asked = _ASK_CAPTION[template][rng.integers(2)]
    row = question_row(scene.group, media, Question("caption", template, asked, captions[template]))
    return {**row, **captions}


def oia_rows(scene: Scene, media: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Rows as tools/build_bddoia.py writes them, by the prefix of their file: the answer in text, where the user's turn is the
    picture alone, and in JSON. Of a clip `scene` is the last frame."""
    place = {"id": f"{scene.group}-oia", "group": scene.group, **media}
    words = short_caption(scene)
    text = oia_row(place, scene.actions, scene.reason, "text", description=words)
    place["id"] += "-json"
    return {"": [text], "json_": [oia_row(place, scene.actions, scene.reason, "json", _ASK_JSON, words)]}


def truth_of(scene: Scene) -> dict[str, Any]:
    """The scene as JSON holds it, numbers rounded to what means something (metres to 1 cm)."""
    truth = plain(scene)
    for thing in truth["objects"]:
        thing["lateral"], thing["distance"] = round(thing["lateral"], 2), round(thing["distance"], 2)
    return truth
