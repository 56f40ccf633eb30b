"""The wheels of tools/bench/gpu_wheels.sh on the import path, behind what the machine has itself: those that can be imported there."""

import importlib.metadata
import re
import sys
from pathlib import Path

# DeepSpeed asks for it at its installation; it is a program for its compiled operators, and nothing imports it.
_NO_IMPORT = {"ninja"}


def add(folder: Path) -> dict[str, str]:
    """Append the unpacked wheels of `folder` (one folder each) to sys.path; return {package left out: what it lacks}.

    A wheel without all of its requirements stays off the path: transformers imports `datasets` wherever it finds it, and with a
    `datasets` that lacks pyarrow no case would start. Versions are not compared: an upper bound that is passed seldom matters,
    and a case that fails says why.
    """
    from packaging.requirements import Requirement

    found = {wheel: next(iter(importlib.metadata.distributions(path=[str(wheel)])), None) for wheel in _wheels(folder)}
    own = {_plain(one.metadata["Name"]) for one in importlib.metadata.distributions() if one.metadata["Name"]}
    needs: dict[Path, set[str]] = {}
    for wheel, package in found.items():
        lines = [Requirement(line) for line in (package.requires if package else None) or ()]
        asked = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
        needs[wheel] = {_plain(line.name) for line in asked} - _NO_IMPORT
    left_out: dict[str, str] = {}
    usable = {_name(wheel): wheel for wheel in found}
    # What is left out may have been asked for by another: until nothing changes. Named is what is missing at the end of that chain.
    while lacking := {
        name: min(gone) for name, wheel in usable.items() if (gone := needs[wheel] - own - usable.keys())
    }:
        for name, missing in lacking.items():
            left_out[name] = left_out.get(missing, missing)
            del usable[name]
    sys.path += [str(wheel) for wheel in usable.values()]
    return left_out


def _wheels(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _name(wheel: Path) -> str:
    """The package of an unpacked wheel, whose folder is called as the wheel's file is."""
    return _plain(wheel.name.partition("-")[0])


def _plain(name: str) -> str:
    """As packages are compared: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
