"""A reward that fails, or returns what is no number: one line with reward, row and completion."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.stages.rl.scorers import Scorer

COMPLETIONS = [[{"role": "assistant", "content": text}] for text in ("a car", "a bus", "a tram")]
COLUMNS: dict[str, Any] = {"id": ["r1", "r2", "r3"], "speed": [1, None, 3], "log_metric": print}
PROMPTS = ["p"] * 3


def score(reward: Callable) -> list[float | None]:
    return Scorer("mine", lambda prompts, completions, **columns: reward(completions, columns))(
        PROMPTS, COMPLETIONS, **COLUMNS
    )


@pytest.mark.parametrize(
    "values",
    [[0.5, None, 2], (0.5, None, 2), [np.float32(0.5), None, np.int64(2)], [torch.tensor(0.5), None, torch.tensor(2)]],
)
def test_numbers_of_all_kinds(values: Any) -> None:
    assert score(lambda completions, columns: values) == [0.5, None, 2.0]


@pytest.mark.parametrize("array", [np.array([0.5, 1, 2]), torch.tensor([0.5, 1, 2])])
def test_arrays(array: Any) -> None:
    assert score(lambda completions, columns: array) == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (lambda c, k: [k["sped"][i] for i in range(len(c))], "reward mine failed for row r1, completion 'a car': KeyError: 'sped'"),
        (lambda c, k: [1 / speed for speed in k["speed"]], "failed for row r2, completion 'a bus': TypeError: unsupported operand"),
        (lambda c, k: [1 / (len(c) - 3)] * len(c), "failed for rows r1, r2, r3: ZeroDivisionError: division by zero"),
        (lambda c, k: None, "reward mine returned None for 3 completions. It must return a list"),
        (lambda c, k: 1.0, "returned float 1.0 for 3 completions"),
        (lambda c, k: {"a": 1, "b": 2, "c": 3}, "returned dict {'a': 1, 'b': 2, 'c': 3} for 3"),
        (lambda c, k: "123", "returned str '123' for 3"),
        (lambda c, k: [0.0], "gave 1 numbers for 3 completions"),
        (lambda c, k: ["1.0"] * 3, "is str '1.0', no number, for row r1, completion 'a car'"),
        (lambda c, k: [1.0, {"score": 1.0}, 1.0], "is dict {'score': 1.0}, no number, for row r2, completion 'a bus'"),
        (lambda c, k: [1.0, 1.0, [1.0]], "is list [1.0], no number, for row r3, completion 'a tram'"),
        (lambda c, k: [1.0, float("inf"), 1.0], "is inf for row r2, completion 'a bus'"),
        (lambda c, k: [np.nan, 1.0, 1.0], "is nan for row r1, completion 'a car'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_row_and_completion(reward: Callable, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as stopped:
        score(reward)
    assert "\n" not in str(stopped.value)


def test_a_check_that_fails_and_terms_that_are_none() -> None:
    class Careless:
        last_terms = None

        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return [0.0] * len(completions)

        def check(self, **columns: Any) -> list[str | None]:
            return columns["nowhere"]

    scorer = Scorer("mine", Careless())
    assert scorer(PROMPTS, COMPLETIONS, **COLUMNS) == [0, 0, 0] and scorer.terms(3) == []
    with pytest.raises(ValueError, match=r"reward mine: its check failed \(KeyError: 'nowhere'\)"):
        scorer.check({"id": ["r1"]})
