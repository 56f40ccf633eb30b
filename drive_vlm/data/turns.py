"""One message of a row -> Turn, whichever tool's keys it has; BadRow, and the barrier that makes one of any error of a row.

The keys of a message that the field's tools define are obeyed (LEARNED, THOUGHTS) or make a bad row by name (REFUSED). A key with
null is absent, and keys of other names are free.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

IMAGE, VIDEO = "<image>", "<video>"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
# Roles of tool calls: there is a name for them, but nothing to train them with.
_TOOL_ROLES = {"tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython"}
# Whether an answer is learned: 1 or true, 0 or false. Whose key it is stands next to it.
LEARNED = {
    "loss": "ms-swift, LLaMA-Factory, ChatGLM",
    "weight": "OpenAI",
    "train": "axolotl",
    "training": "axolotl",
    "trainable": "verl",
    "loss_mask": "verl",
    "loss_weight": "ms-swift",
    "loss_scale": "ms-swift",
}
# What an assistant thought before it spoke: it stands in a <think> block before the answer.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
REFUSED = {
    "tool_calls": "calls of tools",
    "function_call": "calls of tools",
    "tool_call_id": "calls of tools",
    "refusal": "a refusal in place of an answer",
    "masked": "a part that is not learned",
    "mask": "a part that is not learned",
    "train_detail": "parts of an answer that are not learned",
    "training_detail": "parts of an answer that are not learned",
    "prefix": "an answer whose beginning is given",
    "audio": "sound",
    "audios": "sound",
    "image": "a picture of this message; pictures belong to the row or to a part of the content",
    "images": "pictures of this message; pictures belong to the row or to a part of the content",
    "video": "a video of this message; videos belong to the row or to a part of the content",
    "videos": "videos of this message; videos belong to the row or to a part of the content",
}
# Keys of a picture or a video that ask for other pixels than those of the file, or for a part of it.
PIXEL_KEYS = {
    "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "fps", "nframes", "min_frames",
    "max_frames", "video_start", "video_end", "sample_fps", "detail",
}  # fmt: skip
_PLACEHOLDER = re.compile(r"(<image>|<video>)\n?")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:", re.ASCII)
_SHOWN, _LONGEST = 80, 800


class BadRow(ValueError):
    """A row that cannot be used: `reason` is the key it is counted under in data_audit.json, `where` is file:line."""

    def __init__(self, reason: str, where: str, problem: str, way_out: str) -> None:
        # A path or a text of the row may hold newlines, and what no terminal shows: an error is one line.
        if not problem.isprintable():
            problem = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in problem)
        if len(problem) > _LONGEST:
            problem = f"{problem[:_LONGEST]}..."
        super().__init__(f"{where}: {problem}. {way_out}.")
        self.reason, self.where, self.problem, self.way_out = reason, where, problem, way_out

    def as_json(self) -> dict[str, str]:
        return {"where": self.where, "reason": self.reason, "problem": self.problem}

    def __reduce__(self) -> tuple:
        # Pickle rebuilds an exception from its message alone; a DataLoader worker must hand all four parts to the trainer.
        return BadRow, (self.reason, self.where, self.problem, self.way_out)

    def facts(self) -> dict[str, str]:
        """What an audit says of the row."""
        return {"where": self.where, "reason": self.reason, "problem": self.problem}


class RunError(ValueError):
    """What is wrong with the run and not with a row, though reading a row met it: a package or an entry of a cache is missing."""


@contextlib.contextmanager
def one_row(where: str) -> Iterator[None]:
    """The barrier from a row to its tensors: whatever goes wrong inside with the row at `where` is a BadRow (unusable).

    Tokenizers, chat templates, Pillow and FFmpeg raise what they like on an odd row. What is wrong with the run passes through.
    """
    try:
        yield
    except (BadRow, RunError, ImportError, MemoryError):
        raise
    except Exception as error:
        cause = shown(" ".join(str(error).split()))
        way_out = "Fix or remove the row, or use --on_bad_row skip"
        raise BadRow("unusable", where, f"{type(error).__name__}: {cause}", way_out) from error


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One message; `parts` are texts and the placeholders IMAGE and VIDEO in their order.

    `learned` is False for an answer that the row marks as context only.
    """

    role: str
    parts: tuple[str, ...]
    learned: bool = True

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if part not in (IMAGE, VIDEO))


def shown(value: Any, limit: int = _SHOWN) -> str:
    """A value of a row for a message: a text as it is, anything else as Python writes it, cut short."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def is_empty(value: Any) -> bool:
    """Null, or nothing in it: what tables write where a column has no value."""
    return value is None or value in ("", [], {}) or (isinstance(value, list) and all(item is None for item in value))


def given(item: dict[str, Any]) -> dict[str, Any]:
    """The keys that say something: a null is absent."""
    return {key: value for key, value in item.items() if value is not None}


def refuse(name: str, what: str, where: str, way_out: str = "") -> BadRow:
    """The bad row of a column or key `name` that asks for something that is not offered."""
    problem = f"{name!r} asks for {what}, which is not trained here"
    return BadRow("unsupported_column", where, problem, way_out or "Remove it, rename it, or take the row out")


# ---- a message


def read_turn(item: Any, where: str, media: list[tuple[str, Any]]) -> Turn:
    """A message `{"from", "value"}` or `{"role", "content"}`; pictures and videos that its parts name are added to `media`
    as (IMAGE or VIDEO, path). Raises BadRow."""
    if not isinstance(item, dict):
        problem = f"a turn must be an object with its role and its text, this is {shown(item)}"
        raise BadRow("missing_field", where, problem, "Fix the row")
    item = given(item)
    names, texts = ([key for key in keys if key in item] for keys in (("from", "role"), ("value", "content")))
    if len(names) != 1 or len(texts) != 1:
        problem = "a turn needs 'from' and 'value', or 'role' and 'content' (a text or a list of parts)"
        raise BadRow("missing_field", where, f"{problem}; it has {shown(', '.join(map(str, item)))}", "Fix the row")
    role = _role(item[names[0]], where)
    parts = _parts(item[texts[0]], where, media)
    thoughts = [item[key] for key in THOUGHTS if not is_empty(item.get(key))]
    for key in REFUSED:
        if not is_empty(item.get(key)) and item[key] is not False:
            raise refuse(key, REFUSED[key], where)
    if thoughts:
        if role != "assistant" or len(thoughts) > 1 or not isinstance(thoughts[0], str):
            raise refuse("reasoning_content", "thoughts that are not one text of the assistant's", where)
        # Without an answer the row stays empty, and is refused for that.
        parts = (f"<think>\n{thoughts[0].strip()}\n</think>\n\n", *parts) if "".join(parts).strip() else ()
    return Turn(role, parts, _learned(item, role, where))


def _role(name: Any, where: str) -> str:
    if isinstance(name, str) and name in ROLES:
        return ROLES[name]
    if isinstance(name, str) and name in _TOOL_ROLES:
        raise BadRow("bad_role", where, f"the role {name!r} belongs to a call of a tool", "Write the call as text")
    raise BadRow("bad_role", where, f"unknown role {shown(name)!r}", f"Use one of {', '.join(ROLES)}")


def _learned(item: dict[str, Any], role: str, where: str) -> bool:
    flags = {key: as_flag(key, item[key], where) for key in LEARNED if key in item}
    if len(set(flags.values())) > 1:
        problem = f"a turn says two different things in {' and in '.join(map(repr, flags))}"
        raise BadRow("two_forms", where, problem, "Keep one of them")
    if role != "assistant" and any(flags.values()):
        raise refuse(
            next(iter(flags)), f"learning the words of the {role}", where, "Set it to false: answers are learned"
        )
    return all(flags.values())


def as_flag(name: str, value: Any, where: str) -> bool:
    """True for 1, False for 0. Raises BadRow for anything between."""
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise refuse(name, f"a weight of {shown(value)}", where, "An answer is learned (1 or true) or not (0 or false)")


def _parts(content: Any, where: str, media: list[tuple[str, Any]]) -> tuple[str, ...]:
    if isinstance(content, str):
        return split_placeholders(content)
    if not isinstance(content, list):
        problem = f"the content of a turn must be a text or a list of parts, this is {shown(content)}"
        raise BadRow("missing_field", where, problem, "Fix the row")
    return tuple(text for part in content for text in _part(part, where, media))


def _part(part: Any, where: str, media: list[tuple[str, Any]]) -> tuple[str, ...]:
    """The texts of a part of a content list; a picture or video that it names joins `media`.

    Known: {"type": "text", "text"}, {"type": "image", "image" | "path" | "url"}, {"type": "image_url", "image_url": {"url"}},
    the same for video, and Qwen's parts without "type".
    """
    if isinstance(part, str):
        return split_placeholders(part)
    known = given(part) if isinstance(part, dict) else {}
    kind = known.get("type", next((key for key in ("text", "image", "video", "image_url") if key in known), None))
    if kind == "text" and isinstance(known.get("text"), str):
        return split_placeholders(known["text"])
    mark = {"image": IMAGE, "image_url": IMAGE, "video": VIDEO, "video_url": VIDEO}.get(str(kind))
    if mark is None:
        problem = f"unknown part of a content list: {shown(part)}"
        raise BadRow("missing_field", where, problem, "Use parts of type text, image or video")
    source = {key: value for key, value in known.items() if key != "type" and not is_empty(value)}
    if source:
        media.append((mark, source))
    return (mark,)


def split_placeholders(text: str) -> tuple[str, ...]:
    """Texts and placeholders; one newline after a placeholder belongs to it."""
    return tuple(part for part in _PLACEHOLDER.split(text) if part)


# ---- a picture or a video


def path_of(item: Any, where: str) -> str:
    """The path that a picture or video of a row names: a text, or an object such as {"path"}, {"image"} or {"url"}. Raises BadRow."""
    if isinstance(item, dict):
        known = {key: value for key, value in item.items() if not is_empty(value) and key != "type"}
        if known.get("detail") == "auto":
            del known["detail"]
        if pixels := sorted(known.keys() & PIXEL_KEYS):
            raise refuse(
                pixels[0], "other pixels, or a part of a video", where, "Use --max_tiles, --max_pixels and --num_frames"
            )
        if "bytes" in known:
            problem = "a picture is given by its bytes"
            raise BadRow("missing_field", where, problem, "Give the Parquet file itself, or write it to a file")
        paths = [
            known[key] for key in ("path", "image", "video", "url", "image_url", "video_url", "file") if key in known
        ]
        item = paths[0] if len(paths) == 1 else None
        if isinstance(item, dict):
            return path_of(item, where)
    if not isinstance(item, str) or not item.strip() or "\0" in item:
        raise BadRow("missing_field", where, f"a picture path must be a text, got {shown(item)!r}", "Fix the row")
    if item.startswith("file://"):
        return item.removeprefix("file://")
    if _ADDRESS.match(item):
        problem = f"the picture {shown(item)!r} is an address and not a file"
        raise BadRow("not_a_file", where, problem, "Save it below the image root and give its path")
    return item
