"""Step 1 of the flow: one row of a data file -> Sample, or a BadRow that says what is wrong, where, and the way out.

Two forms of a row are read:

* conversations (InternVL, LLaVA, DriveLM): `{"id","image": str|[str] | "video": str,"conversations":[{"from","value"}]}`
* messages (TRL): `{"id","images"|"video","messages":[{"role","content"}]}`

In text, `<image>` and `<video>` stand for the pictures; one newline after a placeholder belongs to it, since every
chat template writes its own separator.
"""

import dataclasses
import os
import re
from typing import Any

IMAGE, VIDEO = "<image>", "<video>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"(<image>|<video>)\n?")
_CONSUMED = {"id", "image", "images", "video", "conversations", "messages", "group"}


class BadRow(ValueError):
    """A row that cannot be used: `reason` is the key it is counted under in data_audit.json, `where` is file:line."""

    def __init__(self, reason: str, where: str, problem: str, way_out: str) -> None:
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


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One message; `parts` are texts and the placeholders IMAGE and VIDEO in their order."""

    role: str
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if part not in (IMAGE, VIDEO))


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
    def reference(self) -> str:
        """The row's own answer, its last assistant turn; '' where the row is a prompt only."""
        return self.turns[-1].text if self.turns[-1].role == "assistant" else ""

    def prompt_turns(self) -> tuple[Turn, ...]:
        """The turns before the last answer: what a model is given when it is to answer itself."""
        return self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns


def parse_row(row: Any, where: str, root: str, need_answer: bool = True) -> Sample:
    """Check one decoded JSON row and resolve its pictures below `root`.

    Raises BadRow with one of the reasons not_an_object, missing_field, bad_role, image_count, empty_answer,
    empty_question, path_outside_root.
    """
    if not isinstance(row, dict):
        problem = f"a row must be a JSON object, this is {type(row).__name__}"
        raise BadRow("not_an_object", where, problem, "Fix the line")
    images, video = _picture_paths(row, where, root)
    turns = _turns(row, where, images, video)
    _check_turns(turns, where, need_answer)
    _check_counts(turns, images, video, where)
    group = None if row.get("group") is None else str(row["group"])
    columns = {key: value for key, value in row.items() if key not in _CONSUMED}
    return Sample(str(row.get("id", where)), turns, images, video, group, columns, where)


def resolve_below(root: str, path: Any, where: str) -> str:
    """`path` joined to `root`; BadRow when it is absolute or leaves the root."""
    if not isinstance(path, str) or not path:
        raise BadRow("missing_field", where, f"a picture path must be a text, got {path!r}", "Fix the row")
    inside = os.path.normpath(path)
    if os.path.isabs(path) or inside == ".." or inside.startswith(".." + os.sep):
        problem = f"the picture path {path!r} leaves the image root {root!r}"
        way_out = "Give paths relative to the image root (--image_root, or 'root' in a meta JSON)"
        raise BadRow("path_outside_root", where, problem, way_out)
    return os.path.join(root, inside)


def _picture_paths(row: dict, where: str, root: str) -> tuple[tuple[str, ...], str | None]:
    value = row.get("image", row.get("images"))
    values = [] if value is None else value if isinstance(value, list) else [value]
    images = tuple(resolve_below(root, item.get("path") if isinstance(item, dict) else item, where) for item in values)
    video = None if row.get("video") is None else resolve_below(root, row["video"], where)
    if images and video:
        raise BadRow("image_count", where, "a row holds both images and a video", "Split it into two rows")
    return images, video


def _turns(row: dict, where: str, images: tuple[str, ...], video: str | None) -> tuple[Turn, ...]:
    if isinstance(row.get("conversations"), list):
        return tuple(_conversation_turn(item, where) for item in row["conversations"])
    if isinstance(row.get("messages"), list):
        turns = [_message_turn(item, where) for item in row["messages"]]
        if not any(part in (IMAGE, VIDEO) for turn in turns for part in turn.parts):
            # TRL's convention: pictures of a row without placeholders stand before the first user message.
            first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
            pictures = (VIDEO,) if video else (IMAGE,) * len(images)
            turns[first : first + 1] = [Turn(turn.role, pictures + turn.parts) for turn in turns[first : first + 1]]
        return tuple(turns)
    way_out = "A row needs one of the two forms of the data contract (README, Your own data)"
    raise BadRow("missing_field", where, "no 'conversations' and no 'messages' list", way_out)


def _role(name: Any, where: str) -> str:
    if name not in ROLES:
        raise BadRow("bad_role", where, f"unknown role {name!r}", f"Use one of {', '.join(ROLES)}")
    return ROLES[name]


def _conversation_turn(item: Any, where: str) -> Turn:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise BadRow("missing_field", where, "a conversation turn needs 'from' and a text 'value'", "Fix the row")
    return Turn(_role(item.get("from"), where), _split_placeholders(item["value"]))


def _message_turn(item: Any, where: str) -> Turn:
    content = item.get("content") if isinstance(item, dict) else None
    if isinstance(content, str):
        return Turn(_role(item.get("role"), where), _split_placeholders(content))
    if not isinstance(content, list):
        problem = "a message needs 'role' and 'content' (a text or a list of parts)"
        raise BadRow("missing_field", where, problem, "Fix the row")
    parts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.extend(_split_placeholders(part["text"]))
        elif kind in ("image", "video"):
            parts.append(IMAGE if kind == "image" else VIDEO)
        else:
            way_out = "Use parts of type text, image or video"
            raise BadRow("missing_field", where, f"unknown content part {part!r}", way_out)
    return Turn(_role(item.get("role"), where), tuple(parts))


def _split_placeholders(text: str) -> tuple[str, ...]:
    return tuple(part for part in _PLACEHOLDER.split(text) if part)


def _check_turns(turns: tuple[Turn, ...], where: str, need_answer: bool) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    expected = ["user", "assistant"] * (len(spoken) // 2 + 1)
    if not spoken or [turn.role for turn in spoken] != expected[: len(spoken)]:
        roles = ", ".join(turn.role for turn in turns) or "none"
        way_out = "After an optional system turn, user and assistant turns must alternate, beginning with the user"
        raise BadRow("bad_role", where, f"the roles are {roles}", way_out)
    if need_answer and spoken[-1].role != "assistant":
        problem = "the last turn is the user's, so there is nothing to learn"
        raise BadRow("empty_answer", where, problem, "Add the answer")
    for turn in spoken:
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRow("empty_answer", where, "an assistant turn is empty", "Write the answer or remove the row")
        if turn.role == "assistant" and turn.text != "".join(turn.parts):
            problem = "an assistant turn holds a picture placeholder"
            raise BadRow("image_count", where, problem, "Move it to a user turn")
        if turn.role == "user" and not turn.text.strip() and turn.text == "".join(turn.parts):
            raise BadRow("empty_question", where, "a user turn has neither text nor picture", "Fix the row")


def _check_counts(turns: tuple[Turn, ...], images: tuple[str, ...], video: str | None, where: str) -> None:
    found = {mark: sum(turn.parts.count(mark) for turn in turns) for mark in (IMAGE, VIDEO)}
    given = {IMAGE: len(images), VIDEO: int(video is not None)}
    for mark in (IMAGE, VIDEO):
        if found[mark] != given[mark]:
            problem = f"{found[mark]} {mark} in the text but {given[mark]} given by the row"
            raise BadRow("image_count", where, problem, f"Write {mark} once for each picture, where it belongs")
