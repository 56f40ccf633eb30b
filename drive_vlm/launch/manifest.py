"""run.json: the command, versions, data, model and machine of a run; written when it starts and completed when it ends.

It has what `python -m drive_vlm reproduce` needs: the words of the command, the topology, and hashes of code, data and
model. Pictures are not hashed, only the files that list them. Secrets are left out (secrets.py).
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.config import plain
from drive_vlm.launch.topology import launcher, read_topology
from drive_vlm.store.cache import write_json
from drive_vlm.store.fingerprint import code_hash, file_hashes, git_diff, git_state, model_fingerprint
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.secrets import hide, hide_words, is_secret

_PACKAGES = (
    "drive-vlm", "torch", "torchvision", "deepspeed", "transformers", "accelerate", "peft", "trl", "tokenizers", "safetensors",
    "datasets", "flash-attn", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "numpy", "pillow", "open_clip_torch",
)  # fmt: skip
# What changes numbers, speed or where a run finds its processes; not what belongs to one machine or one job.
_ENVIRONMENT = re.compile(
    r"(CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|OMP_NUM_THREADS|PYTHONHASHSEED|PYTHONPATH|TOKENIZERS_PARALLELISM"
    r"|HF_(HOME|HUB_CACHE|HUB_OFFLINE)|TRANSFORMERS_OFFLINE"
    r"|(PYTORCH|TORCH|NCCL|GLOO|UCX|DEEPSPEED|DRIVE_VLM|FLASH_ATTENTION|NVIDIA_TF32)_\w+)"
)
_JOB = re.compile(r"SLURM_(JOB_ID|JOB_NAME|JOB_NODELIST|JOB_PARTITION|NNODES|NTASKS|RESTART_COUNT|ARRAY_\w+)")
# Already elsewhere in the manifest, without effect on the run, or set by torchrun and transformers themselves.
_NOT_ENVIRONMENT = {"DRIVE_VLM_ROOT", "DRIVE_VLM_RECIPE", "DRIVE_VLM_CACHE", "DRIVE_VLM_CONTROL_DIR"}
_NOT_ENVIRONMENT |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "PYTORCH_NVML_BASED_CUDA_CHECK"}


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
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Name, memory and driver of each GPU that nvidia-smi sees; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def peak_resident_bytes() -> int:
    """Most memory this process ever held, in bytes."""
    # Linux keeps getrusage's figure across exec: a child of a large process would report its parent's. /proc does not.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def topology() -> dict[str, Any]:
    """Processes, nodes and launcher of this run: what `launch` of recipes/_launch.sh needs to start it again."""
    now = read_topology()
    return {
        "launcher": launcher(),
        "world_size": now.world_size,
        "nproc_per_node": now.local_world_size,
        "nnodes": max(1, now.world_size // now.local_world_size),
    }


def environment() -> dict[str, str]:
    """Variables that change what a run computes or how; never one that may hold a secret."""
    names = (n for n in sorted(os.environ) if _ENVIRONMENT.fullmatch(n) and n not in _NOT_ENVIRONMENT)
    return {name: os.environ[name] for name in names if not is_secret(name)}


def start_manifest(path: Path, **facts: Any) -> None:
    """Write the facts known at the start: command, versions, machine, code, hashes, and what the caller adds.

    A resumed run writes it again and keeps the starts before it under "earlier". With changed code, run.diff next to it
    holds the difference to the commit.
    """
    facts = plain(facts)
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
    training = facts.get("config", {}).get("training", {})
    git = git_state()
    content = {
        "command": hide_words([sys.executable, *sys.orig_argv[1:]]),
        "words": hide_words(words),
        "directory": os.getcwd(),
        "recipe": os.environ.get("DRIVE_VLM_RECIPE"),
        "topology": topology(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "machine": machine(),
        "environment": environment(),
        "job": {name: value for name, value in sorted(os.environ.items()) if _JOB.fullmatch(name)},
        "git": git,
        "code_hash": code_hash(),
        "seeds": {name: training.get(name) for name in ("seed", "data_seed")},
        "file_hashes": file_hashes([*_files_of(facts.get("data")), *_files_in(words)]),
        **facts,
    }
    model = facts.get("config", {}).get("model", {}).get("model")
    if model is not None:
        content["model_fingerprint"] = model_fingerprint(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    diff = path.with_name("run.diff")
    if git and git["changed_files"]:
        diff.write_text(hide(git_diff()))
    else:
        diff.unlink(missing_ok=True)
    content["earlier"] = _earlier(path)
    write_json(path, hide(content))


def complete_manifest(path: Path, **facts: Any) -> None:
    """Add facts known at the end, such as peaks and final metrics."""
    try:
        content = read_object(path)
    except ValueError as error:
        # Damaged while the run went on. Its end is worth a line, not a failure.
        print(f"{error}: run.json holds the end of the run only", file=sys.stderr)
        content = {}
    content.update(plain(facts), ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    write_json(path, hide(content))


def trained_frames(model: str) -> int | None:
    """--num_frames of the run that made `model`, from the run.json in its folder or, for a checkpoint, in the folder above."""
    for folder in (Path(model), Path(model).parent):
        path = folder / "run.json"
        if path.is_file():
            return _trained_frames(path)
    return None


def _trained_frames(path: Path) -> int | None:
    """The number in a run.json; None in one of another stage or program, which need not have it, and in a damaged one."""
    try:
        return part(read_object(path), "config.data.num_frames", int, path)
    except ValueError:
        return None


def frames_note(model: str, num_frames: int) -> str:
    """A line to print where `model` was trained with another --num_frames, else ''."""
    trained = trained_frames(model)
    if trained in (None, num_frames):
        return ""
    return f"note: {model} was trained on {trained} frames of a video, this takes {num_frames}: --num_frames {trained} takes as many\n"


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The starts of this run before this one, oldest first."""
    if not path.is_file():
        return []
    try:
        last = read_object(path)
        git = part({"git": None} | last, "git", dict | None, path)
        earlier = part({"earlier": []} | last, "earlier", list, path)
    except ValueError as error:
        print(f"{error}: the starts before this one are lost", file=sys.stderr)
        return []
    kept = {key: last.get(key) for key in ("started", "ended", "words", "topology", "code_hash")}
    return [*earlier, {**kept, "commit": (git or {}).get("commit")}]


def _files_of(value: Any) -> Iterator[str]:
    """Every "path" in the facts about the data that is a file."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str) and Path(value["path"]).is_file():
            yield value["path"]
        for item in value.values():
            yield from _files_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from _files_of(item)


def _files_in(words: list[str]) -> Iterator[str]:
    """Every word of the command, or value of --flag=value, that is a file: data, YAML, DeepSpeed JSON."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if value and Path(value).is_file():
            yield value
