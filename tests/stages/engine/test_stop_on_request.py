"""When a request to stop is read, and what a run does then: the callback alone, as ranks that agree would see it."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.launch import stop as requests
from drive_vlm.launch.status import RunStatus, read_status
from drive_vlm.stages.engine import faults
from drive_vlm.stages.engine.faults import StepLosses, StopOnRequest

MODEL = torch.nn.Linear(2, 2)


class Run:
    """A training as its callbacks see it: one of two ranks, whose agreement is there only after a wait."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        agree = faults._agree

        def of_two_ranks(*args: Any) -> faults._Step:
            step = agree(*args)
            return faults._Step(step.number, step.micro_batches, step.flags, lambda: None)

        monkeypatch.setattr(faults, "_agree", of_two_ranks)
        self.status, self.losses = RunStatus(out), StepLosses()
        self.stop = StopOnRequest(self.status, self.losses, **options)
        self.control, self.state = faults.TrainerControl(), faults.TrainerState()
        self.args: Any = SimpleNamespace(device=torch.device("cpu"), output_dir=out)
        self.call("on_train_begin")

    def call(self, event: str) -> None:
        getattr(self.stop, event)(self.args, self.state, self.control, model=MODEL)

    def step(self, **due: bool) -> None:
        self.control._new_step()
        self.call("on_step_begin")
        self.losses.add(torch.tensor(1.0), ["row"])
        self.state.global_step += 1
        vars(self.control).update(due)
        self.call("on_step_end")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made: list[Any] = []

    def make(**options: Any) -> Run:
        # Each run listens by itself.
        made.append(requests.listening(tmp_path / "stop"))
        made[-1].__enter__()
        return Run(tmp_path, monkeypatch, **options)

    yield make
    for context in reversed(made):
        context.__exit__(None, None, None)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`seconds(n)`: each look at the clock is n seconds after the one before."""
    now = [100.0, 0.0]

    def monotonic() -> float:
        now[0] += now[1]
        return now[0]

    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=monotonic))

    def each(step: float) -> None:
        # A step looks twice: for its length, and for its end.
        now[1] = step / 2

    return each


def test_short_steps_read_a_step_later_and_long_ones_at_once(run: Callable, seconds: Callable) -> None:
    short = run()
    seconds(0.2)
    short.step()
    signal.raise_signal(signal.SIGTERM)
    short.step()
    assert short.stop.requested is None, "nobody waits for the other ranks in a short step"
    short.step()
    assert short.stop.requested == "preempted" and short.control.should_save and short.control.should_training_stop

    long = run()
    seconds(15)
    long.step()
    signal.raise_signal(signal.SIGTERM)
    long.step()
    assert long.stop.requested == "preempted", "torchrun kills 30 s after its signal: a step later is too late"


def test_the_first_step_reads_at_once(run: Callable) -> None:
    first = run()
    signal.raise_signal(signal.SIGUSR1)
    first.step()
    assert first.stop.requested == "saved"


def test_a_request_during_start_up_ends_before_the_first_step(run: Callable) -> None:
    started = run()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(requests.StopRequested) as ended:
        started.call("on_train_begin")
    assert ended.value.request[:2] == ("preempted", "SIGTERM at rank 0") and ended.value.code == 143


def test_very_long_steps_are_left_between_micro_batches(run: Callable, seconds: Callable) -> None:
    """The checkpoint is that of the step before, its random states too."""
    stopped = run(within_steps=True)
    seconds(40)
    stopped.step()
    stopped.step()
    stopped.control._new_step()
    stopped.call("on_step_begin")
    expected = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    stopped.call("on_substep_end")
    assert stopped.stop.requested is None and not stopped.control.should_training_stop
    signal.raise_signal(signal.SIGTERM)
    random.random(), np.random.rand(), torch.rand(1)
    stopped.call("on_substep_end")
    assert stopped.stop.requested == "preempted" and stopped.control.should_training_stop
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected[:2]
    assert torch.equal(torch.get_rng_state(), expected[2])
    # The Trainer leaves its loops and passes here, after which it saves step 2.
    stopped.call("on_epoch_end")
    assert stopped.control.should_save and not stopped.control.should_log and stopped.state.global_step == 2
    stopped.call("on_save")
    found = read_status(stopped.args.output_dir)
    assert found is not None and (found.state, found.step) == ("preempted", 2)
    assert found.checkpoint == str(stopped.args.output_dir / "checkpoint-2")


def test_the_first_step_of_an_epoch_is_left_with_the_random_states_of_its_boundary(
    run: Callable, seconds: Callable
) -> None:
    """A resumed run loads them before its loader draws the seed of its workers from torch, so they are those before that."""
    stopped = run(within_steps=True)
    seconds(40)
    stopped.step()
    stopped.step()
    boundary = torch.get_rng_state()
    stopped.call("on_epoch_begin")
    iter(torch.utils.data.DataLoader([1, 2]))
    assert not torch.equal(torch.get_rng_state(), boundary), "the loader draws"
    stopped.call("on_step_begin")
    signal.raise_signal(signal.SIGTERM)
    stopped.call("on_substep_end")
    assert stopped.stop.requested == "preempted" and torch.equal(torch.get_rng_state(), boundary)


def test_a_generation_is_left_at_the_beginning_of_a_step_only(run: Callable) -> None:
    """Between two boundaries the buffer of the generation batch is in no checkpoint."""
    boundary = [True]
    made = run(may_save=lambda: boundary[0])
    made.control._new_step()
    made.call("on_step_begin")
    assert made.stop.may_leave_generation
    state = torch.get_rng_state()
    torch.rand(1)
    made.stop.after_generation(made.args, made.control, None)
    assert made.stop.requested is None and not torch.equal(torch.get_rng_state(), state)
    made.call("on_substep_end")
    assert not made.stop.may_leave_generation, "a second generation of the step"
    made.step()
    boundary[0] = False
    made.call("on_step_begin")
    assert not made.stop.may_leave_generation
    boundary[0] = True
    made.call("on_step_begin")
    state = torch.get_rng_state()
    torch.rand(1)
    # A stop file that only this rank has seen, and that somebody has removed since.
    seen = requests.Request("saved", "time limit", 1)
    with pytest.raises(requests.StopRequested) as ended:
        made.stop.after_generation(made.args, made.control, seen)
    assert ended.value.request[:2] == ("saved", "time limit") and torch.equal(torch.get_rng_state(), state)
    assert made.stop.requested == "saved" and made.control.should_save and made.control.should_training_stop


@pytest.mark.parametrize(("options", "length"), [({}, 40), ({"within_steps": True}, 2)])
def test_other_steps_are_not_left(run: Callable, seconds: Callable, options: dict, length: float) -> None:
    """Short ones would pay for it; a stage that draws its own batches would lose what a generation made."""
    whole = run(**options)
    seconds(length)
    whole.step()
    whole.step()
    whole.call("on_step_begin")
    signal.raise_signal(signal.SIGTERM)
    whole.call("on_substep_end")
    assert whole.stop.requested is None


def test_an_evaluation_ends_a_batch_later_and_the_run_saves(run: Callable) -> None:
    stopped = run()
    stopped.step(should_evaluate=True)
    stopped.call("on_prediction_step")
    (stopped.args.output_dir / "stop").write_text("time limit")
    stopped.call("on_prediction_step")
    with pytest.raises(requests.StopRequested):
        stopped.call("on_prediction_step")
    assert stopped.stop.requested == "saved" and not (stopped.args.output_dir / "stop").exists()
    control = stopped.control
    assert control.should_save and control.should_training_stop and not control.should_evaluate
    stopped.call("on_save")
    found = read_status(stopped.args.output_dir)
    assert found is not None and (found.state, found.reason) == ("saved", "time limit")


def test_a_request_in_the_last_batch_of_an_evaluation_is_not_lost(run: Callable) -> None:
    """Also with --save_strategy best, which takes the save back."""
    stopped = run()
    stopped.step(should_evaluate=True)
    signal.raise_signal(signal.SIGTERM)
    stopped.call("on_prediction_step")
    stopped.call("on_evaluate")
    assert stopped.stop.requested == "preempted" and stopped.control.should_save
    stopped.control.should_save = False
    stopped.call("on_epoch_end")
    assert stopped.control.should_save, "the checkpoint is still to be written"
    stopped.call("on_save")
    stopped.control.should_save = True
    stopped.call("on_epoch_end")
    assert not stopped.control.should_save, "once"


def test_a_request_during_a_save_needs_no_further_step(run: Callable) -> None:
    stopped = run()
    stopped.step(should_save=True)
    signal.raise_signal(signal.SIGTERM)
    stopped.call("on_save")
    assert stopped.stop.requested == "preempted" and stopped.control.should_training_stop
    found = read_status(stopped.args.output_dir)
    assert found is not None and (found.state, found.step) == ("preempted", 1)


def test_an_evaluation_ends_though_nothing_can_be_saved(run: Callable) -> None:
    """GRPO between two generation batches: the evaluation is left, the run goes on until it may save."""
    may = [False]
    going = run(may_save=lambda: may[0])
    going.step(should_evaluate=True)
    signal.raise_signal(signal.SIGTERM)
    going.call("on_prediction_step")
    with pytest.raises(requests.StopRequested):
        going.call("on_prediction_step")
    assert going.stop.requested is None and not going.control.should_training_stop
    may[0] = True
    going.step(should_log=True)
    assert going.stop.requested == "preempted"


def test_after_the_last_step_the_run_finishes(run: Callable) -> None:
    last = run()
    last.step(should_evaluate=True, should_training_stop=True)
    signal.raise_signal(signal.SIGTERM)
    last.call("on_prediction_step")
    with pytest.raises(requests.StopRequested):
        last.call("on_prediction_step")
    assert last.stop.requested is None, "its evaluation is left out, its model is saved"


@pytest.mark.slow
def test_a_stop_file_ends_an_evaluation_on_all_ranks(training: Callable, synthetic_data: Path) -> None:
    """A checkpoint at once, in place of the rest of an evaluation."""
    rows = synthetic_data / "train.jsonl"
    often = ("--eval_data", *[rows] * 6, "--per_device_eval_batch_size", 1)
    run = training(*often, "--eval_strategy", "steps", "--eval_steps", 2, "--save_strategy", "no", ranks=2)
    run.wait_for_step(2, 240)
    time.sleep(1)
    (run.out / "stop").touch()
    assert run.wait() == 0, run.text[-3000:]
    assert (run.status["state"], run.status["step"]) == ("saved", 2)
    assert "the evaluation of step 2 is left out: stop file" in run.text
    assert run.steps == [1, 2] and (run.out / "checkpoint-2" / "complete.json").is_file()
    assert "eval_loss" not in (run.out / "metrics.jsonl").read_text()
