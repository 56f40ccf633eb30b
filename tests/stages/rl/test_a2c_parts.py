"""What A2C is made of, apart from a run: drawn tokens, what they earn, and answers that collapse."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from drive_vlm.evaluation.oia_labels import ACTION_TEXTS
from drive_vlm.stages.rl.a2c_figures import Figures, completion_figures
from drive_vlm.stages.rl.actions import ActionMonitor, actions_of, entropy
from drive_vlm.stages.rl.completions import Completion, Earning, score
from drive_vlm.stages.rl.prompts import Prompt
from drive_vlm.stages.rl.sampling import Draw, uniforms
from drive_vlm.stages.rl.scorers import Scorer


class Words:
    """A tokenizer of five tokens; 2 is half a character, 4 the end."""

    pieces = ("stop", "go", "\ufffd", " ", "")

    def batch_decode(self, sequences: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(self.pieces[i] for i in ids) for ids in sequences]


def completion(ids: list[int], ended: bool = True, **columns: Any) -> Completion:
    prompt = Prompt("row", [], [7, 8], {}, {"id": "row", "reference": "stop"} | columns)
    return Completion(prompt, ids, [-1.0] * len(ids), ended, "".join(Words.pieces[i] for i in ids))


EARNING = Earning([1.0], "increments", 1, 1.0, 0.25)


# drawing


def test_what_is_drawn_has_the_distribution_of_the_policy() -> None:
    """20,000 rows of the same logits at a temperature: counts as softmax says, within four standard errors; no impossible word, and
    none of those that are never drawn."""
    logits = torch.tensor([1.0, 0.0, 3.0, -1.0, 2.0])
    chances = (logits / 0.7).index_fill(0, torch.tensor([2]), -torch.inf).softmax(0)
    count = 20_000
    draw = Draw(uniforms(3, 0, count, 1), 0.7, [2])
    scores = draw(torch.zeros(count, 0, dtype=torch.long), logits.expand(count, 5).clone())
    drawn = scores.argmax(1)
    found = torch.bincount(drawn, minlength=5) / count
    assert ((found - chances).abs() <= 4 * (chances * (1 - chances) / count).sqrt()).all() and found[2] == 0
    torch.testing.assert_close(draw.log_probs[0], chances.log()[drawn])


def test_a_row_draws_the_same_whoever_its_neighbours_are() -> None:
    torch.manual_seed(0)
    logits, numbers = torch.randn(8, 11), uniforms(5, 2, 8, 3)
    together = Draw(numbers, 1.0)(torch.zeros(8, 0), logits.clone()).argmax(1)
    apart = [
        Draw(numbers[i : i + 2], 1.0)(torch.zeros(2, 0), logits[i : i + 2].clone()).argmax(1) for i in (0, 2, 4, 6)
    ]
    assert together.tolist() == torch.cat(apart).tolist()
    assert not torch.equal(numbers, uniforms(5, 3, 8, 3)) and torch.equal(numbers, uniforms(5, 2, 8, 3))


# earning


class Letters:
    """Worth of a text: its letters o; by beginnings as well."""

    __name__ = "letters"

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(one[0]["content"].count("o")) for one in completions]

    def prefixes(self, texts: list[list[str]], **columns: Any) -> list[list[float]]:
        assert columns["reference"] == ["stop"] * len(texts)
        return [[float(text.count("o")) for text in beginnings] for beginnings in texts]


def constant(value: float | None, must_score: bool = False) -> Any:
    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [value] * len(completions)

    reward.must_score = must_score  # type: ignore[attr-defined]
    return reward


def test_a_token_earns_what_it_adds() -> None:
    """A reward by beginnings and one of the whole text, weighted; the text that was cut off pays for it."""
    earning = dataclasses.replace(EARNING, weights=[2.0, 3.0], gamma=0.5)
    whole, cut = completion([0, 3, 1, 4]), completion([0, 0], ended=False)
    score([whole, cut], [Scorer("letters", Letters()), Scorer("right", constant(0.5))], earning, Words())
    assert whole.gains == [2.0, 0.0, 2.0, 1.5] and whole.returns == [2.6875, 1.375, 2.75, 1.5]
    assert cut.gains == [2.0, 2.0 + 1.5 - 0.25] and cut.reward == pytest.approx(sum(cut.gains))
    assert whole.rewards == {"letters": 2.0, "right": 0.5} and whole.terms["letters"] == 4.0 and whole.counted
    assert cut.terms["missing_eos"] == -0.25 and whole.terms["missing_eos"] == 0


@pytest.mark.parametrize(("every", "gains"), [(1, [1, 0, 1, 0]), (2, [0, 1, 0, 1]), (9, [0, 0, 0, 2])])
def test_reward_every_keeps_the_sum(every: int, gains: list[float]) -> None:
    one = completion([0, 3, 1, 4])
    score([one], [Scorer("letters", Letters())], dataclasses.replace(EARNING, reward_every=every), Words())
    assert one.gains == gains


def test_terminal_reward_comes_with_the_last_token() -> None:
    one = completion([0, 3, 1, 4])
    score([one], [Scorer("letters", Letters())], dataclasses.replace(EARNING, reward_shape="terminal"), Words())
    assert one.gains == [0, 0, 0, 2]


def test_an_end_token_alone_is_a_completion_of_one_token() -> None:
    empty, other = completion([4]), completion([0, 4])
    score([empty, other], [Scorer("letters", Letters())], EARNING, Words())
    assert empty.text == "" and empty.gains == [0.0] and empty.returns == [0.0] and empty.counted
    assert other.gains == [1.0, 0.0]


def test_a_reward_without_a_number() -> None:
    """Of one that must score, or of all rewards: the completion teaches nothing. Next to others it counts as 0."""
    two = dataclasses.replace(EARNING, weights=[1.0, 1.0])
    for rewards, earning, counted in (
        ([Letters(), constant(None)], two, True),
        ([Letters(), constant(None, must_score=True)], two, False),
        ([constant(None), constant(None)], two, False),
        ([constant(None)], EARNING, False),
    ):
        one = completion([0, 4])
        score([one], [Scorer(f"r{i}", reward) for i, reward in enumerate(rewards)], earning, Words())
        assert one.counted == counted and one.gains == ([1, 0] if isinstance(rewards[0], Letters) else [0, 0])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "prefixes returned None for 1 completions"),
        ([[1.0]], "for 2 prefixes of row row"),
        ([[1.0, float("nan")]], "reward bad is nan for row row"),
        ([[1.0, "much"]], "reward bad is str"),
    ],
)
def test_prefixes_that_are_no_numbers_are_named(answer: Any, words: str) -> None:
    class Bad:
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return [0.0] * len(completions)

        def prefixes(self, texts: Any, **columns: Any) -> Any:
            return answer

    with pytest.raises(ValueError, match=words):
        score([completion([0, 4])], [Scorer("bad", Bad())], EARNING, Words())


# figures


def test_the_shares_of_the_variance_add_up_and_those_that_do_not_count_are_counted() -> None:
    rows = [completion(ids, ended) for ids, ended in (([0, 4], True), ([0, 1, 0], False), ([1, 4], True), ([4], True))]
    score(rows, [Scorer("letters", Letters())], EARNING, Words())
    rows[3].counted, rows[3].rewards["letters"] = False, None
    ranks = [completion_figures(rows[:2], {"own/curve": 1.0}), completion_figures(rows[2:], {"own/curve": 3.0})]
    found, observed, answers = Figures().of_completions(ranks, 1)
    assert found["rewards/letters/variance_share"] + found["rewards/missing_eos/variance_share"] == pytest.approx(1)
    assert found["completions/left_out"] == 0.25 and found["completions/eos_rate"] == 0.75
    assert found["reward"] == pytest.approx((1 + 2.75 + 1) / 3) and found["own/curve"] == 2
    assert observed is not None and observed["zero_variance"] == 0 and observed["truncated"] == 0.25 and answers == []
    for row in rows:
        row.counted = False
    assert Figures().of_completions([completion_figures(rows, {})], 1)[1] is None


# actions


def test_an_answer_is_read_as_the_evaluation_reads_it() -> None:
    assert actions_of("Action: move forward; turn left; Reason: road is clear") == (0, 2)
    assert actions_of('{"description": "x", "action": "stop", "justification": "red light"}') == (1,)
    assert actions_of("Action: fly; stop") == actions_of("nothing") == ()


def test_actions_are_counted_and_their_collapse_ends_the_run() -> None:
    """Ten batches of the start, then ten of one answer: the run ends at the twentieth, not before; also from a checkpoint."""
    monitor = ActionMonitor(0.2)
    varied: list[tuple[int, ...]] = [(0,), (1,), (2,), ()]
    for _ in range(10):
        figures = monitor.observe(varied)
    assert figures["actions/entropy"] == pytest.approx(1.386, abs=1e-3) and figures["actions/out_of_vocabulary"] == 0.25
    assert figures["actions/stop_slow_down"] == 0.25 and len([name for name in figures if "actions/" in name]) == 6
    for _ in range(9):
        monitor.observe([(1,)] * 4)
    again = ActionMonitor(0.2)
    again.load(monitor.state())
    for one in (monitor, again):
        with pytest.raises(ValueError, match=rf"actions have collapsed.* 100% of the answers are '{ACTION_TEXTS[1]}'"):
            one.observe([(1,)] * 4)
    never = ActionMonitor(0.0)
    for _ in range(30):
        never.observe([(1,)])
    assert never.observe([]) == {}


def test_a_start_that_never_varied_is_no_measure_and_variety_is_no_collapse() -> None:
    flat, lively = ActionMonitor(0.2), ActionMonitor(0.2)
    for _ in range(25):
        flat.observe([(1,)] * 8)
        lively.observe([(1,), (0, 3), (2,)])
    assert entropy({"a": 1, "b": 1, "c": 0}) == pytest.approx(0.6931, abs=1e-4) and entropy({}) == 0


def test_places_of_any_length_end_with_the_text() -> None:
    for ids, every in itertools.product(([4], [0, 4], [0, 1, 3, 0, 4]), (1, 2, 3)):
        one = completion(list(ids))
        score([one], [Scorer("letters", Letters())], dataclasses.replace(EARNING, reward_every=every), Words())
        assert len(one.gains) == len(ids) and sum(one.gains) == one.reward
