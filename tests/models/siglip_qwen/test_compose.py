"""tools/build_siglip_qwen.py: the parts keep their weights, what they lack is added, what does not fit is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.siglip_qwen.compose import compose_siglip_qwen
from drive_vlm.models.tiny.tiny import train_tokenizer

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINKS = "{% if enable_thinking %}{% endif %}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a whole SigLIP, text half and pooling head included; a bf16 Qwen3 whose tokenizer has no picture tokens)."""
    import transformers

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("parts")
    narrow = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    siglip = transformers.SiglipConfig(
        text_config={**narrow, "vocab_size": 50}, vision_config={**narrow, "image_size": 42, "patch_size": 6}
    )
    transformers.SiglipModel(siglip).save_pretrained(root / "siglip")
    transformers.SiglipImageProcessor(size={"height": 42, "width": 42}, image_mean=[0.4] * 3).save_pretrained(
        root / "siglip"
    )
    tokenizer = train_tokenizer(["the car stops at the red light"] * 3, 400, CHATML, {})
    tokenizer.chat_template = THINKS
    config = transformers.Qwen3Config(
        **narrow, vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, tie_word_embeddings=True
    )
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "qwen")
    tokenizer.save_pretrained(root / "qwen")
    return root / "siglip", root / "qwen"


@pytest.mark.slow
def test_the_parts_come_back_with_their_weights(parts: tuple[Path, Path], tmp_path: Path, run: Callable) -> None:
    import transformers

    vision, language = parts
    words = (
        "--vision_tower",
        vision,
        "--language_model",
        language,
        "--out",
        tmp_path / "vlm",
        "--pool_size",
        2,
        "--max_frames",
        5,
    )
    done = run([sys.executable, "tools/build_siglip_qwen.py", *words, "--dtype", "float32"])
    assert done.returncode == 0, done.stderr
    assert "mlp projector, 16 tokens a frame, 80 for 5 frames" in done.stdout  # 7 x 7 patches, pooled 2 x 2
    family = load_family(ModelConfig(model=str(tmp_path / "vlm")), torch.float32)
    body = family.model.eval().model
    pixels = torch.randn(2, 3, 42, 42)
    tower = transformers.SiglipVisionModel.from_pretrained(vision).eval()
    assert torch.equal(body.tower_features(pixels), tower(pixels).last_hidden_state)
    assert not hasattr(body.vision_tower, "head")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = transformers.AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()(ids).logits
    assert torch.equal(family.model(input_ids=ids).logits[..., : expected.shape[-1]], expected)
    assert family.model.lm_head.weight is family.model.get_input_embeddings().weight
    assert body.get_image_features(pixels).pooler_output.shape == (2, 16, 32)
    assert body.temporal_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert list(family.processor.image_processor.image_mean) == [0.4] * 3
    assert family.tokenizer.convert_ids_to_tokens(family.model.config.image_token_id) == "<|image_pad|>"
    assert family.model.generation_config.eos_token_id == family.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "<think>" in family.template  # the base's own template knows enable_thinking
    assert str(vision) not in (tmp_path / "vlm" / "config.json").read_text()


def test_dtype_seed_and_a_template_without_thinking(parts: tuple[Path, Path], tmp_path: Path) -> None:
    vision, language = parts
    models = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = compose_siglip_qwen(
            tmp_path / name, vision, language, seed=seed, projector_type="resampler", num_queries=3
        )
        family = load_family(ModelConfig(model=str(out)), "auto")
        assert {p.dtype for p in family.model.parameters()} == {torch.bfloat16}
        models[name] = family.model.model.projector.queries
    assert torch.equal(models["a"], models["b"]) and not torch.equal(models["a"], models["c"])
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(language)
    plain.chat_template = "{{ messages }}"
    from shutil import copytree

    plain.save_pretrained(copytree(language, tmp_path / "instruct"))
    out = compose_siglip_qwen(tmp_path / "d", vision, tmp_path / "instruct")
    assert "<think>" not in load_family(ModelConfig(model=str(out)), "auto").template


def test_what_does_not_fit_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    from shutil import copytree

    vision, language = parts
    with pytest.raises(ValueError, match="model_type 'qwen3' is not a SigLIP tower of fixed resolution"):
        compose_siglip_qwen(tmp_path / "x", language, language)
    with pytest.raises(ValueError, match="nowhere: neither a local directory nor reachable on the hub"):
        compose_siglip_qwen(tmp_path / "x", tmp_path / "nowhere", language)
    with pytest.raises(ValueError, match="pool_size 8 must be from 1 to 7"):
        compose_siglip_qwen(tmp_path / "x", vision, language, pool_size=8)
    copy = copytree(language, tmp_path / "no_chat")
    train_tokenizer(["a car"], 300, ("<|endoftext|>", "<s>", "<|im_end|>"), {}).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"has no <\|im_start\|> and <\|im_end\|>.* Take a chat model"):
        compose_siglip_qwen(tmp_path / "x", vision, copy)
    assert not (tmp_path / "x").exists()


def test_an_output_that_is_not_empty_is_left_alone(parts: tuple[Path, Path], run: Callable) -> None:
    words = ("--vision_tower", parts[0], "--language_model", parts[1], "--out", parts[1])
    done = run([sys.executable, "tools/build_siglip_qwen.py", *words])
    assert done.returncode == 2 and "the directory is not empty. Give a new one" in done.stderr


def test_the_language_model_of_another_composition_gets_a_new_projector(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    vision, language = parts
    first = compose_siglip_qwen(tmp_path / "first", vision, language, dtype="float32", pool_size=2)
    second = compose_siglip_qwen(tmp_path / "second", vision, first, seed=1, pool_size=3)
    one, other = (load_family(ModelConfig(model=str(path)), torch.float32).model for path in (first, second))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)
    assert not torch.equal(one.model.projector.linear_1.weight, other.model.projector.linear_1.weight)
    assert (one.config.image_seq_length, other.config.image_seq_length) == (16, 9)
