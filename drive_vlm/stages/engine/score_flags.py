"""Flags of the scores that a training gives itself: rows that it answers, and by what the answers are scored. No torch."""

import dataclasses

from drive_vlm.config import field
from drive_vlm.evaluation.metric_help import METRIC_HELP


@dataclasses.dataclass
class ScoreFlags:
    """Held-out rows that are answered at each evaluation (--eval_steps), and scored."""

    eval_generate: list[str] = field(
        [],
        help="held-out rows to answer at each evaluation, on all ranks; eval_answers/step-N.jsonl has the answers, and the best "
        "checkpoint by the first --eval_metric is kept",
    )
    eval_metric: list[str] = field(
        [],
        help="what the answers are scored by: " + "; ".join(f"{name}: {words}" for name, words in METRIC_HELP.items()),
        choices=tuple(METRIC_HELP),
    )
    eval_max_new_tokens: int = field(128, help="tokens of such an answer, at most", least=1)
    eval_samples: int = field(
        4, help="answered rows that are shown with their pictures by the trackers of --report_to; 0: none", least=0
    )

    def __post_init__(self) -> None:
        if self.eval_generate and not self.eval_metric:
            raise ValueError(
                f"--eval_generate needs --eval_metric: say by what its answers are scored ({', '.join(METRIC_HELP)})."
            )
        if self.eval_metric and not self.eval_generate:
            raise ValueError("--eval_metric scores the rows of --eval_generate. Give them, or leave it out.")
        if len(set(self.eval_metric)) < len(self.eval_metric):
            raise ValueError(f"--eval_metric {' '.join(self.eval_metric)}: a metric is named twice.")

    @property
    def best(self) -> dict[str, bool]:
        """{name in the logs: whether greater is better} of the figures by which a best checkpoint can be chosen."""
        from drive_vlm.evaluation.answer_metrics import METRICS

        return {f"eval_{name}": METRICS[name].greater_is_better for name in self.eval_metric}
