"""The two sides of bench_launch.py: our recipe's launch, and a bare torchrun script of the same work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
TOOLS = BENCH.parent


def gpu_count() -> int:
    """GPUs that both sides would use; 0 runs them on the CPU."""
    from drive_vlm.launch.manifest import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(gpus()) if visible is None else len([word for word in visible.split(",") if word and word != "-1"])


class Bench:
    """Starts both sides in a work folder that `prepare` has filled."""

    def __init__(self, args: Any, work: Path) -> None:
        self.args, self.work, self.cpu = args, work, not gpu_count()
        self.deepspeed = None if args.deepspeed == "none" else args.deepspeed
        self.recipe = work / "bench_recipe.sh"
        self.recipe.write_text(
            f'#!/usr/bin/env bash\nset -euo pipefail\nsource "{TOOLS.parent}/recipes/_launch.sh"\nlaunch sft "$@"\n'
        )
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM_", "TORCHELASTIC_", "DRIVE_VLM_"))
            and key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LAUNCHER", "MAX_RESTARTS", "NNODES", "RESUME", "PLAN")
        } | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{TOOLS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep),
            "OMP_NUM_THREADS": str(args.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        if self.cpu:
            self.env["DS_ACCELERATOR"] = "cpu"

    def flags(self, steps: int, out: Path, save_steps: int = 0) -> dict[str, Any]:
        """TrainingArguments of both sides."""
        saving = {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {"save_strategy": "no"}
        return {
            "output_dir": str(out),
            "max_steps": steps,
            "per_device_train_batch_size": self.args.batch_size,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch",
            "gradient_checkpointing": False,
            "seed": 0,
            "logging_steps": 1,
            "report_to": "tensorboard",
            "disable_tqdm": True,
            **saving,
        }

    def our_words(self, model: str, processes: int, flags: dict[str, Any], resume: Path | None = None) -> list[str]:
        ours = {
            "model": self.work / model,
            "data": self.work / "data" / "rows.jsonl",
            "freeze": "vision_tower",
            "packing": False,
            "global_batch_size": processes * self.args.batch_size,
            **({"deepspeed": self.deepspeed} if self.deepspeed else {}),
            **({"resume": resume} if resume else {}),
        }
        return [str(word) for name, value in (ours | flags).items() for word in (f"--{name}", value)]

    def ours(self, model: str, processes: int, flags: dict[str, Any], cache: str, resume: Path | None = None) -> Any:
        words = ["bash", str(self.recipe), *self.our_words(model, processes, flags, resume)]
        env = {"NPROC_PER_NODE": str(processes), "DRIVE_VLM_CACHE": str(self.work / cache)}
        return self.start(words, Path(flags["output_dir"]), env)

    def probe(self, model: str, processes: int, flags: dict[str, Any], switch_every: int = 0) -> list[dict[str, Any]]:
        """What the probe of each rank saw."""
        words = [*torchrun(processes), str(BENCH / "bench_launch_probe.py"), "--switch_every", str(switch_every)]
        out = Path(flags["output_dir"])
        self.start(
            [*words, *self.our_words(model, processes, flags)], out, {"DRIVE_VLM_CACHE": str(self.work / "warm")}
        )
        return [json.loads((out / f"probe-{rank}.json").read_text()) for rank in range(processes)]

    def peer(
        self, model: str, processes: int, flags: dict[str, Any], resume: Path | None = None, plain: bool = False
    ) -> Any:
        """By torchrun, or `plain` by python as a world of one."""
        from drive_vlm.launch.deepspeed import load_deepspeed_config

        layout = load_deepspeed_config(self.deepspeed, self.cpu) if self.deepspeed else None
        arguments = flags | {
            "use_cpu": self.cpu,
            "deepspeed": layout,
            "ddp_backend": "gloo" if self.cpu and not layout else None,
            "ddp_find_unused_parameters": False,
            "dataloader_pin_memory": not self.cpu,
            "remove_unused_columns": False,
            "save_total_limit": 2,
        }
        settings = {
            "model": str(self.work / model),
            "data": str(self.work / "data" / "rows.jsonl"),
            "freeze": "vision_tower",
            "resume": str(resume) if resume else None,
            "arguments": arguments,
        }
        out = Path(flags["output_dir"])
        file = out.with_suffix(".json")
        file.write_text(json.dumps(settings))
        script = str(BENCH / "bench_launch_peer.py")
        env = {"TENSORBOARD_LOGGING_DIR": str(out / "tensorboard")}
        if not plain:
            return self.start([*torchrun(processes), script, str(file)], out, env)
        env |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        return self.start([sys.executable, script, str(file)], out, env)

    def start(self, command: list[str], out: Path, env: dict[str, str]) -> dict[str, float]:
        """Run `command` to its end: seconds until its first log stood in metrics.jsonl, CPU seconds until then and in all.

        Raises ValueError with the last words of a run that fails.
        """
        import psutil

        out.mkdir(parents=True)
        log, first, cpu = out.with_suffix(".log"), 0.0, 0.0
        with open(log, "wb") as file:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=self.env | env)
            while process.poll() is None:
                if not first and (out / "metrics.jsonl").exists():
                    first, cpu = time.perf_counter() - started, cpu_seconds(psutil.Process(process.pid))
                time.sleep(0.005 if not first else 0.05)
        if process.returncode or not first:
            text = log.read_text(errors="replace")
            raise ValueError(f"{log}: ended with code {process.returncode}: {text[-3000:]}")
        return {"seconds": first, "cpu_seconds": cpu, "seconds_to_the_end": time.perf_counter() - started}


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def cpu_seconds(root: Any) -> float:
    """Of a process (psutil.Process) and all below it, those that have ended included."""
    import psutil

    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # counted by its parent from now on
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
