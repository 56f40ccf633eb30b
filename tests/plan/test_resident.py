"""What a training on a CPU keeps resident: by hand on InternVL3-1B, whose numbers ship, and against a run that was killed."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.launch import machine
from drive_vlm.plan import resident as module
from drive_vlm.plan.activations import Batch
from drive_vlm.plan.command import make_plan
from drive_vlm.plan.flags import parse
from drive_vlm.plan.lookup import load_sizes
from drive_vlm.plan.memory_table import PlanCase, layouts, peak_of
from drive_vlm.plan.resident import (
    DEEPSPEED,
    FRAGMENTS,
    LIBRARIES,
    LOADER,
    MARGIN,
    SYSTEM,
    Resident,
    resident,
    stored_bytes,
)
from drive_vlm.plan.rows import RowStatistics
from drive_vlm.plan.tables import show

GIB = 2**30
TRAINED, FROZEN = 634_180_736, 304_012_288
# A picture of nine tiles and 211 words to learn.
ROW = Batch(1, 2544, 9, 211)
MODEL = [
    "--model",
    "internvl3_1b",
    "--freeze",
    "vision_tower",
    "--per_device_train_batch_size",
    "1",
    "--max_tiles",
    "12",
]
RUN = [*MODEL, "--gradient_checkpointing", "--dataloader_num_workers", "4", "--num_train_epochs", "1", "--use_cpu"]


def case_of(*flags: str) -> PlanCase:
    parsed = parse("sft", "", flags, "")
    return PlanCase(parsed, load_sizes(parsed.model), RowStatistics(None, 2544, 211, 9, None, "", None), 1)


def of(*flags: str, stored: int | None = 4, batch: Batch = ROW, processes: int = 1) -> tuple[Resident, float]:
    """The prediction for the layout of `flags`, and the peak of its tensors."""
    case = case_of(*flags)
    all_layouts, chosen = layouts(case.flags)
    layout = next(item for item in all_layouts if item.name == chosen)
    return resident(case, layout, batch, stored, processes), peak_of(case, layout, batch, case.checkpointing()).peak


def test_parts_of_zero2_in_fp32_by_hand() -> None:
    found, peak = of(*RUN, "--deepspeed", "zero2", "--world_size", "2", processes=2)
    assert found.libraries == LIBRARIES + DEEPSPEED and found.tensors == peak
    # The flat buffer is a copy of what trains; the file's map stays, since the tower is in it.
    assert found.mapped == 4 * TRAINED
    assert found.process == found.libraries + peak + found.mapped + found.slack
    # Old pages: the weights, and half of the master copy. Each loader: its own, and two batches of nine tiles.
    assert found.loaders == 4 * TRAINED + 4 * TRAINED / 2 + 4 * (LOADER + 2 * 9 * 3 * 448 * 448)
    each = found.process - found.mapped - 4 * FROZEN + found.loaders
    assert found.node == 2 * each + 4 * FROZEN
    assert found.needed == pytest.approx(found.node * (1 + MARGIN) + SYSTEM)


def test_moments_are_held_from_the_second_epoch_on() -> None:
    one, _ = of(*RUN, "--deepspeed", "zero2")
    three, _ = of(*RUN, "--deepspeed", "zero2", "--num_train_epochs", "3")
    assert three.loaders - one.loaders == 8 * TRAINED
    assert three.process == one.process
    steps, _ = of(*RUN, "--deepspeed", "zero2", "--num_train_epochs", "3", "--max_steps", "5")
    assert steps == one


def test_without_loaders_nothing_is_held() -> None:
    found, _ = of(*RUN, "--deepspeed", "zero2", "--dataloader_num_workers", "0")
    assert found.loaders == 0 and found.node == found.process - found.mapped


def test_a_checkpoint_in_another_dtype_leaves_no_map() -> None:
    same, _ = of(*RUN, "--deepspeed", "zero2")
    for stored in (2, None):
        other, _ = of(*RUN, "--deepspeed", "zero2", stored=stored)
        assert other.mapped == 0 and other.process == same.process - same.mapped
        assert other.node == same.node, "one process needs the same: the second copy can be taken back"
    half, _ = of(*RUN, "--deepspeed", "zero2", "--bf16", stored=2)
    assert half.mapped == 2 * TRAINED


def test_without_deepspeed_the_optimizer_writes_into_the_map() -> None:
    found, peak = of(*RUN)
    assert (found.mapped, found.libraries, found.tensors) == (0, LIBRARIES, peak)
    assert found.loaders == 4 * (LOADER + 2 * 9 * 3 * 448 * 448)
    # Weights that were converted are pages of the process, which its loaders go on to see as they were.
    converted, _ = of(*RUN, stored=2)
    assert converted.loaders == found.loaders + 4 * TRAINED


def test_a_model_that_trains_whole_keeps_no_map() -> None:
    whole = [word for word in RUN if word not in ("--freeze", "vision_tower")]
    found, _ = of(*whole, "--deepspeed", "zero2")
    assert found.mapped == 0


def test_large_blocks_are_given_back() -> None:
    """A hidden state of 896 and an MLP of 4,864 fp32 numbers: below 32 MiB up to 9,362 and 1,724 tokens."""
    case = case_of(*RUN, "--deepspeed", "zero2")
    all_layouts, _ = layouts(case.flags)
    layout = next(item for item in all_layouts if item.name == "zero2")
    shares = []
    for tokens in (1724, 1725, 9362, 9363):
        batch = Batch(1, tokens, 0, 1)
        found = dataclasses.replace(peak_of(case, layout, batch, True), peak=0.0)
        step = module.kept_by_malloc(case, layout, batch, dataclasses.replace(found, activations=0.0))
        shares.append((module.kept_by_malloc(case, layout, batch, found) - step) / found.activations)
    assert shares == pytest.approx([1, 0.5, 0.5, 0])
    # Without ZeRO, and where the backward pass is the fullest moment: fragments of the small blocks alone.
    large = dataclasses.replace(found, peak=1e15)
    for tokens, share in ((1724, 1), (1725, 0.5), (9363, 0)):
        batch = Batch(1, tokens, 0, 1)
        for other in (layout, all_layouts[0]):
            assert module.kept_by_malloc(case, other, batch, large) == FRAGMENTS * share * found.activations


def test_a_run_that_was_killed_is_predicted() -> None:
    """Random InternVL3-1B in fp32 with four loaders on 23.5 GiB: 19.8 GiB resident, killed in step 2. The older plan said 15.3."""
    found, peak = of(*RUN, "--deepspeed", "zero2")
    assert peak / GIB == pytest.approx(15.3, abs=0.05)
    assert found.process / GIB == pytest.approx(19.8, rel=0.06)
    assert found.needed > 23.5 * GIB
    without, _ = of(*RUN, "--deepspeed", "zero2", "--dataloader_num_workers", "0")
    assert without.needed < 23.5 * GIB
    # ZeRO-1 without checkpointing was killed at 24.0 GiB.
    large, _ = of(*RUN, "--deepspeed", "zero1", "--gradient_checkpointing", "false")
    assert large.process > 24.0 * GIB


@pytest.mark.parametrize(("kind", "each"), [("F32", 4), ("BF16", 2), ("F16", 2)])
def test_bytes_of_a_weight_on_disk(tmp_path: Path, kind: str, each: int) -> None:
    """A file as the format says: eight bytes of length, a header in JSON, the numbers. Most bytes count, not most tensors."""
    assert stored_bytes("internvl3_1b") == 2 and stored_bytes(str(tmp_path)) is None
    header: dict[str, Any] = {}
    end = 0
    for name, dtype, elements, size in (*((f"norm{i}", "F32", 2, 4) for i in range(5)), ("weight", kind, 90, each)):
        header[name] = {"dtype": dtype, "shape": [elements], "data_offsets": [end, end + elements * size]}
        end += elements * size
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    assert stored_bytes(str(tmp_path)) == each
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert stored_bytes(str(adapter)) == each, "an adapter's base is what is loaded"
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read .* Copy the file again"):
        stored_bytes(str(tmp_path))


def said(plan: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    show(plan)
    return capsys.readouterr().out


def test_the_verdict_and_its_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan("sft", [*RUN, "--deepspeed", "zero2", "--max_length", "4096", "--cpu_memory", "23.5GB"])
    cpu = plan["cpu"]
    assert cpu["asked"] and cpu["machine"] == 23.5 * GIB and not cpu["fits"]
    text = said(plan, capsys)
    for words in ("resident of one process on a CPU", "does NOT fit, and the kernel would kill it", "fits 23.5"):
        assert words in text
    assert cpu["way_out"].startswith("With --dataloader_num_workers 0 it fits (")
    assert "of one GPU" not in text
    small = make_plan("sft", [*RUN, "--deepspeed", "zero2", "--max_length", "4096", "--cpu_memory", "8GB"])["cpu"]
    assert "still needs" in small["way_out"] and "take a larger machine" in small["way_out"]
    large = make_plan("sft", [*RUN, "--deepspeed", "zero2", "--max_length", "4096", "--cpu_memory", "64GB"])
    assert large["cpu"]["fits"] and large["cpu"]["way_out"] is None and "64.0: it fits." in said(large, capsys)


def test_the_flags_of_the_way_out_do_fit() -> None:
    words = [*MODEL, "--deepspeed", "zero1", "--use_cpu", "--per_device_train_batch_size", "4", "--max_length", "4096"]
    words += ["--dataloader_num_workers", "2", "--cpu_memory", "23.5GB"]
    way_out = make_plan("sft", words)["cpu"]["way_out"]
    given, _, rest = way_out.removeprefix("With ").partition(" it fits")
    assert rest, way_out
    again = make_plan("sft", [*words, *given.replace(" and ", " ").split()])["cpu"]
    assert again["fits"]
    # Each of the flags is needed.
    for flag in given.split(" and ")[:-1]:
        fewer = [word for other in given.split(" and ") if other != flag for word in other.split()]
        assert not make_plan("sft", [*words, *fewer])["cpu"]["fits"], flag


def test_who_plans_for_a_gpu_reads_nothing_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*MODEL, "--deepspeed", "zero1", "--bf16"]
    for named in (["--gpu_memory", "24GB"], ["--gpu", "H100"], ["--peak_flops", "1e15"]):
        plan = make_plan("sft", [*words, *named])
        assert plan["cpu"] is None and "CPU:" not in said(plan, capsys)
    monkeypatch.setattr(module, "gpus", lambda: ["NVIDIA H200, 143771 MiB, 570.1"])
    assert make_plan("sft", words)["cpu"] is None
    # Nothing is said of a GPU and there is none: the command would train here.
    monkeypatch.setattr(module, "gpus", list)
    plan = make_plan("sft", words)
    text = said(plan, capsys)
    assert not plan["cpu"]["asked"] and "this machine has no GPU, so the command would train on its CPU" in text
    assert "of one GPU" in text, "the table stays that of a GPU"
    # What trains on GPUs only is meant for one.
    assert make_plan("sft", [*words, "--attn_implementation", "flash"])["cpu"] is None
    # Processes of several nodes do not run here.
    several = ["--world_size", "4", "--local_world_size", "2"]
    assert make_plan("sft", [*words, *several])["cpu"] is None
    # A system that does not say its memory (not Linux): no verdict, unless it is given or asked for.
    monkeypatch.setattr(machine, "_MEMINFO", Path("/nowhere/meminfo"))
    assert make_plan("sft", words)["cpu"] is None
    assert make_plan("sft", [*words, "--cpu_memory", "64GB"])["cpu"]["machine"] == 64 * GIB
    with pytest.raises(ValueError, match=r"the memory of this machine is not known .* Give it: --cpu_memory"):
        make_plan("sft", [*words, "--use_cpu"])
    with pytest.raises(ValueError, match=r"--cpu_memory 8GB: this plan is that of a GPU\. Add --use_cpu"):
        make_plan("sft", [*words, "--gpu_memory", "24GB", "--cpu_memory", "8GB"])


def test_bf16_without_units_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    words = [*MODEL, "--use_cpu", "--cpu_memory", "64GB"]
    plan = make_plan("sft", [*words, "--bf16"])
    assert "several times slower than fp32" in plan["cpu"]["slow_bf16"] and "bf16: this processor" in said(plan, capsys)
    assert make_plan("sft", words)["cpu"]["slow_bf16"] is None
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 amx_bf16\n")
    assert make_plan("sft", [*words, "--bf16"])["cpu"]["slow_bf16"] is None


def test_a_memory_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="--cpu_memory much: give it as 24GB"):
        make_plan("sft", [*MODEL, "--use_cpu", "--cpu_memory", "much"])
