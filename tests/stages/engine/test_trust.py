"""Shards of a stranger: nothing in them runs, unless the user says that they are trusted."""

import ast
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.merge import merge
from drive_vlm.stages.engine.saving import CheckpointMixin
from drive_vlm.stages.engine.trust import refuse_code, shards_of

ROOT = Path(__file__).resolve().parents[3]


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two shards with what DeepSpeed stores."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    folder = tmp_path / "checkpoint-2" / "global_step2"
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text("global_step2")
    state = {
        "loss_scaler": LossScaler(1.0), "dynamic": DynamicLossScaler(2.0**16, 1000, 1.0, 1, False), "zero_stage": ZeroStageEnum.gradients, "names": {1: "a"},
        "slices": {"weight": fragment_address(numel=4, start=0)}, "base_optimizer_state": [torch.zeros(4)],
    }  # fmt: skip
    torch.save({"optimizer_state_dict": state}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save(
        {"module": {"weight": torch.ones(2, 2)}, "param_shapes": [torch.Size((2, 2))]},
        folder / "mp_rank_00_model_states.pt",
    )
    return folder.parent


def trainer(trusted: bool) -> Any:
    parts = SimpleNamespace(flags=SimpleNamespace(run=SimpleNamespace(trust_checkpoint=trusted)))
    return SimpleNamespace(is_deepspeed_enabled=True, args=SimpleNamespace(process_index=0, world_size=1), parts=parts)


def test_what_deepspeed_stores_is_taken(checkpoint: Path) -> None:
    assert len(shards_of(checkpoint)) == 2
    CheckpointMixin.check_code(trainer(False), checkpoint)


@pytest.mark.parametrize("place", ["mp_rank_00_model_states.pt", "deep/bf16_zero_pp_rank_9_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_shard_does_not_run(checkpoint: Path, tmp_path: Path, place: str, form: str) -> None:
    file, ran = checkpoint / "global_step2" / place, tmp_path / "ran"
    file.parent.mkdir(exist_ok=True)
    content = {"module": {"weight": torch.ones(2)}, "extra": Code(ran)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    for load in (
        lambda: CheckpointMixin.check_code(trainer(False), checkpoint),
        lambda: merge(checkpoint, tmp_path / "merged"),
    ):
        with pytest.raises(ValueError, match=file.name):
            load()
        assert not ran.exists()
    CheckpointMixin.check_code(trainer(True), checkpoint)
    with pytest.raises(ValueError, match=r"holds more than tensors \(posix\.mkdir\).*--trust_checkpoint"):
        torch.save(Code(ran), file)
        refuse_code(shards_of(checkpoint), False)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth"])
@pytest.mark.parametrize("deepspeed", [False, True])
def test_code_in_a_state_of_transformers_is_one_line(
    checkpoint: Path, tmp_path: Path, name: str, deepspeed: bool
) -> None:
    """It would not run: transformers ends in a traceback. --trust_checkpoint does not change that."""
    states = {"python": (3, (1, 2), None), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(states, checkpoint / "rng_state.pth")
    resumed = trainer(True)
    resumed.is_deepspeed_enabled = deepspeed
    CheckpointMixin.check_code(resumed, checkpoint)
    torch.save({"state": Code(tmp_path / "ran")}, checkpoint / name)
    with pytest.raises(ValueError, match=rf"{name}: holds more than tensors \(posix\.mkdir\).*never loaded"):
        CheckpointMixin.check_code(resumed, checkpoint)
    assert not (tmp_path / "ran").exists()


def test_nothing_else_unpickles() -> None:
    """Every call that could run a stranger's code says weights_only=True where it stands."""
    found, loads = [], ("torch.load", "pickle.load", "pickle.loads", "joblib.load")
    for path in (path for folder in ("drive_vlm", "tools") for path in (ROOT / folder).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            unsafe = words.get("weights_only") == "False" or words.get("allow_pickle") == "True"
            if unsafe or (ast.unparse(call.func) in loads and words.get("weights_only") != "True"):
                found.append(f"{path.name}:{call.lineno}")
    assert not found


@pytest.mark.parametrize("tag", ["../../elsewhere", "/etc", "global_step3", "", "global_step2/../.."])
def test_latest_stays_in_its_checkpoint(checkpoint: Path, tmp_path: Path, tag: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (checkpoint / "latest").write_text(tag)
    with pytest.raises(ValueError, match="latest: names"):
        shards_of(checkpoint)


def test_a_shard_that_is_cut_off_is_named(checkpoint: Path) -> None:
    file = checkpoint / "global_step2" / "mp_rank_00_model_states.pt"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt: not a file that torch\.save wrote"):
        refuse_code(shards_of(checkpoint), False)


def test_numbers_that_deepspeed_offloads_to_a_disk_are_no_shards(checkpoint: Path) -> None:
    """NVMe offload of ZeRO-3 copies raw files; none of them is unpickled."""
    raw = checkpoint / "global_step2" / "offloaded_tensors" / "rank0" / "0.tensor.swp"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(bytes(4096))
    assert len(shards_of(checkpoint)) == 2
    CheckpointMixin.check_code(trainer(False), checkpoint)
