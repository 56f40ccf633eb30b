"""Scores during training: at each evaluation all ranks answer the rows of --eval_generate, and the best checkpoint goes by them."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from drive_vlm.data.predictions import Answer, prediction_row
from drive_vlm.data.samples import BadRow
from drive_vlm.launch.status import RunStatus
from drive_vlm.sampling.local import AnsweringModel
from drive_vlm.sampling.tower_memo import TowerMemo
from drive_vlm.stages.engine.as_it_stands import as_it_stands
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.engine.heartbeat import Heartbeat
from drive_vlm.stages.engine.held_out import HeldOut
from drive_vlm.stages.engine.trackers import send_samples
from drive_vlm.store.keyed_lines import write_lines

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments
else:
    Trainer = object

FOLDER = "eval_answers"
# The answer to a row, by the row's key.
Answers = dict[tuple[str, str], Answer]


class ScoreMixin(Trainer):
    """Evaluations that answer rows; stands before a transformers Trainer in the bases of every stage.

    An evaluation with --eval_generate:

    1. `_answers`: with the model as it stands each rank answers every n-th batch. After each round all ranks look for a request
       to stop. Random states, modes and the memo of a frozen tower are afterwards as they were: the training does not notice.
    2. All ranks exchange their answers, and compute the same scores.
    3. The main rank writes eval_answers/step-N.jsonl, in the form of `generate`, and shows some rows to the trackers.
    4. The loss of --eval_data follows, where it is given; all figures go into one line of the log, by which
       `_determine_best_metric` chooses the best checkpoint.
    """

    parts: RunParts
    heartbeat: Heartbeat
    bad_rows: list[BadRow]
    # Any: peft, DeepSpeed and DDP wrap it.
    model: Any
    model_wrapped: Any
    eval_dataset: Any
    # Before a frozen tower, in a stage that has one.
    tower_memo: TowerMemo | None = None
    # Of the evaluation that runs.
    scores: dict[str, float]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Trainer.evaluate, and before it the scores of --eval_generate, which go into the same line of the log."""
        self.heartbeat.beat("evaluation")
        own = eval_dataset is None
        self.scores = self.score(self.parts.held_out) if own and self.parts.held_out is not None else {}
        if not own or self.eval_dataset is not None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        training = self.model.training
        # TRL takes a log for one of the training, and empties its figures, while the model is in that mode.
        self.model.eval()
        self.log(self.scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, self.scores)
        self.model.train(training)
        return self.scores

    def score(self, held_out: HeldOut) -> dict[str, float]:
        """Steps 1 to 3: what the log says of the rows' answers, alike on all ranks."""
        began = time.perf_counter()
        answers = _exchange(dict(self._answers(held_out)))
        rows = [prediction_row(one, *answers[one.key]) for one in held_out.samples if one.key in answers]
        if self.args.should_save:
            path = answers_file(Path(str(self.args.output_dir)), self.state.global_step)
            path.parent.mkdir(exist_ok=True)
            write_lines(path, rows)
            send_samples(self.callback_handler.callbacks, self.state.global_step, held_out.shown(answers))
        seconds = time.perf_counter() - began
        self.parts.throughput.leave_out(seconds)
        cut = sum(answer.finish_reason == "length" for answer in answers.values())
        return held_out.figures(rows) | {
            "eval_answers_cut": float(cut),
            "eval_answers_missing": float(len(held_out.samples) - len(rows)),
            "eval_answers_seconds": seconds,
        }

    def _answers(self, held_out: HeldOut) -> Iterator[tuple[tuple[str, str], Answer]]:
        """The answers of this rank."""
        args, memo, family = self.args, self.tower_memo, self.parts.family
        network = self.accelerator.unwrap_model(self.model_wrapped)
        zero3 = self.is_deepspeed_enabled and self.model_wrapped.zero_optimization_stage() == 3
        model = AnsweringModel(
            family, network, held_out.encoder, held_out.take_vision, args.device, family.base.dtype, trains=True
        )
        bad: list[BadRow] = []
        with (
            as_it_stands(self.model_wrapped, network, zero3),
            memo.set_aside() if memo is not None else nullcontext(),
            self.compute_loss_context_manager(),
        ):
            for first in range(0, len(held_out.batches), args.world_size):
                # Of the last batches some ranks have none.
                for batch in held_out.batches[first : first + args.world_size][args.process_index :][:1]:
                    self.heartbeat.touch([sample.id for sample in batch])
                    yield from ((row.key, said) for row, said in model.answer_batch(batch, held_out.sampling, bad))
                if memo is not None:
                    memo.clear()
                self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)
        # All batches are done; a rank that has not reached this beat is the one that the others wait for.
        self.heartbeat.beat("evaluation")
        self.bad_rows.extend(bad)

    def make_up(self) -> None:
        """A request to stop leaves the evaluation of its step out, for want of time. The resumed run makes it first of all, so that
        it has the same best checkpoint as a run that was not stopped."""
        state, resume = self.state, self.parts.resume
        due = self.args.eval_strategy == IntervalStrategy.STEPS and state.global_step >= self.args.eval_delay
        if resume is None or not due or state.global_step % state.eval_steps or self.args.eval_on_start:
            return
        if any(line["step"] == state.global_step and "eval_answers_seconds" in line for line in state.log_history):
            return
        metrics = self.evaluate()
        # It belongs to the checkpoint that is resumed.
        saving, self.control.should_save = self.control.should_save, True
        if self._determine_best_metric(metrics, None):
            state.best_model_checkpoint = str(resume.checkpoint)
        self.control.should_save = saving

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Trainer._determine_best_metric (transformers 5.23), for steps that are saved: the best of another step would stand in
        the way of every checkpoint that is worse. A score that is not defined is none."""
        saved = self.control.should_save or self.args.save_strategy == SaveStrategy.BEST
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if not saved or (self.parts.held_out is not None and name not in metrics):
            return False
        return super()._determine_best_metric(metrics, trial)


class ScoresInStatus(TrainerCallback):
    """Brings the scores, and the best of them, into status.json; makes up for an evaluation that a request has ended."""

    def __init__(self, status: RunStatus, make_up: Callable[[], None]) -> None:
        self._status, self._make_up = status, make_up

    def _say(self, args: "TrainingArguments", state: TrainerState, scores: dict[str, float] | None) -> None:
        self._status.scored(scores, str(args.metric_for_best_model or ""), state.best_metric, state.best_global_step)

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._make_up()
        self._say(args, state, None)

    def on_evaluate(
        self,
        args: "TrainingArguments",
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        names = {key.removesuffix("_rows") for key in metrics or {} if key.endswith("_rows")}
        scores = {key: value for key, value in (metrics or {}).items() if key.startswith(tuple(names))}
        self._say(args, state, {"step": float(state.global_step), **scores})

    # The best is known once the evaluation is over, and is saved behind it.
    def on_save(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._say(args, state, None)


def answers_file(out: Path, step: int) -> Path:
    """Where the answers of an evaluation are."""
    return out / FOLDER / f"step-{step}.jsonl"


def cut_answers(out: Path, step: int) -> None:
    """Remove the answers after `step`: the resumed run will give them again. -1 removes all."""
    for path in (out / FOLDER).glob("step-*.jsonl"):
        number = path.stem.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            path.unlink()


def _exchange(mine: Answers) -> Answers:
    """The answers of all ranks."""
    if not dist.is_initialized():
        return mine
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {key: answer for part in everyone for key, answer in part.items()}
