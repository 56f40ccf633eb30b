"""Completions of the policy, drawn so that they are a function of the seed, the step and a row's place in the batch alone.

Each rank draws the same table of uniform numbers for the whole generation batch and takes its rows of it; a token is the one
in whose share of the cumulated probabilities its number falls. So one process, several ranks, any number of micro-batches and
a resumed run draw the same completions, and no state of a generator has to be saved.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from drive_vlm.models.training_forward import NEVER


def uniforms(seed: int, batch: int, rows: int, length: int) -> torch.Tensor:
    """float64[rows, length] in [0, 1): the numbers of generation batch `batch` of a run."""
    digest = hashlib.blake2b(json.dumps([seed, batch]).encode(), digest_size=8).digest()
    chance = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(rows, length, generator=chance, dtype=torch.float64)


class Draw(LogitsProcessor):
    """Draws each token from softmax(logits / temperature), all of it but the tokens `never`, by `numbers float64[B, N]`.

    All other tokens get -inf, so that generate's choice of the likeliest takes the drawn one. `log_probs` holds, for each step,
    the log-probabilities float32[B] of what was drawn.
    """

    def __init__(self, numbers: torch.Tensor, temperature: float, never: Sequence[int] = ()) -> None:
        self._numbers, self._temperature, self._never = numbers, temperature, list(never)
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """scores float[B, V] -> float[B, V]."""
        logits = scores.float() / self._temperature
        logits[:, self._never] = NEVER
        log_probs = logits.log_softmax(1)
        # In double precision: over 150,000 words a sum in float32 would misplace the tail.
        edges = log_probs.double().exp().cumsum(1)
        # Under ZeRO-3 a rank that is done goes on until the others are.
        step = min(len(self.log_probs), self._numbers.shape[1] - 1)
        number = self._numbers[:, step : step + 1] * edges[:, -1:]
        # The first edge above the number: a token of probability 0 has none of its own.
        drawn = torch.searchsorted(edges, number, right=True).clamp(max=scores.shape[1] - 1)
        self.log_probs.append(log_probs.gather(1, drawn)[:, 0])
        only: Any = torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
        return only


def sample(
    network: Any, model: Any, inputs: dict[str, Any], draw: Draw, length: int, ends: list[int], pad: int
) -> tuple[list[list[int]], list[list[float]]]:
    """(token ids up to and including the first of `ends`, their log-probabilities) of each row of `inputs`, padded on the left.

    At most `length` tokens. `model` is the transformers model in `network`.
    """
    config = GenerationConfig(
        max_new_tokens=length, do_sample=False, eos_token_id=ends, pad_token_id=pad, use_cache=True
    )
    # generate (transformers 5.23) fills what a configuration leaves open from the model's own, such as a repetition penalty: the
    # tokens would come from another distribution than that of the loss.
    own, model.generation_config = model.generation_config, config
    try:
        with torch.no_grad():
            tokens = network.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList([draw]))
    finally:
        model.generation_config = own
    said = tokens[:, inputs["input_ids"].shape[1] :].cpu()
    log_probs = torch.stack(draw.log_probs, 1).cpu()
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in said.tolist()]
    return (
        [row[:length] for row, length in zip(said.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(log_probs.tolist(), lengths, strict=True)],
    )
