"""Python, torch, torchvision, the pinned packages, DeepSpeed's ops and the attention kernels."""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from drive_vlm.doctor.finding import PROBE_ERRORS, Finding, Setting, fail, ok, warn

# Shown always; other requirements only when they are out of range.
_SHOWN = ("torch", "torchvision", "deepspeed", "transformers", "accelerate", "peft", "trl")
_ON_GPU = ("fused_adam", "cpu_adam", "async_io")
_ON_CPU = ("cpu_adam", "deepspeed_shm_comm")


def python(setting: Setting) -> Iterator[Finding]:
    """The interpreter against the range that the package declares."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    wanted = importlib.metadata.metadata("drive-vlm")["Requires-Python"] or ">=3.11,<3.13"
    seen = f"{version} ({sys.executable})"
    if version in SpecifierSet(wanted):
        yield ok("python", seen)
    else:
        yield fail("python", f"{seen}, and the project takes {wanted}", "Make an environment with Python 3.11 or 3.12.")


def torch_build(setting: Setting) -> Iterator[Finding]:
    """torch's version, what it was built for, and NCCL."""
    try:
        import torch
    except (ImportError, OSError) as error:
        todo = "Install it again: pip install -c constraints/cpu.txt (or cuda.txt) -e ."
        yield fail("torch", f"it does not load: {error}", todo)
        return

    if torch.version.cuda is None:
        build = f"ROCm {torch.version.hip}" if torch.version.hip else "CPU build"
        yield ok("torch", f"{torch.__version__}, {build}")
        return
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
    seen = f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"
    if nccl == "none":
        yield warn("torch", seen, "Several GPUs need NCCL: install the torch of constraints/cuda.txt.")
    else:
        yield ok("torch", seen)


def torchvision_match(setting: Setting) -> Iterator[Finding]:
    """torch 2.N goes with torchvision 0.(N+15); with CPU torch the public wheel works through the project's stand-in for nms."""
    import torch
    import torchvision

    from drive_vlm import _torchvision_cpu

    minor = int(torch.__version__.split(".")[1])
    seen = f"{torchvision.__version__} with torch {torch.__version__}"
    stands_in = bool(_torchvision_cpu._LIBRARIES)
    if torch.__version__.startswith("2.") and not torchvision.__version__.startswith(f"0.{minor + 15}."):
        todo = "Install the pair of constraints/cpu.txt or cuda.txt."
        yield fail("torchvision", f"{seen}, which takes 0.{minor + 15}", todo)
    elif stands_in and torch.version.cuda:
        todo = "Install the torchvision built for this torch (constraints/cuda.txt)."
        yield fail("torchvision", f"{seen}: its compiled operators do not load", todo)
    elif stands_in:
        yield ok("torchvision", f"{seen}: nms is the project's own (roi_align and the like are absent)")
    else:
        yield ok("torchvision", seen)


def packages(setting: Setting) -> Iterator[Finding]:
    """Installed versions against the ranges of setup.py; an absent package of an extra is not a mistake."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in importlib.metadata.requires("drive-vlm") or []]
    wrong = False
    shown = []
    # A package can be required twice, by the project and by an extra: one line is enough.
    for requirement in {item.name: item for item in wanted}.values():
        extra = "extra" in str(requirement.marker or "")
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if not extra:
                wrong = True
                todo = "pip install -e . again."
                yield fail(requirement.name, f"not installed; {requirement.specifier} is needed", todo)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong = True
            todo = f"pip install '{requirement.name}{requirement.specifier}'."
            yield (warn if extra else fail)(requirement.name, f"{version}, out of {requirement.specifier}", todo)
        elif requirement.name in _SHOWN:
            shown.append(f"{requirement.name} {version}")
    yield ok("packages", ", ".join(shown) + ("" if wrong else "; all in the ranges of setup.py"))


def deepspeed_ops(setting: Setting) -> Iterator[Finding]:
    """Which of DeepSpeed's compiled ops this machine could build, and which are built; nothing is compiled here."""
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:
        # Set before deepspeed is imported: it chooses its accelerator, and with it the list of ops, at that moment.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # The builders print warnings about every compiler and library that they miss, whether asked to or not.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import deepspeed
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        able = {name: _can_be_built(item) for name, item in ALL_OPS.items() if "not_implemented" not in name}
    built = [name for name in able if _built(name) or installed_ops.get(name)]
    seen = (
        f"{deepspeed.__version__}; can be built: {_names(n for n, can in able.items() if can)}; built: {_names(built)}"
    )
    missing = [name for name in (_ON_GPU if cuda else _ON_CPU) if not able.get(name)]
    if missing and cuda:
        todo = "They need nvcc of torch's CUDA version, g++ and ninja (async_io: libaio); offloading needs cpu_adam, NVMe async_io."
        yield warn("deepspeed ops", f"{seen}; cannot be built: {_names(missing)}", todo)
    else:
        yield ok("deepspeed ops", seen)


def _can_be_built(builder: Any) -> bool:
    """Whether the compilers and libraries of one op are here; a builder that breaks while it looks says no."""
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException

    try:
        return bool((builder() if isinstance(builder, type) else builder).is_compatible(verbose=False))
    except (*PROBE_ERRORS, CUDAMismatchException, MissingCUDAException):
        return False


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def extensions_dir() -> Path:
    """Where torch keeps compiled extensions."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"


def _built(name: str) -> bool:
    return any(extensions_dir().glob(f"**/{name}/*.so"))


def attention(setting: Setting) -> Iterator[Finding]:
    """Which of --attn_implementation work: sdpa and eager always, flash and flex on GPUs."""
    import torch

    cuda = torch.cuda.is_available()
    if importlib.util.find_spec("flash_attn") is None:
        flash = "flash: flash-attn is not installed"
    else:
        try:
            importlib.import_module("flash_attn")
        except (ImportError, OSError, RuntimeError) as error:
            todo = "Rebuild flash-attn for this torch."
            yield warn("attention", f"flash-attn does not load: {str(error).splitlines()[0][:120]}", todo)
            return
        flash = f"flash: flash-attn {importlib.metadata.version('flash-attn')}" + (
            "" if cuda else " (no GPU to run it on)"
        )
    flex = "flex: yes" if cuda else "flex: trains on GPUs only"
    yield ok("attention", f"sdpa and eager: yes; {flash}; {flex}")
