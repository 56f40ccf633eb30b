"""A run that is asked to stop saves first, on all ranks; a loss that is not finite ends it with the ids of the batch.

Stop a run by a file named `stop` in its control directory (launch/status.py), by SIGTERM, or by SIGUSR1 to any of its ranks.
Under torchrun use the file: it forwards SIGTERM but kills the ranks 30 s later, and SIGUSR1 ends torchrun itself.
"""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from drive_vlm.launch.status import STOP_FILE, RunStatus

_SAVE, _PREEMPT = 1, 2
_OUTCOME = {_SAVE: "saved", _PREEMPT: "preempted"}
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
    """What the ranks agreed on at the end of a step: `flags int32[2]`, stop request and broken loss, on the host.

    `wait` returns when `flags` may be read; None where they may be read at once.
    """

    number: int
    micro_batches: list[tuple[torch.Tensor, list[str]]]
    flags: torch.Tensor
    wait: Callable[[], object] | None = None


class StopOnRequest(TrainerCallback):
    """One small all-reduce at the end of each optimizer step makes all ranks agree to stop, or to fail, at the same step.

    Its result is read one step later, when it is there without waiting; before a log, a save or an evaluation at once.
    `requested` is "saved" or "preempted" once a request is obeyed: train() then returns with a complete checkpoint but
    without a finished model.
    """

    def __init__(self, status: RunStatus, losses: StepLosses, may_save: Callable[[], bool] = lambda: True) -> None:
        self.requested: str | None = None
        self._may_save = may_save
        self._status, self._losses = status, losses
        self._stop_file = status.directory / STOP_FILE
        self._signal = self._why = ""
        self._unread: _Step | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and SIGUSR1 ask for a stop inside this context; afterwards the former handlers are back."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signal != "SIGTERM":
            self._signal = signal.Signals(number).name

    def _request(self) -> int:
        """What this rank knows of a stop request; the main rank alone looks for the file."""
        if self._signal:
            self._why = f"{self._signal} at rank {self._status.rank}"
            return _PREEMPT if self._signal == "SIGTERM" else _SAVE
        if self._status.rank == 0 and self._stop_file.exists():
            self._why = " ".join(self._stop_file.read_text(errors="replace").split())[:200] or "stop file"
            return _SAVE
        return 0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        step = _agree(state.global_step, self._losses.take(), self._request(), args.device)
        self._status.progress(state.global_step)
        due = [self._unread, step]
        acts = control.should_log or control.should_save or control.should_evaluate or control.should_training_stop
        self._unread = None
        if step.wait is not None and not acts:
            self._unread = due.pop()
        for agreed in due:
            if agreed is not None:
                self._obey(agreed, control)
        if control.should_save:
            assert model is not None, "the Trainer passes it to its callbacks"
            refuse_broken_weights(model, state.global_step, args.device)

    def _obey(self, step: _Step, control: TrainerControl) -> None:
        if step.wait is not None:
            step.wait()
        request, broken = step.flags.tolist()
        if broken:
            raise ValueError(_describe_broken_loss(step))
        # A request that cannot be obeyed now comes again at the next step.
        if not request or self.requested or not self._may_save():
            return
        if self._status.rank == 0:
            self._stop_file.unlink(missing_ok=True)
        # After the last step the run finishes anyway.
        if control.should_training_stop:
            return
        self.requested = _OUTCOME[request]
        control.should_save = control.should_training_stop = True
        # An evaluation may take longer than the time that is left.
        control.should_evaluate = False

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """The Trainer passes here after a stop as well, and would save and evaluate once more."""
        if self.requested:
            control.should_save = control.should_evaluate = False
        elif control.should_save:
            assert model is not None, "the Trainer passes it to its callbacks"
            refuse_broken_weights(model, state.global_step, args.device)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self._status.progress(state.global_step, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
        if self.requested:
            self._status.end(self.requested, self._why or "asked by a signal to another rank")


def _agree(
    number: int, micro_batches: list[tuple[torch.Tensor, list[str]]], request: int, device: torch.device
) -> _Step:
    """Largest stop request and whether any loss is not finite, over all ranks; issued without waiting for a GPU or a rank."""
    asked = torch.full((), request, dtype=torch.int32, device=device)
    finite = torch.stack([loss for loss, _ in micro_batches]).isfinite().all()
    flags = torch.stack([asked, (~finite).int()])
    work = None
    # A world of one would only wait for the backend's thread.
    if dist.is_initialized() and dist.get_world_size() > 1:
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, async_op=True)
    if flags.device.type != "cuda":
        return _Step(number, micro_batches, flags, work.wait if work else None)
    # On a GPU the stream waits, not this thread.
    if work:
        work.wait()
    host = torch.empty(2, dtype=torch.int32, pin_memory=True)
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
