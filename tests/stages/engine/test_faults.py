"""Stop requests and broken losses through the real command line: all ranks act at the same step, and status.json tells."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def checkpoints(run: Any) -> list[str]:
    return [path.name for path in run.out.glob("checkpoint-*")]


def assert_stopped(run: Any, state: str, reason: str) -> None:
    """One checkpoint, of the last step that was trained, and no finished model."""
    step = run.status["step"]
    assert (run.status["state"], run.status["reason"]) == (state, reason), run.text[-2000:]
    assert run.status["checkpoint"] == str(run.out / f"checkpoint-{step}")
    assert checkpoints(run) == [f"checkpoint-{step}"]
    assert run.steps == list(range(1, step + 1))
    assert json.loads((run.out / f"checkpoint-{step}" / "trainer_state.json").read_text())["global_step"] == step
    assert not (run.out / "model.safetensors").exists()


@pytest.mark.parametrize("flags", [(), ("--deepspeed", "zero2")], ids=["ddp", "zero2"])
def test_stop_file_saves_at_the_next_step_on_all_ranks(training: Callable, tmp_path: Path, flags: tuple) -> None:
    """In a control directory of its own; the request is gone when it is obeyed, and the run can be resumed."""
    control = tmp_path / "control"
    run = training("--save_strategy", "epoch", *flags, ranks=2, DRIVE_VLM_CONTROL_DIR=str(control))
    run.wait_for_step(2)
    (control / "stop").write_text("time limit\nof the job\n")
    last = run.steps[-1]
    assert run.wait() == 0, run.text[-3000:]
    status = json.loads((control / "status.json").read_text())
    (control / "status.json").rename(run.out / "status.json")
    assert_stopped(run, "saved", "time limit of the job")
    assert status["step"] <= last + 40  # a step takes tens of milliseconds, the test looks every 50
    assert not (control / "stop").exists()


@pytest.mark.fresh("torchrun and its ranks as they really are")
def test_sigterm_to_torchrun_preempts_within_its_grace(training: Callable) -> None:
    """torchrun kills the ranks 30 s after it was told; its own exit code says nothing."""
    run = training(ranks=2)
    run.wait_for_step(2)
    told = time.monotonic()
    run.process.terminate()
    assert run.wait() != 0
    assert time.monotonic() - told < 25
    assert "SIGKILL" not in run.text
    assert run.status["reason"].startswith("SIGTERM at rank 0")
    assert_stopped(run, "preempted", run.status["reason"])


@pytest.mark.fresh("a signal to a process group")
def test_sigterm_to_every_process_spares_the_loader(training: Callable) -> None:
    """Slurm signals the workers of the loader as well; without them the next batch would never come."""
    run = training("--dataloader_num_workers", 2)
    run.wait_for_step(2)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait() == 0, run.text[-3000:]
    assert_stopped(run, "preempted", "SIGTERM at rank 0")


def test_sigusr1_saves_and_the_run_goes_on_from_there(training: Callable) -> None:
    run = training("--save_strategy", "epoch")
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGUSR1)
    assert run.wait() == 0, run.text[-3000:]
    assert_stopped(run, "saved", "SIGUSR1 at rank 0")
    step = run.status["step"]
    again = training("--resume", "auto", "--max_steps", step + 3)
    assert again.wait() == 0, again.text[-3000:]
    assert again.steps == list(range(1, step + 4))
    assert (again.status["state"], again.status["step"]) == ("finished", step + 3)
    assert (again.out / "model.safetensors").is_file()


def test_a_request_at_the_last_step_lets_the_run_finish(training: Callable) -> None:
    token = "my-own-token-of-the-hub"
    run = training("--max_steps", 1, "--hub_token", token, "--save_strategy", "epoch", DRIVE_VLM_CONTROL_DIR="")
    run.out.mkdir()
    (run.out / "stop").touch()
    assert run.wait() == 0, run.text[-3000:]
    assert run.status["state"] == "finished" and not (run.out / "stop").exists()
    assert (run.out / "model.safetensors").is_file() and (run.out / "training_args.bin").is_file()
    holding = [path for path in run.out.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert not holding, "a secret in a file that people send to each other"


def test_a_broken_loss_ends_all_ranks_with_the_ids_of_the_batch(training: Callable, synthetic_data: Path) -> None:
    """A learning rate that throws the weights to infinity: a later step has no number for a loss, on both ranks."""
    rows = {json.loads(line)["id"] for line in (synthetic_data / "train.jsonl").read_text().splitlines()}
    run = training("--learning_rate", 100, "--weight_decay", 100, "--logging_steps", 100, ranks=2)
    assert run.wait() == 1, run.text[-3000:]
    status = run.status
    assert status["state"] == "failed" and "\n" not in status["reason"]
    assert re.match(r"Loss at step [2-9] is not finite: nan on rank 0, rows ", status["reason"])
    assert "the weights are broken, not a row" in status["reason"]
    assert f"error: {status['reason']}" in run.text
    named = {word.strip(",;.") for word in status["reason"].split()} & rows
    assert len(named) == 8, status["reason"]  # 2 rows a micro-batch, 2 of them a step, 2 ranks
    assert "hang" not in run.text and checkpoints(run) == []


def test_weights_that_a_finite_loss_broke_are_not_saved(training: Callable, tiny_model: Path, tmp_path: Path) -> None:
    """The loss of step 1 is a number, the weights after it are none: a checkpoint of them would poison every resume.

    Weight decay multiplies each weight by 1 - 10, and one that no row uses, the embedding of <video>, is near the largest number
    that there is.
    """
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_model, tmp_path / "large")
    weights = load_file(model / "model.safetensors")
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    (video,) = (token["id"] for token in tokens if token["content"] == "<video>")
    weights["language_model.model.embed_tokens.weight"][video] = 3e38
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    decay = ("--learning_rate", 1, "--weight_decay", 10, "--max_grad_norm", 0)
    run = training("--model", model, *decay, "--save_strategy", "steps", "--save_steps", 1)
    assert run.wait() == 2, run.text[-3000:]
    assert "The weights after step 1 hold NaN or infinity" in run.status["reason"]
    assert run.status["state"] == "failed" and checkpoints(run) == []


def test_an_error_before_the_training_is_told_in_the_status(training: Callable) -> None:
    run = training("--data", "absent.jsonl")
    assert run.wait() == 2
    assert run.status["state"] == "failed" and "absent.jsonl" in run.status["reason"]


@pytest.mark.fresh("torchrun and its ranks as they really are")
def test_a_killed_rank_is_started_again_and_goes_on_from_the_last_checkpoint(training: Callable) -> None:
    """torchrun --max_restarts 1: nobody adds --resume, and no step is missing or logged twice.

    The store that torchrun shares by default outlives a restart, and gives the new ranks the addresses of the dead ones.
    """
    save = ("--save_strategy", "steps", "--save_steps", 5)
    run = training(
        "--max_steps", 60, *save, ranks=2, launcher=("--max_restarts", "1"), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    )
    run.wait_for_step(12)
    os.kill(run.rank_pid(1), signal.SIGKILL)
    assert run.wait(120) == 0, run.text[-3000:]
    assert (run.status["state"], run.status["step"], run.status["restart_count"]) == ("finished", 60, 1)
    assert run.steps == list(range(1, 61))
    assert (run.out / "model.safetensors").is_file()


def test_the_rank_that_fails_is_the_one_that_is_heard(training: Callable, synthetic_data: Path, tmp_path: Path) -> None:
    """A picture that only rank 1 cannot decode: what rank 0 sees of it is a broken connection."""
    for path in synthetic_data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    rows = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()]
    whole = (synthetic_data / rows[0]["image"]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    first = rows[0] | {"image": "cut.jpg", "id": "cut"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [first, *rows[1:8]]))
    run = training("--data", tmp_path / "rows.jsonl", "--max_steps", 1, ranks=2)
    assert run.wait() == 1
    reason = run.status["reason"]
    assert reason.startswith(f"rank 1: {tmp_path}/rows.jsonl:1: the picture ") and "cut.jpg cannot be read" in reason
    assert run.status["state"] == "failed" and f"\n{reason}\n" in run.text


@pytest.mark.fresh("torchrun and its ranks as they really are")
def test_one_writer_and_ranks_that_end_without_their_launcher(
    training: Callable, tiny_model: Path, synthetic_data: Path, capfd: pytest.CaptureFixture
) -> None:
    """A second run is refused as long as a rank of the first lives. Ranks whose torchrun was killed save and end by themselves."""
    import drive_vlm.__main__ as commands

    run = training(ranks=2)
    run.wait_for_step(2)
    ranks = [run.rank_pid(0), run.rank_pid(1)]
    words = [
        "--model",
        tiny_model,
        "--data",
        synthetic_data / "train.jsonl",
        "--output_dir",
        run.out,
        "--resume",
        "auto",
    ]
    with pytest.raises(SystemExit) as refused:
        commands.run("sft", [str(word) for word in words])
    assert refused.value.code == 2
    assert f"{run.out}: another run is writing to it: process {ranks[0]} on" in capfd.readouterr().err
    assert run.status["state"] == "running", "the status is that of the run that holds the folder"
    os.kill(run.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert_stopped(run, "preempted", f"the torchrun of this rank (process {run.process.pid}) is gone")
