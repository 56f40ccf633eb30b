"""Counts by formula against the native classes on the meta device, name by name, and against the published totals."""

import json
from pathlib import Path
from typing import Any

import pytest

import drive_vlm  # noqa: F401  before transformers: torchvision beside CPU torch
from drive_vlm.plan.architecture import SHIPPED, Weight, load_architecture

# design reference, "Base models"; LLaVA-Next: transformers' own class, image_newline included
TOTALS = {
    "internvl3_1b": 938_193_024,
    "llava_next_8b": 8_355_276_800,
    "smolvlm": 2_246_272_880,
}
CLASSES = {
    "internvl3_1b": ("InternVLConfig", "InternVLForConditionalGeneration"),
    "llava_next_8b": ("LlavaNextConfig", "LlavaNextForConditionalGeneration"),
    "smolvlm": ("Idefics3Config", "Idefics3ForConditionalGeneration"),
}


def total(weights: list[Weight], *parts: str) -> int:
    return sum(weight.size for weight in weights if not parts or weight.part in parts)


def on_meta(config_class: str, model_class: str, config: dict[str, Any]) -> Any:
    import torch
    import transformers

    config = {key: value for key, value in config.items() if key != "model_type"}
    if "text_config" in config:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"]
    with torch.device("meta"):
        return getattr(transformers, model_class)(getattr(transformers, config_class)(**config))


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", CLASSES)
def test_every_weight_of_a_native_model_has_its_name_and_shape(name: str) -> None:
    architecture = load_architecture(name)
    assert architecture.shapes() == shapes_of(on_meta(*CLASSES[name], architecture.config))
    assert total(architecture.weights()) == TOTALS[name]
    assert not architecture.estimate


@pytest.mark.parametrize(
    ("variant", "tokens", "projector"),
    [("", 81, 9_507_840), ("_pool1", 729, 9_507_840), ("_pool2", 196, 9_507_840), ("_pool4", 49, 9_507_840),
     ("_resampler", 64, 33_511_328)],
)  # fmt: skip
def test_every_weight_of_siglip2_and_qwen3_has_its_name_and_shape(variant: str, tokens: int, projector: int) -> None:
    """Projector by hand: 1152 x 2560 + 2560 + 2560 x 2560 + 2560; resampler: 64 x 1152 queries, twice 4 x (1152 x 1152 + 1152)
    of attention, (2 x 1152 x 4304 + 1152 + 4304) of MLP and 3 norms, a norm, 1152 x 2560 + 2560."""
    import torch

    from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
    from drive_vlm.models.siglip_qwen.modeling import SiglipQwenForConditionalGeneration

    architecture = load_architecture(f"siglip2_qwen3_4b{variant}")
    config = SiglipQwenConfig(**{key: value for key, value in architecture.config.items() if key != "model_type"})
    with torch.device("meta"):
        model = SiglipQwenForConditionalGeneration(config)
    assert architecture.shapes() == shapes_of(model)
    weights = architecture.weights()
    assert total(weights, "language_model", "embeddings", "lm_head") == 4_022_468_096
    assert total(weights, "vision_tower") == 412_987_248
    assert total(weights, "temporal_embeddings") == 16 * 1152
    assert total(weights, "projector") == projector
    assert architecture.pictures.tokens == config.image_seq_length == tokens
    assert (architecture.pictures.tower_tokens, architecture.pictures.tiles) == (729, 16)
    assert not architecture.estimate


def test_frames_of_a_video_model_are_those_of_the_run() -> None:
    architecture = load_architecture("siglip2_qwen3_4b")
    assert architecture.with_frames(8).pictures.tiles == 8
    with pytest.raises(ValueError, match=r"--num_frames 17: .* for 16 frames\. Lower --num_frames"):
        architecture.with_frames(17)
    assert load_architecture("internvl3_1b").with_frames(99).pictures.tiles == 13


def test_estimates_of_models_without_a_native_port_say_so() -> None:
    for name in ("minicpm_v_8b", "cogvlm2_19b"):
        assert load_architecture(name).estimate
    cogvlm = load_architecture("cogvlm2_19b").weights()
    assert round((total(cogvlm) - total(cogvlm, "projector")) / 1e9, 2) == 19.31


def test_names_and_hub_ids_lead_to_the_same_sizes() -> None:
    assert (
        load_architecture("OpenGVLab/InternVL3-1B-hf").name == load_architecture("internvl3_1b").name == "internvl3_1b"
    )
    with pytest.raises(ValueError, match=r"neither a local directory nor .*Did you mean internvl3_1b\?"):
        load_architecture("internvl3_1")
    assert {path.stem for path in SHIPPED.glob("*.json")} >= set(TOTALS)


@pytest.mark.parametrize("freeze", [(), ("vision_tower",), ("vision_tower", "model.language_model.layers.0")])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("family_name", ["internvl", "siglip_qwen"])
def test_freezing_and_lora_count_as_training_does(
    freeze: tuple[str, ...], rank: int, family_name: str, request: pytest.FixtureRequest
) -> None:
    import transformers

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import count_parameters
    from drive_vlm.models.freezing import freeze as freeze_parts
    from drive_vlm.models.lora import apply_lora

    tiny_model = request.getfixturevalue({"internvl": "tiny_model", "siglip_qwen": "tiny_video_model"}[family_name])
    if rank and len(freeze) > 1:
        with pytest.raises(ValueError, match="LoRA already keeps its weights"):
            load_architecture(str(tiny_model)).weights(freeze, rank)
        return
    transformers.logging.set_verbosity_error()
    config = ModelConfig(model=str(tiny_model), lora_rank=rank)
    family = load_family(config, "float32")
    freeze_parts(family.model, family.parts, freeze)
    model = apply_lora(family, config, freeze) if rank else family.model
    real = count_parameters(model, family.parts)
    weights = load_architecture(str(tiny_model)).weights(freeze, rank)
    for part in (*(name for name in family.parts if name != "language_model"), "all"):
        mine = [weight for weight in weights if part in ("all", weight.part)]
        assert sum(weight.size for weight in mine) == real[part]["total"], part
        assert sum(weight.size for weight in mine if weight.trains) == real[part]["trainable"], part


def test_four_bits_are_for_frozen_matrices_of_the_language_model_only() -> None:
    weights = load_architecture("siglip2_qwen3_4b").weights(["vision_tower"], 32, four_bit=True)
    assert {weight.part for weight in weights if weight.four_bit} == {"language_model"}
    assert not any(weight.trains for weight in weights if weight.four_bit)


def test_a_config_that_misses_a_number_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    with pytest.raises(ValueError, match=r"config.json: the key .* is missing"):
        load_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert' cannot be planned"):
        load_architecture(str(tmp_path))
