"""run.json: what ran, with what, on what; written when a run starts and completed when it ends."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from drive_vlm.config import plain

_PACKAGES = (
    "drive-vlm",
    "torch",
    "torchvision",
    "deepspeed",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "numpy",
    "pillow",
    "open_clip_torch",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": cores,
        "memory_gib": round(memory / 2**30, 1),
    }


def peak_resident_bytes() -> int:
    """Most memory this process ever held, in bytes.

    Linux keeps getrusage's figure across exec: a child of a large process would report its parent's, so /proc is asked first.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def git_state() -> dict[str, Any] | None:
    """Commit of the code and whether it was changed since; None outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None


def start_manifest(path: Path, **facts: Any) -> None:
    """Write the facts known at the start: command, versions, machine, git, and what the caller adds."""
    content = {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "machine": machine(),
        "git": git_state(),
        **plain(facts),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def complete_manifest(path: Path, **facts: Any) -> None:
    """Add facts known at the end, such as peaks and final metrics."""
    content = json.loads(path.read_text())
    content.update(plain(facts), ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    path.write_text(json.dumps(content, indent=2) + "\n")
