"""The video model through the real command line: one process, two ranks, every ZeRO stage, LoRA; rows of all kinds in one batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from drive_vlm.config import ModelConfig
from drive_vlm.plan.lookup import load_sizes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixed(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows: clips of 4 frames, pictures, texts; the two ranks of a step rarely hold the same kinds."""
    clips = (synthetic_data / "clips_train.jsonl").read_text().splitlines()[:8]
    scenes = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:16]]
    for row in scenes[8:]:
        del row["image"]
        row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>\n", "")
    path = synthetic_data / "mixed24.jsonl"
    path.write_text("\n".join([*clips, *map(json.dumps, scenes)]) + "\n")
    return path


@pytest.fixture(scope="module")
def video_sft(sft: Callable, mixed: Path, tiny_video_model: Path) -> Callable:
    """`sft` on the video model: 5 steps of 8 rows of `mixed`."""

    def run(out: Path, *flags: object, **how: Any) -> Any:
        words = ("--model", tiny_video_model, "--data", mixed, "--num_frames", 4, "--max_steps", 5)
        size = ("--global_batch_size", 8, "--per_device_train_batch_size", 4)
        return sft(out, *words, *size, *flags, **how)

    return run


@pytest.mark.supports("siglip_qwen sft", "siglip_qwen sft zero2", "siglip_qwen sft zero3")
def test_every_layout_learns_the_same(video_sft: Callable, fresh: Callable, world: Any) -> None:
    one = video_sft(fresh("one"))
    assert one.curve()[-1] < one.curve()[0]
    two = video_sft(fresh("zero2"), "--deepspeed", "zero2", launcher="torchrun")
    three = video_sft(fresh("zero3"), "--deepspeed", world.zero3, launcher="torchrun", timeout=300)
    assert two.curve() == pytest.approx(one.curve(), abs=1e-4)
    assert three.curve() == pytest.approx(one.curve(), abs=1e-4)
    plain, _, sharded = (load_file(run.out / "model.safetensors") for run in (one, two, three))
    head = sharded.pop("lm_head.weight", None)  # ZeRO-3 gathers the tied head as a weight of its own
    assert head is None or head.equal(sharded["model.language_model.embed_tokens.weight"])
    assert plain.keys() == sharded.keys()
    assert architecture_total(one.out) == architecture_total(three.out)


def architecture_total(path: Path) -> int:
    return sum(weight.elements for weight in load_sizes(ModelConfig(model=str(path))).weights)


@pytest.mark.supports("siglip_qwen sft lora", "siglip_qwen sft zero2 lora")
def test_lora_with_the_projector_leaves_tower_and_time_alone(
    video_sft: Callable, fresh: Callable, tiny_video_model: Path
) -> None:
    """Stage 2: adapters on all linear layers of the language model, the projector whole; what is frozen keeps its bytes."""
    import torch

    from drive_vlm.models import load_family

    freeze = ("--freeze", "vision_tower", "temporal_embeddings", "--lora_rank", 4, "--gradient_checkpointing")
    one = video_sft(fresh("lora_one"), *freeze)
    two = video_sft(fresh("lora_zero2"), *freeze, "--deepspeed", "zero2", launcher="torchrun")
    assert two.curve() == pytest.approx(one.curve(), abs=1e-4)
    counts = json.loads((two.out / "run.json").read_text())["parameters"]
    assert counts["temporal_embeddings"]["trainable"] == counts["vision_tower"]["trainable"] == 0
    assert counts["projector"]["trainable"] * 2 == counts["projector"]["total"]
    saved = load_file(two.out / "adapter_model.safetensors")
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in saved if ".lora_" in name}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not [name for name in saved if "vision_tower" in name or "temporal" in name]
    family = load_family(ModelConfig(model=str(two.out)), torch.float32)
    before = load_file(tiny_video_model / "model.safetensors")
    body = family.model.get_base_model().model
    assert torch.equal(body.temporal_embeddings.weight, before["model.temporal_embeddings.weight"])
    moved = body.projector.modules_to_save["default"].linear_1.weight
    assert not torch.equal(moved, before["model.projector.linear_1.weight"])


@pytest.mark.supports("siglip_qwen sft packing")
def test_stage_one_moves_projector_and_time_only(video_sft: Callable, fresh: Callable, tiny_video_model: Path) -> None:
    run = video_sft(fresh("stage1"), "--freeze", "vision_tower", "language_model", "--packing", "--max_length", 256)
    before, after = (load_file(path / "model.safetensors") for path in (tiny_video_model, run.out))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {
        "model.temporal_embeddings.weight",
        *(f"model.projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
    }
