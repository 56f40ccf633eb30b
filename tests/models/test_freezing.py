"""Which weights train: by part name, by module path, printed as a table; a name that is wrong is answered with the nearest."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.freezing import count_parameters, freeze, parameter_table


@pytest.fixture
def family(tiny_model: Path) -> Any:
    return load_family(ModelConfig(model=str(tiny_model)), torch.float32)


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_default_of_the_recipe_trains_projector_and_language_model(family: Any) -> None:
    everything = trainable(family.model)
    freeze(family.model, family.parts, ["vision_tower"])
    left = trainable(family.model)
    assert left == {name for name in everything if not name.startswith("model.vision_tower.")} != everything
    assert {name.split(".")[1] for name in left if name.startswith("model.")} == {
        "multi_modal_projector",
        "language_model",
    }
    assert "lm_head.weight" in left


@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model"])
def test_a_part_covers_what_its_name_says(part: str, family: Any) -> None:
    freeze(family.model, family.parts, [part])
    frozen = {name for name, p in family.model.named_parameters() if not p.requires_grad}
    counts = count_parameters(family.model, family.parts)
    for name, count in counts.items():
        if name != "all":
            assert count["total"] > 0 and count["trainable"] == (0 if name == part else count["total"])
    assert sum(p.numel() for p in family.model.parameters() if p.requires_grad) == counts["all"]["trainable"]
    assert all(name.startswith(family.parts[part]) for name in frozen)
    if part == "language_model":
        assert "lm_head.weight" in frozen


def test_the_parts_cover_the_whole_model(family: Any) -> None:
    counts = count_parameters(family.model, family.parts)
    assert "other" not in counts
    assert (
        sum(counts[name]["total"] for name in family.parts)
        == counts["all"]["total"]
        == sum(p.numel() for p in family.model.parameters())
    )


def test_a_module_path(family: Any) -> None:
    freeze(family.model, family.parts, ["projector", "model.language_model.layers.0"])
    left = trainable(family.model)
    assert not any(name.startswith(("model.language_model.layers.0.", "model.multi_modal_projector.")) for name in left)
    assert any(name.startswith("model.language_model.layers.1.") for name in left)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vision_towr", "vision_tower"),
        ("project", "projector"),
        ("model.language_model.layer.0", "model.language_model.layers.0"),
    ],
)
def test_an_unknown_part_is_answered_with_the_nearest(name: str, near: str, family: Any) -> None:
    with pytest.raises(ValueError) as caught:
        freeze(family.model, family.parts, [name])
    assert f"--freeze {name}: no such part" in str(caught.value) and f"Did you mean {near}?" in str(caught.value)


def test_nothing_left_to_train(family: Any) -> None:
    with pytest.raises(ValueError, match="no parameter is left to train"):
        freeze(family.model, family.parts, ["vision_tower", "projector", "language_model"])


def test_the_table(family: Any) -> None:
    freeze(family.model, family.parts, ["vision_tower"])
    counts = count_parameters(family.model, family.parts)
    rows = {line.split()[0]: line.split()[1:] for line in parameter_table(counts).splitlines()}
    assert rows["part"] == ["parameters", "trainable"] and rows["vision_tower"][1] == "0"
    for name, count in counts.items():
        assert [int(number.replace(",", "")) for number in rows[name]] == [count["total"], count["trainable"]]


@pytest.mark.slow
def test_the_command_prints_it_and_leaves_the_tower_alone(
    tiny_model: Path, synthetic_data: Path, tmp_path: Path, run: Any
) -> None:
    import sys

    from safetensors.torch import load_file

    done = run(
        [
            sys.executable, "-m", "drive_vlm", "sft", "--model", tiny_model, "--data", synthetic_data / "val.jsonl", "--output_dir", tmp_path / "run",
            "--freeze", "vision_tower", "--max_steps", 2, "--per_device_train_batch_size", 2, "--learning_rate", "1e-2", "--report_to", "none",
            "--warmup_steps", 0, "--save_strategy", "no", "--use_cpu", "true",
        ]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"vision_tower +[\d,]+ +0\n", done.stdout)
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("vision" in name for name in changed)
    assert any("projector" in name or "mlp1" in name for name in changed) and any("lm_head" in name for name in changed)
