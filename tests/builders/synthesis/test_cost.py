"""Estimates by hand, and a purse that several threads draw from."""

import threading
from typing import Any

import pytest

from drive_vlm.builders.synthesis.cost import Budget, CostReached, PerPicture, estimate, measured
from drive_vlm.judges.chat_client import Reply

ASK = [{"role": "user", "content": "x" * 84}]


def test_an_estimate_is_the_preview_times_the_pictures() -> None:
    lines: list[dict[str, Any]] = [
        {"image": "a", "calls": {"refine": 2, "caption": 9}, "tokens": {"refine": {"prompt": 300, "reply": 50}}},
        {"image": "b", "calls": {"refine": 0}},
    ]
    per = measured("refine", lines, seconds=4.0)
    assert (per.calls, per.prompt_tokens, per.reply_tokens, per.seconds) == (1.0, 150.0, 25.0, 2.0)
    told = estimate("refine", 200_000, per, price_in=0.5, price_out=2.0)
    assert (told.calls, told.prompt_tokens, told.reply_tokens) == (200_000, 3e7, 5e6)
    assert told.cost == pytest.approx(30 * 0.5 + 5 * 2.0) and told.gpu_hours == pytest.approx(400_000 / 3600)
    assert estimate("refine", 10, per).cost is None, "without prices nobody knows"
    # A local model: calls without tokens.
    local = measured("refine", [{"calls": {"refine": 1}, "tokens": {}}])
    assert (local.prompt_tokens, local.seconds) == (None, None) and estimate("refine", 5, local, 1, 1).cost is None
    free = estimate("detect", 5, PerPicture(seconds=1.0), 1, 1)
    assert (free.calls, free.cost, free.prompt_tokens, free.disk_bytes) == (0, 0.0, 0.0, None)
    with pytest.raises(ValueError, match="at least one finished line"):
        measured("refine", [])


def test_a_limit_without_prices_is_refused() -> None:
    with pytest.raises(ValueError, match="--max_cost 5 needs --price_in and --price_out"):
        Budget(5, 1.0, None)
    assert Budget(None, None, None).reserve(ASK, {"max_tokens": 10**9}) == 0.0


def test_the_next_request_counts_at_its_most() -> None:
    # 84 bytes and 16 marks are 100 tokens at most: 100 in and 50 out at 1e4 a million are 1.5.
    budget = Budget(3.0, 1e4, 1e4)
    held = budget.reserve(ASK, {"max_tokens": 50})
    assert held == pytest.approx(1.5)
    budget.settle(held, Reply("a", "stop", 20, 10))
    assert budget.spent == pytest.approx(0.3)
    budget.keep(Reply("a", "stop", 100, 20, cached=True))
    assert budget.spent == pytest.approx(1.5)
    budget.settle(budget.reserve(ASK, {"max_tokens": 50}), None)
    assert budget.spent == pytest.approx(1.5), "what failed is not paid"
    with pytest.raises(CostReached, match=r"1\.5 is spent, and the next request may cost 1\.51"):
        budget.reserve(ASK, {"max_tokens": 51})
    with pytest.raises(CostReached):
        Budget(3.0, 1e4, 1e4, before=1.6).reserve(ASK, {"max_tokens": 50})


def test_pictures_count_by_the_flag_or_by_the_largest_prompt_seen() -> None:
    picture = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:" + "x" * 999}},
                {"type": "text", "text": "x" * 68},
            ],
        }
    ]
    assert Budget(1e9, 1e6, 0, picture_tokens=500).reserve(picture, {"max_tokens": 1}) == 68 + 2 * 16 + 500
    budget = Budget(1e9, 1e6, 0)
    assert budget.reserve(picture, {"max_tokens": 1}) == 100
    budget.settle(100, Reply("a", "stop", 700, 1))
    assert budget.reserve(picture, {"max_tokens": 1}) == 800


def test_a_request_waits_for_those_under_way_before_it_gives_up() -> None:
    budget = Budget(2.0, 1e4, 1e4)
    first = budget.reserve(ASK, {"max_tokens": 50})
    outcome: list[Any] = []

    def second() -> None:
        try:
            outcome.append(budget.reserve(ASK, {"max_tokens": 50}))
        except CostReached as error:
            outcome.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not outcome, "1.5 are held: only the end of the first decides"
    budget.settle(first, Reply("a", "stop", 1, 1))
    thread.join(5)
    assert outcome == [pytest.approx(1.5)]
    # And it gives up where the first has taken what it needs.
    budget = Budget(2.0, 1e4, 1e4)
    first, outcome[:] = budget.reserve(ASK, {"max_tokens": 50}), []
    thread = threading.Thread(target=second)
    thread.start()
    budget.settle(first, Reply("a", "stop", 60, 0))
    thread.join(5)
    assert isinstance(outcome[0], CostReached)
