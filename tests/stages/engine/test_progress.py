"""In a log file a training shows one line a log, without carriage returns."""

import re
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_a_log_file_holds_a_line_a_log(sft: Callable, fresh: Callable, world: Any) -> None:
    evaluation = ("--eval_data", world.eval, "--eval_strategy", "steps", "--eval_steps", 4)
    run = sft(fresh("lines"), "--disable_tqdm", "false", "--logging_steps", 2, "--max_steps", 4, *evaluation)
    lines = re.findall(r"^step (\d)/4: loss [\d.]+, samples/s [\d.]+, tokens/s \d+, .*\d:\d\d left$", run.text, re.M)
    assert lines == ["2", "4"]
    assert re.search(r"^step 4/4: evaluation loss [\d.]+$", run.text, re.M)
    assert "\r" not in run.text and "it/s]" not in run.text
