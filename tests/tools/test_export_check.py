"""tools/export_check.py on models as training saves them, and on directories that are not what they should be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

CORPUS = ["Describe the scene. A car brakes."] * 20


@pytest.fixture(scope="module", params=["minicpmv", "cogvlm2", "qwen3_vl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import importlib

    kind = request.param
    module = importlib.import_module(f"drive_vlm.models.tiny.{'qwen_vl' if kind == 'qwen3_vl' else kind}")
    return getattr(module, f"build_tiny_{kind}")(tmp_path_factory.mktemp(kind) / "model", CORPUS, vocab_size=400)


@pytest.fixture
def check(run_here: Callable, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def start(*words: object) -> tuple[Any, dict[str, Any]]:
        out = tmp_path / "export.json"
        done = run_here("tools/export_check.py", *words, "--json", out)
        return done, json.loads(out.read_text()) if out.is_file() else {}

    return start


def test_what_training_saves_reads_back(check: Callable, model: Path) -> None:
    done, found = check("--model", model, "--published", model)
    assert done.returncode == 0, done.stderr
    assert found["logit_difference"] <= 1e-5 and found["tensors"] == found["published"] == len(
        load_file(model / "model.safetensors")
    )
    assert found["servers"] and all(server["named"] for server in found["servers"])
    assert "saved again: the same names, shapes and bytes" in done.stdout and "Not tried here" in done.stdout


def test_a_lost_a_renamed_and_a_cut_tensor_are_named(check: Callable, model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[len(weights) // 2]

    def broken(how: str) -> Path:
        copy = tmp_path / how
        shutil.copytree(model, copy)
        changed = dict(weights)
        value = changed.pop(name)
        if how == "renamed":
            changed[f"other.{name}"] = value
        elif how == "cut":
            changed[name] = value.flatten()[:-1].clone()
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    for how in ("lost", "renamed"):
        done, _ = check("--model", broken(how))
        assert done.returncode == 2 and "tensors" in done.stderr and len(done.stderr.strip().splitlines()) <= 3, (
            done.stderr
        )
    done, _ = check("--model", model, "--published", tmp_path / "lost")
    assert done.returncode == 2 and f"such as {name}" in done.stderr
    done, _ = check("--model", model, "--published", broken("cut"))
    assert done.returncode == 2 and f"{name} has the shape" in done.stderr


def test_an_adapter_and_an_empty_folder_are_refused(check: Callable, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    done, _ = check("--model", tmp_path / "adapter")
    assert done.returncode == 2 and "no *.safetensors in it" in done.stderr
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    done, _ = check("--model", tmp_path / "adapter")
    assert done.returncode == 2 and "Merge it first" in done.stderr
