"""A run that was stopped and resumed must walk the curve of one that was not: same rows, same order, same losses."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from drive_vlm.data.order import EpochOrder, ShardedBatchSampler

pytestmark = pytest.mark.slow

PACKED = ("--packing", "--max_length", 160, "--global_batch_size", 4, "--per_device_train_batch_size", 4)
ZERO2_PACKED = (*PACKED[:-1], 2, "--deepspeed", "zero2")


def saving_at(stop: int) -> tuple[object, ...]:
    return ("--max_steps", stop, "--save_strategy", "steps", "--save_steps", stop, "--resume", "auto")


@pytest.mark.parametrize(
    ("flags", "resumed", "launcher"),
    [
        pytest.param((), ("--dataloader_num_workers", 1), "python", id="plain"),
        pytest.param(PACKED, ZERO2_PACKED, "torchrun", id="packed-zero2"),
    ],
)
def test_resumed_equals_uninterrupted(
    sft: Callable, fresh: Callable, flags: tuple, resumed: tuple, launcher: str
) -> None:
    """Stopped in epoch 0 (step 3) and again in epoch 1 (step 7, 5 steps an epoch): same losses, step by step."""
    whole = sft(fresh("whole"), *flags, "--max_steps", 9)
    out = fresh("stopped")
    for stop in (3, 7, 9):
        stopped = sft(out, *resumed, *saving_at(stop), launcher=launcher)
    assert [row["step"] for row in stopped.metrics if "loss" in row] == list(range(1, 10))
    assert stopped.curve() == pytest.approx(whole.curve(), abs=1e-4)
    epochs = [row["epoch"] for row in whole.metrics if "loss" in row]
    assert epochs[2] < 1 < epochs[6] < 2
    cursor = json.loads((out / "checkpoint-7" / "data_cursor.json").read_text())
    steps = -(-cursor["num_sequences"] // cursor["global_batch"])
    assert cursor["epoch"] == 1 and cursor["sequences"] == (7 - steps) * cursor["global_batch"]
    assert cursor["rows"] >= cursor["sequences"]


@pytest.mark.parametrize("layout", ["zero2-packed", "zero3", "zero2-lora", "ddp"])
@pytest.mark.supports("internvl sft zero2 packing", "internvl sft zero3", "internvl sft zero2 lora", "internvl sft ddp")
def test_the_number_of_processes_may_change(sft: Callable, fresh: Callable, world: Any, layout: str) -> None:
    """2 processes in epoch 0, 1 to the epoch's boundary (step 5, accumulating), then 2 again; packs also go by 4 into epoch 1.

    Weight decay differs between the optimizer's groups, and each of them has a step count: both must survive.
    """
    flags: tuple[object, ...] = ("--weight_decay", 0.5)
    engine: tuple[object, ...] = ()
    micro, worlds = 4, [(2, 3), (1, 5), (2, 9)]
    if layout == "zero2-packed":
        flags, engine, micro = (*flags, *PACKED), ("--deepspeed", "zero2"), 1
        worlds.insert(2, (4, 7))
    elif layout == "zero3":
        engine = ("--deepspeed", world.zero3)
    elif layout == "zero2-lora":
        flags, engine = (*flags, "--lora_rank", 4), ("--deepspeed", "zero2")
    whole = sft(fresh("whole"), *flags, "--max_steps", 9)
    out = fresh("stopped")
    for nproc, stop in worlds:
        batch = ("--per_device_train_batch_size", micro)
        stopped = sft(out, *flags, *engine, *batch, *saving_at(stop), launcher="torchrun", nproc=nproc)
    assert stopped.curve() == pytest.approx(whole.curve(), abs=1e-4)
    assert not list(out.glob("checkpoint-*/*universal*"))  # conversions are removed once they are read


def test_killed_at_random_points(training: Callable, tmp_path: Path) -> None:
    """SIGKILL at random moments, also while a checkpoint is written: resumed, the curve is the same. Of ranks: test_random_kills.py."""
    kills = 8
    flags = [
        "--max_steps",
        8 + 6 * kills,
        "--save_strategy",
        "steps",
        "--save_steps",
        4,
        "--keep",
        1,
        "--resume",
        "auto",
    ]
    whole = training(*flags)
    assert whole.wait() == 0, whole.text[-2000:]
    expected = losses(whole.out)
    shutil.move(whole.out, tmp_path / "whole")
    chance = random.Random(1)
    for kill in range(kills):
        run = training(*flags)
        run.wait_for_step(min(6 * (kill + 1) + chance.randrange(-2, 3), len(expected) - 1))
        if chance.random() < 0.5:
            wait_for_a_save(run)
        run.kill()
    last = training(*flags)
    assert last.wait() == 0, last.text[-2000:]
    assert losses(last.out) == pytest.approx(expected, abs=1e-4)
    orders = [
        json.loads(next(at.glob("checkpoint-*/data_cursor.json")).read_text()) for at in (last.out, tmp_path / "whole")
    ]
    assert orders[0] == orders[1]


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert [step for step, _ in curve] == list(range(1, len(curve) + 1))  # no step twice, none left out
    return [loss for _, loss in curve]


def wait_for_a_save(run: Any) -> None:
    """Until a checkpoint is being written, or the run ends."""
    while run.process.poll() is None and not (run.out / ".saving").exists():
        time.sleep(0.001)  # the run needs the core more


def test_pictures_of_consumed_rows_are_not_read_again(sft: Callable, fresh: Callable, world: Any) -> None:
    """After step 3 the pictures that only consumed rows show are torn: a resume that read them would stop at the first."""
    data = fresh("data")
    shutil.copytree(world.train.parent, data / "d")
    train = data / "d" / world.train.name
    out = fresh("run")
    sft(out, "--data", train, *saving_at(3))
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    pictures = [[row["image"]] if isinstance(row.get("image"), str) else row.get("image", []) for row in rows]
    order = EpochOrder([1] * len(rows), seed=42)  # unpacked: lengths do not matter
    sampler = ShardedBatchSampler(order, 16)
    first = {row for step in list(sampler)[:3] for sequence in step for row in sequence}
    needed = {name for i, names in enumerate(pictures) if i not in first for name in names}
    torn = {name for i in first for name in pictures[i]} - needed
    assert torn
    for name in torn:
        path = train.parent / name
        path.write_bytes(path.read_bytes()[:400])  # the header stays
    sft(out, "--data", train, *saving_at(5))
    broken = sft(fresh("anew"), "--data", train, "--max_steps", 3, code=2)
    assert any(str(train.parent / name) in broken.text for name in torn), broken.text[-500:]


def test_lora_checkpoints_hold_no_base_weights(sft: Callable, fresh: Callable, world: Any) -> None:
    out = fresh("lora")
    sft(out, "--lora_rank", 2, "--deepspeed", "zero2", *saving_at(1), launcher="torchrun")
    base = (world.model / "model.safetensors").stat().st_size
    written = sum(p.stat().st_size for p in (out / "checkpoint-1").rglob("*.pt"))
    written += sum(p.stat().st_size for p in (out / "checkpoint-1").rglob("*.safetensors"))
    assert written < base, (written, base)


@pytest.mark.parametrize("deepspeed", [False, True])
def test_frozen_weights_are_written_once(sft: Callable, fresh: Callable, world: Any, deepspeed: bool) -> None:
    """Two checkpoints and the store share one file; each checkpoint still is a whole model to from_pretrained."""
    from safetensors import safe_open
    from transformers import AutoModelForImageTextToText

    out = fresh("frozen")
    flags = ("--deepspeed", world.zero3) if deepspeed else ()
    launcher = "torchrun" if deepspeed else "python"
    sft(out, *flags, "--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1, launcher=launcher)
    files = [out / f"checkpoint-{step}" / "model-frozen.safetensors" for step in (1, 2)]
    assert files[0].samefile(files[1])
    with safe_open(files[0], "pt") as frozen:
        assert all("vision" in name for name in frozen.keys())  # noqa: SIM118 - not a dict
    shards = sum(p.stat().st_size for p in (out / "checkpoint-2").glob("global_step*/*"))
    trained = (out / "checkpoint-2" / "model-trained.safetensors").stat().st_size
    assert shards < 4.5 * trained  # weights, masters and two moments of what trains; nothing of the vision tower
    last, whole = (AutoModelForImageTextToText.from_pretrained(p).state_dict() for p in (out / "checkpoint-2", out))
    assert last.keys() == whole.keys() and all(bool((last[name] == whole[name]).all()) for name in last)


def test_resume_with_other_data_is_refused(sft: Callable, fresh: Callable, world: Any) -> None:
    out = fresh("other")
    sft(out, "--max_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    saved = json.loads((out / "checkpoint-1" / "data_cursor.json").read_text())
    lines = world.train.read_text().splitlines()
    other = world.train.with_name("other70.jsonl")
    longer = json.loads(lines[0])
    longer["conversations"][1]["value"] += " and a good many words more"
    other.write_text("\n".join([json.dumps(longer), *lines[1:]]) + "\n")
    fewer = world.train.with_name("fewer.jsonl")
    fewer.write_text("\n".join(lines[1:]) + "\n")
    edited = world.train.with_name("edited.jsonl")
    answer = json.loads(lines[0])
    answer["id"] = answer["id"][:-1] + ("0" if answer["id"][-1] != "0" else "1")
    edited.write_text("\n".join([json.dumps(answer), *lines[1:]]) + "\n")
    refused = sft(out, "--data", fewer, "--resume", "auto", code=2)
    assert "num_sequences 70, it is 69 now" in refused.text and "start again in another --output_dir" in refused.text
    refused = sft(out, "--seed", 7, "--resume", out / "checkpoint-1", code=2)
    assert "seed 42, it is 7 now" in refused.text
    refused = sft(out, "--data", other, "--resume", "auto", code=2)
    assert f"order_hash {saved['order_hash']}, it is" in refused.text and "Traceback" not in refused.text
    refused = sft(out, "--data", edited, "--resume", "auto", code=2)  # one character, all lengths as before
    assert f"content_hash {saved['content_hash']}, it is" in refused.text


def test_what_cannot_be_resumed_is_refused_in_words(sft: Callable, fresh: Callable, world: Any) -> None:
    out = fresh("zero2")
    sft(out, "--deepspeed", "zero2", *saving_at(1), launcher="torchrun")
    again = ("--deepspeed", "zero2", "--resume", "auto")
    assert "this run is without DeepSpeed" in sft(out, "--resume", "auto", code=2).text
    assert "give another --output_dir" in sft(out, "--deepspeed", "zero2", code=2).text
    assert "other parameters trained" in sft(out, *again, "--freeze", "projector", code=2).text
    shard = next((out / "checkpoint-1").glob("global_step*/*rank_1*optim_states.pt"))
    kept = shard.read_bytes()
    shard.unlink()
    assert f"{shard}: is missing" in sft(out, *again, code=2).text
    shard.write_bytes(kept)
    weights = out / "checkpoint-1" / "model-trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused = sft(out, "--deepspeed", "zero2", "--resume", out / "checkpoint-1", code=2)
    assert f"{weights}: has" in refused.text and "Traceback" not in refused.text


def test_frozen_weights_come_from_the_checkpoint(sft: Callable, fresh: Callable, world: Any) -> None:
    """DeepSpeed's shards hold only what trains: the frozen rest must not come from whatever --model holds by now."""
    other = fresh("other") / "model"
    shutil.copytree(world.model, other)
    shards = ("--deepspeed", "zero2")
    whole = sft(fresh("whole"), *shards, "--max_steps", 3, launcher="torchrun")
    out = fresh("moved")
    sft(out, *shards, "--model", other, *saving_at(2), launcher="torchrun")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    resumed = sft(out, *shards, "--model", other, *saving_at(3), launcher="torchrun")
    assert resumed.curve() == pytest.approx(whole.curve(), abs=1e-4)


def test_rmsprop_keeps_its_number_of_processes(sft: Callable, fresh: Callable) -> None:
    out = fresh("rmsprop")
    flags = ("--optim", "rmsprop", "--deepspeed", "zero2")
    sft(out, *flags, *saving_at(1), launcher="torchrun")
    refused = sft(out, *flags, *saving_at(2), code=2)
    assert "Resume with 2 processes" in refused.text and "--optim rmsprop" in refused.text
    sft(out, *flags, *saving_at(2), launcher="torchrun")


def test_the_best_checkpoint_is_kept_when_evaluation_gets_worse(sft: Callable, fresh: Callable, world: Any) -> None:
    """At a learning rate that destroys the model the first checkpoint is the best; --keep 1 must not remove it."""
    out = fresh("best")
    steps = ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    run = sft(out, "--eval_data", world.eval, "--learning_rate", 0.05, "--keep", 1, "--max_steps", 4, *steps)
    losses = [row["eval_loss"] for row in run.metrics if "eval_loss" in row]
    best = losses.index(min(losses)) + 1
    assert best < 4, losses
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-4"}
    assert json.loads((out / "run.json").read_text())["best_checkpoint"].endswith(f"checkpoint-{best}")


def test_the_best_checkpoint_of_another_number_of_processes_is_loaded_at_the_end(
    sft: Callable, fresh: Callable, world: Any
) -> None:
    """Two steps by two processes, the third by one, which has loaded the universal form of the second."""
    out = fresh("best_of_two")
    steps = ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1, "--keep", 1)
    flags = (*steps, "--eval_data", world.eval, "--learning_rate", 0.05, "--deepspeed", "zero2", "--resume", "auto")
    sft(out, *flags, "--max_steps", 2, launcher="torchrun")
    sft(out, *flags, "--max_steps", 3, "--load_best_model_at_end")
    name = Path(json.loads((out / "run.json").read_text())["best_checkpoint"])
    assert name.name in ("checkpoint-1", "checkpoint-2"), (
        "the rate destroys the model: one of two processes is the best"
    )
    best = load_file(name / "model-trained.safetensors")
    final = load_file(out / "model.safetensors")
    assert all(final[name].equal(tensor) for name, tensor in best.items()) and len(best) > 10
    assert not list(out.glob("checkpoint-*/*universal*"))
