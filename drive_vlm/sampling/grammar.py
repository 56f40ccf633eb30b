"""Answers that follow a grammar: a logits processor that leaves only tokens which may come next (llguidance).

For answering rows alone. Rollouts of reinforcement learning take none: what is sampled under a mask is not the policy's own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Grammar:
    """A grammar of llguidance on the tokens of one model; `begin()` makes the logits processor of one call of generate.

    `ends` are the tokens at which generate stops: they are allowed where the grammar may stop, and nowhere else.
    """

    def __init__(self, grammar: str, tokenizer: Any, ends: Sequence[int]) -> None:
        self._grammar, self._tokenizer, self._ends = grammar, tokenizer, list(ends)
        self._started: dict[int, Any] = {}

    def begin(self) -> "GrammarMask":
        return GrammarMask(self, frozenset(self._ends))

    def states(self, count: int, width: int) -> list[Any]:
        """A matcher for each of `count` rows, at the beginning; `width` is that of the logits, which may be more than the
        tokenizer's tokens. The first of a width takes seconds. Raises ValueError where llguidance does not take the tokenizer."""
        if width not in self._started:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer

            try:
                tokens = from_tokenizer(self._tokenizer, n_vocab=width, eos_token=self._ends)
            except ValueError as error:
                raise ValueError(f"--json_schema: llguidance does not take this model's tokenizer ({error})") from error
            self._started[width] = LLMatcher(tokens, self._grammar)
            _check(self._started[width])
        return [self._started[width].deep_copy() for _ in range(count)]


class GrammarMask:
    """The logits processor of one call of generate, with a state for each row. It is called after every token."""

    def __init__(self, grammar: Grammar, ends: frozenset[int]) -> None:
        self._grammar, self._ends = grammar, ends
        self._states: list[Any] = []
        self._open: list[int] = []

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """scores float[B, V], -inf where the token may not come next; input_ids int64[B, T]. A row that has ended stays as it
        is, since generate fills it up by itself."""
        import torch
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        rows, width = scores.shape
        if not self._states:
            self._states, self._open = self._grammar.states(rows, width), list(range(rows))
        else:
            last = input_ids[:, -1].tolist()
            self._open = [row for row in self._open if last[row] not in self._ends]
            for row in self._open:
                self._states[row].consume_token(last[row])
        # int32[B, V / 32]: a bit for each token. llguidance's own function for it compiles with torch, which takes longer than
        # many answers.
        bits = allocate_token_bitmask(rows, width)
        for row in self._open:
            _check(self._states[row])
            fill_next_token_bitmask(self._states[row], bits, row)
        places = torch.arange(32, dtype=torch.int32, device=scores.device)
        allowed = torch.from_numpy(bits).to(scores.device).unsqueeze(-1) >> places & 1
        return scores.masked_fill(allowed.flatten(1)[:, :width] == 0, float("-inf"))


def _check(state: Any) -> None:
    if state.is_error():
        raise ValueError(f"--json_schema: {' '.join(state.get_error().split())[:300]}")
