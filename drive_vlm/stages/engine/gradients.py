"""Whether every weight that trains is part of the loss, seen in the first backward pass."""

from types import TracebackType

import torch


class FirstGradients:
    """A context around forward and backward pass that looks once: a weight that trains and gets no gradient ends the run.

    Such a weight would be saved as it began, without a word: an adapter on a layer whose forward pass is another one, a module
    that no batch reaches. Under DDP or ZeRO the ranks would wait for its gradient without end.

    Hooks see the gradients: DeepSpeed takes them from the weights before the pass is over. The first micro-batch is enough,
    since a batch without a picture passes the vision tower too (models/training_forward.py).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model, self._looked = model, False
        self._missing: set[str] = set()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        if self._looked:
            return
        for name, weight in self._model.named_parameters():
            if weight.requires_grad:
                self._missing.add(name)
                self._hooks.append(
                    weight.register_post_accumulate_grad_hook(lambda _, name=name: self._missing.discard(name))
                )  # type: ignore[misc]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises ValueError with the names of the weights that no gradient has reached."""
        if self._looked:
            return
        self._looked = True
        for hook in self._hooks:
            hook.remove()
        if error is None and self._missing:
            first = sorted(self._missing)[0]
            raise ValueError(
                f"{len(self._missing)} weights that train got no gradient in the first backward pass, such as {first}: the loss does "
                "not depend on them, so they would stay as they are. Freeze them (--freeze), or leave them out of --lora_targets."
            )
