"""The synthetic driving world: dashcam-like scenes and clips of any number from (seed, index), with exact truth.

Everything here is a pure function of its arguments: the same bytes in any order and in any process. Truth lives in
synthetic_scene, chance in synthetic_sample, pixels in synthetic_render and synthetic_things, words in synthetic_words,
motion in synthetic_clip, clips that only their order tells apart in synthetic_order, detailed and concise texts in
synthetic_story, COCO's view of the truth in synthetic_truth; this module is the one to import.
"""

from drive_vlm.builders.synthetic.clip import CLIP_TEMPLATES, FRAME_SECONDS, clip_caption, clip_questions, make_clip
from drive_vlm.builders.synthetic.order import ORDER_TEMPLATES, make_order_clip, order_questions, video_id
from drive_vlm.builders.synthetic.render import render
from drive_vlm.builders.synthetic.sample import VEHICLE_COLORS, make_scene
from drive_vlm.builders.synthetic.scene import (
    ACTIONS,
    COCO_LABELS,
    REASONS,
    Scene,
    SceneObject,
    coco_classes,
    coco_labels,
)
from drive_vlm.builders.synthetic.story import concise, detailed
from drive_vlm.builders.synthetic.words import TEMPLATES, Question, long_caption, questions, short_caption

__all__ = [
    "ACTIONS",
    "CLIP_TEMPLATES",
    "COCO_LABELS",
    "FRAME_SECONDS",
    "ORDER_TEMPLATES",
    "REASONS",
    "TEMPLATES",
    "VEHICLE_COLORS",
    "Question",
    "Scene",
    "SceneObject",
    "clip_caption",
    "clip_questions",
    "coco_classes",
    "coco_labels",
    "concise",
    "detailed",
    "long_caption",
    "make_clip",
    "make_order_clip",
    "make_scene",
    "order_questions",
    "questions",
    "render",
    "short_caption",
    "video_id",
]
