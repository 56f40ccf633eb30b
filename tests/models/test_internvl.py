"""Loading InternVL: the head that a checkpoint stores is kept whatever the configuration says; errors name the way out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family, load_processor
from drive_vlm.models.loading import ATTENTION


def copy_with(tiny_model: Path, out: Path, **text_and_top: Any) -> Path:
    """A copy of the model whose config.json says `text_and_top` in both places."""
    shutil.copytree(tiny_model, out)
    config = json.loads((out / "config.json").read_text())
    config |= text_and_top
    config["text_config"] |= text_and_top
    (out / "config.json").write_text(json.dumps(config))
    return out


def head_of(path: Path) -> torch.Tensor:
    (head,) = [
        tensor for name, tensor in load_file(path / "model.safetensors").items() if name.endswith("lm_head.weight")
    ]
    return head


@pytest.mark.parametrize("said", [True, False, None])
def test_the_tie_trap(said: bool | None, tiny_model: Path, tmp_path: Path) -> None:
    """InternVLConfig ties by default: the trained head of InternVL3-1B would be replaced by the embeddings, silently."""
    path = copy_with(tiny_model, tmp_path / "model", tie_word_embeddings=bool(said))
    if said is None:  # config.json says nothing
        config = json.loads((path / "config.json").read_text())
        del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
        (path / "config.json").write_text(json.dumps(config))
    head = head_of(tiny_model)
    for for_training in (False, True):
        model = load_family(ModelConfig(model=str(path)), torch.float32, for_training).model
        assert torch.equal(model.lm_head.weight, head)
        assert model.lm_head.weight is not model.get_input_embeddings().weight
        assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(tmp_path / "saved")
    load_processor(ModelConfig(model=str(path))).processor.save_pretrained(tmp_path / "saved")
    again = load_family(ModelConfig(model=str(tmp_path / "saved")), torch.float32).model
    assert torch.equal(again.lm_head.weight, head + 1) and torch.equal(head_of(tmp_path / "saved"), head + 1)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, {}, 7])
def test_a_part_that_config_json_lacks_is_not_the_default_one(
    name: str, value: object, tiny_model: Path, tmp_path: Path
) -> None:
    """transformers fills in the default: a language model of billions of weights, at random."""
    path = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {name} "):
        load_family(ModelConfig(model=str(path)), torch.float32)


@pytest.mark.parametrize("name", ["video_processor", "image_processor"])
def test_a_part_that_processor_config_json_lacks_is_named(name: str, tiny_model: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((path / "processor_config.json").read_text())
    del config[name]
    (path / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model: .*processor_config\.json cannot be used \(OSError"):
        load_processor(ModelConfig(model=str(path)))


def test_a_tied_checkpoint_stays_tied(tiny_model: Path, tmp_path: Path) -> None:
    path = copy_with(tiny_model, tmp_path / "model", tie_word_embeddings=True)
    tensors = {
        name: tensor
        for name, tensor in load_file(path / "model.safetensors").items()
        if not name.endswith("lm_head.weight")
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    model = load_family(ModelConfig(model=str(path)), torch.float32).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_every_tensor_of_the_checkpoint_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    """Saved names differ from the module's; saving again gives the same names and values."""
    model = load_family(ModelConfig(model=str(tiny_model)), torch.float32).model
    model.save_pretrained(tmp_path)
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_sharded_checkpoint_with_an_index(tiny_model: Path, tmp_path: Path) -> None:
    family = load_family(ModelConfig(model=str(tiny_model)), torch.float32)
    family.model.save_pretrained(tmp_path, max_shard_size="200KB")
    family.processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file() and not (tmp_path / "model.safetensors").exists()
    again = load_family(ModelConfig(model=str(tmp_path)), torch.float32).model
    assert all(torch.equal(p, q) for p, q in zip(family.model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_dtype_are_as_asked(name: str, dtype: torch.dtype, tiny_model: Path) -> None:
    model = load_family(ModelConfig(model=str(tiny_model), attn_implementation=name), dtype).model
    assert model.config.text_config._attn_implementation == ATTENTION[name] and {
        p.dtype for p in model.parameters()
    } == {dtype}


def test_processor_without_weights_equals_the_family(tiny_model: Path, tmp_path: Path) -> None:
    family = load_family(ModelConfig(model=str(tiny_model), max_tiles=3), torch.float32)
    shutil.copytree(tiny_model, tmp_path / "light")
    (tmp_path / "light" / "model.safetensors").unlink()
    parts = load_processor(ModelConfig(model=str(tmp_path / "light"), max_tiles=3))
    assert parts.vision.fingerprint() == family.vision.fingerprint() and parts.vision.tiling.max_tiles == 3
    assert parts.template == family.template and len(parts.tokenizer) == len(family.tokenizer)


def test_tokens_per_tile_are_those_of_the_tower(tiny_model: Path) -> None:
    family = load_family(ModelConfig(model=str(tiny_model)), torch.float32)
    tower = family.model.model.vision_tower(family.vision.dummy_inputs()["pixel_values"])[0]
    assert family.tokens_per_tile == tower.shape[1] == 65


def test_models_that_cannot_be_loaded(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no config\.json"):
        load_family(ModelConfig(model=str(tmp_path / "empty")), torch.float32)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "internv1"}')
    with pytest.raises(ValueError, match=r"model_type 'internv1' is not supported .* Did you mean internvl\?"):
        load_family(ModelConfig(model=str(other)), torch.float32)
    with pytest.raises(ValueError, match="neither a local directory nor reachable on the hub"):
        load_family(ModelConfig(model="nobody/no-such-model"), torch.float32)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Weights are loaded from safetensors only"):
        load_family(ModelConfig(model=str(bare)), torch.float32)
