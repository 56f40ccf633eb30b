"""A2C's arithmetic against numbers worked out by hand, and its expectation over every text of a tiny model."""

import itertools
import math

import pytest
import torch

from drive_vlm.stages.rl.advantages import (
    Coefficients,
    advantages,
    explained_variance,
    k3,
    loss_sums,
    returns,
    scored_places,
    token_rewards,
    whiten,
)

# R(T_1) .. R(T_4) of a completion, and V(s_0) .. V(s_3).
WORTH, VALUES = [0.10, 0.25, 0.20, 1.20], [0.5, 0.4, 0.3, 0.2]
REWARDS = [0.1, 0.15, -0.05, 1.0]


def test_increments_add_up_to_the_worth_of_the_whole_text() -> None:
    found = token_rewards(4, [1, 2, 3, 4], WORTH)
    assert found == pytest.approx(REWARDS) and sum(found) == pytest.approx(WORTH[-1])


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_fewer_scored_prefixes_add_up_to_the_same(every: int) -> None:
    places = scored_places(4, every)
    found = token_rewards(4, places, [WORTH[place - 1] for place in places])
    assert places[-1] == 4 and sum(found) == pytest.approx(WORTH[-1])
    assert sum(1 for reward in found if reward) == len(places)


def test_a_prefix_without_a_score_changes_nothing_and_terminal_is_one_place() -> None:
    assert token_rewards(4, [1, 2, 3, 4], [0.1, None, 0.2, 1.2]) == pytest.approx([0.1, 0, 0.1, 1])
    assert token_rewards(3, [3], [0.7]) == [0, 0, 0.7]
    assert token_rewards(1, [1], [0.7]) == [0.7]


@pytest.mark.parametrize(
    ("gamma", "lam", "wanted", "expected"),
    [
        (1, 1, [1.2, 1.1, 0.95, 1], [0.7, 0.7, 0.65, 0.8]),
        (1, 0.95, [1.2, 1.1, 0.95, 1], [0.598025, 0.6295, 0.61, 0.8]),
        (0.9, 1, [0.9235, 0.915, 0.85, 1], [0.4235, 0.515, 0.55, 0.8]),
        (0.9, 0.95, [0.9235, 0.915, 0.85, 1], [0.352847, 0.45947, 0.514, 0.8]),
    ],
)
def test_returns_and_advantages_of_the_worked_example(
    gamma: float, lam: float, wanted: list[float], expected: list[float]
) -> None:
    assert returns(REWARDS, gamma) == pytest.approx(wanted, abs=1e-9)
    assert advantages(REWARDS, VALUES, gamma, lam) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("gamma", "error"), [(1, 0.510625), (0.9, 0.346769)])
def test_the_loss_of_the_worked_example(gamma: float, error: float) -> None:
    """Each term by hand: log-probabilities -1, advantages as whitened, a reference that is .1 likelier."""
    log_probs, values = torch.full((4,), -1.0), torch.tensor(VALUES)
    wanted = torch.tensor(returns(REWARDS, gamma))
    white = whiten(torch.tensor(advantages(REWARDS, VALUES, gamma, 1)))
    sums = loss_sums(log_probs, torch.full((4,), 2.0), values, white, wanted, log_probs + 0.1)
    assert sums.value.item() == pytest.approx(0.5 * 4 * error, abs=1e-5)
    assert sums.policy.item() == pytest.approx(white.sum().item()) == pytest.approx(0, abs=1e-6)
    assert sums.kl.item() == pytest.approx(4 * (math.exp(0.1) - 1.1), abs=1e-6)
    total = sums.total(Coefficients(policy=1, value=0.1, kl=0.05, entropy=0.01)).item()
    assert total == pytest.approx(0.2 * error + 0.2 * (math.exp(0.1) - 1.1) - 0.08, abs=1e-5)
    assert sums.total(Coefficients(policy=0, value=1)).item() == pytest.approx(2 * error, abs=1e-5)


def test_the_last_reward_alone_fades_with_lambda() -> None:
    """Reward on the last token, no value yet: lambda ** distance reaches the tokens before it."""
    assert advantages([0, 0, 0, 1], [0] * 4, 1, 0.9) == pytest.approx([0.729, 0.81, 0.9, 1])
    assert advantages([0, 0, 0, 1], [0] * 4, 1, 1) == [1, 1, 1, 1]


def test_whitening_counts_the_tokens_of_all_ranks_and_no_others() -> None:
    together = torch.tensor([0.7, 0.7, 0.65, 0.8, -0.3, 0.1])
    expected = whiten(together)
    assert expected.mean().item() == pytest.approx(0, abs=1e-6) and expected.std(correction=0).item() == pytest.approx(
        1, abs=1e-3
    )
    shares = [together[:1], together[1:], together[:0]]
    # What each rank adds up, in the order of the two sums.
    first = sum(torch.stack([share.double().sum(), torch.tensor(float(len(share))).double()]) for share in shares)
    second = (together.double() - together.double().mean()).square().sum().reshape(1)
    for share, part in zip(shares, (expected[:1], expected[1:], expected[:0]), strict=True):
        sums = iter([first, second])
        torch.testing.assert_close(whiten(share, lambda _, sums=sums: next(sums)), part)


@pytest.mark.parametrize("values", [[], [0.3], [0.2, 0.2, 0.2], [1.0, 1.0 + 1e-7]])
def test_equal_advantages_teach_nothing(values: list[float]) -> None:
    found = whiten(torch.tensor(values))
    assert found.tolist() == [0] * len(values)


def test_explained_variance() -> None:
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(wanted, wanted) == pytest.approx(1)
    assert explained_variance(wanted, wanted + 7) == pytest.approx(1)
    assert explained_variance(wanted, torch.zeros(4)) == pytest.approx(0)
    assert explained_variance(wanted, -wanted) == pytest.approx(-3)
    assert explained_variance(torch.ones(3), torch.zeros(3)) == explained_variance(wanted[:0], wanted[:0]) == 0


def test_k3_is_never_negative_and_its_mean_is_the_kl() -> None:
    torch.manual_seed(1)
    policy, start = torch.randn(9).log_softmax(0), torch.randn(9).log_softmax(0)
    estimates = k3(policy, start)
    assert (estimates >= 0).all()
    # Expected under the policy, which the tokens are drawn from.
    assert (policy.exp() * estimates).sum().item() == pytest.approx(
        (policy.exp() * (policy - start)).sum().item(), abs=1e-6
    )


def expected_gradient(shape: str, gamma: float, baseline: list[float]) -> torch.Tensor:
    """The policy gradient of A2C in expectation, by enumerating every text of 3 tokens over 3 words.

    The policy has free logits for each prefix. What a text is worth is any function of it; the value is a baseline of the place.
    """
    words, longest = 3, 3
    prefixes = [prefix for length in range(longest) for prefix in itertools.product(range(words), repeat=length)]
    torch.manual_seed(3)
    logits = {prefix: torch.randn(words, requires_grad=True) for prefix in prefixes}

    def worth(text: tuple[int, ...]) -> float:
        return math.sin(1 + sum((i + 1) * (2 * word + 1) for i, word in enumerate(text)))

    total = torch.zeros(())
    for text in itertools.product(range(words), repeat=longest):
        log_probs = torch.stack([logits[text[:t]].log_softmax(0)[text[t]] for t in range(longest)])
        places = scored_places(longest, 1) if shape == "increments" else [longest]
        rewards = token_rewards(longest, places, [worth(text[:place]) for place in places])
        gains = torch.tensor(advantages(rewards, baseline, gamma, 1.0))
        sums = loss_sums(log_probs, torch.zeros(3), torch.zeros(3), gains, torch.zeros(3), None)
        total = total + log_probs.sum().exp().detach() * sums.policy
    return torch.cat(torch.autograd.grad(total, list(logits.values())))


def test_increments_and_terminal_reward_have_one_expected_gradient() -> None:
    """With gamma 1 and lambda 1, whatever the baseline. With gamma .9 they are two objectives."""
    expected = expected_gradient("terminal", 1.0, [0.0] * 3)
    assert expected.abs().max() > 0.05
    for shape, baseline in (
        ("increments", [0.0] * 3),
        ("increments", [0.7, -0.2, 0.4]),
        ("terminal", [0.7, -0.2, 0.4]),
    ):
        torch.testing.assert_close(expected_gradient(shape, 1.0, baseline), expected, atol=1e-6, rtol=1e-5)
    discounted = [expected_gradient(shape, 0.9, [0.0] * 3) for shape in ("increments", "terminal")]
    assert (discounted[0] - discounted[1]).abs().max() > 0.01
