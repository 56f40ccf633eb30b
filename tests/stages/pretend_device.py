"""A device made of host memory: tensors that say they lie elsewhere, and a record of whatever would wait for a GPU.

A GPU runs behind the Python that feeds it. An operation that needs a value of the device on the host, or a size that only the
device knows, lets Python wait until everything before it is done. On a CPU no such wait can be seen, so this module tells
the two memories apart: `OnDevice` holds a CPU tensor and says that it lies on the device "meta", which autograd runs without
a GPU. `PretendDevice` carries out every operation on what is held, with real values, and writes down

* values read by the host: item(), bool(), int(), tolist(), cpu(), numpy(), equal();
* shapes that depend on values: nonzero, masked_select, unique, an index by a mask, repeat_interleave without its size;
* copies from host to device that are not asked to go on by themselves (`non_blocking`), also those hidden in
  torch.tensor(list, device=...) or in an index of the host.

It refuses to mix the two memories where CUDA refuses it too.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
HOST = torch.device("cpu")
aten = torch.ops.aten

# Operations that give the host a value.
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
# Operations whose result has a shape that only the device knows.
_SHAPES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default,
}  # fmt: skip
_INDEX = {aten.index.Tensor}
_INDEX_PUT = {
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index_put.default,
    aten._index_put_impl_.default,
}
_COPY = {aten._to_copy.default}
# Files of the frames between an operation and its record.
_BETWEEN = {Path(__file__).name, "_compile.py", "eval_frame.py", "_jit_internal.py"}
# What a function makes of values of the host.
_FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


class Wait(NamedTuple):
    """One operation that would wait: what it is, and the frames that led to it, `path:function` from the outermost on."""

    what: str
    frames: tuple[str, ...]


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `held` is the tensor of the host that has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held.detach()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {}, lambda what: None)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any], record: Any) -> Any:
    """`func` with the values that are held; `record(what)` for each reason to wait."""
    flat = tree_flatten((args, kwargs))[0]
    on_device = [one for one in flat if isinstance(one, OnDevice)]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if not on_device and target != DEVICE:
        return func(*args, **kwargs)
    name = str(func).removeprefix("aten.")
    on_host = [one for one in flat if isinstance(one, torch.Tensor) and not isinstance(one, OnDevice)]
    if func is aten._fused_sdp_choice.default:
        # The mathematical one: the others have names of their own on each device.
        return 0
    to_host = False
    if func in _COPY:
        to_host = target == HOST
        if (target == DEVICE) != bool(on_device) and target is not None and not kwargs.get("non_blocking"):
            record("copy to the host" if to_host else "copy to the device")
    elif func is aten.copy_.default:
        if isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if blocking and not (isinstance(args[0], OnDevice) and args[1].ndim == 0):
                record("copy to the device" if isinstance(args[0], OnDevice) else "copy to the host")
    elif func in _READS:
        record(name)
    elif func in _SHAPES or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        record(f"{name}, a shape that depends on values")
    elif func in _INDEX or func in _INDEX_PUT:
        indices = [one for one in args[1] if one is not None]
        one_value = func in _INDEX_PUT and args[2].numel() == 1
        if any(not isinstance(one, OnDevice) for one in indices):
            record(f"{name} with an index of the host")
        elif any(one.dtype in (torch.bool, torch.uint8) for one in indices) and not one_value:
            record(f"{name} by a mask, a shape that depends on values")
    elif any(one.ndim for one in on_host):
        raise RuntimeError(f"{name}: tensors of the host and of the device, {[tuple(one.shape) for one in on_host]}")
    given = {id(one.held): one for one in on_device}
    inner = {key: HOST if key == "device" and value is not None else _held(value) for key, value in kwargs.items()}
    inner = {key: tree_map(_held, value) for key, value in inner.items() if key != "pin_memory"}
    if target is None and "device" in kwargs:
        inner["device"] = None
    made = func(*tree_map(_held, args), **inner)
    if to_host:
        return made.clone() if id(made) in given else made
    if func is aten.copy_.default:
        return args[0]

    def wrap(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        # An operation in place gives back what it was given.
        return given[id(one)] if id(one) in given else OnDevice(one)

    return tree_map(wrap, made)


class PretendDevice(TorchDispatchMode):
    """A context inside which device "meta" has values. `waits` is what would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def record(self, what: str) -> None:
        frames = [one for one in traceback.extract_stack() if Path(one.filename).name not in _BETWEEN]
        self.waits.append(Wait(what, tuple(f"{one.filename}:{one.name}:{one.lineno}" for one in frames)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.record)


class _FromHost(TorchFunctionMode):
    """torch.tensor(values, device=...) goes through the host's memory, below the operations that PretendDevice sees."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.tolist, torch.Tensor.__format__) and isinstance(args[0], OnDevice):
            # Neither knows tensors of another class.
            self._device.record(func.__name__)
            return func(args[0].held, *args[1:])
        if func in _FROM_HOST:
            own = func is torch.Tensor.new_tensor
            target = kwargs.get("device", args[0].device if own else None)
            source = args[1] if own else (args[0] if args else kwargs.get("data"))
            if target is not None and torch.device(target) == DEVICE and not isinstance(source, OnDevice):
                rest = {key: value for key, value in kwargs.items() if key != "device"}
                if own:
                    func, args = torch.tensor, args[1:]
                    rest.setdefault("dtype", None)
                made = func(*args, **rest)
                self._device.record(f"torch.{func.__name__}, a copy to the device")
                requires = made.requires_grad
                return OnDevice(made).requires_grad_(requires)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretend_device() -> Iterator[PretendDevice]:
    device = PretendDevice()
    with device, _FromHost(device):
        yield device


def move(model: torch.nn.Module) -> None:
    """Parameters and buffers of `model` onto the device, tied ones together."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in moved:
                moved[id(weight)] = torch.nn.Parameter(OnDevice(weight.detach()), weight.requires_grad)
                vars(moved[id(weight)]).update(vars(weight))
            module._parameters[name] = moved[id(weight)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)
