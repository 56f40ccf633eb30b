"""Which parameters train: freezing by part name, and a table of what is left."""

import math
from collections.abc import Mapping, Sequence
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
    counts = {name: {"total": 0, "trainable": 0} for name in [*parts, "other", "all"]}
    for path, parameter in model.named_parameters():
        path = path.removeprefix("base_model.model.")  # peft
        part = next(
            (name for name, prefixes in parts.items() if path.startswith(tuple(p + "." for p in prefixes))), "other"
        )
        size = parameter_size(parameter)
        for name in (part, "all"):
            counts[name]["total"] += size
            counts[name]["trainable"] += size if parameter.requires_grad else 0
    if not counts["other"]["total"]:
        del counts["other"]
    return counts


def parameter_size(parameter: Any) -> int:
    """Element count of a parameter; for ZeRO-3 shards and 4-bit weights, that of the full tensor."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else getattr(parameter, "ds_numel", parameter.numel())


def parameter_table(counts: dict[str, dict[str, int]]) -> str:
    """The counts as lines of text."""
    lines = [f"{'part':<16}{'parameters':>16}{'trainable':>16}"]
    lines += [f"{name:<16}{c['total']:>16,}{c['trainable']:>16,}" for name, c in counts.items()]
    return "\n".join(lines)
