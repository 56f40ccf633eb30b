"""A small mixed data set, a tiny model and a runner of the real command line, for the tests of the stages."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# ZeRO-3 that shards even the smallest weight: ds_configs/zero3.json keeps those below 10 M elements whole.
SHARD_EVERYTHING = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "reduce_bucket_size": 20000,
        "stage3_prefetch_bucket_size": 20000,
        "stage3_max_live_parameters": 100000,
        "stage3_max_reuse_distance": 10000,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
}


@dataclasses.dataclass(frozen=True)
class World:
    """Paths of the data (70 training rows, of which some have no picture or two; 13 evaluation rows) and of the model."""

    root: Path
    train: Path
    eval: Path
    model: Path
    zero3: Path


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of the command line."""

    out: Path
    code: int
    text: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    def curve(self, name: str = "loss") -> list[float]:
        return [row[name] for row in self.metrics if "loss" in row]


@pytest.fixture(scope="session")
def shard_everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SHARD_EVERYTHING as a file."""
    path = tmp_path_factory.mktemp("zero3") / "shard_everything.json"
    path.write_text(json.dumps(SHARD_EVERYTHING))
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, shard_everything: Path) -> World:
    """Built anew by each worker in a second: seeded, so that the golden curve can be compared."""
    root = tmp_path_factory.mktemp("world")
    tools = ROOT / "tools"
    build = [
        sys.executable,
        tools / "build_synthetic.py",
        "--out",
        root / "data",
        "--scenes",
        "24",
        "--size",
        "64",
        "--seed",
        "11",
    ]
    subprocess.run([*build, "--workers", "1"], check=True, capture_output=True)
    data = root / "data"
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        if i % 7 == 3:  # no picture
            del row["image"]
            row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>\n", "")
        elif i % 7 == 5:  # two pictures
            row["image"] = [row["image"], rows[(i + 3) % len(rows)].get("image", row["image"])]
            row["conversations"][0]["value"] = "<image>\n" + row["conversations"][0]["value"]
    for name, part in (("train70", rows[:70]), ("eval13", rows[70:83])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tiny = [sys.executable, tools / "build_tiny_model.py", "--out", root / "tiny", "--corpus", data / "train70.jsonl"]
    subprocess.run(tiny, check=True, capture_output=True)
    return World(root, data / "train70.jsonl", data / "eval13.jsonl", root / "tiny", shard_everything)


def _launch(launcher: str, nproc: int) -> list[str]:
    if launcher == "torchrun":
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(nproc),
            "-m",
            "drive_vlm",
        ]
    if launcher == "deepspeed":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        return [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(nproc), "--master_port", port, "--module", "drive_vlm",
        ]  # fmt: skip
    return [sys.executable, "-m", "drive_vlm"]


@pytest.fixture(scope="session")
def grpo_words(world: World) -> Callable[..., list[object]]:
    """`grpo_words(out, *flags)`: 8 completions of up to 8 tokens a step, 2 prompts; the reward is letter_reward.py's."""

    def words(out: Path, *flags: object) -> list[object]:
        reward = f"{Path(__file__).with_name('rl') / 'letter_reward.py'}:build"
        rewards = () if "--rewards" in flags else ("--rewards", reward)
        return [
            "--model", world.model, "--data", world.train, "--output_dir", out, "--freeze", "vision_tower", "--max_steps", 6,
            "--logging_steps", 1, "--global_batch_size", 8, "--per_device_train_batch_size", 4, "--num_generations", 4,
            "--max_completion_length", 8, "--learning_rate", 1e-2, "--lr_scheduler_type", "constant", "--save_strategy", "no",
            "--disable_tqdm", "true", "--use_cpu", "true", "--report_to", "none", *rewards, *flags,
        ]  # fmt: skip

    return words


@pytest.fixture(scope="session")
def a2c_words(world: World) -> Callable[..., list[object]]:
    """`a2c_words(out, *flags)`: 8 completions of up to 8 tokens a step, one of each prompt; the reward is letter_reward.py's. The
    value head alone learns in the first step."""

    def words(out: Path, *flags: object) -> list[object]:
        reward = f"{Path(__file__).with_name('rl') / 'letter_reward.py'}:build"
        rewards = () if "--rewards" in flags else ("--rewards", reward)
        return [
            "--model", world.model, "--data", world.train, "--output_dir", out, "--freeze", "vision_tower", "--max_steps", 4,
            "--logging_steps", 1, "--global_batch_size", 8, "--per_device_train_batch_size", 8, "--max_completion_length", 8,
            "--learning_rate", 1e-3, "--value_learning_rate", 1e-2, "--value_warmup_steps", 1, "--lr_scheduler_type", "constant",
            "--missing_eos_penalty", 0.1, "--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu", "true", "--report_to", "none",
            *rewards, *flags,
        ]  # fmt: skip

    return words


@pytest.fixture(scope="session")
def a2c(command: Callable[..., Run], a2c_words: Callable[..., list[object]]) -> Callable[..., Run]:
    """`a2c(out, *flags, **of_command) -> Run` of `a2c_words`."""

    def run(out: Path, *flags: object, **options: Any) -> Run:
        return command(out, "a2c", *a2c_words(out, *flags), **options)

    return run


@pytest.fixture(scope="session")
def command(world: World) -> Callable[..., Run]:
    """`command(out, *words, launcher="python" | "torchrun" | "deepspeed", nproc=2, code=0, timeout=120) -> Run` of drive_vlm."""

    def run(
        out: Path, *words: object, launcher: str = "python", nproc: int = 2, code: int = 0, timeout: float = 120
    ) -> Run:
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        env |= {
            "OMP_NUM_THREADS": "1",
            "DRIVE_VLM_CACHE": str(world.root / "cache"),
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        env |= {"CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(
            [*_launch(launcher, nproc), *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=world.root, start_new_session=True,
        )  # fmt: skip
        try:
            text = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"hangs: no end after {timeout} s\n{process.communicate()[0][-3000:]}")
        assert process.returncode == code, text[-3000:]
        return Run(out, process.returncode, text)

    return run


@pytest.fixture
def inside(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`inside(command, *words)`: the command's own main function in this process, which has imported torch already."""
    import drive_vlm.__main__ as commands

    monkeypatch.setenv("DRIVE_VLM_CACHE", str(world.root / "cache"))

    def run(command: str, *words: object) -> None:
        commands.run(command, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def grpo(command: Callable[..., Run], grpo_words: Callable[..., list[object]]) -> Callable[..., Run]:
    """`grpo(out, *flags, **of_command) -> Run` of `grpo_words`."""

    def run(out: Path, *flags: object, **options: Any) -> Run:
        return command(out, "grpo", *grpo_words(out, *flags), **options)

    return run


@pytest.fixture(scope="session")
def sft(world: World, command: Callable[..., Run]) -> Callable[..., Run]:
    """`sft(out, *flags, **of_command) -> Run` of 8 steps of 16 rows."""

    def run(out: Path, *flags: object, **options: Any) -> Run:
        words = [
            "sft", "--model", world.model, "--data", world.train, "--output_dir", out, "--freeze", "vision_tower",
            "--max_steps", 8, "--logging_steps", 1, "--global_batch_size", 16, "--per_device_train_batch_size", 8,
            "--learning_rate", 1e-3, "--lr_scheduler_type", "constant", "--save_strategy", "no", "--disable_tqdm", "true", *flags,
        ]  # fmt: skip
        return command(out, *words, **options)

    return run


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`fresh(name)`: a new folder, removed after the module (checkpoints are large)."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(tmp_path_factory.mktemp(name))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path)


def _lives(pid: int) -> bool:
    """Whether a process still holds its files and ports."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Training:
    """A training in the background that tests signal, stop and wait for: `python WORDS`, by torchrun on several `ranks` or with `launcher` flags."""

    def __init__(self, words: list[object], out: Path, ranks: int, port: int, *launcher: str, **env: str) -> None:
        self.out = out
        start = [sys.executable]
        if ranks > 1 or launcher:
            torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", str(ranks)]
            start += [*torchrun, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", *launcher]
        words = [*start, *words, "--output_dir", out]
        self.mark, self._seen = str(uuid.uuid4()), set[int]()
        env = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | env
        env["TRAINING_OF_THE_TESTS"] = self.mark
        self.log = open(out.with_suffix(".log"), "w+")  # noqa: SIM115 - closed by the fixture
        self.process = subprocess.Popen(
            list(map(str, words)), stdout=self.log, stderr=subprocess.STDOUT, env=env, cwd=out.parent, start_new_session=True
        )  # fmt: skip

    @property
    def text(self) -> str:
        return Path(self.log.name).read_text()

    @property
    def steps(self) -> list[int]:
        """Steps in metrics.jsonl so far."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n") and '"loss"' in line]

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.out / "status.json").read_text())

    def wait_for_step(self, step: int, timeout: float = 90) -> None:
        end = time.monotonic() + timeout
        while not any(done >= step for done in self.steps):
            assert self.process.poll() is None and time.monotonic() < end, self.text[-3000:]
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """The process that was started and all below it; torchrun gives each rank a session of its own."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        parents |= sys.modules["tests_fork_server"].parents()
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def rank_pid(self, rank: int) -> int:
        """The process of a rank."""
        wanted = f"RANK={rank}".encode()
        return next(
            pid for pid in self.processes()[1:] if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        )

    def survivors(self) -> list[int]:
        """What still lives of the processes that were ever seen here, also where their parent is dead by now."""
        known = self.processes()
        mark = f"TRAINING_OF_THE_TESTS={self.mark}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended
                if mark in path.read_bytes().split(b"\0"):
                    known.append(int(path.parts[2]))
        self._seen |= set(known)
        self._seen |= {
            child for child, parent in sys.modules["tests_fork_server"].parents().items() if parent in self._seen
        }
        return sorted(filter(_lives, self._seen))

    def wait(self, timeout: float = 90) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end after {timeout} s\n{self.text[-3000:]}")

    def kill(self) -> None:
        """All that is left of it; returns when every process has ended, so that the next training finds the port free."""
        if self.process.poll() is None:
            killed = self.processes()
            for pid in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while any(map(_lives, killed[1:])):
                time.sleep(0.01)
        self.process.wait()
        self.log.close()


@pytest.fixture
def start_training(free_port: int) -> Iterator[Callable[..., Training]]:
    """`start_training(words, out, ranks, *launcher, **env) -> Training`."""
    started: list[Training] = []

    def start(words: list[object], out: Path, ranks: int, *launcher: str, **env: str) -> Training:
        started.append(Training(words, out, ranks, free_port, *launcher, **env))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def training(
    tmp_path: Path, synthetic_data: Path, tiny_model: Path, start_training: Callable[..., Training]
) -> Callable[..., Training]:
    """`training(*flags, ranks=1, launcher=(), **env) -> Training` of sft, of thousands of steps unless told otherwise."""

    def start(*flags: object, ranks: int = 1, launcher: tuple[str, ...] = (), **env: str) -> Training:
        words = [
            "-m", "drive_vlm", "sft", "--model", tiny_model, "--data", synthetic_data / "train.jsonl", "--freeze", "vision_tower", "--max_steps", 5000,
            "--logging_steps", 1, "--global_batch_size", 8, "--per_device_train_batch_size", 2, "--learning_rate", 1e-4,
            "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--packing", "false", *flags,
        ]  # fmt: skip
        return start_training(words, tmp_path / "run", ranks, *launcher, **env)

    return start
