"""The forms of a row that the field's tools write: which columns name a form, and how they become turns. One table, FORMS.

Columns that the tools define and that no form holds stand in three more tables: they are obeyed (`system`, `loss_mask`, what
pairs are made of), must say nothing (REFUSED), or are pictures (samples.py). A column with null, "" or [] is absent. Columns of
other names are free: rewards and evaluators get them.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from drive_vlm.data.turns import (
    IMAGE,
    VIDEO,
    BadRow,
    Turn,
    as_flag,
    is_empty,
    read_turn,
    refuse,
    shown,
    split_placeholders,
)

# A row's turns with the pictures that they name, and the two answers where the form is one of pairs.
Media = list[tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class Form:
    """A form: the columns that name it, all of them given; those it may have as well; whose it is; how it becomes turns.

    `placed`: the text must mark where each picture belongs. Of other forms the pictures of a row without marks stand before the
    first words of the user, as TRL and ms-swift have it.
    """

    columns: tuple[str, ...]
    tools: str
    read: Callable[[dict[str, Any], str, Media], list[Turn]]
    more: tuple[str, ...] = ()
    placed: bool = False

    @property
    def name(self) -> str:
        return ", ".join(self.columns)


def _listed(column: str) -> Callable[[dict[str, Any], str, Media], list[Turn]]:
    return lambda row, where, media: _turns(row[column], column, where, media)


def _turns(items: Any, column: str, where: str, media: Media) -> list[Turn]:
    if not isinstance(items, list):
        raise BadRow(
            "missing_field", where, f"{column!r} must be a list of turns, this is {shown(items)}", "Fix the row"
        )
    return [read_turn(item, where, media) for item in items]


def _spoken(value: Any, column: str, role: str, where: str, media: Media) -> list[Turn]:
    """A text as one turn of `role`, or a list of messages (TRL has both)."""
    if isinstance(value, str):
        return [Turn(role, split_placeholders(value))]
    if isinstance(value, dict):
        value = [value]
    return _turns(value, column, where, media)


def _prompt_completion(row: dict[str, Any], where: str, media: Media) -> list[Turn]:
    turns = _spoken(row["prompt"], "prompt", "user", where, media)
    if "completion" in row:
        turns += _spoken(row["completion"], "completion", "assistant", where, media)
    return turns


def _answered_prompt(row: dict[str, Any], where: str, media: Media) -> list[Turn]:
    """The chosen answer ends the conversation, so that sft learns it."""
    turns = _spoken(row["prompt"], "prompt", "user", where, media)
    return [*turns, Turn("assistant", (answer_of(row, "chosen", turns, where),))]


def _two_dialogs(first: str, second: str) -> Callable[[dict[str, Any], str, Media], list[Turn]]:
    """Two conversations that differ in their last answer (TRL's implicit prompt, SPIN); of the two the first is learned."""

    def read(row: dict[str, Any], where: str, media: Media) -> list[Turn]:
        turns = _turns(row[first], first, where, media)
        answer_of(row, second, turns[:-1], where)
        return turns

    return read


def _asked(question: str, more: str, answer: str) -> Callable[[dict[str, Any], str, Media], list[Turn]]:
    """A question with an addition, its answer, and a `history` of [question, answer] before both (ms-swift, Alpaca)."""

    def read(row: dict[str, Any], where: str, media: Media) -> list[Turn]:
        history = [] if is_empty(row.get("history")) else row["history"]
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise refuse("history", "something else than a list of [question, answer]", where)
        words = [row[key] for key in (question, more) if not is_empty(row.get(key))]
        said = [text for pair in history for text in pair]
        if not all(isinstance(text, str) for text in [*said, *words]):
            raise BadRow("missing_field", where, f"{question!r} and 'history' must hold texts", "Fix the row")
        turns = [Turn(("user", "assistant")[i % 2], split_placeholders(text)) for i, text in enumerate(said)]
        turns.append(Turn("user", split_placeholders("\n".join(words))))
        sides = [column for column in (answer, "chosen") if column in row]
        side = next((column for column in sides if not is_empty(row[column])), sides[0] if sides else None)
        return turns if side is None else [*turns, Turn("assistant", (answer_of(row, side, turns, where),))]

    return read


# The first one whose columns are all there reads the row.
FORMS = (
    Form(("conversations",), "InternVL, LLaVA, DriveLM, ShareGPT, LLaMA-Factory, MiniCPM-V", _listed("conversations"), placed=True),
    Form(("messages",), "TRL, ms-swift, OpenAI, Qwen-VL", _listed("messages")),
    Form(("prompt", "completion"), "TRL", _prompt_completion),
    Form(("prompt", "chosen", "rejected"), "TRL (dpo)", _answered_prompt),
    Form(("query", "response"), "ms-swift", _asked("query", "", "response"), ("history",)),
    Form(("instruction", "output"), "Alpaca, LLaMA-Factory", _asked("instruction", "input", "output"), ("input", "history")),
    Form(("instruction", "chosen", "rejected"), "LLaMA-Factory (dpo)", _asked("instruction", "input", "output"), ("input", "history")),
    Form(("chosen", "rejected"), "TRL (dpo, the prompt within both)", _two_dialogs("chosen", "rejected")),
    Form(("real", "generated"), "SPIN", _two_dialogs("real", "generated")),
    Form(("prompt",), "TRL (grpo)", _prompt_completion),
    Form(("query",), "ms-swift (grpo)", _asked("query", "", "response"), ("history",)),
)  # fmt: skip
_OF_FORMS = {column for form in FORMS for column in (*form.columns, *form.more)} - {
    "input",
    "output",
    "chosen",
    "rejected",
}
# Columns that must say nothing, with what they ask for. An empty value, and one that asks for what happens anyway, is fine.
REFUSED = {
    "tools": "definitions of tools",
    "functions": "definitions of tools",
    "audio": "sound",
    "audios": "sound",
    "rejected_messages": "a rejected conversation; give 'rejected' as the text of its last answer",
    "rejected_images": "other pictures for the rejected answer",
    "positive_messages": "pairs of texts for embeddings",
    "negative_messages": "pairs of texts for embeddings",
    "input_ids": "tokens in place of text",
    "assistant_masks": "a mask of tokens",
    "completion_mask": "a mask of tokens",
    "chat_template_kwargs": "settings of the chat template",
}
_WEIGHTS = ("loss", "weight", "sample_weight", "loss_weight", "loss_scale")
_JUDGED = ("label", "kto_tag")
SYSTEM = ("system", "system_prompt")
_MARKED = re.compile(r"<image_\d+>")


def read_form(row: dict[str, Any], where: str, media: Media) -> tuple[list[Turn], dict[str, Any], Form]:
    """(turns, columns that are left, form) of a row without its nulls; pictures that the turns name join `media`. Raises BadRow
    for a row of no form, of two forms that disagree, and for a column that asks for something that is not offered."""
    possible = [form for form in FORMS if row.keys() >= set(form.columns)]
    # Where no form says anything, the row is bad for that reason.
    says = (form for form in possible if not all(is_empty(row[column]) for column in form.columns))
    form = next(says, possible[0] if possible else None)
    if form is None:
        forms = "; ".join(f"{form.name} ({form.tools})" for form in FORMS[:6])
        problem = f"no column that holds a conversation, among {shown(', '.join(map(str, row)) or 'none')}"
        raise BadRow("missing_field", where, problem, f"A row has the columns of one form: {forms}; see docs/data.md")
    _check_columns(row, where)
    turns = form.read(row, where, media)
    own = {*form.columns, *form.more}
    said = {turn.text.strip() for turn in turns}
    for column in sorted((_OF_FORMS - own) & row.keys()):
        # Some data sets repeat the question in a column of its own.
        again = isinstance(row[column], str) and row[column].strip() in said
        if isinstance(row[column], str | list | dict) and not is_empty(row[column]) and not again:
            problem = f"the row has a conversation in {form.name!r} and another text in {column!r}"
            raise BadRow("two_forms", where, problem, "Keep one of them, or rename the column")
    turns = _with_system(row, turns, where)
    turns = _with_mask(row, turns, where)
    used = (own | _OF_FORMS | {*SYSTEM, "loss_mask", "rejected_response"}) - {"chosen", "rejected"}
    columns = {key: value for key, value in row.items() if key not in used}
    return turns, columns | _pair(row, turns, where), form


def _check_columns(row: dict[str, Any], where: str) -> None:
    """Raises BadRow for a column that asks for something that is not offered."""
    for column, what in REFUSED.items():
        # LLaMA-Factory and ms-swift write tools as a text of JSON.
        if not is_empty(row.get(column)) and row[column] not in ("[]", "{}"):
            raise refuse(column, what, where)
    for column in _WEIGHTS:
        value = row.get(column)
        if isinstance(value, bool | int | float) and value != 1:
            raise refuse(
                column, f"a weight of {shown(value)} of the whole row", where, "Take the row out, or rename the column"
            )
    for column in _JUDGED:
        if row.get(column) is False:
            raise refuse(column, "unlearning a bad answer (KTO)", where)
    objects = row.get("objects")
    if isinstance(objects, dict) and any(not is_empty(objects.get(key)) for key in ("ref", "bbox")):
        way_out = (
            "Write the boxes into the texts as the model's own format has them, in place of <bbox> and <ref-object>"
        )
        raise refuse("objects", "boxes in the model's own format", where, way_out)


def _with_system(row: dict[str, Any], turns: list[Turn], where: str) -> list[Turn]:
    """The turns after the text of a `system` column."""
    for column in SYSTEM:
        text = row.get(column)
        if is_empty(text):
            continue
        if not isinstance(text, str):
            raise BadRow("missing_field", where, f"{column!r} must be a text, this is {shown(text)}", "Fix the row")
        first = turns[0] if turns and turns[0].role == "system" else None
        if first and first.text.strip() != text.strip():
            problem = f"the row has a system turn and another text in {column!r}"
            raise BadRow("two_forms", where, problem, "Keep one of them")
        if not first:
            turns = [Turn("system", split_placeholders(text)), *turns]
    return turns


def _with_mask(row: dict[str, Any], turns: list[Turn], where: str) -> list[Turn]:
    """The turns with what `loss_mask` (LLaMA-Factory), a number for each turn, says of them."""
    mask = row.get("loss_mask")
    if is_empty(mask):
        return turns
    # A system turn of its own column is not counted there.
    skipped = int(isinstance(mask, list) and len(mask) == len(turns) - 1 and turns[0].role == "system")
    if not isinstance(mask, list) or len(mask) != len(turns) - skipped:
        raise refuse("loss_mask", f"something else than 0 or 1 for each of {len(turns)} turns", where)
    flags = [False] * skipped + [as_flag("loss_mask", value, where) for value in mask]
    if any(flag and turn.role != "assistant" for flag, turn in zip(flags, turns, strict=True)):
        raise refuse("loss_mask", "learning the words of the user", where, "Set it to 0: answers are learned")
    return [
        dataclasses.replace(turn, learned=turn.learned and flag) if turn.role == "assistant" else turn
        for turn, flag in zip(turns, flags, strict=True)
    ]


def _pair(row: dict[str, Any], turns: list[Turn], where: str) -> dict[str, Any]:
    """`chosen` and `rejected` as texts, where they are messages; ms-swift calls the second `rejected_response`, SPIN `generated`."""
    before = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    if "real" in row and isinstance(row.get("generated"), list):
        return {
            side: answer_of(row, column, before, where)
            for side, column in (("chosen", "real"), ("rejected", "generated"))
        }
    found = {}
    for side in ("chosen", "rejected"):
        if isinstance(row.get(side), dict | list) and not is_empty(row[side]):
            found[side] = answer_of(row, side, before, where)
    if not is_empty(row.get("rejected_response")):
        found["rejected"] = answer_of(row, "rejected_response", before, where)
        if row.get("rejected", found["rejected"]) != found["rejected"]:
            problem = "the row has another text in 'rejected' than in 'rejected_response'"
            raise BadRow("two_forms", where, problem, "Keep one of them")
    return found


def answer_of(row: dict[str, Any], side: str, before: list[Turn], where: str) -> str:
    """The answer in a column: a text, a message, or messages that end with it after the turns `before`. Raises BadRow."""
    value = row[side]
    if isinstance(value, str):
        return value
    turns = _turns(value if isinstance(value, list) else [value], side, where, [])
    last = turns[-1] if turns else None
    if last is None or last.role != "assistant" or not last.learned or last.text != "".join(last.parts):
        problem = f"{side!r} must end with an answer of the assistant in words, which is learned"
        raise BadRow("missing_field", where, problem, "Fix the row")
    if len(turns) > 1 and [(turn.role, turn.text) for turn in turns[:-1]] != [
        (turn.role, turn.text) for turn in before
    ]:
        problem = f"the turns of {side!r} before its answer are not those of the row"
        raise BadRow("two_forms", where, problem, "Give the answer alone, or the same turns before it")
    return last.text


def number_pictures(row: dict[str, Any], where: str) -> dict[str, Any]:
    """MiniCPM-V's `{"image": {"<image_00>": path, ...}}` as a list of pictures, its marks in the texts as <image>."""
    paths = row.get("image")
    if not isinstance(paths, dict) or not paths or not all(_MARKED.fullmatch(str(mark)) for mark in paths):
        return row
    order: list[Any] = []

    def mark(found: re.Match) -> str:
        if found[0] not in paths:
            raise BadRow("image_count", where, f"the text marks {found[0]}, which the row does not give", "Fix the row")
        order.append(paths[found[0]])
        return IMAGE

    def write(value: Any) -> Any:
        if isinstance(value, str):
            return _MARKED.sub(mark, value)
        if isinstance(value, list):
            return [write(item) for item in value]
        return {key: write(item) for key, item in value.items()} if isinstance(value, dict) else value

    turns = {key: write(row[key]) for key in ("conversations", "messages") if key in row}
    # A picture that no text marks makes the counts differ.
    unused = [path for mark_, path in paths.items() if path not in order]
    return row | turns | {"image": [*order, *unused]}


def place_pictures(turns: list[Turn], images: int, videos: int) -> list[Turn]:
    """The turns with the pictures of a row without marks before the first words of the user."""
    if any(part in (IMAGE, VIDEO) for turn in turns for part in turn.parts):
        return turns
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns
    marks = (VIDEO,) * videos + (IMAGE,) * images
    placed = dataclasses.replace(turns[first], parts=marks + turns[first].parts)
    return [*turns[:first], placed, *turns[first + 1 :]]
