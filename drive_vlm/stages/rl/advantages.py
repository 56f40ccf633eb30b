"""The arithmetic of A2C on the tokens of completions: rewards, returns, advantages, loss. No model, no engine.

A completion a_1..a_N has the states s_0..s_{N-1} in which its tokens were chosen, and R(T_t) is what its first t tokens are
worth, with R of an empty text 0:

    r_{t+1} = R(T_{t+1}) - R(T_t)  ("increments"),  or 0 until the last token, which gets R(T_N)  ("terminal")
    G_t     = sum_k gamma^k r_{t+1+k}
    d_t     = r_{t+1} + gamma V_{t+1} - V_t  with V_N = 0,     A_t = d_t + gamma lambda A_{t+1}

With lambda 1, A_t = G_t - V_t. With gamma 1, G_t = R(T_N) - R(T_t): increments are shaping by a potential, so that the expected
gradient of the policy is that of the terminal reward, and only what V must learn is another.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

# Sums of a tensor over all ranks; the tensor itself on one rank.
AddUp = Callable[[torch.Tensor], torch.Tensor]
# Advantages that differ by less teach nothing: rounding would become the signal.
_FLAT = 1e-6


def scored_places(length: int, every: int) -> list[int]:
    """Numbers of tokens after which a completion of `length` tokens is scored: each `every`-th, and the last.

    >>> scored_places(5, 2)
    [2, 4, 5]
    """
    return sorted({*range(every, length + 1, every), length})


def token_rewards(length: int, places: Sequence[int], scores: Sequence[float | None]) -> list[float]:
    """r_1..r_N of a text that is worth `scores` after the numbers of tokens `places`; the last of them is N.

    A score of None changes nothing. However few the places, the rewards add up to the last score.

    >>> token_rewards(4, [2, 4], [0.5, 1.5])
    [0.0, 0.5, 0.0, 1.0]
    """
    rewards, before = [0.0] * length, 0.0
    for place, score in zip(places, scores, strict=True):
        if score is not None:
            rewards[place - 1], before = score - before, score
    return rewards


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """G_0..G_{N-1} of r_1..r_N."""
    found, after = [], 0.0
    for reward in reversed(rewards):
        after = reward + gamma * after
        found.append(after)
    return found[::-1]


def advantages(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """A_0..A_{N-1} of r_1..r_N and V_0..V_{N-1}, by generalised advantage estimation."""
    found, after, value_after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        after = reward + gamma * value_after - value + gamma * lam * after
        value_after = value
        found.append(after)
    return found[::-1]


def whiten(values: torch.Tensor, add_up: AddUp = lambda sums: sums) -> torch.Tensor:
    """`values float[N]`, this rank's share of the valid tokens of a step, with mean 0 and variance 1 over those of all ranks.

    All zero where they hardly differ. Every rank calls it, also one without a token.
    """
    wide = values.double()
    total, count = add_up(torch.stack([wide.sum(), wide.new_tensor(float(len(wide)))])).unbind()
    centred = wide - total / count.clamp(min=1)
    variance = add_up(centred.square().sum().reshape(1))[0] / count.clamp(min=1)
    if variance.sqrt() < _FLAT:
        return torch.zeros_like(values)
    return (centred / (variance + 1e-8).sqrt()).to(values.dtype)


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Of the terms of the loss; `policy` is 0 while only the value head learns."""

    policy: float = 1.0
    value: float = 0.1
    kl: float = 0.05
    entropy: float = 0.0


@dataclasses.dataclass(frozen=True)
class LossSums:
    """Terms of the loss, each summed over the tokens of a micro-batch: float32[]."""

    policy: torch.Tensor
    value: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor

    def total(self, weights: Coefficients) -> torch.Tensor:
        """Policy, KL and entropy count for nothing while only the head learns; they stay in the graph, so that every weight has
        a gradient on every rank."""
        moves = self.policy + weights.kl * self.kl - weights.entropy * self.entropy
        return weights.policy * moves + weights.value * self.value


def loss_sums(
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
    values: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    reference: torch.Tensor | None,
) -> LossSums:
    """All float32[N] of the tokens of a micro-batch: `advantages` whitened, `reference` the log-probabilities under the frozen
    start (None: no KL)."""
    kl = log_probs.new_zeros(()) if reference is None else k3(log_probs, reference).sum()
    return LossSums(
        policy=-(advantages * log_probs).sum(),
        value=0.5 * (values - returns).square().sum(),
        kl=kl,
        entropy=entropies.sum(),
    )


def k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An estimate of the KL to the reference from each sampled token: never negative, and without bias."""
    ratio = reference - log_probs
    return ratio.exp() - ratio - 1


def explained_variance(returns: torch.Tensor, values: torch.Tensor, add_up: AddUp = lambda sums: sums) -> float:
    """1 - Var(G - V) / Var(G) over the tokens of all ranks: 1 is a perfect value, 0 no better than a constant. 0 where all
    returns are equal."""
    wanted, left = returns.double(), returns.double() - values.double()
    sums = torch.stack(
        [wanted.sum(), wanted.square().sum(), left.sum(), left.square().sum(), wanted.new_tensor(float(len(wanted)))]
    )
    g, g2, d, d2, count = (float(one) for one in add_up(sums))
    count = max(count, 1.0)
    variance = g2 / count - (g / count) ** 2
    return 0.0 if variance < _FLAT**2 else 1 - (d2 / count - (d / count) ** 2) / variance
