"""LLaVA-NeXT and Idefics3 through the real command line: their picture tensors differ from InternVL's, the curve must not."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import MODELS, family_spec

# InternVL and SigLIP + Qwen train in most other tests; SmolVLM is Idefics3 with another tower; Qwen-VL, MiniCPM-V and CogVLM2 have files of
# their own.
OTHERS = ("internvl", "siglip_qwen", "smolvlm", "qwen2_5_vl", "qwen3_vl", "minicpmv", "cogvlm2")
FAMILIES = [kind for kind in MODELS if family_spec(kind).adapter and kind not in OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.supports("llava_next sft", "llava_next sft zero3", "idefics3 sft", "idefics3 sft zero2")
def test_two_ranks_walk_the_curve_of_one(
    kind: str, sft: Callable, inside: Callable, world: Any, tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rows with one picture, two, none. LLaVA-NeXT under ZeRO-3 with every weight sharded (its newline token is a weight of no
    module), Idefics3 under ZeRO-2."""
    flags = ("--model", tiny_families(kind), "--freeze", "projector", "--max_steps", 6)
    words = (
        "--data",
        world.train,
        "--output_dir",
        tmp_path / "one",
        "--logging_steps",
        1,
        "--per_device_train_batch_size",
        16,
    )
    words = (
        *words,
        "--learning_rate",
        1e-3,
        "--lr_scheduler_type",
        "constant",
        "--save_strategy",
        "no",
        "--report_to",
        "none",
    )
    inside("sft", *words, "--use_cpu", "true", "--disable_tqdm", "true", *flags)
    layout = world.zero3 if kind == "llava_next" else "zero2"
    two = sft(tmp_path / "two", *flags, "--deepspeed", layout, launcher="torchrun")
    one = dataclasses.replace(two, out=tmp_path / "one")
    assert one.curve()[-1] < one.curve()[0] - 1
    assert two.curve() == pytest.approx(one.curve(), abs=1e-4)
    assert two.curve("grad_norm") == pytest.approx(one.curve("grad_norm"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.supports("llava_next generate", "idefics3 generate")
def test_it_answers(
    kind: str, inside: Callable, world: Any, tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    words = ("--data", world.eval, "--out", out, "--limit", 5, "--max_new_tokens", 4)
    inside("generate", "--model", tiny_families(kind), *words)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == 5 and any(answer["prediction"] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.supports("llava_next sft packing", "idefics3 sft packing")
def test_a_pack_is_the_sum_of_its_rows(kind: str, world: Any, tiny_families: Callable[[str], Path]) -> None:
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(tiny_families(kind))), torch.float32, for_training=True)
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    (source,) = open_sources([str(world.train)])
    rows = [encoder.encode(read_sample(source, i)) for i in (3, 5, 0, 1)]  # none, two pictures, one, one
    collate = Collator(family.tokenizer.pad_token_id, family.vision, packed=True)

    def loss(sequences: list[list[Any]]) -> float:
        batch = collate(sequences)
        inputs = {k: v for k, v in batch.items() if k not in ("sample_ids", "bad_rows", "num_tokens")}
        with torch.no_grad():
            return family.model(**inputs, num_items_in_batch=torch.tensor(1)).loss.item()

    family.model.eval()
    assert loss([rows[:3], rows[3:]]) == pytest.approx(sum(loss([[row]]) for row in rows), rel=1e-5)
