"""A real browser, and run directories and prediction files that tests write by hand."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from chromium_pipe import Browser
from written import write_lines


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium; the test is skipped where none is installed, and fails there with DRIVE_VLM_REQUIRE_BROWSER=1."""
    program = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if program is None:
        words = "no Chromium on this machine: apt-get install chromium"
        if os.environ.get("DRIVE_VLM_REQUIRE_BROWSER"):
            pytest.fail(words)
        pytest.skip(words)
    opened = Browser(program)
    yield opened
    opened.close()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`report(words...)`: exit code, stdout and stderr of `python -m drive_vlm report`, in this process; the page is tmp_path/report.html."""

    def call(*words: object) -> tuple[int, str, str]:
        from drive_vlm.report.command import main

        given = [str(word) for word in words]
        if "--out" not in given:
            given += ["--out", str(tmp_path / "report.html")]
        capsys.readouterr()
        code: object = 0
        try:
            main(given)
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return int(str(code or 0)), said.out, said.err

    return call


MANIFEST = {
    "command": ["python", "-m", "drive_vlm", "sft", "--data", "my rows.jsonl"],
    "words": ["sft", "--data", "my rows.jsonl"],
    "stage": "sft",
    "topology": {"launcher": "torchrun", "world_size": 4, "nproc_per_node": 2, "nnodes": 2},
    "machine": {
        "cores": 8,
        "memory_gib": 64.0,
        "gpus": ["NVIDIA H100, 81559 MiB, 570.1", "NVIDIA H100, 81559 MiB, 570.1"],
    },
    "git": {"commit": "0123456789abcdef0123", "changed_files": [" M drive_vlm/x.py"]},
    "versions": {"torch": "2.9.0"},
    "config": {"model": {"model": "OpenGVLab/InternVL3-1B-hf"}},
    "started": "2026-01-02T10:00:00+0000",
    "ended": "2026-01-02T11:00:00+0000",
    "state": "finished",
    "steps": 20,
    "zero_stage": 2,
    "metrics": {"train_loss": 0.5, "train_runtime": 3000.0},
}


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., Path]:
    """`made_run(name, metrics=[...], **changes of run.json)`: a run directory without weights."""

    def make(name: str = "run", metrics: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Path:
        out = tmp_path / name
        out.mkdir(parents=True)
        manifest = {"directory": str(tmp_path), **MANIFEST, **changes}
        (out / "run.json").write_text(json.dumps(manifest))
        steps = [
            {"step": step, "loss": 2 / step, "learning_rate": 1e-4, "tokens_per_second": 100.0} for step in range(1, 21)
        ]
        write_lines(out / "metrics.jsonl", steps if metrics is None else metrics)
        return out

    return make


@pytest.fixture
def made_rows(tmp_path: Path) -> Callable[..., Path]:
    """`made_rows(name, answers, **columns)`: a prediction file of scenes of two rows, "yes" the right answer of the even ones.

    A column is a list with a value for each row. The picture of row i is p/i.png, which is made.
    """

    def make(name: str, answers: Sequence[str], **columns: Sequence[Any]) -> Path:
        rows = []
        for i, answer in enumerate(answers):
            picture = tmp_path / "p" / f"{i}.png"
            if not picture.exists():
                picture.parent.mkdir(exist_ok=True)
                Image.new("RGB", (64, 48), (20 * i % 255, 90, 160)).save(picture)
            row = {"id": f"r{i}", "dataset": "set", "prediction": answer, "reference": "yes" if i % 2 == 0 else "no"}
            row |= {"question": f"Question {i}?", "image": f"p/{i}.png", "group": f"scene{i // 2}"}
            rows.append(row | {key: values[i] for key, values in columns.items()})
        return write_lines(tmp_path / name, rows)

    return make
