"""`plan grpo`: the batch equation, memory of its phases and FLOPs, by hand on a small model; Drive-VLM's stage 3 on a 24 GB card."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.plan.command import main
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.stage import Stage, StageFlags
from drive_vlm.stages.rl.generation import GenerationBatch

TEXT = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip
HEAD = 64 * 1000
LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 2 * 16 + 3 * 64 * 128 + 2 * 64
BODY = 2 * LAYER + 64
WEIGHTS = BODY + 2 * HEAD
SIZES = ("--max_length", 100, "--max_completion_length", 20, "--num_generations", 4, "--row_tokens", 60, "--rows", 30)
BATCH = ("--per_device_train_batch_size", 2, "--global_batch_size", 16, "--num_train_epochs", 2)
STAGE3 = (
    "--lora_rank", 32, "--freeze", "vision_tower", "temporal_embeddings", "--num_frames", 16, "--max_length", 2048, "--bf16",
    "--num_generations", 2, "--max_completion_length", 256, "--per_device_train_batch_size", 2, "--global_batch_size", 16,
    "--gradient_checkpointing", "--deepspeed", "zero2", "--gpu_memory", "24GB", "--rewards", "physics",
)  # fmt: skip


@pytest.fixture
def plan(run_here: Callable) -> Callable[..., Any]:
    """`plan(*flags, code=0)`: the content of --json, or stderr of a failure."""

    def call(*flags: object, code: int = 0) -> Any:
        done = run_here("drive_vlm", "plan", "grpo", *flags, "--json")
        assert done.returncode == code, done.stderr[-2000:]
        return json.loads(done.stdout) if not code else done.stderr

    return call


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that is a config.json."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(TEXT))
    return folder


def test_the_batch_equation(plan: Callable, small: Path) -> None:
    """16 completions a step on two processes; with --steps_per_generation 2 eight of them, two prompts, are sampled at a time."""
    found = plan("--model", small, *SIZES, *BATCH, "--world_size", 2)
    group = found["batch"]["generation"]
    assert (group["prompts"], group["generations"], group["rows"], group["steps"], group["passes"]) == (4, 4, 8, 4, 1)
    assert (found["batch"]["global"], found["batch"]["accumulation"], found["batch"]["unit"]) == (16, 4, "completions")
    assert found["cost"]["steps"] == 16  # ceil(30 prompts / 4) generation batches of a step each, twice
    found = plan(
        "--model", small, *SIZES, *BATCH, "--world_size", 2, "--steps_per_generation", 2, "--num_iterations", 2
    )
    group = found["batch"]["generation"]
    assert (group["prompts"], group["rows"], group["steps"], group["inside"]) == (2, 4, 2, False)
    assert found["cost"]["steps"] == 2 * 15  # 15 generation batches, each of 4 x 2 micro batches of 16
    stale = ("--global_batch_size", 8, "--steps_per_generation", 8)
    assert plan("--model", small, *SIZES, *BATCH, "--world_size", 2, *stale)["batch"]["generation"]["passes"] == 2
    refused = plan("--model", small, *SIZES, *BATCH, "--num_generations", 3, code=2)
    assert "16 completions (2 x 1 processes x 8 micro-batches) is not a multiple of --num_generations 3" in refused
    refused = plan("--model", small, *BATCH, "--generation_batch_size", 12, "--world_size", 4, code=2)
    assert (
        "--generation_batch_size 12 is not a multiple of --per_device_train_batch_size 2 x 4 processes = 8" in refused
    )
    assert "--packing has no place in grpo" in plan("--model", small, *BATCH, "--packing", code=2)


def test_memory_by_hand(plan: Callable, small: Path) -> None:
    """fp32 on one process: the policy with Adam's moments, a second model as reference, keys and values of 16 rows of 120 tokens."""
    row = plan("--model", small, *SIZES, *BATCH)["memory"]["layouts"]["ddp"]
    assert row["weights"] == 2 * 4 * WEIGHTS and row["optimizer"] == 8 * WEIGHTS
    cache = 2 * 16 * 120 * 32 * 8  # layers, rows, tokens, width of the keys, bytes of keys and values
    assert row["cache"] == cache
    stays = row["weights"] + row["optimizer"]
    prefill = cache * 100 // 120 + 16 * 100 * 4 * (3 * 128 + 4 * 64) + 16 * 100**2 * 4
    assert row["sampling"] == stays + max(prefill, cache + max(cache // 2, 2 * 16 * 120 * 64 * 4, 16 * 1000 * 16))
    tile = 2 * 20 * 32768 * 4  # of two completions' logits
    assert row["scoring"] == stays + max(tile, 2 * 120 * 4 * (3 * 128 + 4 * 64) + 2 * 120**2 * 4)
    assert row["learning"] > row["scoring"] and row["peak"] == max(row["sampling"], row["learning"])
    alone = plan("--model", small, *SIZES, *BATCH, "--beta", 0)
    assert alone["memory"]["layouts"]["ddp"]["weights"] == 4 * WEIGHTS
    assert alone["batch"]["generation"]["passes"] == 0
    shards = plan("--model", small, *SIZES, *BATCH, "--world_size", 2)["memory"]["layouts"]["zero3"]
    assert shards["sampling"] - shards["between_steps"] > 4 * WEIGHTS  # gathered whole


def one_answer_each(flags: StageFlags, world_size: int) -> GenerationBatch:
    micro = int(flags.training["per_device_train_batch_size"])
    return GenerationBatch(micro * world_size, 1, 20, micro, 1, 1, passes=1, inside=False, whole=True, reference=False)


def test_a_stage_of_prompts_on_plain_training_arguments(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its table line says how a generation batch is made; nothing of GRPOConfig is asked for."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    line = Stage(
        "drive_vlm.stages.sft:prepare", "a stage", "prompts", generation=f"{Path(__file__).stem}:one_answer_each"
    )
    monkeypatch.setitem(STAGES, "reinforce", line)
    main(["reinforce", "--model", str(small), "--row_tokens", "60", "--rows", "30", "--world_size", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["batch"]["generation"]["prompts"] == 16 and found["cost"]["tokens_a_step"] == 16 * 80
    with pytest.raises(ValueError, match="a stage of prompts names its `generation`"):
        dataclasses.replace(line, generation=None)


def test_flops_by_hand(plan: Callable, small: Path) -> None:
    """A row of 60 + 20 tokens is sampled, scored by the reference, learned from; with two iterations the first two are shared."""
    forward, learned = 2 * BODY * 80 + 2 * HEAD * 20, 6 * BODY * 80 + 6 * HEAD * 20
    cost = plan("--model", small, *SIZES, *BATCH)["cost"]
    assert cost["flops_a_step"] == 16 * (learned + 2 * forward) and cost["tokens_a_step"] == 16 * 80
    twice = plan("--model", small, *SIZES, *BATCH, "--num_iterations", 2, "--beta", 0)["cost"]
    assert twice["flops_a_step"] == 16 * (learned + 2 * forward / 2)  # the old policy is scored: two steps from a batch


def test_a_frozen_tower_runs_once_for_a_group_and_not_with_its_features(plan: Callable) -> None:
    flags = ("--model", "siglip2_qwen3_4b", *STAGE3)
    frozen, cached = plan(*flags), plan(*flags, "--feature_cache", "features")
    tower = frozen["cost"]["flops_a_step"] - cached["cost"]["flops_a_step"]
    assert tower == pytest.approx(8 * 16 * 2 * 729 * 412_987_248)  # eight prompts of 16 frames
    saved = [found["memory"]["layouts"]["zero2"]["weights"] for found in (frozen, cached)]
    assert saved[0] - saved[1] == 2 * 412_987_248
    zero3 = plan(*flags, "--deepspeed", "zero3")["cost"][
        "flops_a_step"
    ]  # no memo: in all three passes of each completion
    assert zero3 - cached["cost"]["flops_a_step"] == pytest.approx(3 * 2 * tower)


def test_stage_3_of_drive_vlm_fits_a_24_gb_card(plan: Callable) -> None:
    """As recipes/drive_vlm_stage3.sh has it: 16 completions are sampled at once, whose keys and values take 5.1 GiB."""
    found = plan("--model", "siglip2_qwen3_4b", *STAGE3)
    row = found["memory"]["layouts"]["zero2"]
    assert row["cache"] == 36 * 16 * (2048 + 256) * 1024 * 4
    assert row["fits"] and row["peak"] == row["sampling"] > row["learning"] > row["scoring"]
    fewer = plan("--model", "siglip2_qwen3_4b", *STAGE3, "--steps_per_generation", 2)["memory"]["layouts"]["zero2"]
    assert fewer["cache"] == row["cache"] / 4 and fewer["peak"] == fewer["learning"]
    assert not plan("--model", "siglip2_qwen3_4b_pool1", *STAGE3, "--max_length", 12288)["memory"]["layouts"]["zero2"][
        "fits"
    ]


def test_an_adapter_directory_is_planned_as_it_trains_on(
    plan: Callable, tiny_video_model: Path, tmp_path: Path
) -> None:
    made = {"base_model_name_or_path": str(tiny_video_model), "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
            "modules_to_save": ["projector"]}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(made))
    flags = ("--num_frames", 4, "--num_generations", 2)
    found = plan("--model", tmp_path, *flags)
    anew = plan("--model", tiny_video_model, "--lora_rank", 4, "--lora_targets", r".*\.(q_proj|v_proj)", "--freeze", "vision_tower",
                "temporal_embeddings", *flags)  # fmt: skip
    assert found["parameters"] == anew["parameters"] and found["memory"] == anew["memory"]
    assert found["configuration"]["lora_rank"] == {"value": 4, "origin": "adapter"}


def test_the_whole_chain_plans_itself_before_anything_is_there(run: Callable, tmp_path: Path) -> None:
    words = ["bash", "recipes/drive_vlm_4090.sh", "--gpu_memory", "24GB"]
    done = run(words, PLAN="1", OUT=str(tmp_path / "run"), VIRTUAL_ENV=sys.prefix)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("zero2 fits") == 3
    assert "Generation batch: 8 prompts x 2 completions of at most 256 tokens = 16 a GPU x 1 GPUs" in done.stdout
