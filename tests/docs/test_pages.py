"""README and docs: links lead somewhere, paths exist, commands use flags that the parsers know, versions agree."""

import importlib.util
import io
import json
import re
import runpy
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, blocks, commands, links

import drive_vlm
from drive_vlm.__main__ import main
from drive_vlm.data.predictions import parse_prediction
from drive_vlm.data.samples import BadRow, parse_row
from drive_vlm.rewards import REWARDS
from drive_vlm.rewards.detections import parse_detections
from drive_vlm.stages import STAGES

# A file of the project in a code span or block; x.sh stands for any recipe, and what runs write is not looked for.
_PATH = re.compile(r"(?<![\w/.*-])((?:recipes|tools|tests|slurm|drive_vlm|ds_configs|constraints|docs)/[\w/.-]+\.(?:sh|py|json|txt|md|yaml|sbatch))\b")  # fmt: skip
_README_LINES = 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    gone = [target for target in links(text) if not (page.parent / target).exists()]
    gone += [path for path in _PATH.findall(text) if not path.endswith("/x.sh") and not (ROOT / path).exists()]
    assert not gone


@cache
def flags_of(command: tuple[str, ...]) -> frozenset[str]:
    """Flags that `--help` of a tool or a command shows, "_" for "-"; asked in this process, since no --help loads torch."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown), suppress(SystemExit):
        is_tool = command[0].endswith(".py")
        patch.setattr(sys, "argv", [*command, "--help"] if is_tool else ["drive_vlm", *command, "--help"])
        if is_tool:
            patch.syspath_prepend(str((ROOT / command[0]).parent))
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        else:
            main()
    return frozenset(flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w-]*)", shown.getvalue()))


@cache
def training_flags() -> frozenset[str]:
    """Fields of transformers' and TRL's arguments, from their source: training commands take them as well."""
    names: set[str] = set()
    for package, pattern in (("transformers", "training_args.py"), ("trl", "trainer/*_config.py")):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        for path in Path(spec.submodule_search_locations[0]).glob(pattern):
            names |= set(re.findall(r"^    (\w+): ", path.read_text(), re.MULTILINE))
    return frozenset(names)


def unknown_flags(words: list[str]) -> list[str]:
    """Flags of one command that its parser does not know."""
    rest = words[3:] if words[1] == "-m" else words[1:]
    if not rest or rest[0].startswith("-"):
        return []
    size = 2 if rest[0] == "plan" and len(rest) > 1 else 1
    if not any(word.startswith("--") for word in rest[size:]):
        return []  # what takes no flags may know no --help either, and would run
    named = rest[rest.index("--rewards") + 1 :] if "--rewards" in rest else []
    rewards = [word for word in takewhile(lambda word: not word.startswith("--"), named) if word in REWARDS]
    asked = (*rest[:size], *(("--rewards", *rewards) if rewards else ()))
    known = flags_of(asked) | (training_flags() if set(rest[:size]) & STAGES.keys() else set())
    given = [word.partition("=")[0][2:].replace("-", "_") for word in rest[size:] if word.startswith("--")]
    return [flag for flag in given if flag not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_use_flags_that_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wrong = {" ".join(words): bad for words in commands(page.read_text()) if (bad := unknown_flags(words))}
    assert not wrong


def test_the_commands_are_found() -> None:
    """A page whose blocks nobody reads would pass every test."""
    found = [words for page in PAGES for words in commands(page.read_text())]
    assert len(found) > 50
    assert unknown_flags(["python", "tools/check_data.py", "--dtaa", "x"]) == ["dtaa"]
    assert unknown_flags(["python", "-m", "drive_vlm", "sft", "--learning_rate", "1", "--pakcing"]) == ["pakcing"]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= _README_LINES


def test_versions_and_licenses_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == drive_vlm.__version__
    assert cited["cff-version"] == "1.2.0" and cited["authors"] and cited["title"] == "drive-vlm"
    assert f'license_expression="{cited["license"]}"' in (ROOT / "setup.py").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"## {drive_vlm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# --- docs/data.md


def examples(note: str) -> list[dict]:
    found = blocks((ROOT / "docs" / "data.md").read_text(), "json")
    return [json.loads(line) for mark, text in found if mark.strip() == note for line in text.splitlines()]


def test_rows_of_the_data_page_are_read() -> None:
    rows = examples("row")
    assert len(rows) >= 6
    for row in rows:
        assert parse_row(row, "page", "root").reference
    assert [parse_prediction(row, "page", True).id for row in examples("prediction")] == ["1"]
    assert [parse_detections(row, "page").video for row in examples("detections")] == ["clips/0001.mp4"]


def test_rows_that_the_data_page_calls_refused_are_refused() -> None:
    """The examples of the table, each with a reason of its line; a reason of the source that the page lacks fails too."""
    text = (ROOT / "docs" / "data.md").read_text()
    table = [line.split(" | ") for line in text.splitlines() if re.match(r"\| `\w+`[,`\w ]* \| ", line)]
    for reasons, _, example in ((line[0], line[1], line[2]) for line in table if len(line) > 2 and "{" in line[2]):
        row = example.strip(" |").strip("`")
        if row.endswith("}"):
            with pytest.raises(BadRow) as stopped:
                parse_row(json.loads(row), "page", "root")
            assert stopped.value.reason in re.findall(r"`(\w+)`", reasons)
    raised = {
        reason
        for folder in ("drive_vlm", "tools")
        for path in (ROOT / folder).rglob("*.py")
        for reason in re.findall(r'BadRow\(\s*"([a-z_0-9]+)",', path.read_text())
    }
    assert len(raised) > 20 and raised <= set(re.findall(r"`(\w+)`", " ".join(line[0] for line in table)))
