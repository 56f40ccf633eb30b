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


def evaluation_words(logs: dict[str, float]) -> str:
    """What the display says of an evaluation: its loss, and each score of --eval_metric with interval, rows and unread answers."""
    words = [f"evaluation loss {logs['eval_loss']:.4f}"] if "eval_loss" in logs else []
    for name in [key.removesuffix("_rows") for key in logs if key.startswith("eval_") and key.endswith("_rows")]:
        value, low, high = (logs.get(f"{name}{end}") for end in ("", "_low", "_high"))
        score = "undefined" if value is None else f"{value:.4f}"
        between = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
        unread = logs.get(f"{name}_unread", 0)
        of = f" of {logs[f'{name}_rows']:.0f} rows" + (f", {unread:.0f} unread" if unread else "")
        words.append(f"{name.removeprefix('eval_')} {score}{between}{of}")
    return ", ".join(words)


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
        if evaluated := evaluation_words(logs):
            self.training_bar.write(f"step {state.global_step}: {evaluated}")
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
        if evaluated := evaluation_words(logs):
            print(f"{place}: {evaluated}", file=sys.stderr, flush=True)
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
