"""What the two experts cost: one of them for each token, and no wait for the device within the layers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import drive_vlm  # noqa: F401  before transformers: torchvision beside CPU torch
from drive_vlm.models.cogvlm2.language import MLP
from drive_vlm.models.cogvlm2.positions import Routes

# What brings a number from the device to the host.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2")


class Waits(TorchDispatchMode):
    """Counts the operations that wait for the device, where it is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside, self.watched = 0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITS:
            self.inside += self.watched
            self.outside += not self.watched
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def of(self, module: torch.nn.Module) -> Iterator[None]:
        def watch(on: bool) -> Any:
            return lambda *_: setattr(self, "watched", on)

        hooks = [module.register_forward_pre_hook(watch(True)), module.register_forward_hook(watch(False))]
        yield
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def model() -> Any:
    from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
    from drive_vlm.models.cogvlm2.modeling import CogVLMForCausalLM

    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_heads": 2, "image_size": 28, "patch_size": 7,
        "num_positions": 17,
    }  # fmt: skip
    config = CogVLM2Config(
        vision_config=vision, vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_multi_query_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return CogVLMForCausalLM(config)


def test_the_layers_do_not_wait_for_the_device(model: Any) -> None:
    """Forward and backward of two rows, one with a picture; before the layers the counts of picture tokens are fetched."""
    ids = torch.tensor([[0, *[2] * 6, 9, 10, 11], [0, *range(5, 14)]])
    waits = Waits()
    with waits, waits.of(model.model.language_model):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 3, 28, 28))
        waits.watched = True
        out.logits.sum().backward()
    assert waits.inside == 0 and waits.outside > 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_half_the_work_of_both_experts_for_all(share: float) -> None:
    """Multiplications of an expert MLP, next to both experts for every token and a choice."""

    class Sizes:
        hidden_size, intermediate_size = 16, 48

    sizes: Any = Sizes()
    language, vision, hidden = MLP(sizes), MLP(sizes), torch.randn(1, 40, 16)
    experts = (torch.arange(40) < 40 * share)[None]
    routes = Routes.of(experts, int(experts.sum()))
    with FlopCounterMode(display=False) as ours:
        one = routes.apply(hidden, language, vision)
    with FlopCounterMode(display=False) as theirs:
        both = torch.where(experts[..., None], vision(hidden), language(hidden))
    torch.testing.assert_close(one, both)
    assert ours.get_total_flops() / theirs.get_total_flops() == 0.5
