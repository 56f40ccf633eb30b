"""The one reader of what a model says: choices, yes and no, numbers, lists of points and trajectories.

Every reader returns `Said`: a value, or None with the reason why the text cannot be read. What is unread is counted by the caller and
never becomes the first option, a zero or the origin. Two different values in one answer are unread as well: nobody knows which one
the model means. `strict_*` readers take the bare form that official scripts compare; `read_*` readers also take what models write
around it: "The correct answer is A.", "(A)", "a", "A. Going ahead.", JSON, Markdown, code fences, <answer> tags, thinking before it.
"""

from drive_vlm.evaluation.answers.choices import options_of, options_of_row, read_choice, strict_choice
from drive_vlm.evaluation.answers.points import FORMS, Point, points_text, read_points
from drive_vlm.evaluation.answers.said import Said, json_object, unread
from drive_vlm.evaluation.answers.values import read_number, read_yes_no, strict_yes_no

__all__ = [
    "FORMS",
    "Point",
    "Said",
    "json_object",
    "options_of",
    "options_of_row",
    "points_text",
    "read_choice",
    "read_number",
    "read_points",
    "read_yes_no",
    "strict_choice",
    "strict_yes_no",
    "unread",
]
