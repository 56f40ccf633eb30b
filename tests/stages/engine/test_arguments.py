"""The command line of a stage: what is refused, with which words; YAML beside flags. No model is loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drive_vlm.config import DataConfig, ModelConfig
from drive_vlm.stages import STAGES, run
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.engine.training_arguments import evaluation_defaults, print_packed_mask

NEEDED = ["--model", "m", "--data", "d.jsonl"]


def parse(*words: str) -> tuple:
    flags = parse_stage("sft", STAGES["sft"], words)
    return flags.model, flags.data, flags.run, flags.training


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run("sft", words)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--pakcing", "packing"),
        ("--learnin_rate", "learning_rate"),
        ("--learning-rat", "learning_rate"),
        ("--lora_rnak", "lora_rank"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture, flag: str, near: str) -> None:
    text = refused(capsys, *NEEDED, flag, "1")
    assert (
        f"unknown argument {flag.replace('--', '').replace('-', '_')}" in text.replace("--", "")
        and f"Did you mean {near}?" in text
    )


@pytest.mark.parametrize(
    ("flag", "way_out"),
    [
        ("gradient_accumulation_steps", "--global_batch_size"),
        ("save_total_limit", "--keep"),
        ("resume_from_checkpoint", "--resume"),
    ],
)
def test_flags_with_another_owner_are_refused(capsys: pytest.CaptureFixture, flag: str, way_out: str) -> None:
    text = refused(capsys, *NEEDED, f"--{flag}", "2")
    assert f"--{flag} is not taken" in text and way_out in text


def test_training_flags_reach_the_trainer() -> None:
    _, data, layout, extra = parse(
        *NEEDED, "--learning-rate", "3e-4", "--bf16", "--packing", "--global_batch_size=32", "--warmup_steps=5"
    )
    assert extra == {"learning_rate": 3e-4, "bf16": True, "warmup_steps": 5}
    assert data.packing and layout.global_batch_size == 32


def test_yaml_beside_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(
        "model: a\ndata: [x.jsonl, y.jsonl]\nlearning_rate: 1.0e-4\nmax_length: 100\nfreeze: vision_tower\nbf16: true\n"
    )
    model, data, _, extra = parse("--config", str(file), "--max_length", "200", "--model", "b")
    assert (model.model, model.freeze, data.max_length) == ("b", ["vision_tower"], 200)  # a flag wins
    assert data.data == ["x.jsonl", "y.jsonl"] and extra == {"learning_rate": 1e-4, "bf16": True}
    file.write_text("model: a\ndata: x.jsonl\nlearning_rat: 1.0e-4\n")
    assert "unknown key 'learning_rat'. Did you mean learning_rate?" in refused(capsys, "--config", str(file))
    assert "no such file" in refused(capsys, "--config", str(tmp_path / "none.yaml"))
    file.write_text("- a\n")
    assert "expected `flag: value` lines" in refused(capsys, "--config", str(file))


def test_a_flag_of_the_trainer_beats_the_yaml(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("learning_rate: 1.0e-4\ngradient-checkpointing: false\n")
    extra = parse(*NEEDED, "--config", str(file), "--learning_rate", "5e-5")[-1]
    assert extra == {"learning_rate": 5e-5, "gradient_checkpointing": False}


def test_a_yaml_may_not_take_what_has_another_owner(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("gradient_accumulation_steps: 4\n")
    assert "--gradient_accumulation_steps is not taken" in refused(capsys, *NEEDED, "--config", str(file))


def test_errors_of_the_run_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    out = ("--output_dir", str(tmp_path))
    text = refused(capsys, *NEEDED, *out, "--global_batch_size", "20")
    assert "--global_batch_size 20" in text and "--per_device_train_batch_size 8 x 1 processes = 8" in text
    assert "Did you mean zero2?" in refused(capsys, *NEEDED, *out, "--deepspeed", "zro2")
    text = refused(capsys, "--model", str(tmp_path), "--data", "d.jsonl", *out)
    assert "no config.json" in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("save", "evaluates", "best"),
    [({}, "epoch", True), ({"save_strategy": "steps"}, "steps", True), ({"save_strategy": "no"}, "epoch", False),
     ({"save_strategy": "best"}, "epoch", True), ({"save_strategy": "no", "eval_strategy": "steps"}, "steps", False)],
)  # fmt: skip
def test_evaluation_rows_are_evaluated_whether_or_not_checkpoints_are_saved(
    save: dict[str, str], evaluates: str, best: bool
) -> None:
    found = evaluation_defaults(save, True)
    assert found["eval_strategy"] == evaluates and ("metric_for_best_model" in found) == best
    assert evaluation_defaults(save, False) == save
    # With every checkpoint, and not with every log.
    assert evaluation_defaults({"save_strategy": "steps", "save_steps": 70}, True)["eval_steps"] == 70


def test_ranks_that_found_different_checkpoints_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks before it knows the others, and the ranks of a killed run may complete one in between."""
    import torch.distributed as dist

    from drive_vlm.stages.engine.training_arguments import Resume, check_same_checkpoint

    check_same_checkpoint(None)
    of_the_other = "checkpoint-4"

    def gather(found: list[object], own: object) -> None:
        found[:] = [own, of_the_other]

    for name, value in (("is_initialized", lambda: True), ("get_world_size", lambda: 2), ("all_gather_object", gather)):
        monkeypatch.setattr(dist, name, value)
    check_same_checkpoint(Resume(Path("run/checkpoint-4")))
    with pytest.raises(ValueError, match=r"different checkpoints \(rank 0 checkpoint-2, rank 1 checkpoint-4\)"):
        check_same_checkpoint(Resume(Path("run/checkpoint-2")))
    with pytest.raises(ValueError, match="rank 0 none, rank 1 checkpoint-4"):
        check_same_checkpoint(None)


@pytest.mark.parametrize(
    ("kernel", "cpu", "said"),
    [
        ("eager", False, "a dense mask of 16,384 x 16,384 (512 MiB a micro-batch); --attn_implementation sdpa"),
        ("sdpa", False, ""),
        ("flash", False, ""),
        ("flex", False, ""),
        ("eager", True, ""),
    ],
)
def test_packs_with_a_dense_mask_on_a_gpu_are_told_of(
    kernel: str, cpu: bool, said: str, capsys: pytest.CaptureFixture
) -> None:
    args: Any = SimpleNamespace(use_cpu=cpu, per_device_train_batch_size=2)
    data = DataConfig(data=["d.jsonl"], packing=True, max_length=16384)
    print_packed_mask(ModelConfig(model="m", attn_implementation=kernel), data, args)
    told = capsys.readouterr().out
    assert said in told and bool(told) == bool(said)
