"""Which parameters train: freezing by part name, and a table of what is left."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drive_vlm.config import nearest


def freeze(model: Any, parts: Mapping[str, tuple[str, ...]], names: Sequence[str]) -> None:
    """Turn off gradients of the named parts, or of any module path such as `model.language_model.layers.0`.

    Raises ValueError for a name that is neither, and when nothing is left to train.
    """
    modules = {name for name, _ in model.named_modules()}
    for name in names:
        prefixes = parts.get(name) or ((name,) if name in modules else ())
        if not prefixes:
            raise ValueError(
                f"--freeze {name}: no such part. Parts are {', '.join(parts)}, or a module path.{nearest(name, [*parts, *modules])}"
            )
        for prefix in prefixes:
            model.get_submodule(prefix).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(names)}: no parameter is left to train. Leave a part out.")


def count_parameters(model: Any, parts: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, int]]:
    """{part: {"total", "trainable"}}, with "other" for what belongs to no part and "all" for the sum.

    A tensor that two modules share is counted once; a ZeRO-3 shard or a 4-bit weight counts with its full size.
    """
    found = ((part_of(name, parts), parameter_size(p), p.requires_grad) for name, p in model.named_parameters())
    return tally([*((part, 0, False) for part in parts), *found])


def tally(sizes: Iterable[tuple[str, int, bool]]) -> dict[str, dict[str, int]]:
    """{part: {"total", "trainable"}} of (part, elements, whether they train), with "all" for the sum at the end."""
    counts: dict[str, dict[str, int]] = {}
    for part, size, trains in sizes:
        entry = counts.setdefault(part, {"total": 0, "trainable": 0})
        entry["total"] += size
        entry["trainable"] += size * trains
    return counts | {"all": {kind: sum(entry[kind] for entry in counts.values()) for kind in ("total", "trainable")}}


def part_of(name: str, parts: Mapping[str, tuple[str, ...]]) -> str:
    """The part of a parameter by its name, with peft around the model or without; "other" where it belongs to no part."""
    path = name.removeprefix("base_model.model.")
    return next((part for part, paths in parts.items() if path.startswith(tuple(f"{p}." for p in paths))), "other")


def parameter_size(parameter: Any) -> int:
    """Element count of a parameter; for ZeRO-3 shards and 4-bit weights, that of the full tensor."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else getattr(parameter, "ds_numel", parameter.numel())


def parameter_table(counts: dict[str, dict[str, int]]) -> str:
    """The counts as lines of text."""
    lines = [f"{'part':<16}{'parameters':>16}{'trainable':>16}"]
    lines += [f"{name:<16}{c['total']:>16,}{c['trainable']:>16,}" for name, c in counts.items()]
    return "\n".join(lines)
