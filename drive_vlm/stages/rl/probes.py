"""probes.jsonl: what the rewards make of texts that must earn nothing, before the first and after the last step."""

import sys
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

from drive_vlm.launch.stop import StopRequested
from drive_vlm.stages.engine.heartbeat import Heartbeat
from drive_vlm.stages.rl.rollouts import Rollouts
from drive_vlm.store.cache import finite
from drive_vlm.store.keyed_lines import append_line

PROBES = "probes.jsonl"


class Probes(TrainerCallback):
    """Asks the rewards that have a `probe` (drive_vlm.rewards) on the main process; what they warn of is obeyed by all ranks.

    A reward that fails at the start ends the run, as it would at the first completion; at the end the weights are there, so
    the failure is a line of the file and a warning.
    """

    def __init__(self, rollouts: Rollouts, out: Path, heartbeat: Heartbeat) -> None:
        self._probed = [scorer for scorer in rollouts.scorers if scorer.probes]
        self._stops = rollouts.alarms.config.stop_on_alarm
        self._out, self._heartbeat = out, heartbeat

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raises ValueError for a reward that fails, and with --stop_on_alarm for one that warns."""
        warnings, failure = self._ask(args, state, "start")
        if failure:
            raise ValueError(failure)
        if warnings and self._stops:
            raise ValueError(f"{warnings[0]} The run was stopped before its first step (--stop_on_alarm).")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._ask(args, state, "end")

    def _ask(self, args: TrainingArguments, state: TrainerState, when: str) -> tuple[list[str], str]:
        """(what the rewards warn of, why one failed), alike on all ranks."""
        if not self._probed:
            return [], ""
        self._heartbeat.beat("reward")
        warnings: list[str] = []
        failure = ""
        if args.should_save:
            found: dict[str, Any] = {}
            try:
                for scorer in self._probed:
                    found[scorer.__name__] = scorer.probe()
            # The author's code may raise anything. A request to stop is obeyed by the training, at its first step.
            except (Exception, StopRequested) as error:
                found["failed"] = f"{type(error).__name__}: {error}"
                failure = "" if isinstance(error, StopRequested) else f"a reward's probe failed: {found['failed']}"
            append_line(self._out / PROBES, finite({"step": state.global_step, "when": when, **found}))
            warnings = [
                f"reward {name}, asked at the {when}: {answer['alarm']}"
                for name, answer in found.items()
                if isinstance(answer, dict) and answer.get("alarm")
            ]
            # A failure at the start is the error that ends the run.
            for words in [*warnings, *([failure] if failure and when == "end" else [])]:
                print(f"warning: {words}", file=sys.stderr, flush=True)
        # Every rank must learn of it, or the others would wait for this one in their first step.
        self._heartbeat.beat("communication")
        answers = gather_object([(warnings, failure)])
        return answers[0]
