"""The synthetic driving world: dashcam-like scenes and clips of any number from (seed, index), with exact truth.

Everything here is a pure function of its arguments: the same bytes in any order and in any process. Truth lives in scene.py,
chance in sample.py, pixels in render.py, words in words.py, motion in clip.py; rows.py and files.py make a data set of them.
This module is the one to import.
"""

# ruff: noqa: F401 - what is imported here is imported from here

from drive_vlm.builders.synthetic.clip import (
    CLIP_TEMPLATES,
    FRAME_SECONDS,
    ORDER_TEMPLATES,
    clip_caption,
    clip_questions,
    make_clip,
    make_order_clip,
    order_questions,
    video_id,
)
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
from drive_vlm.builders.synthetic.words import (
    TEMPLATES,
    Question,
    concise,
    detailed,
    long_caption,
    questions,
    short_caption,
)
