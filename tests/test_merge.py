"""merge: ZeRO shards become one plain directory whose logits are those of the run; what does not fit is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import drive_vlm  # noqa: F401 - before transformers: lets the public torchvision wheel live beside CPU torch

pytestmark = pytest.mark.slow

SHARD_EVERYTHING = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 20000,
    "stage3_gather_16bit_weights_on_model_save": True}}  # fmt: skip


@pytest.fixture
def trained(
    run: Callable, tiny_model: Path, synthetic_data: Path, tmp_path: Path, free_port: int
) -> Callable[..., Path]:
    """`trained(layout, *flags) -> checkpoint` of two steps on two ranks, vision tower frozen."""

    def start(layout: str, *flags: object) -> Path:
        zero3 = tmp_path / "zero3.json"
        zero3.write_text(json.dumps(SHARD_EVERYTHING))
        out = tmp_path / f"run_{len(list(tmp_path.iterdir()))}"
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port, "-m", "drive_vlm"]
        words = [
            sys.executable, *torchrun, "sft", "--model", tiny_model, "--data", synthetic_data / "train.jsonl", "--freeze", "vision_tower",
            "--deepspeed", zero3 if layout == "zero3" else layout, "--max_steps", 2, "--save_strategy", "steps", "--save_steps", 2,
            "--per_device_train_batch_size", 2, "--learning_rate", 1e-2, "--report_to", "none", "--output_dir", out, *flags,
        ]  # fmt: skip
        done = run(words)
        assert done.returncode == 0, done.stderr[-2000:]
        return out / "checkpoint-2"

    return start


def merge(run: Callable, checkpoint: Path, out: Path, *flags: object) -> tuple[int, str]:
    done = run([sys.executable, "-m", "drive_vlm", "merge", "--checkpoint", checkpoint, "--out", out, *flags])
    return done.returncode, done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("layout", ["zero2", "zero3"])
@pytest.mark.supports("internvl sft zero2", "internvl sft zero3")
def test_shards_become_the_model_that_trained(
    run: Callable, trained: Callable, tiny_model: Path, synthetic_data: Path, tmp_path: Path, layout: str
) -> None:
    """Against the run's own final model, which came another way: gathered by rank 0, not out of the optimizer."""
    from transformers import AutoModelForImageTextToText

    checkpoint = trained(layout)
    code, text = merge(run, checkpoint, tmp_path / "merged")
    assert code == 0, text
    assert json.loads(text)["logit_difference"] < 1e-5
    merged, final, start = (
        AutoModelForImageTextToText.from_pretrained(path).state_dict()
        for path in (tmp_path / "merged", checkpoint.parent, tiny_model)
    )
    assert merged.keys() == final.keys()
    for name in merged:
        assert merged[name].equal(final[name]), name
        assert merged[name].equal(start[name]) == ("vision_tower" in name), name
    rows = synthetic_data / "val.jsonl"
    answers = run(
        [sys.executable, "-m", "drive_vlm", "generate", "--model", tmp_path / "merged", "--data", rows, "--max_new_tokens", 2,
         "--out", tmp_path / "answers.jsonl"]
    )  # fmt: skip
    assert answers.returncode == 0, answers.stderr[-2000:]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(rows.read_text().splitlines())


def test_bf16_masters_and_their_rounding(run: Callable, trained: Callable, tmp_path: Path) -> None:
    """fp32 masters differ from the bf16 weights that the run saw by rounding; written in bf16 they are the same again."""
    checkpoint = trained("zero2", "--bf16")
    code, text = merge(run, checkpoint, tmp_path / "fp32")
    assert code == 0 and 0 < json.loads(text)["logit_difference"] < 0.1, text
    code, text = merge(run, checkpoint, tmp_path / "bf16", "--dtype", "bfloat16")
    assert code == 0 and json.loads(text)["logit_difference"] == 0, text


def test_what_is_no_whole_run_is_refused(run: Callable, trained: Callable, tmp_path: Path) -> None:
    checkpoint, other = trained("zero2"), trained("zero2", "--freeze", "vision_tower", "projector")
    for shard in checkpoint.glob("global_step2/*"):
        shutil.copy(other / "global_step2" / shard.name, shard)
    code, text = merge(run, checkpoint, tmp_path / "a")
    assert code == 2 and "were written. Remove checkpoint-2" in text  # the sizes of complete.json
    facts = json.loads((checkpoint / "complete.json").read_text())
    facts["files"] = {}
    (checkpoint / "complete.json").write_text(json.dumps(facts))
    code, text = merge(run, checkpoint, tmp_path / "b")
    assert code == 2 and "the shards do not hold what trained" in text and "Traceback" not in text
    code, text = merge(run, other, other.parent)
    assert code == 2 and "not empty" in text


def test_what_needs_no_merge_and_what_cannot_be_merged(run: Callable, tiny_model: Path, tmp_path: Path) -> None:
    """A checkpoint that was written without adapter and without DeepSpeed is a model like this one."""
    code, text = merge(run, tiny_model, tmp_path / "out")
    assert code == 2 and "a whole model" in text and "there is nothing to merge" in text and "Give a" not in text
    code, text = merge(run, tmp_path, tmp_path / "out")
    assert code == 2 and "Give a checkpoint-N directory" in text
    (tmp_path / "file").touch()
    code, text = merge(run, tiny_model, tmp_path / "file")
    assert code == 2 and "argument --out" in text and "is not a folder" in text
