"""The hub, variables that break launches, ports, Slurm, and two ranks that talk."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from drive_vlm.doctor.finding import Finding, Setting, fail, ok, output_of, warn
from drive_vlm.doctor.hardware import driver_gpus

_HUB_TIMEOUT_S = 3
_TORCHRUN_PORT = 29500
# Settings of NCCL that people try once and forget.
_SLOW = {
    "NCCL_P2P_DISABLE": "GPUs of a node talk through host memory",
    "NCCL_IB_DISABLE": "nodes talk over TCP",
    "NCCL_SHM_DISABLE": "GPUs of a node talk over TCP",
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is checked",
}


def hub(setting: Setting) -> Iterator[Finding]:
    """Whether models can be fetched; HF_HUB_OFFLINE and --offline are respected."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            yield ok("hub", f"{name} is set: only what is in the cache is used")
            return
    if setting.offline:
        yield ok("hub", "not tried (--offline)")
        return
    started = time.perf_counter()
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        # An error page is an answer too: the network works.
        pass
    except (OSError, ValueError) as error:
        todo = "Fetch models on a machine with a network, give --model a directory, and set HF_HUB_OFFLINE=1 here."
        yield warn("hub", f"{address} does not answer: {error}", todo)
        return
    yield ok("hub", f"{address} answers in {time.perf_counter() - started:.1f} s")


def leftovers(setting: Setting) -> Iterator[Finding]:
    """Launcher variables (RANK, WORLD_SIZE) left in a plain shell: a run would wait for peers that were never started."""
    names = [
        name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK") if name in os.environ
    ]
    inside = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    if names and not inside:
        seen = ", ".join(f"{name}={os.environ[name]}" for name in names)
        yield fail("launcher variables", f"left over: {seen}", f"unset {' '.join(names)}")
    elif "MASTER_ADDR" in os.environ and os.environ.get("NNODES", "1") == "1" and not inside:
        todo = "unset MASTER_ADDR for runs on one node."
        yield warn("launcher variables", f"MASTER_ADDR={os.environ['MASTER_ADDR']} without NNODES", todo)
    else:
        yield ok("launcher variables", "set by this job's launcher" if names else "none left over")


def collectives(setting: Setting) -> Iterator[Finding]:
    """NCCL_*, GLOO_* and debugging variables: interfaces that are not there, settings that slow every step."""
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NCCL_", "GLOO_"))}
    clean = True
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for problem, todo in _interface_problems(name, given.get(name, "")):
            clean = False
            yield fail("collectives", f"{name}={given[name]}: {problem}", todo)
    for name, effect in _SLOW.items():
        if os.environ.get(name, "0").upper() not in ("0", "", "OFF", "INFO"):
            clean = False
            todo = f"unset {name} unless you are looking for a fault."
            yield warn("collectives", f"{name}={os.environ[name]}: {effect}", todo)
    if clean:
        yield ok(
            "collectives", ", ".join(f"{name}={value}" for name, value in given.items()) or "no NCCL_* or GLOO_* set"
        )


def _interface_problems(name: str, value: str) -> Iterator[tuple[str, str]]:
    present = sorted(path.name for path in Path("/sys/class/net").iterdir())
    if name.startswith("GLOO") and value.startswith(("^", "=")):
        yield "gloo takes no ^ and no =", f"Name the interface: one of {', '.join(present)}."
        return
    if value.startswith("^") or not value:
        return
    for wanted in value.lstrip("=").split(","):
        exact = name.startswith("GLOO") or value.startswith("=")
        if not any(here == wanted if exact else here.startswith(wanted) for here in present):
            yield f"no interface is called {wanted}", f"Name one of {', '.join(present)}, or unset {name}."


def visible_gpus(setting: Setting) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES against the GPUs that are there."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(driver_gpus())
    if value is None:
        return
    # CUDA ignores a number that does not exist and all that follow, without a word: a run would get fewer GPUs than it asked for.
    beyond = [part for part in value.split(",") if part.strip().isdigit() and int(part) >= there]
    if there and beyond:
        todo = f"Use numbers from 0 to {there - 1}; CUDA drops what follows a wrong one."
        yield fail("visible gpus", f"CUDA_VISIBLE_DEVICES={value}, and there are {there}", todo)
    else:
        yield ok("visible gpus", f"CUDA_VISIBLE_DEVICES={value!r}")


def python_path(setting: Setting) -> Iterator[Finding]:
    """Copies of packages that PYTHONPATH puts before the installed ones."""
    entries = [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    names = ("torch", "transformers", "deepspeed", "accelerate", "numpy", "drive_vlm")
    shadows = [str(entry / name) for entry in entries for name in names if (entry / name / "__init__.py").is_file()]
    own = Path(__file__).resolve().parents[1]
    foreign = [text for text in shadows if Path(text).resolve() != own]
    if foreign:
        todo = "unset PYTHONPATH, or remove the entry (site modules on clusters often set it)."
        yield warn("PYTHONPATH", f"it shadows installed packages: {', '.join(foreign)}", todo)
    else:
        yield ok("PYTHONPATH", os.environ.get("PYTHONPATH") or "not set")


def ports(setting: Setting) -> Iterator[Finding]:
    """Whether a port can be opened and reached, and whether the usual one is taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=3):
            pass
    seen = f"port {port} on 127.0.0.1 opened and reached"
    wanted = int(os.environ.get("MASTER_PORT", _TORCHRUN_PORT))
    try:
        socket.create_server(("", wanted)).close()
    except OSError:
        if "MASTER_PORT" in os.environ:
            yield fail("ports", f"{seen}; MASTER_PORT={wanted} is taken", "Set another MASTER_PORT, or unset it.")
        else:
            todo = "Another run may be there. One node: a free port is chosen. Several nodes: set MASTER_PORT."
            yield warn("ports", f"{seen}; {wanted}, the usual one, is taken", todo)
        return
    yield ok("ports", f"{seen}; {wanted} is free")


def slurm(setting: Setting) -> Iterator[Finding]:
    """Whether Slurm is here and answers, and whether this is a job."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        yield ok("slurm", "not on this machine: start runs with recipes/ directly")
        return
    job = f"; inside job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    try:
        version = output_of(["sbatch", "--version"], timeout=5)
        partitions = output_of(["sinfo", "--noheader", "--format=%P %a %l %D nodes %G"], timeout=5)
    except subprocess.SubprocessError as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        todo = "On a node of the cluster? SLURM_CONF set? Without Slurm, start recipes/ directly."
        yield warn("slurm", f"installed, but it does not answer: {reason[0]}", todo)
        return
    yield ok("slurm", f"{version}{job}; " + "; ".join(partitions.splitlines()))


def communication(setting: Setting) -> Iterator[Finding]:
    """With --communication: two ranks through torchrun sum a tensor; gloo on the CPU, and NCCL where there are two GPUs."""
    if not setting.communication:
        return
    # Port 0 lets the system choose a free one: the usual port may belong to another run on this machine.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
             "--master_port", port, "-m", "drive_vlm.doctor.ranks"]  # fmt: skip
    # Inside a job these are set for this process; the two ranks must get their own from torchrun.
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    }
    env["OMP_NUM_THREADS"] = "1"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=env)
    except subprocess.TimeoutExpired:
        todo = "Look at the interfaces: NCCL_DEBUG=INFO, GLOO_SOCKET_IFNAME."
        yield fail("communication", "two ranks did not meet within 120 s", todo)
        return
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if "Error" in line] or [f"exit code {done.returncode}"]
        yield fail("communication", reason[-1].strip()[:200], "Run it by hand: " + " ".join(words[1:]))
    else:
        yield ok("communication", done.stdout.strip().splitlines()[-1])
