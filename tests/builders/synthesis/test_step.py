"""The engine of the steps: what a kill leaves, what changes make again, shards, ranks, settings."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.builders.synthesis.pictures import Picture, read_pictures
from drive_vlm.builders.synthesis.step import Made, Step, merge_steps, run_step
from drive_vlm.data.samples import BadRow

MODEL = {"name": "/somewhere", "config": "a", "weights": "b"}


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class Grey:
    """A step that says how grey a picture is; `calls` are the pictures it looked at, and it dies before the `dies`-th of them."""

    def __init__(
        self, settings: dict[str, Any] | None = None, model: dict[str, Any] = MODEL, name: str = "grey"
    ) -> None:
        self.step = Step(name, settings or {"level": 1}, {"greyer": model}, (name,), lambda line: {"seen": 1})
        self.calls: list[str] = []
        self.dies = -1
        self.name = name

    def __call__(self, pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        for picture in pictures:
            if len(self.calls) == self.dies:
                raise ValueError("the power is out")
            self.calls.append(picture.image)
            try:
                shown = picture.load()
            except BadRow as error:
                yield error
                continue
            yield Made(
                {self.name: shown.getpixel((0, 0))[0]}, {"black": int(shown.getpixel((0, 0))[0] == 0)}, {"all": 2}, 0.5
            )

    def run(self, args: Any) -> Any:
        return run_step(self.step, args, lambda: self)


def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_file(flags: Callable, tmp_path: Path) -> None:
    whole = Grey()
    audit = whole.run(flags("whole.jsonl"))
    assert audit["lines"] == audit["made"] == 6 and audit["dropped"] == {"black": 1}
    assert audit["tokens"] == {"all": 12} and audit["cost"] == 3.0 and audit["counts"] == {"seen": 6}
    killed = Grey()
    killed.dies = 3
    with pytest.raises(ValueError, match="power"):
        killed.run(flags())
    assert not (tmp_path / "out.jsonl").exists()
    part = tmp_path / "out.jsonl.part0"
    assert len(lines_of(part)) == 3
    # The kill tears the line that was being written.
    part.write_text(part.read_text()[:-20])
    killed.dies = -1
    assert killed.run(flags())["made"] == 4
    assert killed.calls == ["0.png", "1.png", "2.png", "2.png", "3.png", "4.png", "5.png"]
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text() and not part.exists()
    again = Grey()
    assert again.run(flags())["made"] == 0 and not again.calls
    # Counts are over all lines, kept ones too.
    assert json.loads((tmp_path / "out.jsonl.audit.json").read_text())["tokens"] == {"all": 12}


def test_what_changed_is_made_again_and_nothing_else(flags: Callable, pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    Grey().run(flags())
    Image.new("RGB", (40, 30), (255, 255, 255)).save(pictures / "4.png")
    changed = Grey()
    audit = changed.run(flags())
    assert changed.calls == ["4.png"] and audit["made_again"] == 1
    assert [line["grey"] for line in lines_of(tmp_path / "out.jsonl")] == [0, 40, 80, 120, 255, 200]


def test_a_line_carries_on_what_is_known_and_follows_its_input(flags: Callable, pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    Grey().run(flags())
    second = Grey(name="again", model=MODEL | {"weights": "c"})
    second.step = Step("again", {}, {"other": MODEL}, ("again",))
    second.run(flags("second.jsonl", data=[str(tmp_path / "out.jsonl")]))
    line = lines_of(tmp_path / "second.jsonl")[1]
    assert line["grey"] == line["again"] == 40 and line["cost"] == {"grey": 0.5, "again": 0.5}
    settings = json.loads((tmp_path / "second.jsonl.settings.json").read_text())
    assert set(settings["models"]) == {"greyer", "other"} and settings["image_root"] == str(pictures)
    # Another line of the input is another line of the output, though the picture is the same.
    Image.new("RGB", (40, 30), (9, 9, 9)).save(pictures / "0.png")
    Grey().run(flags())
    second.calls.clear()
    second.run(flags("second.jsonl", data=[str(tmp_path / "out.jsonl")]))
    assert second.calls == ["0.png"]


def test_a_step_that_looks_at_no_picture_runs_where_there_is_none(
    flags: Callable, pictures: Path, tmp_path: Path
) -> None:
    Grey().run(flags())
    for path in pictures.iterdir():
        path.unlink()
    blind = Grey(name="blind")
    data = [str(tmp_path / "out.jsonl")]
    with pytest.raises(ValueError, match="does not exist or cannot be read"):
        blind.run(flags("blind.jsonl", data=data))
    step = Step("blind", {}, {}, ("blind",), pixels=False)
    audit = run_step(step, flags("blind.jsonl", data=data), lambda: lambda few: [Made({"blind": 1}) for _ in few])
    assert audit["lines"] == 6


def test_shards_joined_are_the_whole_and_one_that_is_missing_is_named(flags: Callable, tmp_path: Path) -> None:
    Grey().run(flags("whole.jsonl"))
    for i in range(3):
        Grey().run(flags(shard=f"{i}/3"))
    shards = [str(path) for path in sorted(tmp_path.glob("out.shard-0?-of-03.jsonl"), reverse=True)]
    audit = merge_steps(Grey().step, shards, tmp_path / "out.jsonl")
    assert audit["lines"] == audit["made"] == audit["pictures"] == 6 and audit["cost"] == 3.0
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    with pytest.raises(ValueError, match=r"1 of 3 shards are missing \(first 1\)"):
        merge_steps(Grey().step, [shards[0], shards[2]], tmp_path / "out.jsonl")
    other = Grey({"level": 2})
    other.run(flags("other.jsonl"))
    with pytest.raises(ValueError, match="level: 2 then, 1 now"):
        merge_steps(Grey().step, shards, tmp_path / "other.jsonl")
    with pytest.raises(ValueError, match="not a file of the step detect"):
        merge_steps(Step("detect", {}, {}, ()), shards, tmp_path / "out.jsonl")


def test_another_setting_or_model_is_refused_and_a_moved_model_is_not(flags: Callable) -> None:
    Grey().run(flags())
    moved = Grey(model=MODEL | {"name": "/elsewhere"})
    moved.run(flags())
    assert not moved.calls
    with pytest.raises(ValueError, match=r"level: 1 then, 2 now.*another --out"):
        Grey({"level": 2}).run(flags())
    with pytest.raises(ValueError, match=r"greyer: .*another --out"):
        Grey(model=MODEL | {"weights": "c"}).run(flags())


def test_lines_of_pictures_that_are_not_named_are_not_thrown_away(
    flags: Callable, pictures: Path, tmp_path: Path
) -> None:
    Grey().run(flags())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "0.png", "group": "a"}) + "\n" + json.dumps({"image": "1.png"}) + "\n")
    with pytest.raises(ValueError, match=r"4 pictures that --data does not name \(first '2.png'\)"):
        Grey().run(flags(data=[str(rows)], image_root=str(pictures)))
    first = Grey()
    first.run(flags("few.jsonl", data=[str(rows)], image_root=str(pictures)))
    assert [line["group"] for line in lines_of(tmp_path / "few.jsonl")] == ["a", None]


def test_a_preview_makes_the_first_and_the_rest_comes_later(flags: Callable, tmp_path: Path) -> None:
    step = Grey()
    step.run(flags(limit=2))
    assert step.calls == ["0.png", "1.png"] and len(lines_of(tmp_path / "out.jsonl")) == 2
    step.run(flags())
    assert len(step.calls) == 6
    # A preview afterwards takes nothing away.
    step.run(flags(limit=1))
    assert len(lines_of(tmp_path / "out.jsonl")) == 6


def test_a_picture_that_cannot_be_read_stops_or_is_counted(flags: Callable, pictures: Path, tmp_path: Path) -> None:
    (pictures / "3.png").write_bytes((pictures / "3.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"3.png cannot be read.*--on_bad_row skip"):
        Grey().run(flags())
    audit = Grey().run(flags(on_bad_row="skip"))
    assert audit["lines"] == 5 and audit["bad_rows"]["by_reason"] == {"image_corrupt": 1}
    assert audit["pictures"] == 6 and [line["image"] for line in lines_of(tmp_path / "out.jsonl")][3] == "4.png"


def test_one_name_for_two_files_and_rows_of_videos_are_refused(pictures: Path, tmp_path: Path) -> None:
    def note(error: BadRow) -> None:
        raise error

    with pytest.raises(ValueError, match="2 folders"):
        read_pictures([str(pictures), str(tmp_path)], None, note)
    rows = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A car."}]
    rows.write_text(json.dumps({"video": "a.mp4", "conversations": turns}) + "\n")
    with pytest.raises(BadRow, match=r"has a video .*works on pictures"):
        read_pictures([str(rows)], None, note)
    (tmp_path / "deep" / "one").mkdir(parents=True)
    (pictures / "5.png").rename(tmp_path / "deep" / "one" / "5.png")
    found, _ = read_pictures([str(tmp_path / "deep")], None, note, group_by_folder=True)
    assert [(item.image, item.group) for item in found] == [("one/5.png", "one")]


RANKS = """
import argparse, json, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_step import Grey
from drive_vlm.launch.topology import read_topology
step = Grey()
audit = step.run(argparse.Namespace(**json.loads({flags!r})))
Path({out!r} + f".calls{{read_topology().rank}}").write_text(json.dumps([step.calls, audit is None]))
"""


@pytest.mark.slow
def test_two_ranks_share_the_pictures_and_write_one_file(
    flags: Callable, tmp_path: Path, run: Callable, free_port: int
) -> None:
    Grey().run(flags("whole.jsonl"))
    script = tmp_path / "ranks.py"
    args = flags()
    script.write_text(RANKS.format(here=str(Path(__file__).parent), flags=json.dumps(vars(args)), out=args.out))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port, script]
    done = run(words, PYTHONPATH=str(Path(__file__).parents[3]))
    assert done.returncode == 0, done.stderr
    calls = [json.loads(Path(f"{args.out}.calls{rank}").read_text()) for rank in range(2)]
    assert calls == [[["0.png", "2.png", "4.png"], False], [["1.png", "3.png", "5.png"], True]]
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not list(tmp_path.glob("*.part*"))
