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

from drive_vlm.doctor.finding import Finding, Setting, judge, ok

# Shown always; other requirements only when they are out of range.
_SHOWN = ("torch", "torchvision", "deepspeed", "transformers", "accelerate", "peft", "trl")
_ON_GPU = ("fused_adam", "cpu_adam", "async_io")


def python(setting: Setting) -> Iterator[Finding]:
    """The interpreter against the range that the package declares."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    wanted = importlib.metadata.metadata("drive-vlm")["Requires-Python"] or ">=3.11,<3.13"
    seen = f"{version} ({sys.executable}); the project takes {wanted}"
    todo = "Make an environment with Python 3.11 or 3.12."
    yield judge("python", seen, (version not in SpecifierSet(wanted), "fail", todo))


def torch_build(setting: Setting) -> Iterator[Finding]:
    """torch's version, what it was built for, and NCCL."""
    try:
        import torch
    except (ImportError, OSError) as error:
        todo = "Install it again: pip install -c constraints/cpu.txt (or cuda.txt) -e ."
        yield Finding("torch", "fail", f"it does not load: {error}", todo)
        return
    if torch.version.cuda is None:
        build = f"ROCm {torch.version.hip}" if torch.version.hip else "CPU build"
        yield ok("torch", f"{torch.__version__}, {build}")
        return
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
    seen = f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"
    todo = "Several GPUs need NCCL: install the torch of constraints/cuda.txt."
    yield judge("torch", seen, (nccl == "none", "warn", todo))


def torchvision_match(setting: Setting) -> Iterator[Finding]:
    """torch 2.N goes with torchvision 0.(N+15); with CPU torch the public wheel works through the project's stand-in for nms."""
    import torch
    import torchvision

    from drive_vlm import _torchvision_cpu

    pair = f"0.{int(torch.__version__.split('.')[1]) + 15}."
    stands_in = bool(_torchvision_cpu._LIBRARIES)
    seen = f"{torchvision.__version__} with torch {torch.__version__}"
    yield judge(
        "torchvision",
        seen + ("; nms is the project's own (roi_align and the like are absent)" if stands_in else ""),
        (
            torch.__version__.startswith("2.") and not torchvision.__version__.startswith(pair),
            "fail",
            f"This torch takes torchvision {pair}x: install the pair of constraints/cpu.txt or cuda.txt.",
        ),
        (
            stands_in and torch.version.cuda,
            "fail",
            "Its compiled operators do not load: install the torchvision built for this torch (constraints/cuda.txt).",
        ),
    )


def packages(setting: Setting) -> Iterator[Finding]:
    """Installed versions against the ranges of setup.py; an absent package of an extra is not a mistake."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in importlib.metadata.requires("drive-vlm") or []]
    wrong, shown = False, []
    # A package can be required twice, by the project and by an extra: one line is enough.
    for requirement in {item.name: item for item in wanted}.values():
        name, extra = requirement.name, "extra" in str(requirement.marker or "")
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if not extra:
                wrong = True
                yield Finding(
                    name, "fail", f"not installed; {requirement.specifier} is needed", "pip install -e . again."
                )
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong = True
            todo = f"pip install '{name}{requirement.specifier}'."
            yield Finding(name, "warn" if extra else "fail", f"{version}, out of {requirement.specifier}", todo)
        elif name in _SHOWN:
            shown.append(f"{name} {version}")
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

        able = {name for name, item in ALL_OPS.items() if "not_implemented" not in name and _can_be_built(item)}
    built = [name for name in ALL_OPS if any(extensions_dir().glob(f"**/{name}/*.so")) or installed_ops.get(name)]
    missing = [name for name in (_ON_GPU if cuda else ()) if name not in able]
    seen = f"{deepspeed.__version__}; can be built: {_names(able)}; built: {_names(built)}"
    todo = f"{_names(missing)}: nvcc of torch's CUDA version, g++ and ninja build them (async_io: libaio); offloading needs cpu_adam, NVMe async_io."
    yield judge("deepspeed ops", seen, (missing, "warn", todo))


def _can_be_built(builder: Any) -> bool:
    """Whether the compilers and libraries of one op are here."""
    try:
        return bool((builder() if isinstance(builder, type) else builder).is_compatible(verbose=False))
    # A builder breaks in ways of its own while it looks, such as CUDAMismatchException.
    except Exception:
        return False


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def extensions_dir() -> Path:
    """Where torch keeps compiled extensions."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"


def attention(setting: Setting) -> Iterator[Finding]:
    """Which of --attn_implementation work: sdpa and eager always, flash and flex on GPUs."""
    import torch

    cuda, flash = torch.cuda.is_available(), "flash-attn is not installed"
    if importlib.util.find_spec("flash_attn"):
        try:
            importlib.import_module("flash_attn")
        except (ImportError, OSError, RuntimeError) as error:
            seen = f"flash-attn does not load: {str(error).splitlines()[0][:120]}"
            yield Finding("attention", "warn", seen, "Rebuild flash-attn for this torch.")
            return
        flash = f"flash-attn {importlib.metadata.version('flash-attn')}{'' if cuda else ' (no GPU to run it on)'}"
    yield ok("attention", f"sdpa and eager: yes; flash: {flash}; flex: {'yes' if cuda else 'trains on GPUs only'}")
