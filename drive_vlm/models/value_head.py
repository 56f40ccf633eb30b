"""A value head on a language model: what the hidden state that predicts a token is worth.

The head lies inside the model, so that one forward pass gives logits and values and ZeRO-3 gathers both. It runs in
training_forward.py on the very rows of the hidden states that the language model's head runs on: the value of the state
before a token and the token's log-probability come from one position.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from drive_vlm.models.family import Family

NAME = "value_head"


class _Float32Linear(torch.nn.Linear):
    """A linear layer that computes and answers in float32, whatever the precision of its weights.

    Steps of bfloat16 are .002 at .25, while rewards of two texts may differ by .001. The cast happens inside the layer, where
    ZeRO-3 has its weight gathered.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # Autocast would compute in half precision again.
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


class ValueHead(torch.nn.Module):
    """hidden float[N, D] -> values float32[N]: Linear, GELU, Linear. The last layer begins at zero, and so does every value."""

    def __init__(self, width: int, inner: int, seed: int = 0) -> None:
        super().__init__()
        self.first, self.last = _Float32Linear(width, inner), _Float32Linear(inner, 1)
        # A generator of its own: how a model is loaded (ZeRO-3 draws otherwise) must not change the head.
        chance = torch.Generator().manual_seed(seed)
        bound = width**-0.5
        with torch.no_grad():
            for weight in (self.first.weight, self.first.bias):
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=chance))
            self.last.weight.zero_()
            self.last.bias.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.last(F.gelu(self.first(hidden))).squeeze(-1)


def add_value_head(family: "Family", inner: int, seed: int = 0) -> None:
    """Add the head to a model; `loading.Extend` of the stage that trains it. `inner`: width of its hidden layer."""
    width = family.model.get_output_embeddings().in_features
    family.model.value_head = ValueHead(width, inner, seed)


def has_value_head(directory: str | Path) -> bool:
    """Whether the weights of a model or an adapter in `directory` hold one."""
    from safetensors import safe_open

    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if any(f".{NAME}." in f".{name}" for name in weights.keys()):  # noqa: SIM118 - no mapping
                return True
    return False
