"""Progress display: a bar on a terminal, one line per log step in a file, where a bar would become thousands of lines."""

import sys
import time
from typing import TYPE_CHECKING

from transformers.trainer_callback import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def figures(logs: dict[str, float]) -> dict[str, str]:
    """The figures of a training log that the display shows."""
    shown = {
        "loss": f"{logs['loss']:.4f}",
        "samples/s": f"{logs['samples_per_second']:.1f}",
        "tokens/s": f"{logs['tokens_per_second']:.0f}",
    }
    shown |= {name: f"{logs[name]:.4g}" for name in ("reward", "kl") if logs.get(name) is not None}
    if "mfu" in logs:
        shown["MFU"] = f"{logs['mfu']:.1%}"
    return shown | {"data wait": f"{logs['data_wait_share']:.0%}"}


def quiet_bars() -> None:
    """Bars of loading and saving weights belong on a terminal; call before the model is loaded."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


class ProgressBar(ProgressCallback):
    """The Trainer's bar with the figures of the last log next to it, in place of a dict a line."""

    def on_log(
        self,
        args: "TrainingArguments",
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "eval_loss" in logs:
            self.training_bar.write(f"step {state.global_step}: evaluation loss {logs['eval_loss']:.4f}")
        if "loss" in logs:
            self.training_bar.set_postfix(figures(logs))


class LogLines(TrainerCallback):
    """`step 20/1200: loss 0.1547, samples/s 396.7, tokens/s 13127, data wait 16%, 1:32 left`."""

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._start, self._first = time.monotonic(), state.global_step

    def on_log(
        self,
        args: "TrainingArguments",
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        place = f"step {state.global_step}/{state.max_steps}"
        if "eval_loss" in logs:
            print(f"{place}: evaluation loss {logs['eval_loss']:.4f}", file=sys.stderr, flush=True)
        if "loss" in logs:
            words = [f"{name} {value}" for name, value in figures(logs).items()]
            done = state.global_step - self._first
            if done:
                left = (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)
                words.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
            print(f"{place}: {', '.join(words)}", file=sys.stderr, flush=True)


def show_progress(trainer: "Trainer") -> None:
    """Put our bar or our lines in the place of the Trainer's own; with --disable_tqdm its printer stays."""
    if any(isinstance(callback, PrinterCallback) for callback in trainer.callback_handler.callbacks):
        return
    trainer.remove_callback(ProgressCallback)
    if sys.stderr.isatty():
        trainer.add_callback(ProgressBar())
    else:
        trainer.add_callback(LogLines())
