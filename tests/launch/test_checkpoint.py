"""The contract of a checkpoint directory: what is complete, what is refused and in which words, what is removed."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from drive_vlm.launch.checkpoint import (
    MARKER,
    CheckpointFacts,
    begin,
    check_layout,
    complete,
    cut_metrics,
    find_checkpoint,
    link_or_copy,
    read_complete,
    remove_old,
    require_space,
    set_aside_later,
    step_of,
    whole_checkpoints,
)

FACTS = CheckpointFacts(step=0, world_size=2, zero_stage=2, deepspeed=True, optimizer="adamw_torch", trained="t")


def write(out: Path, step: int) -> Path:
    saving = begin(out, step)
    (saving / "global_step").mkdir()
    (saving / "model.safetensors").write_bytes(b"w" * 100)
    (saving / "global_step" / "rank0.pt").write_bytes(b"o" * 50)
    return complete(saving, dataclasses.replace(FACTS, step=step))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for step in (2, 4, 10):
        write(tmp_path, step)
    return tmp_path


def test_a_complete_checkpoint_says_what_is_in_it(out: Path) -> None:
    facts = read_complete(out / "checkpoint-10")
    assert facts.step == 10 and facts.world_size == 2 and facts.saved
    assert facts.files == {"global_step/rank0.pt": 50, "model.safetensors": 100}
    assert not (out / ".saving").exists()


def test_auto_takes_the_newest_by_number_not_by_name(out: Path) -> None:
    found = find_checkpoint("auto", out)
    assert found is not None and found[0].name == "checkpoint-10" and found[1].step == 10
    assert find_checkpoint("auto", out / "nothing") is None


def test_a_death_while_writing_leaves_nothing_that_looks_complete(out: Path) -> None:
    saving = begin(out, 12)
    (saving / "model.safetensors").write_bytes(b"w" * 30)
    found = find_checkpoint("auto", out)
    assert found is not None and found[1].step == 10
    assert not any(begin(out, 12).iterdir())  # and the next attempt begins with an empty directory


@pytest.mark.parametrize("damage", ["marker", "json", "truncated", "missing"])
def test_a_damaged_checkpoint_is_refused_and_auto_says_that_it_goes_further_back(
    out: Path, damage: str, capsys: pytest.CaptureFixture
) -> None:
    newest = out / "checkpoint-10"
    words = {
        "marker": f"{MARKER} is missing",
        "json": f"{MARKER}: damaged",
        "truncated": "model.safetensors: has 99 bytes, 100 were written",
        "missing": "rank0.pt: is missing",
    }[damage]
    if damage == "marker":
        (newest / MARKER).unlink()
    elif damage == "json":
        (newest / MARKER).write_text('{"step": 10, "wor')
    elif damage == "truncated":
        (newest / "model.safetensors").write_bytes(b"w" * 99)
    else:
        (newest / "global_step" / "rank0.pt").unlink()
    with pytest.raises(ValueError, match=words):
        find_checkpoint(str(newest), out)
    found = find_checkpoint("auto", out)
    assert found is not None and found[1].step == 4
    said = capsys.readouterr().out
    assert "passes over a damaged checkpoint" in said and words in said


def test_nothing_whole_is_an_error_not_a_new_start(out: Path) -> None:
    for path in out.glob("checkpoint-*"):
        (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        find_checkpoint("auto", out)


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="another program wrote it"):
        find_checkpoint(str(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="no such checkpoint"):
        find_checkpoint(str(tmp_path / "none"), tmp_path)


def test_a_new_run_does_not_mix_with_an_old_one(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--resume auto, or give another --output_dir"):
        find_checkpoint(None, out)
    assert find_checkpoint(None, out / "new") is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    found = find_checkpoint(None, out)
    assert found is not None and found[1].step == 10  # torchrun --max_restarts goes on by itself


def test_old_ones_go_the_best_and_the_newest_stay(out: Path) -> None:
    remove_old(out, write(out, 12), keep=1, best=str(out / "checkpoint-2"))
    assert {path.name for path in out.iterdir()} == {"checkpoint-2", "checkpoint-12"}


def damage(path: Path, how: str) -> None:
    """Makes `path` something that no whole checkpoint of step N is."""
    if how == "a copy under another number":
        shutil.copytree(path.parent / "checkpoint-10", path)
        return
    if how == "another program's":
        path.mkdir()
        (path / "pytorch_model.bin").write_bytes(b"theirs")
        return
    if how == "a file":
        path.write_text("a note")
        return
    write(path.parent, step_of(path))
    if how == "torn":
        (path / MARKER).unlink()
    elif how == "a marker of another form":
        (path / MARKER).write_text("[]")
    else:
        (path / "model.safetensors").write_bytes(b"w")


NOT_OURS = [
    "another program's",
    "torn",
    "truncated",
    "a file",
    "a marker of another form",
    "a copy under another number",
]


@pytest.mark.parametrize("how", NOT_OURS)
def test_what_is_not_whole_neither_counts_nor_goes(out: Path, how: str) -> None:
    """With --keep 1 it would push out each new checkpoint as soon as that is written."""
    damage(out / "checkpoint-99", how)
    for step in (12, 14):
        remove_old(out, write(out, step), keep=1, best=None)
        assert [path.name for path in whole_checkpoints(out)] == [f"checkpoint-{step}"]
        found = find_checkpoint("auto", out)
        assert found is not None and found[1].step == step
    assert os.path.lexists(out / "checkpoint-99"), "not ours to remove"


def test_a_run_that_went_back_keeps_what_it_writes(out: Path) -> None:
    """Resumed from step 2 of a run that has steps 4 and 10: the new step 3 stays, and the later ones are not touched."""
    remove_old(out, write(out, 3), keep=1, best=None)
    assert [path.name for path in whole_checkpoints(out)] == ["checkpoint-3", "checkpoint-4", "checkpoint-10"]


def test_a_branch_that_was_given_up_is_kept_out_of_auto(out: Path, capsys: pytest.CaptureFixture) -> None:
    """--resume checkpoint-2 of a run with checkpoints 4 and 10: killed before or after its first save, `auto` stays with it."""
    damage(out / "checkpoint-99", "another program's")
    set_aside_later(out, out / "checkpoint-2", 2)
    found = find_checkpoint("auto", out)
    assert found is not None and found[1].step == 2
    said = capsys.readouterr().out
    assert "checkpoint-4 -> checkpoint-4.abandoned-1, checkpoint-10 -> checkpoint-10.abandoned-1" in said
    assert read_complete(out / "checkpoint-10.abandoned-1").step == 10 and (out / "checkpoint-99").is_dir()
    remove_old(out, write(out, 4), keep=1, best=None)
    set_aside_later(out, out / "checkpoint-10.abandoned-1", 10)
    assert not capsys.readouterr().out
    found = find_checkpoint("auto", out)
    assert found is not None and found[1].step == 4
    set_aside_later(out, out / "elsewhere" / "checkpoint-3", 3)
    assert (out / "checkpoint-4.abandoned-2").is_dir() and not (out / "checkpoint-4").exists()


def test_another_programs_directory_in_the_way_keeps_its_content(out: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        shutil.rmtree(out / "checkpoint-12", ignore_errors=True)
        damage(out / "checkpoint-12", "another program's")
        write(out, 12)
    assert read_complete(out / "checkpoint-12").step == 12
    assert "checkpoint-12 is not of drive-vlm" in capsys.readouterr().err
    for name in ("checkpoint-12.other-1", "checkpoint-12.other-2"):
        assert (out / name / "pytorch_model.bin").read_bytes() == b"theirs"


def test_an_old_one_that_is_a_link_goes_without_its_target(out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = tmp_path_factory.mktemp("disk") / "checkpoint-4"
    (out / "checkpoint-4").rename(disk)
    (out / "checkpoint-4").symlink_to(disk)
    remove_old(out, write(out, 12), keep=1, best=None)
    assert {path.name for path in out.iterdir()} == {"checkpoint-12"} and (disk / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["checkpoint-", "checkpoint-07", "checkpoint-\u00b2", "checkpoint--3", "checkpoint-1e3", "checkpoint-" + "9" * 5000])  # fmt: skip
def test_only_names_that_a_run_gives_are_steps(name: str) -> None:
    assert step_of(Path(name)) == -1 and step_of(Path("checkpoint-120")) == 120


def test_directories_are_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is lost with the entry of its directory: every directory is flushed, the marker's after the marker."""
    flushed: list[str] = []
    names: dict[int, str] = {}
    opened, synced = os.open, os.fsync

    def open_(path: Path, flags: int, *args: int, **options: int) -> int:
        handle = opened(path, flags, *args, **options)
        # rmtree opens by name alone, within a directory.
        names[handle] = str(Path(path).relative_to(tmp_path)) if Path(path).is_absolute() else "removed"
        return handle

    def fsync(handle: int) -> None:
        flushed.append(names[handle])
        synced(handle)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    saving = begin(tmp_path, 2)
    (saving / "global_step" / "deep").mkdir(parents=True)
    (saving / "global_step" / "deep" / "rank0.pt").write_bytes(b"o")
    monkeypatch.setattr(Path, "rename", lambda path, new: (flushed.append("rename"), os.rename(path, new)))
    complete(saving, dataclasses.replace(FACTS, step=2))
    path = ".saving/checkpoint-2"
    inner, last = flushed[: flushed.index(f"{path}/{MARKER}")], flushed[flushed.index(f"{path}/{MARKER}") :]
    assert {f"{path}/global_step/deep/rank0.pt", f"{path}/global_step/deep", f"{path}/global_step"} <= set(inner)
    assert last == [f"{path}/{MARKER}", path, ".saving", "rename", "."]


def test_the_same_step_again_takes_the_place_of_the_old(out: Path) -> None:
    saving = begin(out, 10)
    (saving / "other").write_text("new")
    complete(saving, dataclasses.replace(FACTS, step=10))
    assert read_complete(out / "checkpoint-10").files == {"other": 3}
    assert not (out / "checkpoint-10" / "model.safetensors").exists()


def test_space_is_asked_for_in_numbers(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(ValueError, match=r"needs about 931322574\.62 GiB, .* are free"):
        require_space(tmp_path, 10**18)


@pytest.mark.parametrize(
    ("stage", "deepspeed", "world", "optim", "converted"),
    [(2, True, 2, "adamw_torch", False), (2, True, 4, "adamw_torch", True)],
)
def test_layouts_that_go_on(stage: int, deepspeed: bool, world: int, optim: str, converted: bool) -> None:
    assert check_layout(Path("c"), FACTS, stage, deepspeed, world, optim) is converted


def test_without_deepspeed_any_world_size_reads_the_optimizer() -> None:
    plain = dataclasses.replace(FACTS, deepspeed=False, zero_stage=0, optimizer="rmsprop")
    assert check_layout(Path("c"), plain, 0, False, 8, "rmsprop") is False


@pytest.mark.parametrize(
    ("stage", "deepspeed", "world", "optim", "words"),
    [
        (3, True, 2, "adamw_torch", "ZeRO-2, this run is under DeepSpeed ZeRO-3"),
        (0, False, 2, "adamw_torch", "this run is without DeepSpeed"),
        (2, True, 2, "rmsprop", "saved with --optim adamw_torch, this run has rmsprop"),
    ],
)
def test_layouts_that_cannot_go_on(stage: int, deepspeed: bool, world: int, optim: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_layout(Path("c"), FACTS, stage, deepspeed, world, optim)


def test_rmsprop_keeps_its_world_size() -> None:
    facts = dataclasses.replace(FACTS, optimizer="rmsprop")
    assert check_layout(Path("c"), facts, 2, True, 2, "rmsprop") is False
    with pytest.raises(ValueError, match=r"saved by 2 processes, this run has 1.*Resume with 2 processes"):
        check_layout(Path("c"), facts, 2, True, 1, "rmsprop")


def test_links_share_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    file = tmp_path / "store" / "frozen.safetensors"
    file.write_bytes(b"f" * 10)
    (tmp_path / "a").mkdir()
    link_or_copy([file], tmp_path / "a")
    assert (tmp_path / "a" / file.name).samefile(file)


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 3')
    cut_metrics(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    cut_metrics(tmp_path / "none.jsonl", 3)
