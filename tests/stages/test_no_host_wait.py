"""No step waits for the device but for its log: a training of every family on a device that writes down what would wait."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from drive_vlm.config import DataConfig, ModelConfig, RunConfig
from drive_vlm.models import host_copies

# A module of this folder, which is no package.
SPEC = importlib.util.spec_from_file_location("pretend_device", Path(__file__).with_name("pretend_device.py"))
assert SPEC is not None and SPEC.loader is not None
pretended: Any = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = pretended
SPEC.loader.exec_module(pretended)

STEPS, LOG_EVERY = 2, 2
# Function in the frames of a wait -> why it may wait.
ALLOWED = {
    "_maybe_log_save_evaluate": "a log reads the loss, the norm of the gradients and the throughput",
    "_finalize_training": "once, behind the last step",
    "train:_inner_training_loop": "once, before the first step: the sum of losses begins with 0",
}
# The same within the code of a family's native class (transformers 5.23), in each forward pass.
NATIVE = {
    "llava_next": {"pack_image_features": "copies the lengths of the pictures to the device, which nobody reads"},
    "idefics3": {
        "get_image_features": "looks for pictures of zeros, which it drops",
        "inputs_merger": "counts the tokens of pictures once more",
    },
    "smolvlm": {"get_image_features": "looks for pictures of zeros, which it drops"},
    "qwen2_5_vl": {
        "get_image_features": "the tower asks for the grids of pictures and cuts its features, by their sizes",
        "_engine_run_backward": "the backward pass of the tower's windows",
    },
    "qwen3_vl": {
        "get_image_features": "the tower asks for the grids of pictures and cuts its features, by their sizes",
        "_deepstack_process": "adds a tower's features by a mask in the first layers",
        "_engine_run_backward": "the backward pass of that",
    },
}
if Version(transformers.__version__) < Version("5.23"):
    # Of 5.17, the oldest that setup.py allows.
    NATIVE["idefics3"] = NATIVE["smolvlm"]
    NATIVE["smolvlm"] = NATIVE["smolvlm"] | {
        "inputs_merger": "counts the tokens of pictures and lays them in by a mask",
        "_engine_run_backward": "the backward pass of that",
    }
FAMILIES = ("internvl", "siglip_qwen", "minicpmv", "cogvlm2", *NATIVE)


@pytest.fixture(scope="module")
def rows_file(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows with a picture and six without, so that some batches have one and some have none."""
    rows = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:8]]
    for row in rows[2:]:
        del row["image"]
        row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
    path = tmp_path_factory.mktemp("no_wait") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def train(
    rows_file: Path, synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Any], Any]]:
    """`train(model, packing) -> (waits, model)`: the SFT stage's own Trainer, two micro-batches a step, on the pretended device.
    The four micro-batches hold all rows."""
    from accelerate import Accelerator

    from drive_vlm.stages.engine.stage import StageFlags
    from drive_vlm.stages.sft import prepare

    def run(model: Path, packing: bool = True) -> tuple[list[Any], Any]:
        rows = 1 if packing else 2
        extra = {
            "output_dir": str(tmp_path / "run"), "max_steps": STEPS, "logging_steps": LOG_EVERY, "per_device_train_batch_size": rows,
            "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3,
            # The fused one refuses devices that it does not know.
            "optim": "adamw_torch",
        }  # fmt: skip
        data = DataConfig(data=[str(rows_file)], image_root=str(synthetic_data), packing=packing, max_length=128)
        configs = (ModelConfig(model=str(model)), data, RunConfig(global_batch_size=2 * rows))
        trainer = prepare(StageFlags("sft", configs, extra))[0]
        collator, with_pictures = trainer.data_collator, set()

        def collate(sequences: Any) -> dict[str, Any]:
            batch = collator(sequences)
            with_pictures.add("pixel_values" in batch)
            return batch

        trainer.data_collator = collate
        with pretended.pretend_device() as device, monkeypatch.context() as patch:
            patch.setattr(type(trainer.args), "device", pretended.DEVICE)
            patch.setattr(Accelerator, "device", pretended.DEVICE)
            pretended.move(trainer.model)
            trainer.train()
        assert with_pictures == {True, False}
        shutil.rmtree(tmp_path / "run")
        return device.waits, trainer.model

    return run


def why(wait: Any, native: dict[str, str]) -> str | None:
    """The name under which `wait` is allowed."""
    names = [frame.split(":")[1] for frame in wait.frames]
    if names[-2:] == ["train", "_inner_training_loop"]:
        return "train:_inner_training_loop"
    return next((name for name in (*ALLOWED, *native) if name in names), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_for_its_log_only(family: str, tiny_families: Callable[[str], Path], train: Any) -> None:
    native = NATIVE.get(family, {})
    waits, _ = train(tiny_families(family))
    found = [why(wait, native) for wait in waits]
    unknown = [wait for wait, name in zip(waits, found, strict=True) if name is None]
    assert not unknown, "\n".join(f"{wait.what}: {' < '.join(wait.frames[:-8:-1])}" for wait in unknown[:9])
    # What is allowed happens: an entry that an upgrade has made needless leaves the list.
    assert set(found) == {*ALLOWED, *native}
    reports = [wait for wait in waits if "throughput.py:report" in str(wait.frames) and wait.what == "tolist"]
    assert len(reports) == STEPS // LOG_EVERY


def test_rows_that_are_padded_or_whole(tiny_model: Path, train: Any) -> None:
    waits, _ = train(tiny_model, packing=False)
    assert {why(wait, {}) for wait in waits} == set(ALLOWED)


def test_a_host_that_knows_nothing_waits_and_learns_the_same(
    tiny_model: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control; and what the host knows changes no number."""
    knowing = train(tiny_model)[1]
    monkeypatch.setattr(host_copies, "remember", lambda moved, host: moved)
    waits, asking = train(tiny_model)
    forgotten = {name for wait in waits if why(wait, {}) is None for name in map(_function, wait.frames)}
    assert {"places_before_labels", "find_packed_sequence_indices", "get_placeholder_mask"} <= forgotten
    for (name, one), (_, other) in zip(knowing.named_parameters(), asking.named_parameters(), strict=True):
        assert torch.equal(one.held, other.held), name


def _function(frame: str) -> str:
    return frame.split(":")[1]
