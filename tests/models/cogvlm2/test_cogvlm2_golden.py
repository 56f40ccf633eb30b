"""CogVLM2 against data that the published code made (../shared/golden/cogvlm2), and sizes and names of the published files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import drive_vlm
from drive_vlm.config import ModelConfig
from drive_vlm.models import model_on_meta
from drive_vlm.models.cogvlm2.family import register
from drive_vlm.models.cogvlm2.positions import Routes, lay_out, row_starts, vision_experts
from drive_vlm.models.cogvlm2.processing import chat_template, square_pixels

ARCHITECTURE = Path(drive_vlm.__file__).parent / "models" / "architectures" / "cogvlm2_19b.json"


@pytest.fixture(scope="module")
def golden(kit: Path) -> Path:
    return kit.parent / "golden" / "cogvlm2"


@pytest.fixture(scope="module")
def data(golden: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(golden / f"{name}.safetensors") for name in ("inputs", "outputs")}


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "outputs.json").read_text())


@pytest.fixture
def model(golden: Path) -> Any:
    from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
    from drive_vlm.models.cogvlm2.modeling import CogVLMForCausalLM

    register()
    config = CogVLM2Config(**json.loads((golden / "config.json").read_text()))
    loaded, info = CogVLMForCausalLM.from_pretrained(
        golden, config=config, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return loaded.eval()


def listen(model: Any) -> dict[str, torch.Tensor]:
    """What the modules whose outputs are golden give from now on."""
    body, kept = model.model, {}
    modules = {
        "vision_embeddings": body.vision_tower.patch_embedding,
        "vision_conv": body.projector.conv,
        "adapter_output": body.projector.linear_proj,
        "vision_output": body.projector,
        "layer_0_attention": body.language_model.layers[0].self_attn,
        "last_hidden_state": body.language_model,
    }
    modules |= {f"vision_layer_{i}": layer for i, layer in enumerate(body.vision_tower.layers)}
    modules |= {f"layer_{i}": layer for i, layer in enumerate(body.language_model.layers)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, made, name=name: kept.__setitem__(name, made))
    return kept


def test_every_intermediate_loss_and_gradient(model: Any, data: Any, numbers: Any) -> None:
    inputs, expected, made = data["inputs"], data["outputs"], listen(model)
    wanted = ("input_ids", "attention_mask", "pixel_values", "labels")
    out = model(**{name: inputs[name] for name in wanted})
    made["logits"] = out.logits
    assert len(made) == 13
    for name, tensor in made.items():
        # Hidden states reach 5, where other kernels of a processor round in the sixth place.
        torch.testing.assert_close(
            tensor, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert (out.logits - expected["logits"]).abs().max() <= 1e-5
    assert out.loss.item() == pytest.approx(numbers["loss"], abs=5e-6)
    out.loss.backward()
    norms = numbers["grad_norms"]
    published = published_names({name: weight.grad for name, weight in model.named_parameters()})
    assert published.keys() == norms.keys()
    for name, gradient in published.items():
        assert gradient.norm().item() == pytest.approx(norms[name], rel=1e-5, abs=1e-12), name
        if f"grad.{name}" in expected:
            torch.testing.assert_close(gradient, expected[f"grad.{name}"], atol=1e-6, rtol=1e-4)
    # No label is predicted from a picture: nothing but the last layer's attention reads its vision expert's output.
    idle = {name for name, norm in norms.items() if norm == 0}
    assert idle and all(name.startswith("model.layers.2.") and "vision" in name for name in idle)
    text = model(input_ids=inputs["text_only_input_ids"])
    assert (text.logits - expected["text_only_logits"]).abs().max() <= 1e-5
    # In bfloat16, where positions and tables are rounded as well, the published code gives 5.4340 (README.md of the data).
    half = {name: inputs[name] for name in wanted} | {"pixel_values": inputs["pixel_values"].bfloat16()}
    assert model.bfloat16()(**half).loss.item() == pytest.approx(5.4340, abs=0.02)


def published_names(tensors: dict[str, Any]) -> dict[str, Any]:
    from drive_vlm.models.cogvlm2.modeling import RENAMINGS

    renamed = {}
    for name, tensor in tensors.items():
        own = next((new for new in RENAMINGS.values() if name.startswith(new)), None)
        old = next((old for old, new in RENAMINGS.items() if new == own), "")
        renamed[name.replace(own, old.replace("^", "").replace("\\", ""), 1) if own else name] = tensor
    return renamed


def test_cached_generation(model: Any, data: Any) -> None:
    """Behind the cache every token passes the language expert; `generate` takes the likeliest of the golden logits."""
    inputs, expected = data["inputs"], data["outputs"]
    row = {name: inputs[name][:1] for name in ("input_ids", "attention_mask", "pixel_values")}
    ids, positions = row["input_ids"], expected["position_ids"][:1]
    short = {**row, "input_ids": ids[:, :-2], "attention_mask": row["attention_mask"][:, :-2]}
    cache = model(**short, use_cache=True).past_key_values
    steps = []
    for i in (-2, -1):
        at = slice(i, i + 1 or None)
        one = model(input_ids=ids[:, at], rotary_positions=positions[:, at], past_key_values=cache, use_cache=True)
        steps.append(one.logits)
    assert (torch.cat(steps, 1) - expected["cached_last_two_logits"]).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="Behind a filled cache rotary_positions"):
        model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
    left = torch.nn.functional.pad(short["input_ids"], (3, 0), value=3)
    mask = torch.nn.functional.pad(short["attention_mask"], (3, 0))
    pictures = row["pixel_values"]
    said = model.generate(input_ids=left, attention_mask=mask, pixel_values=pictures, max_new_tokens=4, do_sample=False)
    grown = short["input_ids"]
    for _ in range(4):
        best = model(input_ids=grown, pixel_values=pictures, use_cache=False).logits[:, -1:].argmax(-1)
        grown = torch.cat([grown, best], 1)
        if best.item() == model.config.eos_token_id:
            break
    assert said[0, 3:].tolist()[: grown.shape[1]] == grown[0].tolist()


def test_positions_and_experts(data: Any) -> None:
    """Also of odd rows: two pictures, a picture first, none, padding on the left."""
    inputs, expected = data["inputs"], data["outputs"]
    cases = [
        (inputs["token_type_ids"], inputs["attention_mask"], expected["position_ids"], expected["vision_expert_mask"]),
        (expected["cases.token_type_ids"], None, expected["cases.position_ids"], expected["cases.vision_expert_mask"]),
    ]
    left = {
        name: expected[f"cases.left_padded.{name}"] for name in ("token_type_ids", "attention_mask", "position_ids")
    }
    cases.append((left["token_type_ids"], left["attention_mask"], left["position_ids"], None))
    for types, mask, positions, experts in cases:
        places, starts = types == 1, row_starts(None, types)
        assert lay_out(places, mask, starts).tolist() == positions.tolist()
        if experts is not None:
            assert vision_experts(places, starts).tolist() == experts.bool().tolist()


def test_rows_of_a_pack_are_laid_out_alone(data: Any) -> None:
    expected = data["outputs"]
    types, alone = expected["cases.token_type_ids"], expected["cases.position_ids"]
    starts = row_starts(torch.arange(8).repeat(5)[None], types.reshape(1, -1))
    places = types.reshape(1, -1) == 1
    assert lay_out(places, None, starts).tolist() == [alone.flatten().tolist()]
    assert vision_experts(places, starts).int().tolist() == [expected["cases.vision_expert_mask"].flatten().tolist()]


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_rotary_tables_in_the_precision_of_the_checkpoint(kind: str, data: Any) -> None:
    from drive_vlm.models.cogvlm2.language import RotaryEmbedding

    expected = data["outputs"]
    rotary = RotaryEmbedding(128)
    if kind == "fp32":
        torch.testing.assert_close(rotary.inv_freq, expected["rotary.inv_freq_fp32"], atol=0, rtol=1e-6)
    rotary.inv_freq = expected[f"rotary.inv_freq_{kind}"]
    for made, name in zip(rotary(expected["rotary.positions"][None]), ("cos", "sin"), strict=True):
        golden = expected[f"rotary.{name}_{kind}"]
        assert made.dtype == golden.dtype
        torch.testing.assert_close(made[0, 0], golden, atol=0 if kind == "bf16" else 1e-6, rtol=0)


def test_saved_is_byte_equal_under_the_published_names(model: Any, golden: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(golden / "model.safetensors")
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in published)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["CogVLMForCausalLM"]


def test_the_published_sizes_on_the_meta_device() -> None:
    """1,221 tensors of 39,006,214,656 bytes in bfloat16, the frequencies of 32 layers among them."""
    config = json.loads(ARCHITECTURE.read_text())["config"]
    model = model_on_meta(ModelConfig(model="cogvlm2_19b"), config).model
    assert sum(weight.numel() for weight in model.parameters()) == 19_503_105_280
    stored = published_names(model.state_dict())
    assert len(stored) == 1221 and 2 * sum(tensor.numel() for tensor in stored.values()) == 39_006_214_656
    assert stored["model.layers.31.self_attn.rotary_emb.inv_freq"].shape == (64,)
    assert stored["model.vision.patch_embedding.position_embedding.weight"].shape == (9217, 1792)
    assert stored["model.vision.eoi"].shape == (1, 1, 4096)


# the picture and the text


def picture(width: int, height: int) -> Any:
    """The pictures of the golden data: the pixel at column x and row y by a formula."""
    import numpy as np
    from PIL import Image

    x, y = np.meshgrid(np.arange(width), np.arange(height))
    red, green = 3 * x + 5 * y, 37 * (x // 16) + 91 * (y // 16)
    blue = x * x // 64 + y * y // 32 + x * y // 128
    return Image.fromarray(np.stack([red, green, blue], 2).astype(np.uint8))


def test_pixels(golden: Path) -> None:
    expected = load_file(golden / "preprocess.safetensors")
    numbers = json.loads((golden / "preprocess.json").read_text())
    small = square_pixels(84)(images=[picture(400, 300)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(small, expected["pixels_84_of_400x300"], atol=1e-6, rtol=1e-6)
    pixels, k = square_pixels(1344), torch.arange(64)
    for i, entry in enumerate(numbers["images"]):
        image = [picture(entry["width"], entry["height"])]
        resized = pixels(images=image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        assert hashlib.sha256(resized.transpose(1, 2, 0).tobytes()).hexdigest() == entry["resized_sha256"]
        made = pixels(images=image, return_tensors="pt")["pixel_values"][0]
        assert made.mean((1, 2)).tolist() == pytest.approx(entry["mean"], abs=1e-5)
        assert made.std((1, 2)).tolist() == pytest.approx(entry["std"], abs=1e-5)
        sampled = made[:, (197 * k + 13) % 1344, (389 * k + 7) % 1344]
        torch.testing.assert_close(sampled, expected[f"samples.{i}"], atol=1e-6, rtol=1e-6)


def render(version: str, history: list[list[str]], query: str, answer: str | None) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    turns = [text for pair in history for text in pair] + [query] + ([] if answer is None else [answer])
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(turns)
    ]
    return ImmutableSandboxedEnvironment().from_string(chat_template(version)).render(messages=messages)


def test_chat_texts(golden: Path) -> None:
    """The mark parts question and answer, which are tokenized apart; the answer ends with 128001."""
    chat = json.loads((golden / "chat.json").read_text())
    assert len(chat["cases"]) == 6
    for case in chat["cases"]:
        words = (case["template"], case["history"], case["query"])
        text = "<|begin_of_text|>" + case["text"]
        assert render(*words, None) == text
        assert render(*words, "Stop.") == text + "\ufdefStop.<|end_of_text|>"


def test_both_experts_are_called_without_a_picture_token(model: Any, data: Any) -> None:
    called = []
    for layer in model.model.language_model.layers:
        for module in (layer.mlp.vision_mlp, layer.self_attn.vision_expert_dense):
            module.register_forward_hook(lambda _, given, made: called.append(len(given[0])))
    model(input_ids=data["inputs"]["text_only_input_ids"], labels=data["inputs"]["text_only_input_ids"]).loss.backward()
    assert called == [0] * 6
    grads = [p.grad for n, p in model.named_parameters() if "vision_mlp" in n or "vision_expert" in n]
    assert grads and all(grad is not None and not grad.any() for grad in grads)


def test_routes_give_what_both_experts_and_a_choice_give() -> None:
    torch.manual_seed(0)
    hidden, experts = torch.randn(2, 7, 4), torch.rand(2, 7) > 0.5
    language, vision = torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)
    routes = Routes.of(experts, int(experts.sum()))
    expected = torch.where(experts[..., None], vision(hidden), language(hidden))
    torch.testing.assert_close(routes.apply(hidden, language, vision), expected)
