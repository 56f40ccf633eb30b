"""Bad rows through the real command line: exit code 2 with one line that names file and line, or counted and left out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with good.jpg, cut.jpg whose header is whole, corrupt.jpg and a folder without frames."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1500])
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "empty").mkdir()
    return tmp_path


def row(name: str, **change: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "a truck"}]
    return {"id": name, "image": "good.jpg", "conversations": turns} | change


def write(data: Path, rows: list[dict | bytes]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (data / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return data / "rows.jsonl"


@pytest.fixture
def train(run: Callable, tiny_model: Path, data: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`train(rows, *flags, port=None)`: the SFT command on these rows, two to a step; with a port on two ranks."""

    def start(rows: list[dict | bytes], *flags: object, port: int | None = None) -> subprocess.CompletedProcess[str]:
        words = [
            "sft", "--model", tiny_model, "--data", write(data, rows), "--output_dir", data / "run", "--per_device_train_batch_size", 2,
            "--num_train_epochs", 1, "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--logging_steps", 1,
            "--use_cpu", "true", "--max_length", 200, *flags,
        ]  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port] if port else []
        return run([sys.executable, *launcher, "-m", "drive_vlm", *words], timeout=240)

    return start


def one_clear_line(done: subprocess.CompletedProcess[str], start: str, problem: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"python -m drive_vlm sft: error: {start}: ") and problem in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row("bad", image="absent.jpg"), "absent.jpg does not exist. Check the image root"),
        (b'{"id": ', "not valid JSON"),
    ],
)
def test_a_row_that_is_bad_from_its_header(bad: Any, problem: str, train: Callable, data: Path) -> None:
    one_clear_line(train([row("a"), bad]), f"{data}/rows.jsonl:2", problem)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_stops_the_training(workers: int, train: Callable, data: Path) -> None:
    """Found when its pixels are decoded, in this process or in a worker of the loader."""
    done = train([row("a"), row("b"), row("c"), row("cut", image="cut.jpg")], "--dataloader_num_workers", workers)
    one_clear_line(done, f"{data}/rows.jsonl:4", "cut.jpg cannot be read (image file is truncated")


def test_a_truncated_picture_in_the_evaluation_rows(train: Callable, data: Path) -> None:
    (data / "eval.jsonl").write_text(json.dumps(row("cut", image="cut.jpg")) + "\n")
    done = train([row("a"), row("b")], "--eval_data", data / "eval.jsonl", "--eval_strategy", "epoch")
    one_clear_line(done, f"{data}/eval.jsonl:1", "cut.jpg cannot be read")


@pytest.mark.parametrize("packing", [False, True])
def test_with_skip_all_are_counted_and_the_run_goes_on(packing: bool, train: Callable, data: Path) -> None:
    long = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a truck " * 300}]
    silent = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " "}]
    bad = [
        row("b", image="absent.jpg"), row("c", image="corrupt.jpg"), row("d", image=[]), row("e", conversations=silent), b'{"id": "\xff"}',
        b'{"id": ', row("f", image="/etc/passwd"), row("g", image="../x.jpg"), row("h", conversations=long),
        row("i", image=None, video="empty", conversations=[{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "a"}]),
    ]  # fmt: skip
    question = [{"role": "user", "content": "What is ahead?"}, {"role": "assistant", "content": "a truck"}]
    bad += [
        row("j", conversations=[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "cut \ud83d"}]),
        b'{"id": ' + b"9" * 5000 + b"}", b"[" * 100_000,
        {"images": ["good.jpg"], "messages": [{"role": "system", "content": "see <image>"}, *question]},
        {"images": ["good.jpg"], "image": "good.jpg", "messages": question}, {"tools": [1], "messages": question},
    ]  # fmt: skip
    good = [row(f"good {i}") for i in range(3)]
    cut = [row("cut 1", image="cut.jpg"), row("cut 2", image="cut.jpg")]
    done = train([*good, *bad, *cut], "--on_bad_row", "skip", *(["--packing"] if packing else []))
    assert done.returncode == 0, done.stderr[-2000:]
    audit = json.loads((data / "run" / "data_audit.json").read_text())
    assert audit["train"]["bad_rows"]["by_reason"] == {
        "image_missing": 1, "image_corrupt": 1, "image_count": 2, "empty_answer": 1, "not_utf8": 2,
        "broken_json": 3, "path_outside_root": 2, "too_long": 1, "video_empty": 1, "two_forms": 1, "unsupported_column": 1,
    }  # fmt: skip
    assert (audit["train"]["rows_read"], audit["train"]["rows_used"]) == (21, 5)
    during = audit["bad_during_run"]
    assert during["by_reason"] == {"image_corrupt": 2}
    assert sorted(entry["where"] for entry in during["rows"]) == [f"{data}/rows.jsonl:20", f"{data}/rows.jsonl:21"]
    assert (data / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_two_ranks_count_a_row_once(workers: int, train: Callable, data: Path, free_port: int) -> None:
    """What the header tells is found before training, a picture cut short by the one rank that reads it, in each epoch."""
    long = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a truck " * 300}]
    bad = [row("b", image="absent.jpg"), row("c", image="corrupt.jpg"), b'{"id": ', row("h", conversations=long)]
    good, cut = [row(f"good {i}") for i in range(5)], [row(f"cut {i}", image="cut.jpg") for i in range(3)]
    flags = ("--on_bad_row", "skip", "--num_train_epochs", 2, "--dataloader_num_workers", workers)
    done = train([*bad, *good, *cut], *flags, port=free_port)
    assert done.returncode == 0, done.stderr[-3000:]
    audit = json.loads((data / "run" / "data_audit.json").read_text())
    table, during = audit["train"], audit["bad_during_run"]
    reasons = {"image_missing": 1, "image_corrupt": 1, "broken_json": 1, "too_long": 1}
    assert table["bad_rows"]["by_reason"] == reasons
    assert table["rows_read"] == 12 == table["rows_used"] + table["bad_rows"]["total"]
    assert during["total"] == 3 and during["by_reason"] == {"image_corrupt": 3}
    assert sorted(entry["where"] for entry in during["rows"]) == [f"{data}/rows.jsonl:{i}" for i in (10, 11, 12)]


@pytest.mark.parametrize(("place", "workers"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_a_truncated_picture_stops_two_ranks(
    place: int, workers: int, train: Callable, data: Path, free_port: int
) -> None:
    """Whichever rank reads it, the run ends, and the row stands once in the output and in status.json."""
    rows = [row(f"good {i}") for i in range(3)]
    rows.insert(place, row("cut", image="cut.jpg"))
    done = train(rows, "--dataloader_num_workers", workers, port=free_port)
    problem = f"{data}/rows.jsonl:{place + 1}: the picture {data}/cut.jpg cannot be read (image file is truncated"
    assert done.returncode != 0
    assert sum(problem in line for line in done.stderr.splitlines()) == 1, done.stderr[-3000:]
    status = json.loads((data / "run" / "status.json").read_text())
    assert status["state"] == "failed" and problem in status["reason"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row("bad", image="absent.jpg"), "absent.jpg does not exist"),
        (row("bad", image="corrupt.jpg"), "corrupt.jpg cannot be read"),
        (row("bad", conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "a truck " * 300}], image=None), "more than --max_length 200"),
        (b'{"id": ', "not valid JSON"),
    ],
)  # fmt: skip
def test_a_row_that_is_bad_from_its_header_stops_two_ranks(
    bad: Any, problem: str, train: Callable, data: Path, free_port: int
) -> None:
    done = train([row("a"), bad], port=free_port)
    said = [line for line in done.stderr.splitlines() if f"{data}/rows.jsonl:2: " in line and problem in line]
    assert done.returncode != 0 and len(said) == 1, done.stderr[-3000:]
    assert said[0].startswith("python -m drive_vlm sft: error: ")
