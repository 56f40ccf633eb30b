"""The memo of a frozen tower: same answers, and as few runs of the tower as there are pictures."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from drive_vlm.sampling.tower_memo import TowerMemo


class Tower(torch.nn.Module):
    """pixel_values float[P, 3, 4, 4], and perhaps a mask of each picture -> an output with a field that is None."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(48, 10), requires_grad=False)
        self.seen: list[int] = []

    def forward(self, pixel_values: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0) -> Any:
        self.seen.append(len(pixel_values))
        hidden = scale * pixel_values.flatten(1).to(self.weight.dtype) @ self.weight
        hidden = hidden if mask is None else hidden * mask[:, None]
        return BaseModelOutputWithPooling(last_hidden_state=hidden[:, None], hidden_states=(hidden, hidden + 1))


@pytest.fixture
def both() -> SimpleNamespace:
    """The same tower with and without a memo."""
    plain, kept, memo = Tower(), Tower(), TowerMemo()
    memo.install(kept)
    return SimpleNamespace(plain=plain, kept=kept, memo=memo)


def pictures(*numbers: int) -> torch.Tensor:
    made = [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(number)) for number in numbers]
    return torch.stack(made)


def test_each_picture_once_and_the_same_answers(both: SimpleNamespace) -> None:
    batches = [pictures(1, 2, 1), pictures(2), pictures(3, 1), pictures(3, 3)]
    for batch in batches:
        out, expected = both.kept(pixel_values=batch), both.plain(pixel_values=batch)
        torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
        torch.testing.assert_close(out.hidden_states[1], expected.hidden_states[1])
        assert out.pooler_output is None and type(out) is type(expected)
    assert both.kept.seen == [2, 1] and (both.memo.pictures, both.memo.asked) == (3, 8)
    both.memo.clear()
    both.kept(batches[0])
    assert both.kept.seen == [2, 1, 2]


def test_everything_that_changes_the_answer_is_in_the_key(both: SimpleNamespace) -> None:
    batch, mask = pictures(1, 2), torch.tensor([1.0, 0.0])
    for options in ({}, {"scale": 2.0}, {"mask": mask}, {"mask": 1 - mask}):
        out, expected = (tower(pixel_values=batch, **options) for tower in (both.kept, both.plain))
        torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert both.kept.seen == [2, 2, 2, 2]
    swapped = batch[:, [1, 0, 2]]  # the same numbers in another order
    torch.testing.assert_close(
        both.kept(pixel_values=swapped).last_hidden_state, both.plain(pixel_values=swapped).last_hidden_state
    )
    nearly = batch.clone()
    nearly[0, 0, 0, 0] = torch.nextafter(nearly[0, 0, 0, 0], torch.tensor(9.0))
    both.kept(pixel_values=nearly)
    assert both.kept.seen[-1] == 1  # one bit of one picture


def test_precision_of_autocast_is_in_the_key(both: SimpleNamespace) -> None:
    batch = pictures(1)
    both.kept(pixel_values=batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert both.kept(pixel_values=batch).last_hidden_state.dtype == torch.bfloat16
    assert both.kept.seen == [1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.uint8])
def test_other_number_formats(both: SimpleNamespace, dtype: torch.dtype) -> None:
    batch = (pictures(1, 2, 1) * 50).abs().to(dtype)
    out, expected = both.kept(pixel_values=batch), both.plain(pixel_values=batch)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    assert both.kept.seen == [2]


def test_no_pictures_and_a_tower_that_trains(both: SimpleNamespace) -> None:
    assert both.kept(pixel_values=pictures(1)[:0]).last_hidden_state.shape == (0, 1, 10)
    tower = Tower()
    tower.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="trains"):
        TowerMemo().install(tower)
