"""`sft --model ADAPTER`: the adapter trains on, and what cannot be asked of one is answered with words, as in dpo and grpo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_an_adapter_on_the_embeddings_is_of_use_afterwards(
    inside: Callable, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Trained, answered with and merged: what sft saves is what the others load, and merge compares the logits."""
    out, rows = tmp_path / "adapter", tmp_path / "few.jsonl"
    rows.write_text("".join(world.train.read_text().splitlines(keepends=True)[:4]))
    data = ("--data", rows, "--image_root", world.train.parent)
    flags = (
        "--lora_rank",
        4,
        "--lora_targets",
        ".*(embed_tokens|q_proj)",
        "--freeze",
        "vision_tower",
        "projector",
        "--learning_rate",
        1e-2,
    )
    inside(
        "sft",
        "--model",
        world.model,
        *data,
        "--output_dir",
        out,
        *flags,
        "--max_steps",
        2,
        "--report_to",
        "none",
        "--use_cpu",
        "true",
    )
    weights = load_file(out / "adapter_model.safetensors")
    moved = {name for name, weight in weights.items() if "B" in name.rsplit(".lora_", 1)[-1] and weight.abs().max() > 0}
    assert any("embed_tokens.lora_embedding_B" in name for name in moved) and any("q_proj" in name for name in moved)
    assert not any("base_layer" in name for name in weights)
    inside("generate", "--model", out, *data, "--out", tmp_path / "answers.jsonl", "--max_new_tokens", 4)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    inside("merge", "--checkpoint", out, "--out", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    with pytest.raises(SystemExit):
        inside("sft", "--model", world.model, *data, "--lora_rank", 4, "--lora_targets", ".*(q_proj|lm_head)", "--freeze",
               "vision_tower", "projector", "--output_dir", tmp_path / "head", "--use_cpu", "true")  # fmt: skip
    assert "--lora_targets .*(q_proj|lm_head) takes in lm_head" in capsys.readouterr().err
