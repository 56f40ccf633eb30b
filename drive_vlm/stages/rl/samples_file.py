"""samples.jsonl: what a model says during reinforcement learning, with every reward and its terms, for people to read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import field
from drive_vlm.store.keyed_lines import LineWriter

FILE = "samples.jsonl"
# Characters.
_LONGEST_PROMPT, _LONGEST_TEXT = 300, 4000


@dataclasses.dataclass
class SampleConfig:
    """samples.jsonl in --output_dir."""

    sample_steps: int = field(
        1, help="write the completions of every N-th generation batch to samples.jsonl; 0: none", least=0
    )
    sample_limit: int = field(
        64, help="completions of a generation batch that are written, in whole groups; 0: all", least=0
    )

    def __post_init__(self) -> None:
        if self.sample_steps < 0 or self.sample_limit < 0:
            raise ValueError(
                f"--sample_steps {self.sample_steps} and --sample_limit {self.sample_limit} must not be negative."
            )


def clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def sample_line(
    step: int,
    id: str,
    prompt: str,
    completion: str,
    reference: str,
    rewards: dict[str, float | None],
    terms: dict[str, Any],
    advantage: float,
    length: int,
    truncated: bool,
) -> dict[str, Any]:
    """One completion as a line of the file; `step` is the optimizer step that it trains first, `length` in tokens."""
    return {
        "step": step,
        "id": id,
        "prompt": clipped(prompt, _LONGEST_PROMPT),
        "completion": clipped(completion, _LONGEST_TEXT),
        "reference": clipped(reference, _LONGEST_TEXT),
        "rewards": {name: None if value is None else round(value, 6) for name, value in rewards.items()},
        "terms": terms,
        "advantage": round(advantage, 6),
        "length": length,
        "truncated": truncated,
    }


def append_samples(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with LineWriter(path) as file:
        for line in lines:
            file.append(line)
