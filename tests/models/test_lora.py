"""LoRA: adapters on the language model, other parts in full, what is frozen stays so; a saved adapter gives the same logits."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.family import Family
from drive_vlm.models.freezing import freeze
from drive_vlm.models.lora import apply_lora, base_of, record_base


def lora_family(tiny_model: Path, frozen: list[str], for_training: bool = False, **flags: Any) -> Family:
    """As the SFT stage does it: load, freeze, wrap."""
    config = ModelConfig(model=str(tiny_model), lora_rank=4, freeze=frozen, **flags)
    family = load_family(config, torch.float32, for_training=for_training)
    freeze(family.model, family.parts, frozen)
    family.model = apply_lora(family, config, frozen)
    return family


def trainable(model: Any) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


def test_adapter_and_projector_train_and_nothing_else(tiny_model: Path) -> None:
    names = trainable(lora_family(tiny_model, ["vision_tower"]).model)
    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all(name.startswith("model.language_model.layers.") for name in adapters)
    assert names - adapters and all(
        name.startswith("model.multi_modal_projector.modules_to_save.") for name in names - adapters
    )


def test_the_adapter_alone(tiny_model: Path) -> None:
    assert all(".lora_" in name for name in trainable(lora_family(tiny_model, ["vision_tower", "projector"]).model))


@pytest.mark.parametrize(
    "path", ["model.multi_modal_projector", "model.multi_modal_projector.linear_1", "model.vision_tower.encoder"]
)
def test_what_is_frozen_by_its_path_stays_frozen(path: str, tiny_model: Path) -> None:
    names = {name.replace(".modules_to_save.default", "") for name in trainable(lora_family(tiny_model, [path]).model)}
    assert not any(name.startswith(path + ".") for name in names)
    assert any(name.startswith("model.vision_tower.") for name in names)


@pytest.mark.parametrize("name", ["language_model", "model.language_model", "model.language_model.layers.0"])
def test_freezing_what_the_adapter_sits_on_is_refused(name: str, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--freeze {name} with --lora_rank")):
        lora_family(tiny_model, [name])


def test_targets_and_scale(tiny_model: Path) -> None:
    model = lora_family(
        tiny_model, ["vision_tower", "projector"], lora_targets=r".*language_model\..*q_proj", lora_alpha=12
    ).model
    assert {name.split(".")[5] for name in trainable(model)} == {"q_proj"}
    assert model.peft_config["default"].lora_alpha == 12
    assert lora_family(tiny_model, ["vision_tower"]).model.peft_config["default"].lora_alpha == 8


@pytest.mark.parametrize("frozen", [["vision_tower"], ["vision_tower", "projector"]])
def test_a_saved_adapter_gives_the_same_logits(frozen: list[str], tiny_model: Path, tmp_path: Path) -> None:
    family = lora_family(tiny_model, frozen, for_training=True)
    torch.manual_seed(0)
    ids = [family.tokenizer.convert_tokens_to_ids("<|im_start|>"), *family.vision.image_ids(1), 300, 301]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(1, 3, 56, 56)}
    optimizer = torch.optim.AdamW([p for p in family.model.parameters() if p.requires_grad], lr=0.05)
    with torch.no_grad():
        before = family.model.eval()(**inputs).logits
    for _ in range(2):
        optimizer.zero_grad()
        family.model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    with torch.no_grad():
        trained = family.model(**inputs).logits
    assert (trained - before).abs().max() > 0.1
    family.model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    for for_training in (False, True):
        again = load_family(ModelConfig(model=str(tmp_path)), torch.float32, for_training=for_training)
        with torch.no_grad():
            torch.testing.assert_close(again.model.eval()(**inputs).logits, trained)
        assert trainable(again.model) == (trainable(family.model) if for_training else set())


def saved_adapter(base: Path, out: Path) -> Path:
    model = lora_family(base, ["vision_tower", "projector"]).model
    model.save_pretrained(out)
    record_base(model, out)
    return out


def change_config(directory: Path, name: str, **values: Any) -> None:
    content = json.loads((directory / name).read_text())
    (directory / name).write_text(json.dumps(content | values))


def test_an_adapter_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = saved_adapter(tiny_model, tmp_path / "adapter")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights[min(weights)] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    change_config(adapter, "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(ValueError, match=r"adapter of another model than .*other, which has other weights now"):
        load_family(ModelConfig(model=str(adapter)), torch.float32)

    (adapter / "base_model.json").unlink()  # an adapter from elsewhere: its own weights must fit
    load_family(ModelConfig(model=str(adapter)), torch.float32)
    saved = load_file(adapter / "adapter_model.safetensors")
    first = min(saved)
    save_file({name: tensor for name, tensor in saved.items() if name != first}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"it has no weights for {re.escape(first)} \\(1 such\\)"):
        load_family(ModelConfig(model=str(adapter)), torch.float32)
    save_file(saved | {first: torch.zeros(7, 7)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"another model.*size mismatch"):
        load_family(ModelConfig(model=str(adapter)), torch.float32)


def test_the_model_under_an_adapter_is_found_where_both_were_moved(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "runs" / "stage1")
    monkeypatch.chdir(tmp_path)
    adapter = saved_adapter(Path("runs/stage1"), Path("runs/stage2"))
    monkeypatch.chdir("/")
    assert base_of(tmp_path / adapter) == str(tmp_path / "runs/stage1")  # not relative to the working directory
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert base_of(moved / "stage2") == str(moved / "stage1")
    shutil.copytree(moved / "stage2", moved / "stage2" / "checkpoint-3")
    assert base_of(moved / "stage2" / "checkpoint-3") == str(moved / "stage1")
    shutil.rmtree(moved / "stage1")
    with pytest.raises(ValueError, match='stage2 is an adapter on it: "base_model_name_or_path"'):
        load_family(ModelConfig(model=str(moved / "stage2")), torch.float32)


def step(family: Family) -> torch.Tensor:
    """Train two steps on a picture and some words; return the logits after it."""
    torch.manual_seed(0)
    ids = [family.tokenizer.convert_tokens_to_ids("<|im_start|>"), *family.vision.image_ids(1), 300, 301]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(1, 3, 56, 56)}
    optimizer = torch.optim.AdamW([p for p in family.model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        family.model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    with torch.no_grad():
        return family.model.eval()(**inputs).logits


def test_an_adapter_on_the_embeddings_trains_and_is_loaded_again(tiny_model: Path, tmp_path: Path) -> None:
    """As our trainer saves it, and as peft does, which adds the base's embeddings."""
    from drive_vlm.models.lora import odd_weights

    family = lora_family(tiny_model, ["vision_tower", "projector"], True, lora_targets=r".*(embed_tokens|q_proj)")
    trained = step(family)
    assert all(p.grad is not None for p in family.model.parameters() if p.requires_grad)
    for whole in (False, True):
        family.model.save_pretrained(tmp_path / str(whole), save_embedding_layers=whole)
        record_base(family.model, tmp_path / str(whole))
        assert not odd_weights(family.model, tmp_path / str(whole) / "adapter_model.safetensors")
        again = load_family(ModelConfig(model=str(tmp_path / str(whole))), torch.float32)
        torch.manual_seed(0)
        pixels = torch.randn(1, 3, 56, 56)
        ids = [family.tokenizer.convert_tokens_to_ids("<|im_start|>"), *family.vision.image_ids(1), 300, 301]
        with torch.no_grad():
            logits = again.model.eval()(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
        torch.testing.assert_close(logits, trained)
    names = load_file(tmp_path / "False" / "adapter_model.safetensors")
    assert not any("base_layer" in name for name in names)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (r".*(q_proj|lm_head)", r"takes in lm_head: the loss is computed in the head itself"),
        (r".*language_model.*q_prj", r"matches no module\. It is a regular expression .* Did you mean q_proj\?"),
        (r"q_proj", "matches no module"),
        (r".*input_layernorm", r"--lora_targets \.\*input_layernorm: Target module .* is not supported"),
        (r".*(q_proj|linear_1)", r"matches model\.multi_modal_projector\.linear_1, but .*projector trains in full"),
    ],
)
def test_targets_on_which_an_adapter_would_not_train(targets: str, words: str, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=words):
        lora_family(tiny_model, ["vision_tower"], lora_targets=targets)


def test_a_pattern_that_is_none_is_refused_by_the_flag() -> None:
    with pytest.raises(ValueError, match=r"--lora_targets \*q_proj is no regular expression \(nothing to repeat"):
        ModelConfig(model="m", lora_targets="*q_proj")


def test_tied_embeddings_take_no_adapter(tiny_model: Path) -> None:
    from drive_vlm.models import model_on_meta
    from drive_vlm.models.lora import check_targets

    model = model_on_meta(ModelConfig(model=str(tiny_model))).model
    check_targets(model, ".*embed_tokens")
    model.all_tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    with pytest.raises(
        ValueError, match=r"matches model\.language_model\.embed_tokens, whose weight is also the head's"
    ):
        check_targets(model, ".*embed_tokens")


def test_embeddings_train_in_full_next_to_adapters(tiny_model: Path, tmp_path: Path) -> None:
    """A copy of them trains and is saved, the plan counts it; read back and merged, the logits are those of the run."""
    from drive_vlm.plan.flags import trained_adapter
    from drive_vlm.plan.record import record

    flags: dict[str, Any] = {"lora_rank": 4, "freeze": ["vision_tower", "projector"], "lora_embeddings": True}
    family = lora_family(tiny_model, flags["freeze"], True, lora_embeddings=True)
    names = trainable(family.model)
    copy = "model.language_model.embed_tokens.modules_to_save.default.weight"
    assert {name for name in names if ".lora_" not in name} == {copy}
    before = load_file(tiny_model / "model.safetensors")
    trained = step(family)
    moved = family.model.get_base_model().get_input_embeddings().weight
    stored = next(value for name, value in before.items() if name.endswith("embed_tokens.weight"))
    assert moved.shape == stored.shape and not torch.equal(moved, stored)
    family.model.save_pretrained(tmp_path / "run", save_embedding_layers=False)
    record_base(family.model, tmp_path / "run")
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 56, 56)
    ids = [family.tokenizer.convert_tokens_to_ids("<|im_start|>"), *family.vision.image_ids(1), 300, 301]
    again = load_family(ModelConfig(model=str(tmp_path / "run")), torch.float32).model.eval()
    for model in (again, again.merge_and_unload()):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
        torch.testing.assert_close(logits, trained, atol=1e-5, rtol=1e-5)
    found = record(ModelConfig(model=str(tiny_model), **flags))
    counted = sum(elements * count for _, elements, trains, _, count in found["weights"] if trains)
    assert counted == sum(p.numel() for name, p in family.model.named_parameters() if p.requires_grad)
    assert trained_adapter(ModelConfig(model=str(tmp_path / "run"))).lora_embeddings


def test_embeddings_that_cannot_train_in_full_are_refused(tiny_model: Path) -> None:
    from drive_vlm.models import model_on_meta

    with pytest.raises(ValueError, match="--lora_embeddings is for runs with --lora_rank"):
        ModelConfig(model="m", lora_embeddings=True)
    config = ModelConfig(model=str(tiny_model), lora_rank=4, lora_embeddings=True)
    family = model_on_meta(config)
    family.model.all_tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    with pytest.raises(
        ValueError, match=r"--lora_embeddings: the weight of model\.language_model\.embed_tokens is also the head's"
    ):
        apply_lora(family, config, [])


@pytest.mark.parametrize("kind", ["target_modules", "modules_to_save"])
def test_an_adapter_from_elsewhere_around_the_head(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """It answers, and is refused before it trains."""
    from peft import LoraConfig, get_peft_model

    family = load_family(ModelConfig(model=str(tiny_model)), torch.float32)
    flags: dict[str, Any] = {"target_modules": ["q_proj", "lm_head"]}
    if kind == "modules_to_save":
        flags = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    get_peft_model(family.model, LoraConfig(r=2, **flags)).save_pretrained(tmp_path)
    load_family(ModelConfig(model=str(tmp_path)), torch.float32)
    with pytest.raises(ValueError, match="its adapter takes in lm_head"):
        load_family(ModelConfig(model=str(tmp_path)), torch.float32, for_training=True)
