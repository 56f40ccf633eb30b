"""One owner for each default: flags follow dataclass fields; wrong flags are answered with the nearest known name."""

import dataclasses
import enum
import importlib.util
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from drive_vlm.config import (
    _RENAMED,
    CommandParser,
    DataConfig,
    ModelConfig,
    RunConfig,
    add_dataclass,
    field,
    from_namespace,
    nearest,
    plain,
    run_tool,
    user_errors,
)
from drive_vlm.plan.flags import PlanConfig
from drive_vlm.stages import STAGES

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@dataclasses.dataclass
class Example:
    """One field of each kind."""

    path: str = field(help="a file")
    count: int = field(3, help="how many, 100 % of them")
    rate: float | None = field(None, help="may stay unset")
    flag: bool = field(False, help="on or off")
    names: list[str] = field(["a"], help="several")
    numbers: list[int] = field([], help="several numbers")
    mode: str = field("slow", help="one of two", choices=("slow", "fast"))
    kind: Literal["x", "y"] = field("x", help="one of two")
    hidden: int = 7


def parse(*words: str) -> Example:
    parser = CommandParser(prog="example", examples="example --path p")
    add_dataclass(parser, Example)
    return from_namespace(Example, parser.parse_args(list(words)))


def test_defaults_are_those_of_the_fields() -> None:
    assert parse("--path", "p") == Example("p") and parse("--path", "p").names is not parse("--path", "p").names


def test_every_kind_of_flag() -> None:
    words = "--path p --count 4 --rate 0.5 --flag --names b c --numbers 1 2 --mode fast --kind y"
    assert parse(*words.split()) == Example("p", 4, 0.5, True, ["b", "c"], [1, 2], "fast", "y")


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False), ("no", False)]
)
def test_booleans(word: str, value: bool) -> None:
    assert parse("--path", "p", "--flag", word).flag is value


def test_dashes_and_equals_signs() -> None:
    parser = CommandParser()
    parser.add_argument("--max_length", type=int)
    assert parser.parse_args(["--max-length=5"]).max_length == parser.parse_args(["--max_length", "5"]).max_length == 5


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--path", "p", "--cuont", "3"], "unknown argument --cuont. Did you mean --count?"),
        (["--path", "p", "--coun", "3"], "unknown argument --coun. Did you mean --count?"),  # no abbreviations
        (["--path", "p", "--zzzzzz"], "unknown argument --zzzzzz.\n"),
        (["--path", "p", "--flag", "maybe"], "expected true or false, got 'maybe'"),
        (["--path", "p", "--mode", "medium"], "invalid choice: 'medium'"),
        (["--path", "p", "--kind", "z"], "invalid choice: 'z'"),
        ([], "required: --path"),
    ],
)
def test_wrong_flags(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2 and problem in capsys.readouterr().err


def test_help_shows_defaults_choices_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "how many, 100 % of them (default: 3)" in text and "{slow,fast}" in text
    assert "examples:\n  example --path p" in text and "default: None" not in text and "default: []" not in text
    assert "--hidden" not in text


def test_the_shared_dataclasses_make_one_command_line() -> None:
    parser = CommandParser()
    for cls in (ModelConfig, DataConfig, RunConfig):
        add_dataclass(parser, cls)
        for item in dataclasses.fields(cls):
            assert len(item.metadata["help"]) > 10
    namespace = parser.parse_args(["--model", "m", "--data", "a", "b", "--freeze", "vision_tower"])
    assert from_namespace(ModelConfig, namespace) == ModelConfig(model="m", freeze=["vision_tower"])
    assert from_namespace(DataConfig, namespace) == DataConfig(data=["a", "b"])
    assert from_namespace(RunConfig, namespace) == RunConfig()


def test_nearest() -> None:
    assert nearest("vision_towr", ["projector", "vision_tower"]) == " Did you mean vision_tower?"
    assert nearest("zzz", ["projector"]) == ""


# Where a name that has moved on for one thing stands for another one.
STILL = {
    "weights": {"cache_detections"}, "scenes": {"build_synthetic"}, "language": {"build_codalm"}, "max_frames": {"build_siglip_qwen", "build_tiny_model"},
    "held_out": {"build_bdd_captions", "rounds", "synth_gate"}, "reference": {"dpo", "spin"}, "rows": {"plan"}, "steps": {"synthesize"},
}  # fmt: skip


def test_a_thing_has_one_name_in_every_tool_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old names are gone, and are answered with the new ones."""
    assert nearest("--videos", ["--image_root", "--video"]) == " Did you mean --image_root?"
    assert nearest("prompts", ["teacher_prompts"]) == " Did you mean teacher_prompts?"
    found: dict[str, set[str]] = {}
    # Tools import yolo_detector from their own folder.
    monkeypatch.syspath_prepend(TOOLS)
    for path in sorted(TOOLS.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"tool_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # A dataclass looks its module up there.
        monkeypatch.setitem(sys.modules, f"tool_{path.stem}", module)
        spec.loader.exec_module(module)
        if make := getattr(module, "make_parser", None):
            found[path.stem] = {action.dest for action in make()._actions}
    for name, stage in STAGES.items():
        words = ["--rewards", "physics"] if stage.kind == "prompts" else []
        found[name] = {item.name for cls in stage.config_classes(words) for item in dataclasses.fields(cls)}
    found["plan"] = {item.name for item in dataclasses.fields(PlanConfig)}
    assert len(found) > 20
    for old, new in _RENAMED.items():
        there = {tool for tool, flags in found.items() if old in flags} if old != "out" else set()
        assert there == STILL.get(old, set()), old
        assert any(one in flags for one in new.split() for flags in found.values()), new
    for tool in ("clip_eval", "video_eval", "compare_stages", "build_bdd_captions", "build_drivelm", "build_codalm", "judge_arena", "sft"):  # fmt: skip
        assert "image_root" in found[tool]


def test_plain_is_what_json_can_hold() -> None:
    class Colour(enum.Enum):
        RED = "red"

    value: Any = {"a": Example("p"), 2: (Path("x"), Colour.RED, {1}), "none": None, "type": 1.5}
    shown = plain(value)
    assert (
        shown["a"]["names"] == ["a"]
        and shown["2"] == ["x", "red", [1]]
        and shown["none"] is None
        and shown["type"] == 1.5
    )


def test_numbers_outside_their_range_are_refused(capsys):
    """Zero frames would train and answer blind, without a word."""
    from drive_vlm.generate.config import GenerateConfig

    def told(cls, *words):
        parser = CommandParser(prog="x")
        add_dataclass(parser, cls)
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(["--data", "d", *words])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "--num_frames: must be at least 1, got 0" in told(DataConfig, "--num_frames", "0")
    assert "--num_frames: must be at least 1, got -3" in told(GenerateConfig, "--out", "o", "--num_frames", "-3")
    assert "--num_frames: invalid int value: 'x'" in told(DataConfig, "--num_frames", "x")
    for flag, value in (("top_p", "2"), ("temperature", "-1"), ("temperature", "nan"), ("batch_size", "0")):
        assert f"--{flag}: must be at" in told(GenerateConfig, "--out", "o", f"--{flag}", value)


def test_the_tail_of_a_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Result to --json and to `show`, whose answer is the exit status; a ValueError is one line, also one of another rank."""

    def tool(run: Any, show: Any = None) -> Any:
        parser = CommandParser(prog="python tools/x.py")
        parser.add_argument("--json")
        monkeypatch.setattr("sys.argv", ["x.py", "--json", str(tmp_path / "new" / "out.json")])
        try:
            run_tool(parser, run, show)
        except SystemExit as stopped:
            return stopped.code
        return 0

    def fails(args: Any) -> None:
        raise ValueError("rows.jsonl:3: no answer. Fix it.")

    assert tool(lambda args: {"path": Path("ü")}, lambda result, args: print(result["path"], args.json)) == 0
    assert (tmp_path / "new" / "out.json").read_text() == '{\n  "path": "ü"\n}\n'
    assert capsys.readouterr().out == f"ü {tmp_path}/new/out.json\n"
    assert tool(lambda args: {}, lambda result, args: "not every claim holds") == "not every claim holds"
    assert tool(lambda args: None, lambda result, args: 1 / 0) == 0
    assert tool(fails) == 2
    assert capsys.readouterr().err == "python tools/x.py: error: rows.jsonl:3: no answer. Fix it.\n"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("drive_vlm.config._HEAD_START", 0.01)
    assert tool(fails) == 2
    assert capsys.readouterr().err == "python tools/x.py: error: rank 1: rows.jsonl:3: no answer. Fix it.\n"
    with pytest.raises(SystemExit), user_errors("x", main_only=True):
        fails(None)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("WORLD_SIZE")
    assert tool(fails) == 2 and "no answer" in capsys.readouterr().err


def test_a_flag_with_a_default_is_typed_by_it(capsys):
    parser = CommandParser(prog="example")
    parser.flag("--rate", 0.5, "of 90% at most")
    parser.flag("--mode", ("slow", "fast"), "how")
    parser.flag("--quiet", False, "say nothing")
    assert vars(parser.parse_args([])) == {"rate": 0.5, "mode": "slow", "quiet": False}
    assert vars(parser.parse_args(["--rate", "1", "--mode", "fast", "--quiet"])) == {
        "rate": 1.0,
        "mode": "fast",
        "quiet": True,
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "of 90% at most (default: 0.5)" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "-1", "1e30", "0", "4294967296", "2147483648"])
def test_no_number_is_absurd(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a field, in `flag` and in add_argument: finite, not negative, a count of at least 1, a seed of 32 bits."""

    def told(*words: str) -> str:
        parser = CommandParser(prog="example")
        add_dataclass(parser, Example)
        parser.flag("--share", 0.5, "a number")
        parser.flag("--workers", 4, "a count")
        parser.flag("--preview", 3, "none at 0", least=0)
        parser.flag("--seed", 0, "of all")
        parser.add_argument("--weights", nargs=2, type=float)
        parser.add_argument("--rows", type=int)
        try:
            parser.parse_args(["--path", "p", *words])
        except SystemExit as stopped:
            assert stopped.code == 2
            return capsys.readouterr().err
        return ""

    finite, whole = word in ("0", "4294967296", "2147483648"), word.lstrip("-").isdigit()
    for flag in ("--rate", "--share", "--weights=0.5"):
        text = told(*flag.split("=")[:1], *flag.split("=")[1:], word)
        assert (not text) == finite and (finite or flag.split("=")[0] in text), (flag, text)
    for flag, taken in (
        ("--count", ()),
        ("--workers", ()),
        ("--preview", ("0",)),
        ("--rows", ("0",)),
        ("--seed", ("0", "2147483648")),
    ):
        text = told(flag, word)
        assert (not text) == (word in taken) and (word in taken or flag in text), (flag, text)
        assert "invalid int value" in text or whole or text.count("expected one argument")


def test_every_default_is_in_its_own_range() -> None:
    """Of every stage and of the commands whose flags are dataclasses."""
    from drive_vlm.config import _in_range
    from drive_vlm.generate.config import GenerateConfig
    from drive_vlm.judges.judge import JudgeConfig
    from drive_vlm.plan.flags import PlanConfig
    from drive_vlm.stages import STAGES

    configs = {cls for stage in STAGES.values() for cls in stage.config_classes([])} | {
        GenerateConfig,
        JudgeConfig,
        PlanConfig,
    }
    for cls in configs:
        for item in dataclasses.fields(cls):
            if type(item.default) in (int, float):
                number = _in_range(type(item.default), item.name, item.default, *item.metadata["range"])
                assert number(str(item.default)) == item.default, (cls, item.name)


def test_a_quoted_value_that_begins_with_dashes_keeps_its_words() -> None:
    """`--reward_flags "--clip_model a-b --clip_text whole"`: hyphens of a flag are underscores, those of a value are not."""
    parser = CommandParser(prog="x")
    parser.add_argument("--reward_flags")
    words = "--clip_model a-b --clip_text whole"
    assert parser.parse_args([f"--reward-flags={words}"]).reward_flags == words
    assert parser.parse_args(["--reward-flags", words]).reward_flags == words


@pytest.mark.parametrize(("given", "problem"), [("", "'' names no file"), (".", "is a folder; name a file")])
def test_a_json_that_cannot_be_written_is_refused_before_the_work(
    given: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whether the flag stands in the parser or in a dataclass."""
    parser = CommandParser(prog="x")
    parser.add_argument("--json")
    monkeypatch.setattr(sys, "argv", ["x", "--json", given])
    with pytest.raises(SystemExit) as refused:
        run_tool(parser, lambda args: pytest.fail("it ran"))
    said = capsys.readouterr().err
    assert refused.value.code == 2 and "argument --json: " in said and problem in said
