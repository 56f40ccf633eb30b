"""CogVLM2 through the real command line: two experts in every layer, on ranks of which some see no picture."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig


@pytest.fixture(scope="module")
def rows(world: Any) -> Path:
    """24 rows of `world`, every other one without a picture and some with two, and a second answer each."""
    made = [json.loads(line) for line in world.train.read_text().splitlines()][:24]
    for i, row in enumerate(made):
        if i % 2 and "image" in row:
            del row["image"]
            row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>\n", "")
        others = (other["conversations"][-1]["value"] for other in made[i + 1 :] + made[:i])
        row["rejected"] = next(other for other in others if other != row["conversations"][-1]["value"])
    path = world.train.with_name("cogvlm2.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def model(rows: Path) -> Path:
    """Small: under ZeRO-3 every module costs a gather."""
    from drive_vlm.models.tiny.cogvlm2 import build_tiny_cogvlm2

    out = rows.with_name("cogvlm2")
    return build_tiny_cogvlm2(out, rows.read_text().splitlines(), image_size=28, vocab_size=400)


# One process, this one: it logs every step.
PLAIN = (
    "--logging_steps", 1, "--lr_scheduler_type", "constant", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true",
)  # fmt: skip


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.slow
@pytest.mark.supports("cogvlm2 sft", "cogvlm2 sft zero2", "cogvlm2 sft zero3")
def test_ranks_with_and_without_pictures_walk_the_curve_of_one(
    sft: Callable, inside: Callable, world: Any, rows: Path, model: Path, tmp_path: Path
) -> None:
    """One row a rank and step. 50 steps under ZeRO-3 with every weight sharded, on most of which a rank has no picture; some under
    ZeRO-2 with gradient checkpointing."""
    flags = (
        "--model", model, "--data", rows, "--freeze", "projector", "--global_batch_size", 2, "--learning_rate", 1e-3,
        "--report_to", "none", "--max_steps",
    )  # fmt: skip
    whole = ("--per_device_train_batch_size", 2, "--save_strategy", "no", "--output_dir", tmp_path / "one")
    inside("sft", *flags, 50, *whole, *PLAIN)
    ranks = {"launcher": "torchrun", "timeout": 400}
    rest = ("--per_device_train_batch_size", 1, "--deepspeed")
    three = sft(tmp_path / "three", *flags, 50, *rest, world.zero3, **ranks)
    one = dataclasses.replace(three, out=tmp_path / "one")
    assert len(three.curve()) == 50 and one.curve()[-1] < one.curve()[0] - 1
    assert three.curve() == pytest.approx(one.curve(), abs=1e-3)
    assert three.curve("grad_norm") == pytest.approx(one.curve("grad_norm"), rel=1e-2)
    two = sft(tmp_path / "two", *flags, 6, *rest, "zero2", "--gradient_checkpointing", "true", **ranks)
    assert two.curve() == pytest.approx(one.curve()[:6], abs=1e-4)
    assert two.curve("grad_norm") == pytest.approx(one.curve("grad_norm")[:6], rel=1e-3)
    published(tmp_path / "three")


def published(directory: Path) -> None:
    """What was saved has the published names, the frequencies of every layer among them."""
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"model.vision.boi", "model.layers.1.self_attn.rotary_emb.inv_freq", "model.embed_tokens.weight"} <= names
    assert not any("vision_tower" in name or "projector" in name or "language_model" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "spin"])
@pytest.mark.supports("cogvlm2 sft packing", "cogvlm2 spin")
def test_resumed_is_uninterrupted(stage: str, inside: Callable, rows: Path, model: Path, tmp_path: Path) -> None:
    """Packs of rows with and without pictures; SPIN with log-probabilities that `reference` has kept."""
    from safetensors.torch import load_file

    data = ("--model", model, "--data", rows)
    own: tuple[object, ...] = ("--packing", "true", "--max_length", 200, "--per_device_train_batch_size", 2)
    if stage == "spin":
        inside("reference", *data, "--out", tmp_path / "cache", "--batch_size", 6)
        own = ("--reference_cache", tmp_path / "cache", "--per_device_train_batch_size", 4)
    save = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2, "--keep", 2, "--learning_rate", 1e-3)
    words = (stage, *data, *own, *save, *PLAIN, "--output_dir", tmp_path / "run")
    inside(*words)
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "model.safetensors").unlink()
    inside(*words, "--resume", tmp_path / "run" / "checkpoint-2")
    whole, resumed = ([row["loss"] for row in steps_of(tmp_path / name)] for name in ("whole", "run"))
    assert len(whole) == 4 and resumed == pytest.approx(whole, abs=1e-6)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run")]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=1e-5)
    if stage == "spin":
        assert whole[0] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
@pytest.mark.supports("cogvlm2 sft packing lora", "cogvlm2 generate")
def test_an_adapter_of_packs_is_merged_and_answers_in_plain_transformers(
    inside: Callable, rows: Path, model: Path, tmp_path: Path
) -> None:
    """The adapter and the merged model give the same logits and answers, in batches padded on the left and one by one."""
    from drive_vlm.models import load_family

    flags = ("--packing", "true", "--max_length", 200, "--lora_rank", 4, "--learning_rate", 1e-2, "--max_steps", 4)
    run = tmp_path / "run"
    inside(
        "sft", "--model", model, "--data", rows, *flags, *PLAIN, "--per_device_train_batch_size", 2, "--save_strategy", "no",
        "--output_dir", run,
    )  # fmt: skip
    assert steps_of(run)[-1]["loss"] < steps_of(run)[0]["loss"]
    inside("merge", "--checkpoint", run, "--out", tmp_path / "merged")
    published(tmp_path / "merged")
    families = [load_family(ModelConfig(model=str(path)), torch.float32) for path in (run, tmp_path / "merged")]
    adapted = {
        name.rsplit(".lora_A", 1)[0].rsplit(".", 1)[-1]
        for name, _ in families[0].model.named_parameters()
        if ".lora_A" in name
    }
    assert adapted == {
        "vision_expert_query_key_value", "language_expert_query_key_value", "vision_expert_dense", "language_expert_dense",
        "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    ids = torch.tensor([[0, *[2] * 6, 9, 11, 12]])
    pictures = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        logits = [family.model.eval()(input_ids=ids, pixel_values=pictures).logits for family in families]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)
    said = []
    for path, size in ((run, 6), (tmp_path / "merged", 6), (tmp_path / "merged", 1)):
        out = tmp_path / f"{path.name}{size}.jsonl"
        words = ("--limit", 6, "--max_new_tokens", 6, "--batch_size", size, "--out", out)
        inside("generate", "--model", path, "--data", rows, *words)
        said.append([json.loads(line)["prediction"] for line in out.read_text().splitlines()])
    assert said[0] == said[1] == said[2] and len(set(said[0])) > 1


@pytest.mark.slow
@pytest.mark.supports("cogvlm2 dpo", "cogvlm2 grpo", "cogvlm2 a2c")
def test_two_steps_of_the_other_stages(
    inside: Callable, rows: Path, model: Path, grpo_words: Callable, a2c_words: Callable, tmp_path: Path
) -> None:
    """DPO begins at ln 2; the probabilities that answers were drawn with are those that learn."""

    def steps(stage: str) -> list[dict[str, Any]]:
        return steps_of(tmp_path / stage)

    flags = ("--model", model, "--data", rows, "--max_steps", 2)
    plain = (*PLAIN, "--save_strategy", "no")
    inside("dpo", *flags, *plain, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "dpo")
    assert len(steps("dpo")) == 2 and steps("dpo")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    # Long enough to draw the placeholder of pictures, were it not left out.
    inside("grpo", *grpo_words(tmp_path / "grpo", *flags, "--beta", 0.1, "--max_completion_length", 64))
    assert steps("grpo")[0]["kl"] == pytest.approx(0, abs=1e-6) and len(steps("grpo")) == 2
    inside("a2c", *a2c_words(tmp_path / "a2c", *flags))
    assert [row["sampling/log_prob_gap"] < 1e-4 for row in steps("a2c")] == [True, True]


@pytest.mark.supports("cogvlm2 sft packing")
def test_a_pack_is_the_sum_of_its_rows(rows: Path, model: Path) -> None:
    """Losses and gradients: positions and experts begin again at every row, and the padding of a pack is no picture."""
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(model)), torch.float32, for_training=True)
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    (source,) = open_sources([str(rows)])
    encoded = [encoder.encode(read_sample(source, i)) for i in range(7)]
    assert {len(row["vision"].get("pixel_values", ())) for row in encoded} >= {0, 1}
    collate = Collator(family.tokenizer.pad_token_id, family.vision, packed=True)

    def learn(sequences: list[list[Any]]) -> tuple[float, dict[str, torch.Tensor]]:
        family.model.zero_grad()
        batch = collate(sequences)
        inputs = {k: v for k, v in batch.items() if k not in ("sample_ids", "bad_rows", "num_tokens")}
        loss = family.model(**inputs, num_items_in_batch=torch.tensor(1)).loss
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in family.model.named_parameters()}

    packed = learn([encoded[:4], encoded[4:]])
    alone = [learn([[row]]) for row in encoded]
    assert packed[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    for name, gradient in packed[1].items():
        expected = torch.stack([one[name] for _, one in alone]).sum(0)
        torch.testing.assert_close(gradient, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.supports("cogvlm2 sft features")
def test_cached_features_train_as_pixels_do(inside: Callable, rows: Path, model: Path, tmp_path: Path) -> None:
    import runpy
    import sys
    from unittest import mock

    tool = Path(__file__).resolve().parents[2] / "tools" / "cache_features.py"
    words = ("--model", model, "--data", rows, "--stored", "float32", "--out", tmp_path / "cache")
    with mock.patch.object(sys, "argv", [str(tool), *map(str, words)]), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
        raise SystemExit(0)
    assert not ended.value.code
    flags = ("--model", model, "--data", rows, "--freeze", "vision_tower", "--per_device_train_batch_size", 4, *PLAIN)
    flags = (*flags, "--max_steps", 2, "--learning_rate", 1e-3, "--save_strategy", "no")
    inside("sft", *flags, "--output_dir", tmp_path / "pixels")
    inside("sft", *flags, "--output_dir", tmp_path / "features", "--feature_cache", tmp_path / "cache")
    for name in ("loss", "grad_norm"):
        pixels, features = ([row[name] for row in steps_of(tmp_path / run)] for run in ("pixels", "features"))
        assert len(pixels) == 2 and features == pytest.approx(pixels, rel=1e-4)


def test_it_is_planned(rows: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    """Every weight counts; a token's FLOPs are those of one of the two experts."""
    from drive_vlm.models import load_family
    from drive_vlm.models.flops import train_flops
    from drive_vlm.plan.command import main

    main(["sft", "--model", str(model), "--data", str(rows), "--json", "true", "--output_dir", "out"])
    found = json.loads(capsys.readouterr().out)
    family = load_family(ModelConfig(model=str(model)), torch.float32)
    assert found["parameters"]["all"]["total"] == sum(weight.numel() for weight in family.model.parameters())
    body = dict(family.model.model.language_model.named_parameters())
    passed = sum(p.numel() for name, p in body.items() if "vision" not in name and "embed" not in name)
    assert train_flops(family).token == 6 * passed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 32000}, "this is CogVLM 1 (cogvlm-chat-hf and its kin"),
        ({"num_positions": 9}, "num_positions 9 do not fit"),
        ({"template_version": "grounding"}, "template_version 'grounding' is unknown. Use one of base, chat, vqa."),
        ("tensor", "such as model.projector.eoi"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(change: Any, words: str, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from drive_vlm.models import load_family

    path = shutil.copytree(model, tmp_path / "odd")
    if change == "tensor":
        weights = load_file(path / "model.safetensors")
        del weights["model.vision.eoi"]
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((path / "config.json").read_text())
        (config["vision_config"] if "num_positions" in change else config).update(change)
        (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        load_family(ModelConfig(model=str(path)), torch.float32)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_published_directory_needs_no_processor_and_no_model_type(model: Path, tmp_path: Path) -> None:
    """It holds a tokenizer, whose own template is not the model's, and a config that names its class only."""
    from drive_vlm.models import load_family, load_processor

    path = shutil.copytree(model, tmp_path / "published")
    config = json.loads((path / "config.json").read_text())
    del config["model_type"], config["num_multi_query_heads"], config["vision_config"]["model_type"]
    config |= {"auto_map": {"AutoConfig": "configuration_cogvlm.CogVLMConfig"}, "num_multi_query_heads": 1}
    (path / "config.json").write_text(json.dumps(config))
    (path / "processor_config.json").unlink()
    (path / "chat_template.jinja").write_text("{{ messages }}")
    ours, parts = load_processor(ModelConfig(model=str(model))), load_processor(ModelConfig(model=str(path)))
    assert parts.template == ours.template and parts.vision.fingerprint() == ours.vision.fingerprint()
    text = ["<|begin_of_text|>Question: a Answer:\ufdefstop"]
    assert parts.tokenizer(text)["input_ids"] == ours.tokenizer(text)["input_ids"]
    family = load_family(ModelConfig(model=str(path)), torch.float32)
    assert not hasattr(family.model.config, "auto_map")


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 2)])
def test_a_picture_of_any_shape_is_one_square(size: tuple[int, int], model: Path) -> None:
    from PIL import Image

    from drive_vlm.models import load_processor

    vision = load_processor(ModelConfig(model=str(model))).vision
    tensors, layouts = vision.load_pixels([Image.new("RGB", size)], None, False)
    assert tensors["pixel_values"].shape == (1, 3, 28, 28) and layouts == [vision.layout(*size, 1, None)]


def row(turns: list[str], system: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {
        "id": "1",
        "messages": messages
        + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)],
    }


def test_only_the_last_answer_is_learned_and_a_system_turn_is_refused(model: Path) -> None:
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.samples import BadRow, parse_row
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(model)))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision, max_length=40)
    encoded = encoder.encode(parse_row(row(["a", "stop", "b", "go"]), "x:1", ""))
    labels = encoded["labels"]
    assert parts.tokenizer.decode(labels[labels >= 0]) == "go<|end_of_text|>"
    for odd, reason, words in (
        (row(["a", "stop"], "Be brief."), "unusable", "CogVLM2 has no system turn"),
        (row(["a " * 40, "stop"]), "too_long", "more than --max_length 40"),
        (row(["a <|reserved_special_token_0|>", "stop"]), "special_token", "<|reserved_special_token_0|>"),
    ):
        with pytest.raises(BadRow, match="x:1") as caught:
            encoder.encode(parse_row(odd, "x:1", ""))
        assert caught.value.reason == reason and words in str(caught.value)


def test_pictures_and_their_tokens_must_be_as_many(model: Path) -> None:
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(model)), torch.float32)
    ids = torch.tensor([[0, *[2] * 4, 9]])
    with pytest.raises(ValueError, match="input_ids hold 4 picture tokens, but 1 pictures are given, which need 6"):
        family.model(input_ids=ids, pixel_values=torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="positions for 28 x 28 only"):
        family.model.get_image_features(torch.zeros(1, 3, 56, 56))
