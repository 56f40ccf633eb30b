"""Packed rows never see each other: loss and gradients of a pack, through the real Trainer, are those of its rows alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.config import ROW_ENDS, DataConfig, ModelConfig, RunConfig

IMPLEMENTATIONS = [
    "sdpa",
    "eager",
    *(
        pytest.param(
            name,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=f"{name} attention trains on GPUs only"),
        )
        for name in ("flex", "flash")
    ),
]


@pytest.fixture(scope="module")
def rows_file(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows of different length: one picture, two, none, a dialog."""
    plain = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:4]]
    dialogs = [json.loads(line) for line in (synthetic_data / "dialogs_train.jsonl").read_text().splitlines()[:2]]
    plain[1]["image"] = [plain[1]["image"], dialogs[1]["image"]]
    plain[1]["conversations"][0]["value"] = "<image>\n" + plain[1]["conversations"][0]["value"]
    del plain[2]["image"]
    plain[2]["conversations"][0]["value"] = plain[2]["conversations"][0]["value"].removeprefix("<image>\n")
    for row in [*plain, *dialogs]:
        if "image" in row:
            names = row["image"] if isinstance(row["image"], list) else [row["image"]]
            row["image"] = [f"data/{name}" for name in names]
    path = tmp_path_factory.mktemp("packing") / "packing.jsonl"
    path.with_name("data").symlink_to(synthetic_data)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*plain, *dialogs]))
    return path


def make_trainer(tiny_model: Path, rows_file: Path, out: Path, attention: str) -> Any:
    """The Trainer of the SFT stage with --packing, nothing frozen; dtype float32 (flash: bfloat16)."""
    from drive_vlm.stages.engine.stage import StageFlags
    from drive_vlm.stages.sft import prepare

    extra = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": attention in ("sdpa", "eager") or not torch.cuda.is_available(),
    }
    dtype = "bfloat16" if attention == "flash" else "float32"
    configs = (
        ModelConfig(model=str(tiny_model), attn_implementation=attention, dtype=dtype),
        DataConfig(data=[str(rows_file)], packing=True, max_length=800),
        RunConfig(),
    )
    return prepare(StageFlags("sft", configs, extra))[0]


def step(
    trainer: Any, sequences: list[tuple[int, ...]], num_items: int, change: Any = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss of the sequences over `num_items` labels, gradients) of one training_step of the Trainer."""
    batch = trainer.data_collator([trainer.train_dataset[sequence] for sequence in sequences])
    if change:
        change(batch)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, batch, torch.tensor(num_items))
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def labels_of(trainer: Any, rows: tuple[int, ...]) -> int:
    return sum(int((row["labels"] != -100).sum()) for row in trainer.train_dataset[rows])


def start(trainer: Any) -> None:
    """What Trainer.train sets up before its first step, without training."""
    trainer.model.train()
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.supports("internvl sft packing")
def test_a_pack_is_the_sum_of_its_rows(attention: str, tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model, rows_file, tmp_path, attention)
    start(trainer)
    tolerance = {"atol": 2e-2, "rtol": 5e-2} if attention == "flash" else {"atol": 2e-6, "rtol": 2e-4}
    packs = [(3, 0, 4), (2, 5, 1)]  # of unequal length, so that one of them ends in padding
    everything = labels_of(trainer, packs[0] + packs[1])
    single = [step(trainer, [(row,)], everything) for pack in packs for row in pack]
    loss, gradients = step(trainer, packs, everything)
    assert loss == pytest.approx(sum(part for part, _ in single), rel=1e-2 if attention == "flash" else 1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, sum(part[name] for _, part in single), **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    for pack, losses in zip(packs, np.split(np.array([part for part, _ in single]), 2), strict=True):
        assert step(trainer, [pack], everything)[0] == pytest.approx(
            losses.sum(), rel=1e-2 if attention == "flash" else 1e-5
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_row_keeps_its_own_loss(attention: str, tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """Only one row of the pack is labelled at a time: its loss is the one that it has alone."""
    trainer = make_trainer(tiny_model, rows_file, tmp_path, attention)
    start(trainer)
    pack = (0, 2, 4, 1)
    ends = np.cumsum([len(row["input_ids"]) for row in trainer.train_dataset[pack]])
    for row, end in zip(pack, ends, strict=True):
        begin = end - len(trainer.train_dataset[(row,)][0]["input_ids"])

        def only_this(batch: dict[str, Any], begin: int = begin, end: int = end) -> None:
            batch["labels"][:, :begin] = batch["labels"][:, end:] = -100

        count = labels_of(trainer, (row,))
        assert step(trainer, [pack], count, only_this)[0] == pytest.approx(step(trainer, [(row,)], count)[0], rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="both kernels train on this machine's GPU")
@pytest.mark.parametrize("attention", ["flex", "flash"])
def test_kernels_that_need_a_gpu_are_refused_without_one(
    attention: str, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"--attn_implementation {attention} trains on GPUs only"):
        make_trainer(tiny_model, rows_file, tmp_path, attention)


def test_without_restarted_positions_rows_would_mix(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """The negative control: the comparison above is able to fail."""
    trainer = make_trainer(tiny_model, rows_file, tmp_path, "sdpa")
    start(trainer)
    pack = (3, 0, 4)
    count = labels_of(trainer, pack)
    single = sum(step(trainer, [(row,)], count)[0] for row in pack)

    def run_on(batch: dict[str, Any]) -> None:
        for name in ROW_ENDS:
            del batch[name]
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]

    def with_mask(batch: dict[str, Any]) -> None:
        for name in ROW_ENDS:
            del batch[name]
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])

    assert step(trainer, [pack], count)[0] == pytest.approx(single, rel=1e-5)
    for change in (run_on, with_mask):
        assert abs(step(trainer, [pack], count, change)[0] - single) > 1e-3 * single
