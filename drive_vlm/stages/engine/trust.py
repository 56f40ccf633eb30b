"""DeepSpeed's shards are pickles, and DeepSpeed 0.19 loads them with weights_only=False: a stranger's could run any code.

So they are read first with torch's restricted unpickler, which knows tensors and what DeepSpeed stores besides, and runs
nothing else. What passes it holds nothing more for the unrestricted one. All other files of a checkpoint are safetensors,
JSON, or pickles that transformers loads with weights_only=True (`states_of`): it never runs their code, but ends in a traceback.
"""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# What DeepSpeed 0.19 stores in its shards next to tensors and plain values.
_STORED = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
_STATES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
_TRUST = "If you trust the author, give --trust_checkpoint; else take weights as safetensors."
# transformers has no such flag.
NEVER = "It is never loaded. Resume from another checkpoint, or take its weights with --model."


def shards_of(checkpoint: Path) -> list[Path]:
    """The files that DeepSpeed would load. Raises ValueError where `latest` names anything but a folder of this checkpoint."""
    latest = checkpoint / "latest"
    if not latest.is_file():
        return []
    tag = latest.read_text(errors="replace").strip()
    folder = checkpoint / tag
    if not re.fullmatch(r"global_step\d+", tag) or not folder.is_dir():
        raise ValueError(f"{latest}: names {tag[:80]!r}, which is no folder of DeepSpeed's shards next to it.")
    found = (path for path in folder.resolve().rglob("*") if path.is_file())
    # Offload to NVMe: bare numbers that DeepSpeed copies, and pickles nothing of.
    return sorted(path for path in found if "offloaded_tensors" not in path.parts)


def states_of(checkpoint: Path) -> list[Path]:
    """The pickles that transformers loads: optimizer and schedule of a run without DeepSpeed, random states."""
    return sorted(path for pattern in _STATES for path in checkpoint.glob(pattern))


def refuse_code(files: Sequence[Path], trusted: bool, way_out: str = _TRUST) -> None:
    """Raises ValueError for a file with anything but tensors and what DeepSpeed stores; `trusted` (--trust_checkpoint): never."""
    if trusted or not files:
        return
    from importlib import import_module

    # The random state of numpy is an array.
    reconstruct = import_module("numpy._core.multiarray")._reconstruct
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), reconstruct]
    if way_out == _TRUST:
        allowed += [getattr(import_module(module), name) for module, name in _STORED]
    with torch.serialization.safe_globals(allowed):
        for file in files:
            try:
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except pickle.UnpicklingError as error:
                named = re.search(r"GLOBAL (\S+)", str(error))
                what = named[1] if named else str(error).splitlines()[0]
                raise ValueError(
                    f"{file}: holds more than tensors ({what}), and to load it would run its author's code. {way_out}"
                ) from error
            # A file that torch.save has not written, or that is cut off, in whatever way that shows.
            except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}: not a file that torch.save wrote ({str(error).splitlines()[0]}).") from error
