"""Small JSON files of a run, read against the form that they were written in: what is damaged is named by file and field.

* read_object    a file that holds one JSON object
* read_dataclass the same, as the dataclass that says its fields and their types
* made           an object inside such a file, as its dataclass
* part           one field of an object, "a.b.c", of a type
* check_fields   some fields of an object, as a TypedDict says them; others may be there as well
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from drive_vlm.store.cache import read_json

Form = TypeVar("Form")
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def read_object(path: Path, way_out: str = "") -> dict[str, Any]:
    """Raises ValueError `path: problem. way_out` where the file cannot be read, or holds anything but one JSON object."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {way_out}".strip()) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {_problem('its content', 'an object', content)}. {way_out}".strip())
    return content


def read_dataclass(path: Path, form: type[Form], way_out: str = "") -> Form:
    """The file as the dataclass `form`. Raises ValueError `path: field problem. way_out`, also for a field that is missing or
    that the form does not know."""
    content = read_object(path, way_out)
    try:
        return _made(content, form, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {way_out}".strip()) from error


def made(content: Any, form: type[Form], path: Path, name: str, way_out: str = "") -> Form:
    """The object `name` of a file as the dataclass `form`. Raises ValueError as read_dataclass."""
    try:
        return _made(_checked(content, dict, name), form, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {way_out}".strip()) from error


def part(content: Any, name: str, kind: Any, path: Path, way_out: str = "") -> Any:
    """The field `name` ("a.b.c") of an object that `path` holds. Raises ValueError as read_dataclass."""
    found, at = content, ""
    try:
        for word in name.split("."):
            if not isinstance(found, dict):
                raise ValueError(_problem(at or "its content", "an object", found))
            at = f"{at}.{word}" if at else word
            if word not in found:
                raise ValueError(f"{at} is missing")
            found = found[word]
        return _checked(found, kind, at)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {way_out}".strip()) from error


def check_fields(content: Any, form: type) -> None:
    """Raises ValueError `field problem` unless `content` is an object that has the fields of the TypedDict `form`, with their types."""
    content = _checked(content, dict, "its content")
    if missing := sorted(typing.cast("Any", form).__required_keys__ - content.keys()):
        raise ValueError(f"{missing[0]} is missing")
    for name, kind in typing.get_type_hints(form).items():
        if name in content:
            _checked(content[name], kind, name)


def _made(content: dict[str, Any], form: type[Form], name: str) -> Form:
    hints, given = typing.get_type_hints(form), {}
    fields: Any = dataclasses.fields(typing.cast("Any", form))
    if unknown := sorted(content.keys() - {field.name for field in fields}):
        raise ValueError(f"{_join(name, unknown[0])} is no field of it")
    for field in fields:
        if field.name in content:
            given[field.name] = _checked(content[field.name], hints[field.name], _join(name, field.name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_join(name, field.name)} is missing")
    return form(**given)


def _checked(value: Any, kind: Any, name: str) -> Any:
    """`value` where it is of the type `kind`. Raises ValueError `name must be ..., got ...`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(one for one in arguments if one is not type(None)), name)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(_problem(name, f"one of {', '.join(map(repr, arguments))}", value))
        return value
    if dataclasses.is_dataclass(kind):
        return _made(_checked(value, dict, name), typing.cast("type", kind), name)
    plain = origin or kind
    # A bool is an int to Python.
    fits = isinstance(value, (int, float) if plain is float else plain) and (
        plain is bool or not isinstance(value, bool)
    )
    if not fits:
        raise ValueError(_problem(name, _NAMES[plain], value))
    if plain is list and arguments:
        return [_checked(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(value)]
    if plain is dict and arguments:
        return {key: _checked(item, arguments[1], _join(name, key)) for key, item in value.items()}
    return value


def _problem(name: str, wanted: str, value: Any) -> str:
    shown = repr(value)
    return f"{name} must be {wanted}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field
