"""--quantize nf4: refused where it cannot work; where bitsandbytes is installed, which layers it takes and that adapters learn."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import drive_vlm.models
from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.freezing import count_parameters, freeze
from drive_vlm.models.lora import apply_lora


@pytest.fixture(params=["tiny_model", "tiny_video_model", "qwen2_5_vl", "qwen3_vl"])
def path(request: pytest.FixtureRequest, tiny_families: Callable[[str], Path]) -> Path:
    """A tiny model: that of a fixture, or of a family."""
    name: str = request.param
    return request.getfixturevalue(name) if name.startswith("tiny_") else tiny_families(name)


@pytest.mark.supports(
    "internvl sft nf4 refused", "siglip_qwen sft nf4 refused", "qwen2_5_vl sft nf4 refused", "qwen3_vl sft nf4 refused"
)
def test_what_cannot_work_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(path)
    with pytest.raises(ValueError, match=r"4-bit weights cannot train. Add --lora_rank"):
        load_family(ModelConfig(model=model, quantize="nf4"), torch.float32, for_training=True)
    frozen = ModelConfig(model=model, quantize="nf4", freeze=["vision_tower", "language_model"])
    with pytest.raises(ValueError, match=r"--freeze language_model: .* 4 bits. Leave --quantize out"):
        load_family(frozen, torch.float32, for_training=True)
    config = ModelConfig(model=model, quantize="nf4", lora_rank=8)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda word, *a: None if word == "bitsandbytes" else find(word, *a)
    )
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install bitsandbytes"):
        load_family(config, torch.float32, for_training=True)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda word, *a: True if word == "bitsandbytes" else find(word, *a)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device, and torch sees none"):
        load_family(config, torch.float32, for_training=True)


@pytest.mark.supports(
    "internvl sft lora nf4 optional", "siglip_qwen sft lora nf4 optional", "qwen2_5_vl sft lora nf4 optional",
    "qwen3_vl sft lora nf4 optional",
)  # fmt: skip
def test_only_the_language_model_is_in_four_bits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes has CPU kernels for trials; the flag itself asks for CUDA, which is switched off here."""
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():
        monkeypatch.setattr(drive_vlm.models, "check_quantization", lambda *_: None)
    whole = load_family(ModelConfig(model=str(path)), torch.float32)
    config = ModelConfig(model=str(path), quantize="nf4", lora_rank=4)
    family = load_family(config, torch.float32, for_training=True)
    kinds = {path: type(module).__name__ for path, module in family.model.named_modules()}
    four_bit = {path for path, kind in kinds.items() if kind == "Linear4bit"}
    linear = {path for path, module in whole.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert four_bit == {path for path in linear if path.startswith("model.language_model.")}
    freeze(family.model, family.parts, ["vision_tower"])
    family.model = apply_lora(family, config, ["vision_tower"])
    counts = count_parameters(family.model, family.parts)
    body = count_parameters(whole.model, whole.parts)
    assert counts["vision_tower"] == {**body["vision_tower"], "trainable": 0}
    assert counts["language_model"]["total"] == body["language_model"]["total"] + counts["language_model"]["trainable"]
    ids = torch.randint(20, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    ids = ids.to(family.model.device)
    optimizer = torch.optim.AdamW([p for p in family.model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = family.model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
