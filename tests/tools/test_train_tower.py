"""tools/train_tower.py: the features stand in the order of its labels, and only tower and projector of a model move."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tower", ROOT / "tools" / "train_tower.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL: 4 x 4 features of 64 pixels."""
    from drive_vlm.models.tiny.qwen_vl import build_tiny_qwen3_vl

    out = tmp_path_factory.mktemp("tower") / "model"
    return build_tiny_qwen3_vl(out, ["a red car"] * 20, vocab_size=300, image_size=64, patch_size=8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    words = ("--scenes", "40", "--size", "64", "--questions_per_scene", "0", "--workers", "1")
    subprocess.run([sys.executable, "tools/build_synthetic.py", "--out", out, *words], check=True, cwd=ROOT)
    return out


@pytest.mark.parametrize("place", [(0, 3), (2, 1)])
@pytest.mark.parametrize("kind", ["own", "new"])
def test_the_feature_of_a_patch_has_its_place(
    tool: ModuleType, seeing: Path, kind: str, place: tuple[int, int]
) -> None:
    """Qwen's own patches come in squares of 2 x 2: read as rows, half of the labels would be another patch's."""
    torch.manual_seed(0)
    words = (
        ["--model", str(seeing)] if kind == "own" else ["--patch_size", "16", "--hidden_size", "32", "--layers", "1"]
    )
    flags = tool.make_parser().parse_args(["--data", "data", "--out", "out", *words])
    tower = tool.OwnTower(seeing, flags) if kind == "own" else tool.NewTower(64, flags)
    dark = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    lit = dark.clone()
    row, column = place
    lit[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = torch.randint(
        0, 255, (16, 16, 3), dtype=torch.uint8
    )
    with torch.no_grad():
        moved = (tower(lit) - tower(dark)).norm(dim=-1)[0]
    assert moved.shape == (16,) and moved.argmax().item() == 4 * row + column


@pytest.mark.slow
def test_tower_and_projector_of_a_model_move_and_nothing_else(
    run: Callable, seeing: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--data", scenes, "--model", seeing, "--out", out, "--max_steps", 10, "--batch_size", 8)
    done = run([sys.executable, "tools/train_tower.py", *words])
    assert done.returncode == 0 and "average precision on held-out frames" in done.stdout, done.stderr[-2000:]
    before, after = (load_file(path / "model.safetensors") for path in (seeing, out))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("merger" in name for name in moved) and all("visual" in name for name in moved)
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3_vl"


def test_flags_of_a_new_tower_are_refused_with_a_model(
    run: Callable, seeing: Path, scenes: Path, tmp_path: Path
) -> None:
    words = ("--data", scenes, "--model", seeing, "--out", tmp_path / "out", "--layers", 6)
    done = run([sys.executable, "tools/train_tower.py", *words])
    assert done.returncode == 2 and "--layers is of a new tower" in done.stderr
