import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.store import fingerprint
from drive_vlm.store.fingerprint import (
    code_hash,
    content_hash,
    file_hashes,
    git_diff,
    git_state,
    model_fingerprint,
    same_model,
    sampled_hash,
)


def test_the_content_hash_is_blake2b_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"drive")
    known = subprocess.run(["b2sum", "-l", "128", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert content_hash(file) == content_hash(file, cached=False) == known


def test_an_edit_of_equal_length_and_equal_time_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"answer": "left"}')
    first, times = content_hash(file), os.stat(file)
    file.write_text('{"answer": "stop"}')
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(file).st_size == times.st_size and os.stat(file).st_mtime_ns == times.st_mtime_ns
    assert content_hash(file) != first


def test_a_missing_file_has_no_hash(tmp_path: Path) -> None:
    assert file_hashes([tmp_path / "gone"]) == {str(tmp_path / "gone"): None}


def test_a_large_file_is_sampled_over_its_whole_length(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with open(file, "wb") as out:
        out.truncate(200 << 20)
    first = sampled_hash(file)
    assert sampled_hash(file) == first
    with open(file, "r+b") as out:
        out.seek(-1, os.SEEK_END)
        out.write(b"x")
    last = sampled_hash(file)
    with open(file, "r+b") as out:
        out.truncate(201 << 20)
    assert len({first, last, sampled_hash(file)}) == 3


def test_a_model_is_its_configuration_and_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    first = model_fingerprint(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")  # written by a run into the directory of the model it saves
    assert model_fingerprint(str(tmp_path)) == first and first["name"] == str(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"paths of the run")
    assert model_fingerprint(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"12345679")
    second = model_fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 9}')
    third = model_fingerprint(str(tmp_path))
    assert second["weights"] != first["weights"] and second["config"] == first["config"] != third["config"]


def test_a_hub_model_is_the_commit_of_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_fingerprint("org/name") == {"name": "org/name", "hub_commit": None}
    ref = tmp_path / "models--org--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("abc123\n")
    assert model_fingerprint("org/name")["hub_commit"] == "abc123"


def test_hub_models_are_the_same_by_name_and_by_every_commit_that_is_known() -> None:
    unknown, first, second = ({"name": "org/name", "hub_commit": commit} for commit in (None, "abc", "def"))
    assert same_model(unknown, first) == same_model(first, unknown) == same_model(first, first) == first
    assert same_model(unknown, unknown) == unknown
    assert same_model(first, second) is None
    assert same_model(unknown, unknown | {"name": "org/other"}) is None
    assert same_model(first, first | {"name": "org/other"}) is None
    assert same_model({"name": "served"}, {"name": "other"}) is None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small git checkout with one committed source, in the place of the project's own."""
    root = tmp_path / "checkout"
    (root / "drive_vlm").mkdir(parents=True)
    (root / "drive_vlm" / "__init__.py").write_text("A = 1\n")
    name = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    monkeypatch.setattr(fingerprint, "ROOT", root)
    return root


def test_the_saved_difference_leads_from_the_commit_to_the_code_that_ran(checkout: Path) -> None:
    clean, sources = git_state(), code_hash()
    assert (
        clean is not None and clean["changed_files"] == [] and "diff_hash" not in clean and len(clean["commit"]) == 40
    )
    (checkout / "drive_vlm" / "__init__.py").write_text("A = 2\n")
    (checkout / "drive_vlm" / "new.py").write_text("B = 1\n")
    dirty, difference = git_state(), git_diff()
    assert dirty is not None and dirty["commit"] == clean["commit"] and dirty["diff_hash"]
    changed = code_hash()
    assert changed != sources
    subprocess.run(["git", "stash", "-qu"], cwd=checkout, check=True)
    assert code_hash() == sources
    subprocess.run(["git", "apply"], cwd=checkout, input=difference, text=True, check=True)
    assert code_hash() == changed and git_state() == dirty


def test_a_new_file_that_is_gone_meanwhile_stops_no_run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run writes and removes its parts in this checkout."""
    (checkout / "here.txt").write_text("x\n")
    (checkout / "gone.part0").write_text("y\n")
    git = fingerprint._git

    def with_another_run(*words: str, **options: Any) -> str:
        listed = git(*words, **options)
        if words[0] == "ls-files" and "--others" in words:
            (checkout / "gone.part0").unlink()
        return listed

    monkeypatch.setattr(fingerprint, "_git", with_another_run)
    difference = git_diff()
    assert "here.txt" in difference and "gone.part0" not in difference


def test_outside_a_checkout_the_sources_alone_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    assert git_state() is None and len(code_hash()) == 32


def test_hashing_a_gigabyte_is_a_matter_of_seconds(tmp_path: Path, run: Callable) -> None:
    file = tmp_path / "rows.jsonl"
    with open(file, "wb") as out:
        out.truncate(256 << 20)
    code = f"import time; t = time.process_time(); from drive_vlm.store.fingerprint import content_hash; content_hash({str(file)!r}, cached=False); print(time.process_time() - t)"
    assert float(run([sys.executable, "-c", code]).stdout) < 2.5
