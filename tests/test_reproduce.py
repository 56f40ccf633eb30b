"""reproduce, through the real command line: a tiny run, its manifest, the same run again."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.reproduce import command_words, new_output_dir, one_line

ROOT = Path(__file__).resolve().parents[1]
REPRODUCE = [sys.executable, "-m", "drive_vlm", "reproduce"]
FLAGS = [
    "--max_steps",
    "3",
    "--logging_steps",
    "1",
    "--save_strategy",
    "no",
    "--per_device_train_batch_size",
    "4",
    "--learning_rate",
    "1e-3",
    "--disable_tqdm",
    "true",
]


def curve(out: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path, tiny_model: Path, run: Callable) -> Path:
    """A folder with data/, tiny/ and a finished run in runs/a, started there with relative paths."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(synthetic_data, folder / "data")
    shutil.copytree(tiny_model, folder / "tiny")
    words = ["sft", "--model", "tiny", "--data", "data/train.jsonl", "--output_dir", "runs/a", *FLAGS]
    done = run([sys.executable, "-m", "drive_vlm", *words], cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def report(run: Callable, *words: object, **env: str) -> dict[str, Any]:
    done = run([*REPRODUCE, *words, "--json"], PYTHONPATH=str(ROOT), **env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_same_run_again_in_a_new_directory(first: Path, run: Callable) -> None:
    done = run([*REPRODUCE, first / "runs" / "a", "--go"], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    again = first / "runs" / "a_reproduced"
    assert len(curve(again)) == 3 and curve(again) == curve(first / "runs" / "a")
    assert "Nothing differs" in done.stderr, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"cd {first} && python -m drive_vlm sft --model tiny")
    assert report(run, first / "runs" / "a")["output_dir"] == f"{first}/runs/a_reproduced2"


@pytest.mark.slow
def test_the_printed_line_runs_in_a_shell(first: Path, run: Callable) -> None:
    said = report(run, first / "runs" / "a" / "run.json", "--output_dir", first / "runs" / "by hand")
    assert said["same"] and said["differences"] == []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = run(["bash", "-c", said["command"]], cwd=Path("/"), PATH=path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert curve(first / "runs" / "by hand") == curve(first / "runs" / "a")


def test_an_edited_row_of_equal_length_is_noticed(first: Path, run: Callable) -> None:
    file = first / "data" / "train.jsonl"
    before, times = file.read_bytes(), os.stat(file)
    try:
        file.write_bytes(before.replace(b"a", b"b", 1))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        said = report(run, first / "runs" / "a")
    finally:
        file.write_bytes(before)
    (difference,) = said["differences"]
    assert difference["what"] == f"file {file}" and difference["decides"] and not said["same"]
    assert difference["then"] != difference["now"] and len(difference["now"]) == 12


def test_versions_variables_code_and_model_are_compared(first: Path, run: Callable, tmp_path: Path) -> None:
    manifest = json.loads((first / "runs" / "a" / "run.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    manifest["code_hash"] = "0" * 32
    manifest["model_fingerprint"]["weights"] = "0" * 32
    manifest["file_hashes"]["/gone.jsonl"] = "0" * 32
    manifest |= {"recipe": "recipes/x.sh", "job": {"SLURM_JOB_ID": "17"}}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert "Started by recipes/x.sh in Slurm job 17." in run([*REPRODUCE, tmp_path], PYTHONPATH=str(ROOT)).stderr
    found = report(run, tmp_path, NCCL_DEBUG="INFO")["differences"]
    assert [item["what"] for item in found] == [
        "code", "file /gone.jsonl", f"model {first}/tiny: weights", "version of torch", "variable NCCL_DEBUG",
    ]  # fmt: skip
    assert [item["decides"] for item in found] == [True, True, True, True, False] and found[1]["now"] == "missing"


@pytest.mark.slow
def test_two_ranks_are_two_ranks_again(first: Path, run: Callable) -> None:
    words = [
        "sft",
        "--model",
        "tiny",
        "--data",
        "data/train.jsonl",
        "--deepspeed",
        "zero2",
        "--output_dir=runs/two",
        *FLAGS,
    ]
    launch = ["bash", "-c", 'source "$0" && launch "$@"', ROOT / "recipes" / "_launch.sh", *words]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = run(launch, cwd=first, PYTHONPATH=str(ROOT), NPROC_PER_NODE="2", PATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    done = run([*REPRODUCE, first / "runs" / "two", "--go"], PYTHONPATH=str(ROOT), timeout=240)
    assert done.returncode == 0 and "NPROC_PER_NODE=2 NNODES=1 LAUNCHER=torchrun bash" in done.stdout, done.stderr[
        -3000:
    ]
    again = first / "runs" / "two_reproduced"
    assert json.loads((again / "run.json").read_text())["topology"]["world_size"] == 2
    assert curve(again) == curve(first / "runs" / "two")


MANIFEST = {
    "words": ["sft", "--model", "m", "--output-dir", "runs/x", "--freeze", "vision_tower", "--image_root", "my pictures"],
    "directory": "/work", "topology": {"launcher": "torchrun", "world_size": 16, "nproc_per_node": 8, "nnodes": 2},
}  # fmt: skip


def test_the_old_directory_is_never_the_new_one_unless_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x_reproduced").mkdir(parents=True)
    here = {**MANIFEST, "directory": str(tmp_path)}
    assert new_output_dir(here, None) == f"{tmp_path}/runs/x_reproduced2"
    assert new_output_dir(here, f"{tmp_path}/runs/x") == f"{tmp_path}/runs/x"
    default = {**here, "words": ["sft"], "config": {"training": {"output_dir": "runs/sft"}}}
    assert new_output_dir(default, None) == f"{tmp_path}/runs/sft_reproduced"
    assert command_words(default, "/new") == ["sft", "--output_dir", "/new"]


def test_the_line_keeps_topology_and_quotes() -> None:
    line = one_line(MANIFEST, command_words(MANIFEST, "/new out"))
    assert line.startswith(
        'cd /work && NPROC_PER_NODE=8 NNODES=2 LAUNCHER=torchrun bash -euo pipefail -c \'source "$0" && launch "$@"\' '
    )
    expected = [
        "sft",
        "--model",
        "m",
        "--freeze",
        "vision_tower",
        "--image_root",
        "my pictures",
        "--output_dir",
        "/new out",
    ]
    assert shlex.split(line)[-len(expected) :] == expected


@pytest.mark.parametrize(
    ("content", "words", "pattern"),
    [
        (None, [], "no such file"),
        ("{", [], "run.json:1: not valid JSON"),
        ("{}", [], 'no "words" in it'),
        (json.dumps({**MANIFEST, "directory": "/gone"}), ["--go"], "/gone: the directory the run started in is gone"),
        (json.dumps({**MANIFEST, "directory": "/"}), ["--go"], "had 2 nodes.*NODE_RANK"),
        (
            json.dumps({**MANIFEST, "directory": "/", "words": ["sft", "--hub_token", "<hidden>"]}),
            ["--go"],
            "held a secret",
        ),
    ],
)
def test_what_cannot_be_reproduced_is_told_in_a_line(
    tmp_path: Path, run: Callable, content: str | None, words: list[str], pattern: str
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    done = run([*REPRODUCE, tmp_path, *words])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.search(pattern, done.stderr), done.stderr
