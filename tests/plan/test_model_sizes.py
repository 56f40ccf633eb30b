"""What ships of the published models against their classes on the meta device, and counts against models with weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import drive_vlm  # noqa: F401  before transformers: torchvision beside CPU torch
from drive_vlm.config import ModelConfig
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.models import MODELS, family_spec, load_family, load_processor
from drive_vlm.plan.lookup import load_sizes
from drive_vlm.plan.model_sizes import SHIPPED, ModelSizes, all_shipped
from drive_vlm.plan.rows import picture_tokens

# design reference, "Base models"; LLaVA-Next: transformers' own class, image_newline included
TOTALS = {
    "internvl3_1b": 938_193_024,
    "llava_next_8b": 8_355_276_800,
    "smolvlm": 2_246_272_880,
    "minicpm_v_8b": 8_537_092_336,
    "minicpm_v_2_6": 8_099_175_152,
    # Half the bytes of the published index, without the frequencies of 32 layers
    "cogvlm2_19b": 19_503_105_280,
    # Parameters that the hub shows for the published weights
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
}
RECORDED = [(name, i) for name, content in all_shipped().items() for i in range(len(content["recorded"]))]
PICTURES = [kind for kind in MODELS if family_spec(kind).adapter]
LANGUAGE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "vocab_size": 100,
}  # fmt: skip
# (height, width) of the pictures whose tokens are counted.
SIZES = [(336, 336), (720, 1280), (360, 640), (448, 224), (1080, 1920), (900, 100)]


def total(sizes: ModelSizes, *parts: str) -> int:
    return sum(weight.elements for weight in sizes.weights if not parts or weight.part in parts)


def sizes_of(name: str) -> ModelSizes:
    return load_sizes(ModelConfig(model=name))


@pytest.fixture
def tiny(
    tiny_model: Path, tiny_video_model: Path, tiny_families: Callable[[str], Path], tmp_path: Path
) -> Callable[[str], Path]:
    """A tiny model of each model_type; the plain language models are a config.json."""

    def find(kind: str) -> Path:
        if kind in PICTURES:
            return {"internvl": tiny_model, "siglip_qwen": tiny_video_model}.get(kind) or tiny_families(kind)
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind, **LANGUAGE}))
        return tmp_path / kind

    return find


# shipped numbers


@pytest.mark.slow
@pytest.mark.parametrize(("name", "i"), RECORDED)
def test_what_ships_is_what_the_class_gives(name: str, i: int) -> None:
    """Otherwise: python -m drive_vlm plan record."""
    from drive_vlm.plan.record import record

    found = all_shipped()[name]["recorded"][i]
    assert json.loads(json.dumps(record(ModelConfig(model=name, **found["flags"])))) == found


def test_what_ships_of_the_smallest_is_what_the_class_gives() -> None:
    test_what_ships_is_what_the_class_gives("internvl3_1b", 0)


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_the_published_ones(name: str) -> None:
    sizes = sizes_of(name)
    assert total(sizes) == TOTALS[name]


@pytest.mark.parametrize(
    ("variant", "tokens", "projector"),
    [("", 81, 9_507_840), ("_pool1", 729, 9_507_840), ("_pool2", 196, 9_507_840), ("_pool4", 49, 9_507_840),
     ("_resampler", 64, 33_511_328)],
)  # fmt: skip
def test_siglip2_and_qwen3_by_part(variant: str, tokens: int, projector: int) -> None:
    """Projector by hand: 1152 x 2560 + 2560 + 2560 x 2560 + 2560; resampler: 64 x 1152 queries, twice 4 x (1152 x 1152 + 1152)
    of attention, (2 x 1152 x 4304 + 1152 + 4304) of MLP and 3 norms, a norm, 1152 x 2560 + 2560."""
    sizes = sizes_of(f"siglip2_qwen3_4b{variant}")
    assert total(sizes, "language_model", "embeddings", "lm_head") == 4_022_468_096
    assert total(sizes, "vision_tower") == 412_987_248
    assert total(sizes, "temporal_embeddings") == 16 * 1152
    assert total(sizes, "projector") == projector
    assert sizes.pictures.tokens == tokens
    assert (sizes.pictures.tower_tokens, sizes.pictures.tiles) == (729, 16)


def test_frames_of_a_video_model_are_those_of_the_run() -> None:
    sizes = sizes_of("siglip2_qwen3_4b")
    assert sizes.with_frames(8).pictures.tiles == 8
    with pytest.raises(ValueError, match=r"--num_frames 17: .* for 16 frames\. Lower --num_frames"):
        sizes.with_frames(17)
    assert sizes_of("internvl3_1b").with_frames(99).pictures.tiles == 13


@pytest.mark.slow
def test_adapters_of_minicpm_v_are_on_attention() -> None:
    """Rank 8 on the four matrices of 32 layers of Llama 3 that the published script adapts."""
    sizes = load_sizes(ModelConfig(model="minicpm_v_8b", freeze=["vision_tower"], lora_rank=8))
    layer = 4096 + 4096 + 2 * (4096 + 1024) + 4096 + 4096
    assert total(sizes, "lora") == 32 * 8 * layer
    assert sizes.parts_that_train() == {"lora", "projector"}


def test_names_and_hub_ids_lead_to_the_same_sizes() -> None:
    assert sizes_of("OpenGVLab/InternVL3-1B-hf").name == sizes_of("internvl3_1b").name == "internvl3_1b"
    with pytest.raises(ValueError, match=r"neither a local directory nor .*Did you mean internvl3_1b\?"):
        sizes_of("internvl3_1")
    assert {path.stem for path in SHIPPED.glob("*.json")} >= set(TOTALS)


def test_four_bits_are_for_frozen_matrices_of_the_language_model_only() -> None:
    sizes = load_sizes(ModelConfig(model="siglip2_qwen3_4b", freeze=["vision_tower"], lora_rank=32))
    assert {weight.part for weight in sizes.weights if weight.four_bit} == {"language_model"}
    assert not any(weight.trains for weight in sizes.weights if weight.four_bit)


# any other model


@pytest.mark.parametrize("freeze", [(), ("vision_tower",), ("vision_tower", "model.language_model.layers.0")])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("kind", ["internvl", "siglip_qwen", "llava_next"])
def test_freezing_and_lora_count_as_training_does(
    freeze: tuple[str, ...], rank: int, kind: str, tiny: Callable[[str], Path]
) -> None:
    """Each part of a model with weights, and all of it, as the run counts them; LLaVA-NeXT reads only a part of its tower."""
    import transformers

    from drive_vlm.models.flops import train_flops
    from drive_vlm.models.freezing import count_parameters
    from drive_vlm.models.freezing import freeze as freeze_parts
    from drive_vlm.models.lora import apply_lora

    config = ModelConfig(model=str(tiny(kind)), freeze=list(freeze), lora_rank=rank)
    if rank and len(freeze) > 1:
        with pytest.raises(ValueError, match="LoRA already keeps its weights"):
            load_sizes(config)
        return
    transformers.logging.set_verbosity_error()
    family = load_family(config, "float32")
    freeze_parts(family.model, family.parts, freeze)
    if rank:
        family.model = apply_lora(family, config, freeze)
    real, sizes = count_parameters(family.model, family.parts), load_sizes(config)
    for part in (*(name for name in family.parts if name != "language_model"), "all"):
        mine = [weight for weight in sizes.weights if part in ("all", weight.part)]
        assert sum(weight.elements for weight in mine) == real[part]["total"], part
        assert sum(weight.elements for weight in mine if weight.trains) == real[part]["trainable"], part
    assert sizes.train == train_flops(family)


@pytest.mark.parametrize("kind", MODELS)
def test_the_tokens_of_a_picture_are_the_encoders(kind: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Tiles and tokens of six sizes, alone and three in a row, for every model_type that trains."""
    from PIL import Image

    path = tiny(kind)
    sizes = sizes_of(str(path))
    if kind not in PICTURES:
        assert total(sizes) > 0 and sizes.tiling is None
        return
    parts = load_processor(ModelConfig(model=str(path)))
    vision = parts.vision
    assert vision is not None
    encoder = Encoder(parts.tokenizer, parts.template, vision)
    for height, width in SIZES:
        Image.new("RGB", (width, height)).save(tmp_path / "a.png")
        for number in (1, 3):
            turns: list[dict[str, Any]] = [
                {"from": "human", "value": "<image>\n" * number},
                {"from": "gpt", "value": "no"},
            ]
            row = {"id": "a", "image": ["a.png"] * number, "conversations": turns}
            sample = parse_row(row, "rows.jsonl:1", str(tmp_path))
            layouts = encoder.layouts_of(sample)
            tiles, tokens = picture_tokens(sample, sizes, None, 8)
            assert tiles == sum(layout if isinstance(layout, int) else layout[0] for layout in layouts)
            real = sum(len(vision.image_ids(layout)) for layout in layouts) + number
            # A tiny SmolVLM's tokenizer writes an empty line in two tokens, the published ones in one.
            assert real - tokens in ((0, number) if kind in ("idefics3", "smolvlm") else (0,)), (height, width, number)


def test_a_record_is_kept_and_made_again_for_another_configuration(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny("llama")
    first = sizes_of(str(path))
    monkeypatch.setitem(__import__("sys").modules, "drive_vlm.plan.record", None)
    assert sizes_of(str(path)) == first
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **LANGUAGE, "vocab_size": 200}))
    with pytest.raises(ImportError):
        sizes_of(str(path))


def test_a_model_that_cannot_be_counted_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert' is not supported"):
        sizes_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    with pytest.raises(
        ValueError, match=r"its processor_config.json has no '.*', so it is not known how pictures are cut"
    ):
        sizes_of(str(tmp_path))
