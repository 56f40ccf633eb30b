"""A run that is asked to stop saves first, on all ranks; a loss that is not finite ends it with the ids of the batch.

Stop a run by a file named `stop` in its control directory (launch/status.py), by SIGTERM, or by SIGUSR1 to any of its ranks.
Under torchrun use the file: it forwards SIGTERM but kills the ranks 30 s later (TORCH_ELASTIC_SHUTDOWN_TIMEOUT from torch
2.12 on), and SIGUSR1 ends torchrun itself.
"""

import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from drive_vlm.launch import stop
from drive_vlm.launch.status import RunStatus

# In the order of weight: SIGTERM at one rank counts more than a stop file at another.
_OUTCOMES: tuple[Literal["saved", "preempted"], ...] = ("saved", "preempted")
# Seconds of a step from which on a request is read at its end, where it costs a wait for the GPU; and from which on also
# between its micro-batches.
_SLOW, _VERY_SLOW = 1, 5
# In an error message.
_MOST_IDS, _MOST_RANKS = 16, 4


class StepLosses:
    """Losses and sample ids of the micro-batches since the last optimizer step; losses stay on the device, nobody waits."""

    def __init__(self) -> None:
        self._micro_batches: list[tuple[torch.Tensor, list[str]]] = []

    def add(self, loss: torch.Tensor, ids: list[str]) -> None:
        """`loss float[]` of a micro-batch."""
        self._micro_batches.append((loss.detach(), ids))

    def take(self) -> list[tuple[torch.Tensor, list[str]]]:
        taken, self._micro_batches = self._micro_batches, []
        return taken


@dataclasses.dataclass(frozen=True)
class _Step:
    """What the ranks agreed on at the end of a step: `flags int32[3]`, stop request, broken loss and whole seconds since the
    step before, on the host.

    `wait` returns when `flags` may be read; None where they may be read at once.
    """

    number: int
    micro_batches: list[tuple[torch.Tensor, list[str]]]
    flags: torch.Tensor
    wait: Callable[[], object] | None = None

    def read(self) -> list[int]:
        if self.wait is not None:
            self.wait()
        return self.flags.tolist()


class StopOnRequest(TrainerCallback):
    """One small all-reduce at the end of each optimizer step makes all ranks agree to stop, or to fail, at the same step.

    1. In short steps its result is read one step later, when it is there without waiting; at once before a log, a save or an
       evaluation, and in steps of a second or more. Steps of five seconds or more are left between two micro-batches: the
       checkpoint is that of the step before.
    2. Between the batches of an evaluation it is read a batch later. StopRequested ends the evaluation on all ranks, and the
       trainer saves at once (`_maybe_log_save_evaluate`).
    3. Before the first step, and after a save, it is read at once.
    4. A stage that generates its batches asks while it does so (`after_generation`), which may take minutes. A generation that
       begins a step is left, and made again by the resumed run.
    `requested` is "saved" or "preempted" once a request is obeyed: train() then returns with a complete checkpoint but
    without a finished model.
    """

    def __init__(
        self,
        status: RunStatus,
        losses: StepLosses,
        may_save: Callable[[], bool] = lambda: True,
        within_steps: bool = False,
    ) -> None:
        self.requested: str | None = None
        self._may_save, self._within_steps = may_save, within_steps
        self._status, self._losses = status, losses
        # What this rank was asked; "" where only another one was.
        self._why = ""
        self._unread: _Step | None = None
        self._saved = False
        # Of the last step whose agreement was read, alike on all ranks.
        self._seconds = _SLOW
        self._ended = 0.0
        # The random states with which a step began that may be left; [] where it may not.
        self._random: list[Any] = []
        self._epoch_random: list[Any] = []

    def _request(self, new: bool = False) -> int:
        """What this rank knows of a stop request: 0, or its place in _OUTCOMES from 1."""
        asked = stop.request(new)
        if asked is None:
            return 0
        self._why = asked.why
        return _OUTCOMES.index(asked.outcome) + 1

    def _asked_now(self, device: torch.device, new: bool = False) -> int:
        return _agree(0, [], self._request(new), 0, device).read()[0]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """After a request during start-up nothing is new: the run ends where it began. Raises StopRequested on all ranks."""
        self._status.begin_training()
        self._ended = time.monotonic()
        if asked := self._asked_now(args.device, new=True):
            self._leave(asked)

    def _leave(self, asked: int) -> None:
        outcome = _OUTCOMES[asked - 1]
        stop.obeyed()
        raise stop.StopRequested(
            stop.Request(
                outcome,
                self._why or stop.why_elsewhere(),
                128 + (signal.SIGTERM if outcome == "preempted" else signal.SIGUSR1),
            )
        )

    def _may_be_left(self) -> bool:
        """Whether the step that begins may be left before its end: a checkpoint written then is that of the step before."""
        return self._may_save() and (not self._within_steps or self._seconds >= _VERY_SLOW)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # A resumed run loads the random states of a checkpoint at an epoch's boundary here, before its loader draws a number.
        self._epoch_random = random_states() if self._may_be_left() else []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._may_be_left():
            self._random = self._epoch_random or random_states()
        self._epoch_random = []

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Between two micro-batches of a very slow step. Its gradients are dropped, and its random states with them: a resumed
        run does the whole step."""
        if not self._within_steps:
            # The rest of the step needs what was generated for it.
            self._random = []
        if not self._random or self.requested:
            return
        self._take(self._asked_now(args.device), control)
        if self.requested:
            restore_random_states(self._random)

    @property
    def may_leave_generation(self) -> bool:
        """Whether `after_generation` may end the step; alike on all ranks."""
        return bool(self._random) and not self.requested

    def after_generation(self, args: TrainingArguments, control: TrainerControl, ended_by: stop.Request | None) -> None:
        """Raises StopRequested on all ranks where one of them has been asked. `ended_by`: what has cut this rank's answers short."""
        if ended_by is not None:
            self._why = ended_by.why
        mine = _OUTCOMES.index(ended_by.outcome) + 1 if ended_by else self._request(new=True)
        if asked := _agree(0, [], mine, 0, args.device).read()[0]:
            self._take(asked, control)
            restore_random_states(self._random)
            self._leave(asked)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        seconds, self._ended = time.monotonic() - self._ended, time.monotonic()
        step = _agree(state.global_step, self._losses.take(), self._request(), int(seconds), args.device)
        self._random = []
        self._status.progress(state.global_step)
        due = [self._unread, step]
        acts = control.should_log or control.should_save or control.should_evaluate or control.should_training_stop
        self._unread = None
        if step.wait is not None and not acts and self._seconds < _SLOW:
            self._unread = due.pop()
        for agreed in due:
            if agreed is not None:
                self._obey(agreed, control)
        if control.should_save:
            assert model is not None, "the Trainer passes it to its callbacks"
            refuse_broken_weights(model, state.global_step, args.device)

    def _obey(self, step: _Step, control: TrainerControl) -> None:
        request, broken, self._seconds = step.read()
        if broken:
            raise ValueError(_describe_broken_loss(step))
        self._take(request, control)

    def _take(self, request: int, control: TrainerControl) -> None:
        """Obey a request on which the ranks agreed; 0 is none."""
        # A request that cannot be obeyed now comes again at the next step.
        if not request or self.requested or not self._may_save():
            return
        # After the last step the run finishes anyway.
        stop.obeyed(finished=control.should_training_stop)
        if control.should_training_stop:
            return
        self.requested = _OUTCOMES[request - 1]
        control.should_save = control.should_training_stop = True
        # An evaluation may take longer than the time that is left.
        control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raises StopRequested on all ranks, which have equally many batches, after a request up to the batch before."""
        before, self._unread = self._unread, _agree(0, [], self._request(), 0, args.device)
        request = before.read()[0] if before else 0
        if request:
            self._unread.read()
            self._unread = None
            control.should_evaluate = False
            self._take(request, control)
            self._leave(request)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        last, self._unread = self._unread, None
        if last is not None:
            self._take(last.read()[0], control)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """The Trainer passes here after a stop as well, and would log, save and evaluate once more."""
        if self._unread is not None:
            # An evaluation would take its place, and a loss that is not finite would pass.
            step, self._unread = self._unread, None
            self._obey(step, control)
        if self.requested:
            # Not saved yet: --save_strategy best has overruled it, or the step was left between its micro-batches.
            control.should_save, control.should_evaluate, control.should_log = not self._saved, False, False
        if control.should_save:
            assert model is not None, "the Trainer passes it to its callbacks"
            refuse_broken_weights(model, state.global_step, args.device)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self._status.progress(state.global_step, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
        self._take(self._asked_now(args.device), control)
        if self.requested:
            self._saved = True
            self._status.end(self.requested, self._why or stop.why_elsewhere())


def random_states() -> list[Any]:
    """Of Python, numpy and torch in this process."""
    states: list[Any] = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def restore_random_states(states: list[Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if len(states) > 3:
        torch.cuda.set_rng_state(states[3])


def _agree(
    number: int, micro_batches: list[tuple[torch.Tensor, list[str]]], request: int, seconds: int, device: torch.device
) -> _Step:
    """Largest stop request, whether any loss is not finite, and most seconds, over all ranks; issued without waiting for a GPU
    or a rank."""
    # Filled on the device: a copy of a Python list might wait for it.
    asked, took = (torch.full((), value, dtype=torch.int32, device=device) for value in (request, seconds))
    losses = [loss for loss, _ in micro_batches]
    broken = (~torch.stack(losses).isfinite().all()).int() if losses else torch.zeros_like(asked)
    flags = torch.stack([asked, broken, took])
    work = None
    # A world of one would only wait for the backend's thread.
    if dist.is_initialized() and dist.get_world_size() > 1:
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, async_op=True)
    if flags.device.type != "cuda":
        return _Step(number, micro_batches, flags, work.wait if work else None)
    # On a GPU the stream waits, not this thread.
    if work:
        work.wait()
    host = torch.empty(3, dtype=torch.int32, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return _Step(number, micro_batches, host, ready.synchronize)


def _describe_broken_loss(step: _Step) -> str:
    """The same message on all ranks: which rank met which value in which rows."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    mine = [(rank, loss.item(), ids) for loss, ids in step.micro_batches if not loss.isfinite()]
    everyone: list[Any] = [mine]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    broken = [found for part in everyone for found in part]
    ranks = {found[0] for found in broken}
    named = [f"{value} on rank {number}, rows {_ids(ids)}" for number, value, ids in broken[:_MOST_RANKS]]
    more = f"; and {len(broken) - _MOST_RANKS} more batches" if len(broken) > _MOST_RANKS else ""
    if len(ranks) == len(everyone) > 1:
        way_out = (
            "It is so on every rank: the weights are broken, not a row. Lower --learning_rate or raise --warmup_steps."
        )
    else:
        way_out = "Look at these rows, or lower --learning_rate."
    return (
        f"Loss at step {step.number} is not finite: {'; '.join(named)}{more}. {way_out} "
        "Nothing of this step was saved: go on from the last checkpoint with --resume auto."
    )


def _ids(ids: list[str]) -> str:
    shown = ", ".join(ids[:_MOST_IDS]) or "none"
    return shown + (f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else "")


def refuse_broken_weights(model: torch.nn.Module, step: int, device: torch.device) -> None:
    """Raises ValueError on all ranks when a weight that trains is not finite: it must not replace a good checkpoint.

    Looks at this rank's part of each weight under ZeRO-3.
    """
    trained = [getattr(p, "ds_tensor", p).detach() for p in model.parameters() if p.requires_grad]
    finite = torch.stack([weight.isfinite().all().to(device) for weight in trained if weight.numel()]).all()
    broken = (~finite).int()
    if dist.is_initialized():
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)
    if broken.item():
        raise ValueError(
            f"The weights after step {step} hold NaN or infinity though its loss is finite. No checkpoint was written. "
            "Lower --learning_rate, and go on from the last checkpoint with --resume auto."
        )


def spare_loader_worker(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: a SIGTERM to all processes of a job must not end the workers before the run has saved.

    Slurm signals every process of a step. Only the parent may end a worker, while it lives; it does so when the loader is closed.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    parent = os.getppid()

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent == os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, name="SIGTERM from the parent only", daemon=True).start()
