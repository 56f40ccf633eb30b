"""The plan through the real command line."""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.plan.flags import memory_bytes, origins
from drive_vlm.plan.training_fields import FIELDS

TOP = {
    "stage", "model", "configuration", "shown_defaults", "batch", "parameters", "memory", "cpu", "cost", "disk", "data", "assumptions",
}  # fmt: skip
LAYOUTS = ["ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
RECIPE = [
    "--model", "internvl3_1b", "--freeze", "vision_tower", "--deepspeed", "zero1", "--bf16", "--gradient_checkpointing",
    "--global_batch_size", "128", "--per_device_train_batch_size", "4", "--max_length", "16384", "--world_size", "8",
]  # fmt: skip


@pytest.fixture
def plan(run_here: Callable) -> Callable[..., Any]:
    """`plan(*flags, code=0, stage="sft", **env)`: text, or the content with --json, or stderr of a failure."""

    def call(*flags: object, code: int = 0, stage: str = "sft", **env: str) -> Any:
        done = run_here("drive_vlm", "plan", stage, *flags, **env)
        assert done.returncode == code, done.stderr[-2000:]
        if code:
            return done.stderr
        return json.loads(done.stdout) if "--json" in flags else done.stdout

    return call


def test_json_holds_everything_and_its_numbers_agree(plan: Callable) -> None:
    started = time.perf_counter()
    found = plan(*RECIPE, "--rows", 1000, "--json")
    print(f"{time.perf_counter() - started:.2f} s from command to plan")
    assert set(found) == TOP
    assert list(found["memory"]["layouts"]) == LAYOUTS and found["memory"]["chosen"] == "zero1"
    batch = found["batch"]
    assert batch["micro"] * batch["accumulation"] * batch["world_size"] == batch["global"] == 128
    assert found["parameters"]["all"] == {"total": 938_193_024, "trainable": 938_193_024 - 304_012_288}
    row = found["memory"]["layouts"]["zero1"]
    assert row["weights"] == 2 * 938_193_024 and row["optimizer"] == 634_180_736
    assert row["peak"] == row["peak_with_checkpointing"] < row["peak_without_checkpointing"]
    assert found["cost"]["steps"] == 24  # ceil(1000 / 128) x 3 epochs
    assert found["cost"]["gpu_hours"] == pytest.approx(8 * found["cost"]["hours"])
    assert found["disk"]["checkpoints"] == 3


def test_the_tables_show_the_chosen_layout(plan: Callable) -> None:
    text = plan(*RECIPE)
    for words in ("> zero1", "938,193,024", "128 sequences a step = 4 a GPU x 4 accumulation x 8 GPUs", "(exact)"):
        assert words in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--global_batch_size", 100], "--global_batch_size 100 is not a multiple of --per_device_train_batch_size 4 x 8 processes = 32"),
        (["--learning_rat", 1], "unknown argument --learning_rat. Did you mean learning_rate?"),
        (["--learning_rate", "fast"], "--learning_rate fast: expected a number"),
        (["--gradient_accumulation_steps", 2], "--gradient_accumulation_steps is not taken"),
        (["--freeze", "vision_towr"], "--freeze vision_towr: no such part"),
        (["--deepspeed", "zeero3"], "Did you mean zero3?"),
        (["--model", "internvl"], "Did you mean internvl3_1b?"),
        (["--gpu_memory", "much"], "--gpu_memory much: give it as 24GB"),
        (["--gpu", "H1000"], "--gpu H1000: peak FLOPS not known"),
        (["--world_size", 9, "--local_world_size", 8, "--global_batch_size", 36], "--world_size 9 is not a multiple of --local_world_size 8"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_the_user_can_fix_is_one_line_and_code_2(plan: Callable, flags: list, words: str) -> None:
    text = plan(*RECIPE, *flags, code=2)
    assert words in text and "Traceback" not in text


def test_rows_that_are_not_there_are_named(plan: Callable, synthetic_data: Path) -> None:
    assert "not here: nowhere.jsonl" in plan(*RECIPE, "--data", "nowhere.jsonl")
    text = plan(*RECIPE, "--data", synthetic_data / "train.jsonl", "nowhere.jsonl", code=2)
    assert "nowhere.jsonl: no such data file" in text


def test_an_unknown_stage_is_named(plan: Callable) -> None:
    assert "sfd cannot be planned (known: sft" in plan(stage="sfd", code=2)


@pytest.mark.fresh("what it imports is looked at")
def test_neither_torch_nor_transformers_is_loaded(run: Callable) -> None:
    code = "import sys; from drive_vlm.plan.command import main; main(sys.argv[1:]); print('LOADED', *sys.modules)"
    done = run([sys.executable, "-c", code, "sft", *RECIPE])
    assert done.returncode == 0, done.stderr
    listed = json.loads(FIELDS.read_text())["versions"]
    if any(version(library) != known for library, known in listed.items()):
        pytest.skip("the flags of other versions than training_fields.json lists are asked of transformers itself")
    assert not {"torch", "transformers", "deepspeed"} & set(done.stdout.rsplit("LOADED", 1)[1].split())


STAGE3 = ("--model", "siglip2_qwen3_4b", "--lora_rank", "32")
# (recipe, words that it needs to be planned before anything is there)
PLANNED = [
    ("internvl3_1b_sft", ()),
    ("qwen2_5_vl_sft", ()),
    ("qwen3_vl_sft", ()),
    ("llava_next_8b_sft", ()),
    ("llava_next_8b_sft", ("--freeze", "vision_tower")),
    ("llava_next_8b_sft", ("--lora_rank", "64")),
    ("minicpm_v_8b_sft", ()),
    ("minicpm_v_8b_sft", ("--lora_rank", "64")),
    ("cogvlm2_19b_sft", ()),
    ("drive_vlm_stage1", STAGE3[:2]),
    ("drive_vlm_stage2", STAGE3[:2]),
    ("drive_vlm_stage3", STAGE3),
    ("drive_vlm_4090", ()),
    ("bddoia_sft", ()),
    ("bddoia_a2c", ("--model", "smolvlm", "--lora_rank", "16")),
    ("bddoia_4090", ()),
    ("clarify_sft", ("--model", "qwen3_vl_2b")),
    ("clarify_grpo", ("--model", "qwen3_vl_2b", "--lora_rank", "8")),
    ("clarify_4090", ()),
    ("spin_llava_next_8b", ("DATA=rows.jsonl",)),
    ("spin_minicpm_v_8b", ("DATA=rows.jsonl",)),
    ("spin_cogvlm2_19b", ("DATA=rows.jsonl",)),
    ("spin_rounds", ("MODEL=internvl3_1b", "DATA=rows.jsonl")),
    ("synth_rounds", ("SYNTH=plan.yaml", "MODEL=internvl3_1b", "DATA=rows.jsonl")),
    ("opendriver", ("FAMILY=llava_next_8b", "SYNTH=plan.yaml")),
]
# Demonstrations make their models on the way; `generate` is not planned.
NOT_PLANNED = {
    "quickstart",
    "drive_vlm_synthetic",
    "spin_synthetic",
    "bddoia_synthetic",
    "clarify_synthetic",
    "opendriver_synthetic",
    "generate",
}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "words"), PLANNED)
def test_the_plan_of_a_shipped_recipe_loads_no_torch(
    run: Callable, recipe: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """Each process of the recipe writes what it imports to stderr. The cache is empty: the shipped numbers must do."""
    env = {
        "PLAN": "1",
        "OUT": str(tmp_path / "run"),
        "DRIVE_VLM_CACHE": str(tmp_path / "cache"),
        "VIRTUAL_ENV": sys.prefix,
    }
    done = run(["bash", f"recipes/{recipe}.sh", *words], PYTHONPROFILEIMPORTTIME="1", **env)
    assert done.returncode == 0, done.stderr
    modules = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "drive_vlm.plan.memory_table" in modules and not {"torch", "transformers", "trl", "peft"} & modules


def test_every_shipped_recipe_is_one_of_those() -> None:
    found = {path.stem for path in Path("recipes").glob("[!_]*.sh")}
    assert found == {recipe for recipe, _ in PLANNED} | NOT_PLANNED


def test_origins_tell_the_recipe_from_the_user() -> None:
    words = ["--bf16", "--max_length", "16384", "--max_length=4096", "--world_size", "8"]
    assert origins([], words)["max_length"] == "flag"  # called by hand: everything is the user's


def test_origins_behind_a_recipe(plan: Callable) -> None:
    mine = ["--max_length", "4096", "--data", "my rows.jsonl"]
    found = plan(*RECIPE, "--json", *mine, DRIVE_VLM_USER_WORDS=str(len(mine)))
    origin = {name: entry["origin"] for name, entry in found["configuration"].items()}
    assert (origin["max_length"], origin["data"], origin["bf16"], origin["keep"]) == (
        "flag",
        "flag",
        "recipe",
        "default",
    )
    assert origin["world_size"] == "launcher"
    assert found["configuration"]["max_length"]["value"] == 4096
    found = plan(*RECIPE, "--json", DRIVE_VLM_USER_WORDS="0")
    assert found["configuration"]["max_length"]["origin"] == "recipe"


def test_rows_are_sampled_and_bad_ones_counted(
    plan: Callable, synthetic_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rows = (synthetic_data / "train.jsonl").read_text().splitlines()[:40]
    rows.append(json.dumps({**json.loads(rows[0]), "id": "lost", "image": "nowhere.png"}))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(rows) + "\n")
    flags = ("--model", tiny_model, "--data", data, "--image_root", synthetic_data, "--json")
    found = plan(*flags)["data"]
    assert found["rows"] == 41 and found["audit"]["bad_rows"]["by_reason"] == {"image_missing": 1}
    assert found["audit"]["tokens"]["counted_by"] == "the model's tokenizer"

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(tiny_model)))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(data)], str(synthetic_data)), encoder, "skip")
    assert found["audit"]["tokens"]["max"] == pytest.approx(int(table.length.max()), rel=0.1)


def test_memory_is_read_as_people_write_it() -> None:
    assert memory_bytes("24GB") == memory_bytes("24 GiB") == memory_bytes("24") == 24 * 2**30


@pytest.mark.slow
def test_the_table_of_systems_has_a_row_for_each_and_hardware(plan: Callable) -> None:
    lines = plan(stage="systems").splitlines()
    assert len(lines) == 2 + 7 * 3 and all(line.count("|") == 11 for line in lines)


def test_a_recipe_plans_itself(run: Callable) -> None:
    words = ["bash", "recipes/internvl3_1b_sft.sh", "--max_length", "4096", "--rows", "1280"]
    done = run(
        words,
        PLAN="1",
        NNODES="4",
        NPROC_PER_NODE="8",
        MASTER_ADDR="node0",
        MASTER_PORT="1234",
        NODE_RANK="0",
        VIRTUAL_ENV=sys.prefix,
    )
    assert done.returncode == 0, done.stderr
    for words in ("128 sequences a step = 4 a GPU x 1 accumulation x 32 GPUs", "--max_length", "10 steps"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("model", "tiles", "tokens"),
    [("llava_next_8b", 5, 2048), ("smolvlm", 17, 17 * 81 + 256), ("qwen3_vl_4b", 2048, 2048)],
)
def test_the_picture_that_is_assumed_without_data(model: str, tiles: int, tokens: int) -> None:
    """The largest one of 16,384 tokens would be refused by --max_length: Qwen3-VL's fills a row. Other families' tiles are few."""
    from drive_vlm.config import DataConfig, ModelConfig
    from drive_vlm.plan.lookup import load_sizes
    from drive_vlm.plan.rows import typical_row

    row = typical_row(DataConfig(data=[], max_length=2048), load_sizes(ModelConfig(model)), None, "")
    assert (row.tiles, row.tokens) == (tiles, tokens)


VIDEO = [
    "--lora_rank", 32, "--freeze", "vision_tower", "temporal_embeddings", "--bf16", "--gradient_checkpointing", "--num_frames", 16,
    "--per_device_train_batch_size", 2, "--global_batch_size", 32, "--gpu_memory", "24GB",
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "length", "tokens"),
    [("siglip2_qwen3_4b", 2048, 16 * 81 + 256), ("siglip2_qwen3_4b_pool1", 12288, 16 * 729 + 256),
     ("siglip2_qwen3_4b_resampler", 2048, 16 * 64 + 256)],
)  # fmt: skip
def test_drive_vlm_on_a_24_gb_card(plan: Callable, model: str, length: int, tokens: int) -> None:
    """LoRA r32, 16 frames, micro batch 2 x accumulation 16: the pooled model fits in bf16, every patch of 16 frames does not."""
    found = plan("--model", model, *VIDEO, "--max_length", length, "--json")
    assert (found["batch"]["micro"], found["batch"]["accumulation"], found["batch"]["typical_row"]) == (2, 16, tokens)
    assert found["memory"]["layouts"]["ddp"]["fits"] == (model != "siglip2_qwen3_4b_pool1")
    assert found["parameters"]["lora"]["trainable"] == 66_060_288
    assert found["parameters"]["temporal_embeddings"] == {"total": 16 * 1152, "trainable": 0}
    four = plan("--model", model, *VIDEO, "--max_length", length, "--quantize", "nf4", "--json")["memory"]["layouts"]
    saved = found["memory"]["layouts"]["ddp"]["weights"] - four["ddp"]["weights"]
    assert saved == pytest.approx((4 - 0.5 - 1 / 64) * (3_633_511_936 - 36 * (2 * 2560 + 2 * 128) - 2560), rel=1e-3)


@pytest.mark.supports("siglip_qwen sft zero3 lora nf4 refused")
def test_a_video_plan_counts_frames_and_refuses_what_the_run_would(
    plan: Callable, tiny_video_model: Path, synthetic_data: Path
) -> None:
    rows = ("--model", tiny_video_model, "--data", synthetic_data / "clips_train.jsonl", "--num_frames", 4)
    found = plan(*rows, "--json")["data"]["audit"]["tokens"]
    assert 4 * 16 < found["median"] < 4 * 16 + 60
    pictures = plan("--model", tiny_video_model, "--data", synthetic_data / "train.jsonl", "--json")["data"]["audit"]
    assert 16 < pictures["tokens"]["median"] < 16 + 50  # a picture is one frame, not a grid of tiles
    assert "--num_frames 17: " in plan("--model", "siglip2_qwen3_4b", "--num_frames", 17, code=2)
    assert "4-bit weights cannot train" in plan("--model", "siglip2_qwen3_4b", "--quantize", "nf4", code=2)
    shards = ("--lora_rank", 8, "--quantize", "nf4", "--deepspeed", "zero3", "--bf16")
    assert "4-bit weights cannot be sharded" in plan("--model", "siglip2_qwen3_4b", *shards, code=2)


def test_a_pair_is_two_rows_and_a_live_reference_a_second_model(plan: Callable) -> None:
    flags = ("--model", "llava_next_8b", "--deepspeed", "zero2", "--bf16", "--max_length", 2048, "--rows", 640, "--row_tokens", 2000,
             "--per_device_train_batch_size", 2, "--world_size", 8, "--num_train_epochs", 1, "--json")  # fmt: skip
    rows, pairs = plan(*flags), plan(*flags, stage="dpo")
    live, lora = plan(*flags, "--reference", "live", stage="spin"), plan(*flags, "--lora_rank", 8, stage="dpo")
    layout = {
        name: found["memory"]["layouts"]["zero2"] for name, found in (("rows", rows), ("pairs", pairs), ("live", live))
    }
    assert layout["pairs"]["weights"] == layout["rows"]["weights"] == layout["live"]["weights"] / 2
    assert layout["pairs"]["activations"] > 1.9 * layout["rows"]["activations"]
    assert layout["pairs"]["optimizer"] == layout["live"]["optimizer"]
    assert pairs["batch"]["unit"] == "pairs" and pairs["cost"]["steps"] == rows["cost"]["steps"] == 40
    assert pairs["cost"]["flops_a_step"] == pytest.approx(2 * rows["cost"]["flops_a_step"])
    # a forward pass is a third of a step in which everything trains
    assert live["cost"]["flops_a_step"] == pytest.approx(4 / 3 * pairs["cost"]["flops_a_step"], rel=0.01)
    assert pairs["cost"]["hours"] == pytest.approx(live["cost"]["hours"], rel=0.01)  # of one epoch
    assert (
        lora["configuration"]["reference"]["value"] == "cached"
        and lora["configuration"]["output_dir"]["value"] == "runs/dpo"
    )
    for words in (("--padding_free", "true"), ("--loss_type", "apo_zero")):
        assert "is not" in plan(*flags, *words, stage="dpo", code=2)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_disk_is_what_a_run_writes(
    run: Callable, plan: Callable, tiny_video_model: Path, synthetic_data: Path, tmp_path: Path, adapter: bool
) -> None:
    """Checkpoints, their frozen weights and the final model, each against its files."""
    out = tmp_path / "run"
    words = [
        "--model", tiny_video_model, "--data", synthetic_data / "clips_train.jsonl", "--num_frames", 4, "--deepspeed", "zero2",
        "--per_device_train_batch_size", 2, "--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1, "--report_to", "none",
        *(("--lora_rank", 32, "--freeze", "vision_tower") if adapter else ("--freeze", "vision_tower", "language_model")),
        "--output_dir", out,
    ]  # fmt: skip
    done = run([sys.executable, "-m", "drive_vlm", "sft", *words])
    assert done.returncode == 0, done.stderr[-2000:]
    found = plan(*words, "--json")["disk"]

    def size(folder: Path, *patterns: str) -> int:
        files = [path for pattern in patterns for path in folder.glob(pattern) if "tokenizer" not in path.name]
        return sum(path.stat().st_size for path in files if "frozen" not in path.name or folder.name == ".frozen")

    weights = "adapter_model.safetensors" if adapter else "model*.safetensors"
    checkpoint, own = (
        size(out / "checkpoint-2", weights, "global_step*/*"),
        250_000,
    )  # what DeepSpeed notes beside the weights
    frozen, final = size(out / ".frozen", "*.safetensors"), size(out, weights)
    assert 0 < checkpoint - found["checkpoint_bytes"] < own
    assert found["frozen_bytes"] == pytest.approx(frozen, rel=0.05) and (frozen == 0) == adapter
    assert found["final_model_bytes"] == pytest.approx(final, rel=0.05)
    # keep 2, and the one being written, which is there no longer
    assert found["total_bytes"] == pytest.approx(3 * found["checkpoint_bytes"] + frozen + final, rel=0.05)
    at = words.index("--save_strategy")
    unsaved = [*words[:at], "--save_strategy", "no", *words[at + 4 :]]
    assert plan(*unsaved, "--json")["disk"]["total_bytes"] == found["final_model_bytes"]


def test_features_of_qwen_vl_stand_for_its_tower_and_projector() -> None:
    """100 tiles a picture: four patches of each pass the tower, one vector the mergers; 2,048 numbers a tile and layer are given."""
    from drive_vlm.plan.command import make_plan

    words = ["--model", "qwen3_vl_2b", "--lora_rank", "8", "--freeze", "vision_tower", "projector", "--bf16"]
    words += ["--max_pixels", "102400", "--row_tokens", "500", "--rows", "10", "--global_batch_size", "8"]
    pixels, cached = make_plan("sft", words), make_plan("sft", [*words, "--feature_cache", "features"])
    tower, projector = (pixels["parameters"][part]["total"] for part in ("vision_tower", "projector"))
    layouts = [found["memory"]["layouts"]["zero2"] for found in (pixels, cached)]
    assert layouts[0]["weights"] - layouts[1]["weights"] == 2 * (tower + projector)
    tiles = pixels["batch"]["micro"] * 100
    # A byte a pixel, two bytes a feature.
    assert layouts[1]["activations"] - layouts[0]["activations"] == tiles * (2 * 4 * 2048 - 3 * 2 * 32 * 32)
    flops = [found["cost"]["flops_a_step"] for found in (pixels, cached)]
    assert flops[0] - flops[1] == pytest.approx(8 * 100 * 2 * (4 * tower + projector))
