"""DPO, SPIN and their kin as functions of summed log-probabilities; nothing here knows a model or an engine."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Log-probabilities of n pairs, summed over an answer's tokens: all float[n]; `*_tokens int64[n]` are the answers' lengths."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def chosen_ratio(self) -> torch.Tensor:
        """log pi(y) - log pi_ref(y) of the chosen answers, float[n]."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> torch.Tensor:
        return self.rejected - self.reference_rejected


def answer_log_probs(token_log_probs: torch.Tensor, answer_tokens: torch.Tensor) -> torch.Tensor:
    """float[R]: sums of `token_log_probs float[N]` over the runs of `answer_tokens int64[R]` tokens that it consists of."""
    rows = torch.arange(len(answer_tokens), device=answer_tokens.device)
    # Without the size the host would ask the device for it.
    owner = torch.repeat_interleave(rows, answer_tokens, output_size=len(token_log_probs))
    return token_log_probs.new_zeros(len(answer_tokens)).index_add(0, owner, token_log_probs)


def sigmoid_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * (chosen ratio - rejected ratio)), float[n].

    Rafailov et al. 2023 (DPO), equation 7; Chen et al. 2024 (SPIN), equation 4.7 with the logistic loss, where the
    rejected answer and the reference are those of the round before.
    """
    return -F.logsigmoid(beta * (pairs.chosen_ratio - pairs.rejected_ratio))


def hinge_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """max(0, 1 - beta * (chosen ratio - rejected ratio)), float[n]. Zhao et al. 2023 (SLiC)."""
    return torch.relu(1 - beta * (pairs.chosen_ratio - pairs.rejected_ratio))


def ipo_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """(difference of the ratios a token - 1 / (2 beta))^2, float[n]. Azar et al. 2023, equation 17."""
    chosen, rejected = pairs.chosen_ratio / pairs.chosen_tokens, pairs.rejected_ratio / pairs.rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def bco_pair_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * chosen ratio) - log sigmoid(-beta * rejected ratio), float[n]; InternVL's MPO mixes it in."""
    return -F.logsigmoid(beta * pairs.chosen_ratio) - F.logsigmoid(-beta * pairs.rejected_ratio)


LOSSES: dict[str, Callable[[Pairs, float], torch.Tensor]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "bco_pair": bco_pair_loss,
}
# Cross entropy of the chosen answers: a mean over tokens, where the others are means over pairs.
SFT = "sft"


def loss_sums(pairs: Pairs, beta: float, kinds: Sequence[str], weights: Sequence[float]) -> torch.Tensor:
    """float[2]: the weighted sum of the pairs' losses, and of the chosen answers' cross entropy."""
    terms = dict(zip(kinds, weights, strict=True))
    zero = pairs.chosen.sum() * 0.0
    compared = [weight * LOSSES[kind](pairs, beta).sum() for kind, weight in terms.items() if kind != SFT]
    return torch.stack([sum(compared, zero), -terms.get(SFT, 0.0) * pairs.chosen.sum()])


def preference_loss(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """float[]: `sums float[2]` of loss_sums over `counts int64[2]`, pairs and chosen tokens of the whole step."""
    return (sums / counts.clamp(min=1)).sum()
