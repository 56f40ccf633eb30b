"""MiniCPM-V through the real command line: rows of words, of one picture and of two, on ranks that see different ones."""

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
def mixed(world: Any) -> Path:
    """36 rows of `world` (words alone, one picture, two), with a second answer each."""
    rows = [json.loads(line) for line in world.train.read_text().splitlines()][:36]
    for i, row in enumerate(rows):
        others = (other["conversations"][-1]["value"] for other in rows[i + 1 :] + rows[:i])
        row["rejected"] = next(other for other in others if other != row["conversations"][-1]["value"])
    path = world.train.with_name("minicpmv.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def narrow(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a version: each module costs a gather under ZeRO-3."""
    from drive_vlm.models.tiny.minicpmv import build_tiny_minicpmv

    def build(version: str) -> Path:
        out = tmp_path_factory.mktemp("narrow") / version
        words = mixed.read_text().splitlines()
        return build_tiny_minicpmv(out, words, hidden_size=32, vocab_size=400, max_tiles=3, version=version)

    return build


# One process, this one: it logs every step.
PLAIN = (
    "--logging_steps", 1, "--lr_scheduler_type", "constant", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true",
)  # fmt: skip


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.slow
@pytest.mark.supports("minicpmv sft", "minicpmv sft zero2", "minicpmv sft zero3")
def test_ranks_with_words_and_pictures_walk_the_curve_of_one(
    sft: Callable, inside: Callable, world: Any, mixed: Path, narrow: Callable, tmp_path: Path
) -> None:
    """One row a rank and step, so that a rank has no picture where the other has two; every weight trains and, under ZeRO-3, is
    sharded: 50 steps there, some with ZeRO-2 and gradient checkpointing."""
    flags = (
        "--model", narrow("2.5"), "--data", mixed, "--freeze", "projector", "--global_batch_size", 2, "--learning_rate", 1e-3,
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


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "spin"])
@pytest.mark.supports("minicpmv sft packing", "minicpmv spin")
def test_resumed_is_uninterrupted(stage: str, inside: Callable, mixed: Path, narrow: Callable, tmp_path: Path) -> None:
    """Packs of words and pictures; SPIN with log-probabilities that `reference` has kept. Checkpoints have the published names."""
    from safetensors.torch import load_file

    data = ("--model", narrow("2.5"), "--data", mixed)
    own: tuple[object, ...] = ("--packing", "true", "--max_length", 400, "--per_device_train_batch_size", 2)
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
    assert {name.split(".")[0] for name in weights[0]} == {"llm", "vpm", "resampler"}
    if stage == "spin":
        assert whole[0] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.5", "2.6"])
@pytest.mark.supports("minicpmv sft zero2 packing lora", "minicpmv generate")
def test_an_adapter_of_packs_is_merged_and_answers_in_plain_transformers(
    version: str, sft: Callable, inside: Callable, mixed: Path, narrow: Callable, tmp_path: Path
) -> None:
    """Under the published names, and with the words and slices of the processor alone. The words of 2.5 train in full."""
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = narrow(version)
    flags = ("--packing", "true", "--max_length", 400, "--lora_rank", 4, "--learning_rate", 1e-2, "--max_steps", 4)
    if version == "2.5":
        flags = (*flags, "--lora_embeddings", "true")
    run = sft(
        tmp_path / "run", "--model", model, "--data", mixed, *flags, "--global_batch_size", 4,
        "--per_device_train_batch_size", 2, "--deepspeed", "zero2", launcher="torchrun", timeout=400,
    )  # fmt: skip
    assert run.curve()[-1] < run.curve()[0]
    inside("merge", "--checkpoint", run.out, "--out", tmp_path / "merged")
    stored = [load_file(path / "model.safetensors").keys() for path in (model, tmp_path / "merged")]
    assert stored[0] == stored[1]
    said = []
    for path in (run.out, tmp_path / "merged"):
        out = tmp_path / f"{path.name}.jsonl"
        inside("generate", "--model", path, "--data", mixed, "--limit", 6, "--max_new_tokens", 6, "--out", out)
        said.append([json.loads(line)["prediction"] for line in out.read_text().splitlines()])
    assert said[0] == said[1] and len(set(said[0])) > 1
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    rows = [json.loads(line) for line in mixed.read_text().splitlines()][:6]
    for row, ours in zip(rows, said[1], strict=True):
        if isinstance(row.get("image"), str):
            words = row["conversations"][0]["value"].removeprefix("<image>\n")
            content = [{"type": "image"}, {"type": "text", "text": words}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            picture = Image.open(mixed.parent / row["image"])
            batch = processor(text=[text], images=[picture], return_tensors="pt", add_special_tokens=False)
            plain.generation_config.suppress_tokens = processor.special_ids["pictures"]
            tokens = plain.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
            assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == ours


@pytest.mark.slow
@pytest.mark.supports("minicpmv dpo", "minicpmv grpo", "minicpmv a2c")
def test_two_steps_of_the_other_stages(
    inside: Callable, mixed: Path, narrow: Callable, grpo_words: Callable, a2c_words: Callable, tmp_path: Path
) -> None:
    """DPO with its cached reference begins at ln 2; the probabilities that answers were drawn with are those that learn."""

    def steps(stage: str) -> list[dict[str, Any]]:
        return steps_of(tmp_path / stage)

    flags = ("--model", narrow("2.5"), "--data", mixed, "--max_steps", 2)
    plain = (*PLAIN, "--save_strategy", "no")
    inside("dpo", *flags, *plain, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "dpo")
    assert len(steps("dpo")) == 2 and steps("dpo")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    # Long enough to draw the tags of pictures, were they not left out.
    inside("grpo", *grpo_words(tmp_path / "grpo", *flags, "--beta", 0.1, "--max_completion_length", 64))
    assert steps("grpo")[0]["kl"] == pytest.approx(0, abs=1e-6) and len(steps("grpo")) == 2
    inside("a2c", *a2c_words(tmp_path / "a2c", *flags))
    assert [row["sampling/log_prob_gap"] < 1e-4 for row in steps("a2c")] == [True, True]


@pytest.mark.slow
def test_a_pack_is_the_sum_of_its_rows(mixed: Path, narrow: Callable) -> None:
    """Loss and gradients; slices of rows of one pack see neither each other nor each other's words."""
    from drive_vlm.data.collate import Collator
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(narrow("2.5"))), torch.float32, for_training=True)
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    (source,) = open_sources([str(mixed)])
    # none, two pictures, one, one
    rows = [encoder.encode(read_sample(source, i)) for i in (3, 5, 0, 1)]
    collate = Collator(family.tokenizer.pad_token_id, family.vision, packed=True)

    def learned(*batches: list[list[Any]]) -> tuple[float, dict[str, torch.Tensor]]:
        family.model.zero_grad()
        total = 0.0
        for sequences in batches:
            skipped = ("sample_ids", "bad_rows", "num_tokens")
            inputs = {name: value for name, value in collate(sequences).items() if name not in skipped}
            loss = family.model(**inputs, num_items_in_batch=torch.tensor(1)).loss
            loss.backward()
            total += loss.item()
        return total, {name: weight.grad.clone() for name, weight in family.model.named_parameters()}

    family.model.eval()
    packed, apart = learned([rows[:3], rows[3:]]), learned(*([[row]] for row in rows))
    assert packed[0] == pytest.approx(apart[0], rel=1e-5)
    for name, gradient in packed[1].items():
        torch.testing.assert_close(gradient, apart[1][name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.supports("minicpmv sft features", "minicpmv sft packing features", "minicpmv generate features")
def test_features_train_and_answer_as_pixels_do(
    inside: Callable, run_here: Callable, mixed: Path, narrow: Callable, tmp_path: Path
) -> None:
    """What the resampler made of each slice is kept: losses, gradients, weights and answers of words, one picture and two."""
    from safetensors.torch import load_file

    model, cache = narrow("2.5"), tmp_path / "cache"
    words = ("--model", model, "--data", mixed, "--out", cache, "--stored", "float32", "--batch_size", 5)
    done = run_here("tools/cache_features.py", *words)
    assert done.returncode == 0, done.stderr
    frozen = ("--freeze", "vision_tower", "projector", "--max_steps", 2, "--learning_rate", 1e-2)
    common = ("--model", model, "--data", mixed, *frozen, *PLAIN, "--save_strategy", "no", "--output_dir")
    for way, own in (
        ("rows", ("--per_device_train_batch_size", 12)),
        ("packs", ("--packing", "true", "--max_length", 400, "--per_device_train_batch_size", 3)),
    ):
        found = []
        for name, more in (("pixels", ()), ("features", ("--feature_cache", cache))):
            out = tmp_path / f"{way}-{name}"
            inside("sft", *common, out, *own, *more)
            found.append((steps_of(out), load_file(out / "model.safetensors")))
        (pixels, weights), (cached, same) = found
        for number in ("loss", "grad_norm"):
            assert [step[number] for step in cached] == pytest.approx([step[number] for step in pixels], abs=1e-5)
        assert same.keys() == weights.keys()
        torch.testing.assert_close(same, weights, atol=1e-5, rtol=1e-4)
    said = []
    for more in ((), ("--feature_cache", cache)):
        out = tmp_path / f"answers{len(said)}.jsonl"
        inside("generate", "--model", model, "--data", mixed, "--limit", 12, "--max_new_tokens", 6, "--out", out, *more)
        said.append([json.loads(line)["prediction"] for line in out.read_text().splitlines()])
    assert said[0] == said[1] and len(set(said[0])) > 2
