"""The synthetic driving world: dashcam-like scenes and clips of any number from (seed, index), with exact truth.

Everything here is a pure function of its arguments: the same bytes in any order and in any process. Truth lives in
synthetic_scene, chance in synthetic_sample, pixels in synthetic_render and synthetic_things, words in synthetic_words,
motion in synthetic_clip; this module is the one to import.
"""

from drive_vlm.data.synthetic_clip import CLIP_TEMPLATES, FRAME_SECONDS, clip_caption, clip_questions, make_clip
from drive_vlm.data.synthetic_render import render
from drive_vlm.data.synthetic_sample import VEHICLE_COLORS, make_scene
from drive_vlm.data.synthetic_scene import ACTIONS, REASONS, Scene, SceneObject
from drive_vlm.data.synthetic_words import TEMPLATES, Question, long_caption, questions, short_caption

__all__ = [
    "ACTIONS",
    "CLIP_TEMPLATES",
    "FRAME_SECONDS",
    "REASONS",
    "TEMPLATES",
    "VEHICLE_COLORS",
    "Question",
    "Scene",
    "SceneObject",
    "clip_caption",
    "clip_questions",
    "long_caption",
    "make_clip",
    "make_scene",
    "questions",
    "render",
    "short_caption",
]
