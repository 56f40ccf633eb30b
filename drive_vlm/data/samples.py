"""Step 2 of the flow: one row of a data file -> Sample, or a BadRow that says what is wrong, where, and the way out.

1. The row's columns without nulls: a null is absent.
2. forms.py finds the form by its columns, and reads the turns; turns.py reads a message.
3. Here: the pictures or the video, whichever column or part names them; that marks and pictures are as many; that turns alternate.

In text, `<image>` and `<video>` stand for the pictures; one newline after a placeholder belongs to it, since every
chat template writes its own separator.
"""

import dataclasses
import os
from typing import Any

from drive_vlm.data.forms import number_pictures, place_pictures, read_form
from drive_vlm.data.turns import IMAGE, VIDEO, BadRow, Turn, given, is_empty, path_of, shown

__all__ = ["IMAGE", "VIDEO", "BadRow", "Sample", "Turn", "media_of", "parse_row", "resolve_below"]

# Columns that name pictures, and those that name videos.
_IMAGES, _VIDEOS = ("image", "images"), ("video", "videos")
_CONSUMED = {"id", "group", *_IMAGES, *_VIDEOS}
# Names that look like pictures: a row whose only pictures stand there would be learned blind.
_MISNAMED = (
    "image_path",
    "image_paths",
    "img",
    "img_path",
    "image_url",
    "image_urls",
    "picture",
    "pictures",
    "video_path",
    "video_paths",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A checked row: turns, paths of its pictures, and the extra columns for rewards and evaluators.

    `where` is "file:line" for messages; `group` names what a split must not cut (a scene, a video).
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    video: str | None
    group: str | None
    columns: dict[str, Any]
    where: str

    @property
    def key(self) -> tuple[str, str]:
        """What names the row among the rows of several files: the name of its data set (where it is known), and its id."""
        return str(self.columns.get("dataset", "")), self.id

    @property
    def reference(self) -> str:
        """The row's own answer, its last assistant turn; '' where the row is a prompt only."""
        return self.turns[-1].text if self.turns[-1].role == "assistant" else ""

    def prompt_turns(self) -> tuple[Turn, ...]:
        """The turns before the last answer: what a model is given when it is to answer itself."""
        return self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns


def parse_row(row: Any, where: str, root: str, need_answer: bool = True) -> Sample:
    """Check one decoded JSON row and resolve its pictures below `root`.

    Raises BadRow with one of the reasons not_an_object, missing_field, two_forms, unsupported_column, bad_role, image_count,
    empty_answer, empty_question, not_learned, path_outside_root, not_a_file.
    """
    if not isinstance(row, dict):
        problem = f"a row must be a JSON object, this is {type(row).__name__}"
        raise BadRow("not_an_object", where, problem, "Fix the line")
    row = number_pictures(given(row), where)
    in_parts: list[tuple[str, Any]] = []
    turns, columns, form = read_form(row, where, in_parts)
    images, video = _media(row, in_parts, where, root)
    # MiniCPM-V writes conversations with roles, and its pictures need no marks.
    if not form.placed or not any("from" in turn for turn in row[form.columns[0]]):
        turns = place_pictures(turns, len(images), int(video is not None))
    _check_turns(turns, where, need_answer)
    _check_counts(turns, images, video, where)
    columns = {key: value for key, value in columns.items() if key not in _CONSUMED}
    if not images and not video and (lost := [key for key in _MISNAMED if not is_empty(columns.get(key))]):
        problem = f"the row has no picture, but a column {lost[0]!r}, which no form has"
        raise BadRow("missing_field", where, problem, "Call it 'image' or 'video', or rename it where it is neither")
    return Sample(_id(row, where), tuple(turns), images, video, _group(row, where), columns, where)


def _id(row: dict[str, Any], where: str) -> str:
    """The row's id as a text; without one its place."""
    value = row.get("id", "")
    if isinstance(value, bool | dict | list):
        raise BadRow("missing_field", where, f"an id must be a text or a number, got {shown(value)}", "Fix the row")
    return str(value) or where


def _group(row: dict[str, Any], where: str) -> str | None:
    value = row.get("group")
    if isinstance(value, dict | list):
        raise BadRow("missing_field", where, f"a group must be a text or a number, got {shown(value)}", "Fix the row")
    return None if value is None else str(value)


def resolve_below(root: str, path: Any, where: str) -> str:
    """`path` joined to `root`; BadRow when it leaves the root. An absolute path may lie below it."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise BadRow("missing_field", where, f"a picture path must be a text, got {shown(path)!r}", "Fix the row")
    inside = os.path.relpath(path, root or os.curdir) if os.path.isabs(path) else os.path.normpath(path)
    if inside == ".." or inside.startswith(".." + os.sep):
        problem = f"the picture path {shown(path)!r} leaves the image root {root!r}"
        way_out = "Give paths relative to the image root (--image_root, or 'root' in a meta JSON)"
        raise BadRow("path_outside_root", where, problem, way_out)
    return os.path.join(root, inside)


def media_of(row: dict[str, Any], where: str) -> tuple[list[Any], list[Any]]:
    """(pictures, videos) of the row's columns as they stand there, without empty ones: paths, or objects that path_of reads.

    Raises BadRow where two columns name pictures.
    """
    found = []
    for columns in (_IMAGES, _VIDEOS):
        values = {column: row[column] for column in columns if not is_empty(row.get(column))}
        if len(values) > 1:
            problem = f"the row names pictures in {' and in '.join(map(repr, values))}"
            raise BadRow("two_forms", where, problem, "Keep one of the two columns")
        items: Any = next(iter(values.values()), [])
        found.append([item for item in (items if isinstance(items, list) else [items]) if not is_empty(item)])
    return found[0], found[1]


def _media(
    row: dict[str, Any], in_parts: list[tuple[str, Any]], where: str, root: str
) -> tuple[tuple[str, ...], str | None]:
    """(paths of the pictures, path of the video) of the row's columns, or of the parts of its messages."""
    found = []
    for mark, items in zip((IMAGE, VIDEO), media_of(row, where), strict=True):
        paths = [resolve_below(root, path_of(item, where), where) for item in items]
        named = [resolve_below(root, path_of(item, where), where) for kind, item in in_parts if kind == mark]
        if paths and named and paths != named:
            problem = f"the parts of the messages name other files for {mark} than the row's column"
            raise BadRow("two_forms", where, problem, "Give the paths in one of the two places")
        found.append(paths or named)
    images, videos = found
    if len(videos) > 1:
        problem = f"the row names {len(videos)} videos, or the frames of one"
        raise BadRow("image_count", where, problem, "A row has one video: a file, or a folder of its frames")
    if images and videos:
        raise BadRow("image_count", where, "a row holds both images and a video", "Split it into two rows")
    return tuple(images), videos[0] if videos else None


def _check_turns(turns: list[Turn], where: str, need_answer: bool) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if spoken is not turns and turns[0].text != "".join(turns[0].parts):
        problem = "a system turn holds a picture placeholder"
        raise BadRow("image_count", where, problem, "Move it to a user turn")
    expected = ["user", "assistant"] * (len(spoken) // 2 + 1)
    if not spoken or [turn.role for turn in spoken] != expected[: len(spoken)]:
        roles = ", ".join(turn.role for turn in turns) or "none"
        way_out = "After an optional system turn, user and assistant turns must alternate, beginning with the user; join turns of one role"
        raise BadRow("bad_role", where, f"the roles are {roles}", way_out)
    if need_answer and spoken[-1].role != "assistant":
        problem = "the last turn is the user's, so there is nothing to learn"
        raise BadRow("empty_answer", where, problem, "Add the answer")
    if need_answer and not any(turn.learned for turn in spoken if turn.role == "assistant"):
        problem = "every answer is marked as not learned, so there is nothing to learn"
        raise BadRow("not_learned", where, problem, "Take the row out")
    for turn in spoken:
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRow("empty_answer", where, "an assistant turn is empty", "Write the answer or remove the row")
        if turn.role == "assistant" and turn.text != "".join(turn.parts):
            problem = "an assistant turn holds a picture placeholder"
            raise BadRow("image_count", where, problem, "Move it to a user turn")
        if turn.role == "user" and not turn.text.strip() and turn.text == "".join(turn.parts):
            raise BadRow("empty_question", where, "a user turn has neither text nor picture", "Fix the row")


def _check_counts(turns: list[Turn], images: tuple[str, ...], video: str | None, where: str) -> None:
    found = {mark: sum(turn.parts.count(mark) for turn in turns) for mark in (IMAGE, VIDEO)}
    given = {IMAGE: len(images), VIDEO: int(video is not None)}
    for mark in (IMAGE, VIDEO):
        if found[mark] != given[mark]:
            problem = f"{found[mark]} {mark} in the text but {given[mark]} given by the row"
            raise BadRow("image_count", where, problem, f"Write {mark} once for each picture, where it belongs")
