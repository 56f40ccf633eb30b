"""Rows that a second `generate` answers: the simulated user's reply to a model's own question back, and the four options of a row.

Both begin with the turns of the row itself, its system turn included, and keep its columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.builders.ambiguity.rows import meant_by_user, said_by_user
from drive_vlm.builders.row_writer import Row
from drive_vlm.evaluation.clarify_choices import LETTERS, gold_place, rotated

AFTER, CHOICE = "after", "choice"
INSTRUCTION = "Answer with the letter of the right option alone."


class NotPossible(ValueError):
    """Why a row has no such follow-up, in words that name the row."""


def after_id(row_id: str) -> str:
    return f"{row_id}-{AFTER}"


def meant_in(row: Mapping[str, Any], seed: int) -> int | None:
    """Number of the candidate that the simulated user means; of a clear row its target. None where there is none."""
    if not row["ambiguous"]:
        return row.get("target")
    return meant_by_user(str(row["id"]), len(row["candidates"]), seed) if row["candidates"] else None


def own_dialogue(row: Mapping[str, Any], back: str, seed: int, where: str) -> Row:
    """The row, a model's question `back` as it was said, and what the user replies: the name of the candidate that he means. Where a
    clear row means none alone he says again what it is about.

    Raises NotPossible for a row without candidates and description.
    """
    meant = meant_in(row, seed)
    name = row["candidates"][meant]["name"] if meant is not None else "" if row["ambiguous"] else row.get("description")
    if not name:
        raise NotPossible(f"{where}: id {row['id']!r} names no candidates, so a user has nothing to reply")
    answer = row["answers"][name] if row["ambiguous"] else row["answer"]
    reply = said_by_user(name)
    turns = [
        {"role": "assistant", "content": back},
        {"role": "user", "content": reply},
        {"role": "assistant", "content": answer},
    ]
    kept = {key: value for key, value in row.items() if key not in ("choices", "gold_choice")}
    more = {"target": meant, "answer": answer, "reply": reply, "back": back, "row": str(row["id"])}
    return kept | more | {"id": after_id(str(row["id"])), "messages": [*_prompt(row, where), *turns]}


def four_choice_rows(row: Mapping[str, Any], where: str) -> list[Row]:
    """The row's question with its options A to D, once for each rotation. Raises NotPossible for a row without four options."""
    options, gold = row.get("choices"), row.get("gold_choice")
    texts = (
        isinstance(options, Sequence)
        and len(options) == len(LETTERS)
        and all(isinstance(item, str) for item in options)
    )
    if not texts or type(gold) is not int or not 0 <= gold < len(LETTERS):
        raise NotPossible(f'{where}: id {row["id"]!r} has no "choices" of four options and "gold_choice" 0 to 3')
    assert options is not None
    *before, asked = _prompt(row, where)
    rows = []
    for rotation in range(len(LETTERS)):
        shown = rotated(options, rotation)
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, shown, strict=True))
        place = gold_place(gold, rotation)
        turns = [
            {"role": "user", "content": f"{asked['content']}\n{listed}\n{INSTRUCTION}"},
            {"role": "assistant", "content": LETTERS[place]},
        ]
        more = {"choices": shown, "gold_choice": place, "rotation": rotation, "row": str(row["id"])}
        rows.append(dict(row) | more | {"id": f"{row['id']}-{CHOICE}{rotation}", "messages": [*before, *turns]})
    return rows


def _prompt(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The turns before the row's own answer, the last by the user. Raises NotPossible for a row of another form."""
    turns = row.get("messages")
    try:
        found = [{"role": turn["role"], "content": turn["content"]} for turn in turns or ()]
    except (TypeError, KeyError):
        found = []
    if found and found[-1]["role"] == "assistant":
        found = found[:-1]
    if not found or found[-1]["role"] != "user" or not isinstance(found[-1]["content"], str):
        raise NotPossible(
            f'{where}: id {row["id"]!r} has no "messages" that end with a question and its answer, as tools/build_ambiguity.py writes'
        )
    return found
