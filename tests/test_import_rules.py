"""Imports go down only, heavy ones happen where they are needed, and every --help is instant: checked from the source."""

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "drive_vlm"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted(
    path for path in (ROOT / "tools").rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()
)  # the rest are parts of one
HEAVY = {
    "torch",
    "transformers",
    "deepspeed",
    "open_clip",
    "matplotlib",
    "scipy",
    "av",
    "openai",
    "peft",
    "trl",
    "sklearn",
    "ultralytics",
}
# The floors of design.md, top down: a room imports rooms of lower floors, and of its own floor only itself.
FLOORS = (
    {"__main__"},
    {"plan", "rounds", "merge", "reproduce", "doctor"},
    {"stages"},
    {"generate", "builders", "rewards", "report"},
    {"judges", "clip"},
    {"sampling", "evaluation"},
    {"data"},
    {"models", "launch"},
    {"store", "config"},
    {"_torchvision_cpu"},
)
# drive_vlm/__init__.py installs the import hook and holds the version, which every floor may read.
FLOOR_OF = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms} | {"__init__": 1.5}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, top_level_only: bool = False) -> Iterator[str]:
    """Full names of what the source imports; with `top_level_only` not what functions or TYPE_CHECKING blocks import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))) or (
            top_level_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        else:
            yield from imported(node, top_level_only)


def named_in_literals(tree: ast.AST) -> Iterator[str]:
    """Modules named as "drive_vlm.x.y:function" in a literal dict: imported when they are called."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("drive_vlm.")
            and ":" in node.value
        ):
            yield node.value.split(":")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    tree, room = tree_of(path), part_of(path)
    assert room in FLOOR_OF, f"drive_vlm/{room} is new: give it a floor here and in the design"
    for name in [*imported(tree), *named_in_literals(tree)]:
        parts = name.split(".")
        assert parts[0] not in ("tools", "tests"), f"{path.relative_to(ROOT)} imports {name}"
        if parts[0] != "drive_vlm" or len(parts) == 1 or parts[1] in ("__version__", room):
            continue
        assert FLOOR_OF[parts[1]] < FLOOR_OF[room], (
            f"{path.relative_to(ROOT)} imports {name}: {room} is on floor {FLOOR_OF[room]}, {parts[1]} on {FLOOR_OF[parts[1]]}"
        )


def test_every_import_of_the_package_names_a_module_that_exists() -> None:
    """mypy passes over a module that is gone (ignore_missing_imports), and an import in a function fails only when it runs."""
    gone = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.module}"
        for folder in ("drive_vlm", "tools", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] == "drive_vlm"
        and node.module not in MODULES
    ]
    assert not gone


def modules_used(path: Path) -> set[str]:
    """Modules of the package that the source of `path` names, wherever: in functions and TYPE_CHECKING blocks too."""
    tree = tree_of(path)
    names = {name for name in [*imported(tree), *named_in_literals(tree)] if name.startswith("drive_vlm")}
    return {name if name in MODULES else name.rsplit(".", 1)[0] for name in names} & MODULES.keys()


def a_circle(uses: dict[str, set[str]]) -> list[str]:
    """The first circle that a walk over `uses` (module -> modules) meets, as the modules on it; [] without one."""
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for used in sorted(uses[name] - {name}):
            if found := walk(used, [*above, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(uses) if (found := walk(name, []))), [])


def test_no_two_modules_import_each_other() -> None:
    found = a_circle({name: modules_used(path) for name, path in MODULES.items() if name != "drive_vlm.__main__"})
    assert not found, "a circle: " + " -> ".join(found)


def test_a_circle_is_found() -> None:
    assert a_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert a_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("part", ["rewards", "evaluation"])
def test_scores_need_no_engine(part: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(tree_of(path))}
        assert not roots & {"deepspeed", "ultralytics"}, path


def test_launch_imports_no_torch() -> None:
    for path in (PACKAGE / "launch").rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(tree_of(path))}
        assert not roots & {"torch", "transformers"}, path


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_tools_import_heavy_things_in_functions_only(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(tree_of(path), top_level_only=True)}
    assert not roots & HEAVY, f"{path.name}: {sorted(roots & HEAVY)} at the top makes --help slow"


# A process that has imported nothing heavy, and forks one that ends with `python WORDS --help` for each line of words it reads. It answers
# with one line: exit code, text, top-level modules.
HELPER = """
import argparse, ast, dataclasses, enum, inspect, io, json, logging, os, pathlib, runpy, shlex, sys, tempfile, typing
sys.path[:0] = ["tools", "tools/bench"]

def show(words):
    module, sys.argv = words[0], words
    run = runpy.run_path if module.endswith(".py") else runpy.run_module
    try:
        run(module, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0

for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as text, tempfile.TemporaryFile("w+") as found:
        if not (pid := os.fork()):
            os.dup2(text.fileno(), 1)
            os.dup2(text.fileno(), 2)
            code = show([*json.loads(line), "--help"])
            sys.stdout.flush()
            json.dump([code, sorted({name.split(".")[0] for name in sys.modules})], found)
            found.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        for file in (text, found):
            file.seek(0)
        print(json.dumps([text.read(), found.read()]), flush=True)
"""


@pytest.fixture(scope="module")
def helper() -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {"FRESH_PYTHON": "1"}
    words = [sys.executable, "-c", HELPER]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def loaded_by(helper: subprocess.Popen[str], words: list[object]) -> set[str]:
    """Top-level modules loaded by `python WORDS --help` at its end."""
    assert helper.stdin is not None and helper.stdout is not None
    helper.stdin.write(json.dumps([str(word) for word in words]) + "\n")
    helper.stdin.flush()
    text, found = json.loads(helper.stdout.readline())
    assert found and "usage" in text.lower(), text[-2000:]
    code, modules = json.loads(found)
    assert code == 0, text[-2000:]
    return set(modules)


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_help_of_a_tool_is_light(path: Path, helper: subprocess.Popen[str]) -> None:
    assert not loaded_by(helper, [path]) & HEAVY


@pytest.mark.parametrize("command", ["sft", "generate", "merge", "reproduce", "doctor", "plan", "report"])
def test_help_of_a_command_is_light(command: str, helper: subprocess.Popen[str]) -> None:
    assert not loaded_by(helper, ["drive_vlm", command]) & HEAVY


def test_the_list_of_commands_needs_neither_torch_nor_yaml(helper: subprocess.Popen[str]) -> None:
    assert not loaded_by(helper, ["drive_vlm"]) & (HEAVY | {"yaml", "numpy", "rich"})


def test_a_heavy_import_is_seen(helper: subprocess.Popen[str], tmp_path: Path) -> None:
    tool = tmp_path / "heavy.py"
    tool.write_text("import scipy\nprint('usage')\n")
    assert loaded_by(helper, [tool]) & HEAVY == {"scipy"}


@pytest.mark.fresh("what it imports is looked at")
def test_import_drive_vlm_is_light(run: Callable) -> None:
    done = run([sys.executable, "-c", "import drive_vlm, sys; print(*sys.modules)"])
    assert not {name.split(".")[0] for name in done.stdout.split()} & (HEAVY | {"yaml", "numpy"})
