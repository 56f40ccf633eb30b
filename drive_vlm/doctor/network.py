"""The hub, variables that break launches, ports, Slurm, and two ranks that talk.

torchrun starts this module for `doctor --communication`: `sum_over_ranks`. It is not started by hand.
"""

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

from drive_vlm.doctor.finding import Finding, Setting, judge, ok, output_of
from drive_vlm.doctor.hardware import driver_gpus

_HUB_TIMEOUT_S = 3
_TORCHRUN_PORT = 29500
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
# Numbers that two ranks sum: 16 MiB.
_ELEMENTS = 1 << 22
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
        yield Finding("hub", "warn", f"{address} does not answer: {error}", todo)
        return
    yield ok("hub", f"{address} answers in {time.perf_counter() - started:.1f} s")


def leftovers(setting: Setting) -> Iterator[Finding]:
    """Launcher variables (RANK, WORLD_SIZE) left in a plain shell: a run would wait for peers that were never started."""
    names = [name for name in _RANK_VARIABLES if name in os.environ]
    inside = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    if names and not inside:
        seen = ", ".join(f"{name}={os.environ[name]}" for name in names)
        yield Finding("launcher variables", "fail", f"left over: {seen}", f"unset {' '.join(names)}")
    elif "MASTER_ADDR" in os.environ and os.environ.get("NNODES", "1") == "1" and not inside:
        seen = f"MASTER_ADDR={os.environ['MASTER_ADDR']} without NNODES"
        yield Finding("launcher variables", "warn", seen, "unset MASTER_ADDR for runs on one node.")
    else:
        yield ok("launcher variables", "set by this job's launcher" if names else "none left over")


def collectives(setting: Setting) -> Iterator[Finding]:
    """NCCL_*, GLOO_* and debugging variables: interfaces that are not there, settings that slow every step."""
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NCCL_", "GLOO_"))}
    found = []
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for problem, todo in _interface_problems(name, given.get(name, "")):
            found.append(Finding("collectives", "fail", f"{name}={given[name]}: {problem}", todo))
    for name, effect in _SLOW.items():
        if os.environ.get(name, "0").upper() not in ("0", "", "OFF", "INFO"):
            todo = f"unset {name} unless you are looking for a fault."
            found.append(Finding("collectives", "warn", f"{name}={os.environ[name]}: {effect}", todo))
    seen = ", ".join(f"{name}={value}" for name, value in given.items()) or "no NCCL_* or GLOO_* set"
    yield from found or [ok("collectives", seen)]


def _interface_problems(name: str, value: str) -> Iterator[tuple[str, str]]:
    present = sorted(interface for _, interface in socket.if_nameindex())
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
    value, there = os.environ.get("CUDA_VISIBLE_DEVICES"), len(driver_gpus())
    if value is None:
        return
    # CUDA ignores a number that does not exist and all that follow, without a word: a run would get fewer GPUs than it asked for.
    beyond = [part for part in value.split(",") if part.strip().isdigit() and int(part) >= there]
    todo = f"Use numbers from 0 to {there - 1}; CUDA drops what follows a wrong one."
    seen = f"CUDA_VISIBLE_DEVICES={value!r}, and there are {there}"
    yield judge("visible gpus", seen, (there and beyond, "fail", todo))


def python_path(setting: Setting) -> Iterator[Finding]:
    """Copies of packages that PYTHONPATH puts before the installed ones."""
    entries = [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    names = ("torch", "transformers", "deepspeed", "accelerate", "numpy", "drive_vlm")
    shadows = [str(entry / name) for entry in entries for name in names if (entry / name / "__init__.py").is_file()]
    own = Path(__file__).resolve().parents[1]
    foreign = [text for text in shadows if Path(text).resolve() != own]
    seen = os.environ.get("PYTHONPATH") or "not set"
    seen += f"; it shadows installed packages: {', '.join(foreign)}" if foreign else ""
    todo = "unset PYTHONPATH, or remove the entry (site modules on clusters often set it)."
    yield judge("PYTHONPATH", seen, (foreign, "warn", todo))


def ports(setting: Setting) -> Iterator[Finding]:
    """Whether a port can be opened and reached, and whether the usual one is taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=3):
            pass
    seen = f"port {port} on 127.0.0.1 opened and reached"
    wanted, chosen = int(os.environ.get("MASTER_PORT", _TORCHRUN_PORT)), "MASTER_PORT" in os.environ
    try:
        socket.create_server(("", wanted)).close()
    except OSError:
        todo = "Another run may be there. One node: a free port is chosen. Several nodes: set MASTER_PORT."
        yield judge(
            "ports",
            f"{seen}; {wanted} is taken",
            (chosen, "fail", "Set another MASTER_PORT, or unset it."),
            (True, "warn", todo),
        )
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
        yield Finding("slurm", "warn", f"installed, but it does not answer: {reason[0]}", todo)
        return
    yield ok("slurm", f"{version}{job}; " + "; ".join(partitions.splitlines()))


def communication(setting: Setting) -> Iterator[Finding]:
    """With --communication: two ranks through torchrun sum a tensor; gloo on the CPU, and NCCL where there are two GPUs."""
    if not setting.communication:
        return
    # --standalone: torchrun chooses a free port, since the usual one may belong to another run. The host name may not resolve.
    launcher = "-m torch.distributed.run --standalone --local_addr 127.0.0.1 --nproc_per_node 2"
    words = [sys.executable, *launcher.split(), "-m", __name__]
    # Inside a job these are set for this process; the two ranks must get their own from torchrun.
    env = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES} | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=env)
    except subprocess.TimeoutExpired:
        todo = "Look at the interfaces: NCCL_DEBUG=INFO, GLOO_SOCKET_IFNAME."
        yield Finding("communication", "fail", "two ranks did not meet within 120 s", todo)
        return
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if "Error" in line] or [f"exit code {done.returncode}"]
        todo = "Run it by hand: " + " ".join(words[1:])
        yield Finding("communication", "fail", reason[-1].strip()[:200], todo)
    else:
        yield ok("communication", done.stdout.strip().splitlines()[-1])


def sum_over_ranks() -> None:
    """All-reduce of 16 MiB; rank 0 prints a line. Raises RuntimeError for a wrong sum."""
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    values = torch.full((_ELEMENTS,), float(dist.get_rank() + 1), device=device)
    # The first collective opens the connections, which takes longer than the sum that is timed.
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(values)
    total, expected = values.mean().item(), sum(range(1, dist.get_world_size() + 1))
    milliseconds = (time.perf_counter() - started) * 1000
    if total != expected:
        raise RuntimeError(f"the sum over {dist.get_world_size()} ranks is {total}, it should be {expected}")
    if dist.get_rank() == 0:
        print(f"{dist.get_backend()}: 16 MiB summed over {dist.get_world_size()} ranks in {milliseconds:.0f} ms")
    dist.destroy_process_group()


if __name__ == "__main__":
    sum_over_ranks()
