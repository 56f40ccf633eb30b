"""LLaMA-Factory's dataset_info.json: which files are data sets, and what their columns and roles are called."""

import dataclasses
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest

_HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_NOT_OFFERED = ("num_samples", "subset", "split", "folder")
_KEYS = {"file_name", "formatting", "ranking", "columns", "tags", *_HUBS, *_NOT_OFFERED}
# LLaMA-Factory's name of a column -> the name that forms.py knows.
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_SHARED = ("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag")
# A tag of a role -> the role, and the value that it has by default.
_ROLES = {
    "user_tag": ("human", "human"),
    "assistant_tag": ("gpt", "gpt"),
    "observation_tag": ("observation", "observation"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}


@dataclasses.dataclass(frozen=True)
class Renaming:
    """Rows of one data set under the names that forms.py knows.

    Attributes:
        columns: name in the file -> name that is read.
        role, text: keys of a turn.
        roles: role in the file -> role that is read; None leaves turns as they are.
    """

    columns: dict[str, str]
    role: str = "from"
    text: str = "value"
    roles: dict[str, str] | None = None

    def __call__(self, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        moved = {new: row[old] for old, new in self.columns.items() if old in row}
        row = {key: value for key, value in row.items() if key not in self.columns} | moved
        if self.roles is not None:
            row |= {key: self._turns(row[key]) for key in ("conversations", "chosen", "rejected") if key in row}
        return row

    def _turns(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._turns(item) for item in value]
        if not isinstance(value, dict) or not {self.role, self.text} <= value.keys():
            return value
        assert self.roles is not None
        rest = {key: item for key, item in value.items() if key not in (self.role, self.text)}
        role = value[self.role]
        return {"from": self.roles.get(role, role) if isinstance(role, str) else role, "value": value[self.text]} | rest


def is_dataset_info(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a dataset_info.json: every entry names a file or a place on a hub."""
    entries = list(content.values())
    return bool(entries) and all(
        isinstance(e, dict) and ("file_name" in e or any(k in e for k in _HUBS)) for e in entries
    )


def read_entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[Path, Renaming]:
    """(file or folder, names) of an entry of the dataset_info.json at `path`. Raises ValueError for what is not offered."""
    where = f"{path}: entry {name!r}"
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{where} has the unknown key {key!r}.{nearest(key, _KEYS)}")
    if not isinstance(entry.get("file_name"), str):
        raise ValueError(
            f"{where} is on a hub and not on this disk. Download it and give its folder, or take the entry out."
        )
    if asked := next((key for key in _NOT_OFFERED if entry.get(key) is not None), None):
        raise ValueError(f"{where} asks for {asked}, which is not offered. Write the rows that you mean to a file.")
    columns, tags, formatting = entry.get("columns") or {}, entry.get("tags") or {}, entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise ValueError(f"{where} has the formatting {formatting!r}; known are alpaca, sharegpt and openai.")
    if not all(isinstance(part, dict) and all(isinstance(v, str) for v in part.values()) for part in (columns, tags)):
        raise ValueError(f"{where}: columns and tags must be objects with texts.")
    known = {key: key for key in _SHARED} | (_ALPACA if formatting == "alpaca" else {"messages": "conversations"})
    if unknown := sorted(columns.keys() - known.keys()):
        raise ValueError(f"{where} names the unknown column {unknown[0]!r}.{nearest(unknown[0], known)}")
    renamed = {own: known[key] for key, own in columns.items()}
    if formatting == "alpaca":
        return path.parent / entry["file_name"], Renaming(renamed)
    chat = formatting == "openai"
    roles = {tags.get(tag, default): role for tag, (role, default) in _ROLES.items()}
    if chat:
        roles = {"user": "human", "assistant": "gpt"} | roles
    role, text = (
        tags.get("role_tag", "role" if chat else "from"),
        tags.get("content_tag", "content" if chat else "value"),
    )
    return path.parent / entry["file_name"], Renaming(renamed, role, text, roles)
