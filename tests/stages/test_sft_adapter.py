"""`sft --model ADAPTER`: the adapter trains on, and what cannot be asked of one is answered with words, as in dpo and grpo."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def adapter(sft: Callable, fresh: Callable) -> Path:
    """Rank 2 on the language model; tower and projector train in full next to it."""
    out = fresh("adapter")
    sft(out, "--lora_rank", 2, "--max_steps", 1, "--freeze", "model.vision_tower.embeddings")
    return out


def test_an_adapter_trains_on_with_its_tower_frozen(adapter: Path, sft: Callable, fresh: Callable) -> None:
    out = fresh("goes_on")
    run = sft(out, "--model", adapter, "--freeze", "vision_tower", "--max_steps", 2)
    assert len(run.curve()) == 2
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, out))
    moved = {name for name in old if not old[name].equal(new[name])}
    assert old.keys() == new.keys() and any("vision_tower" in name for name in old)
    assert any("lora_B" in name for name in moved) and any("multi_modal_projector" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lora_rank", 4), "is an adapter and trains on as it is: leave --lora_rank out"),
        (("--freeze", "language_model"), "the adapter of --model is all that trains there. Leave it out."),
    ],
)
def test_what_an_adapter_cannot_do_is_said_in_one_line(
    adapter: Path, sft: Callable, fresh: Callable, flags: tuple, words: str
) -> None:
    run = sft(fresh("refused"), "--model", adapter, *flags, code=2)
    assert words in run.text and "Traceback" not in run.text
