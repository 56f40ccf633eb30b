"""A weight that trains and gets no gradient ends the run with its name, at its first backward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.stages.engine.gradients import FirstGradients


def test_it_looks_at_the_first_backward_pass_only() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    looks = FirstGradients(model)
    with looks:
        model(torch.ones(1, 2)).sum().backward()
    model[1].weight.grad = None
    with looks:
        model[1](torch.ones(1, 2)).sum().backward()
    assert not any(weight._post_accumulate_grad_hooks for weight in model.parameters())


def test_the_missing_are_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with (
        pytest.raises(ValueError, match=r"2 weights that train got no gradient .* such as 1\.bias"),
        FirstGradients(model),
    ):
        model[0](torch.ones(1, 2)).sum().backward()
    with pytest.raises(KeyError), FirstGradients(model):  # an error of the pass itself stays what it is
        raise KeyError("other")


def test_a_gradient_of_zero_is_one() -> None:
    model = torch.nn.Linear(2, 2)
    with FirstGradients(model):
        (0.0 * model(torch.ones(1, 2))).sum().backward()
    assert model.weight.grad is not None and not model.weight.grad.any()


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_stops_before_its_first_step(
    stage: str, inside: Callable, grpo_words: Callable, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """A layer that no forward pass reaches, as an adapter beside the head's own forward was."""
    from drive_vlm.stages.engine import build

    real = build.load_family

    def with_a_stray_layer(*args: Any, **flags: Any) -> Any:
        family = real(*args, **flags)
        family.model.lm_head.stray = torch.nn.Linear(2, 2)
        return family

    monkeypatch.setattr(build, "load_family", with_a_stray_layer)
    words: list[object] = [
        "--model",
        world.model,
        "--data",
        world.train,
        "--output_dir",
        tmp_path,
        "--max_steps",
        1,
        "--use_cpu",
        "true",
    ]
    with pytest.raises(SystemExit) as stopped:
        inside(stage, *(grpo_words(tmp_path, "--beta", 0) if stage == "grpo" else words))
    assert stopped.value.code == 2
    assert (
        "2 weights that train got no gradient in the first backward pass, such as lm_head.stray.bias"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "model.safetensors").exists()
