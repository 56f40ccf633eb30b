"""The model of a training as it stands, to answer with: in evaluation mode, its weights whole; nothing of the training moves."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from drive_vlm.stages.engine.faults import random_states, restore_random_states


@contextlib.contextmanager
def as_it_stands(engine: Any, network: torch.nn.Module, zero3: bool) -> Iterator[None]:
    """Inside, `network`, which trains in `engine` (itself, DDP or DeepSpeed's), can generate on each rank by itself.

    1. Every module is in evaluation mode: no dropout, no gradient checkpointing.
    2. Under ZeRO-3 every rank holds all weights, as long as it takes: a rank without rows would miss the others' gathering.
    3. Afterwards modes, random states and the engine's hooks are those of before, also where an error or a request to stop
       leaves the context.
    """
    modes = [(module, module.training) for module in network.modules()]
    states = random_states()
    network.eval()
    try:
        with whole_weights(engine) if zero3 else contextlib.nullcontext():
            yield
    finally:
        for module, training in modes:
            module.training = training
        restore_random_states(states)


@contextlib.contextmanager
def whole_weights(engine: Any) -> Iterator[None]:
    """Inside, all weights of a DeepSpeedEngine (0.19) under ZeRO-3 are whole on all ranks, and no forward pass gathers or
    releases any. All ranks enter and leave together."""
    import deepspeed

    offload = engine.optimizer.parameter_offload
    weights = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(weights):
        # Its hooks would release each layer behind its forward pass, and wait for the other ranks to gather it again.
        offload._remove_module_hooks()
        for weight in weights:
            weight.ds_active_sub_modules.clear()
        try:
            yield
        finally:
            coordinator = offload.get_param_coordinator()
            # The order of modules that was recorded in training no longer begins where it stands.
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()
            offload.forward_hooks, offload.backward_hooks = [], []
            offload._register_deepspeed_module(offload.module)
