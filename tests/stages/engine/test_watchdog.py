"""The rank that the others wait for is named: judged by hand-made reports, and in real runs with a stopped or blocked rank."""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drive_vlm.config import RunConfig
from drive_vlm.data.order import EpochOrder, ShardedBatchSampler
from drive_vlm.stages.engine.heartbeat import Heartbeat, rows_of_step
from drive_vlm.stages.engine.watchdog import HANG_EXIT, Report, Seen, find_culprits


def rank(
    number: int, place: int, moved: float, answered: float = 100.0, phase: str = "forward", slow: bool = False
) -> Seen:
    return Seen(Report(number, 1, place, 0, 5, phase, slow, [], "node", 1), moved, answered)


@pytest.mark.parametrize(
    ("ranks", "culprits"),
    [
        pytest.param([rank(0, 8, 89.5), rank(1, 7, 80.0)], [1], id="behind in place"),
        pytest.param([rank(0, 8, 89.5), rank(1, 7, 95.0)], [], id="one still moves"),
        pytest.param([rank(0, 8, 95.0), rank(1, 7, 50.0)], [], id="the others still work"),
        pytest.param([rank(0, 7, 89.0), rank(1, 7, 60.0), rank(2, 7, 61.0)], [1, 2], id="equal places: who stopped first"),
        pytest.param([rank(0, 7, 80.0), rank(1, 7, 80.5, answered=80)], [1], id="equal places: who does not answer"),
        pytest.param([rank(0, 7, 80.0), rank(1, 8, 80.5, answered=80)], [0], id="silent, but ahead"),
        pytest.param([rank(0, 9, 10.0, phase="done"), rank(1, 7, 80.0)], [1], id="a rank that is done is not waited for"),
        pytest.param([rank(0, 9, 10.0, phase="done")], [], id="all done"),
        pytest.param([rank(0, 8, 75.0), rank(1, 7, 75.0, slow=True)], [], id="a slow phase has three times as long"),
        pytest.param([rank(0, 8, 69.0), rank(1, 7, 69.0, slow=True)], [1], id="and no longer"),
        pytest.param([rank(0, 8, 75.0, slow=True), rank(1, 7, 75.0)], [1], id="the limit is that of the rank behind"),
        pytest.param([rank(0, 7, 80.0), rank(1, 7, 80.0)], [0, 1], id="all at the same place"),
    ],
)  # fmt: skip
def test_who_is_waited_for(ranks: list[Seen], culprits: list[int]) -> None:
    """At 100 s with a limit of 10 s, looked at every second."""
    assert [found.report.rank for found in find_culprits(ranks, 100.0, 10.0, 1.0)] == culprits


def test_a_rank_is_judged_by_the_judges_clock() -> None:
    seen = Seen(Report(0, 1, 3, 0, 0, "data", True, [], "node", 1), 10.0, 10.0)
    seen.update(Report(0, 2, 3, 0, 0, "data", True, [], "node", 1), 20.0)
    assert (seen.moved, seen.answered) == (10.0, 20.0)
    seen.update(Report(0, 2, 3, 1, 0, "data", True, [], "node", 1), 30.0)
    assert (seen.moved, seen.answered) == (30.0, 20.0)
    seen.update(Report(0, 3, 4, 1, 0, "forward", True, [], "node", 1), 40.0)
    assert (seen.moved, seen.answered) == (40.0, 40.0)


def test_a_heartbeat_costs_microseconds() -> None:
    heartbeat = Heartbeat()
    started = time.perf_counter()
    for _ in range(10_000):
        heartbeat.beat("forward", ["a", "b"])
    assert (time.perf_counter() - started) / 10_000 < 20e-6
    assert heartbeat.now == (10_000, "forward", ["a", "b"])
    heartbeat.beat("backward")
    assert heartbeat.now.ids == ["a", "b"]


def test_rows_of_a_step_are_those_the_sampler_deals() -> None:
    class Table:
        def sample(self, i: int, need_answer: bool = True) -> Any:
            return type("Sample", (), {"id": f"row {i}"})

    sampler = ShardedBatchSampler(EpochOrder(np.ones(22), 3), 2, 2, 1, 2)  # 3 steps an epoch, the last of 6 rows
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        dealt = list(sampler)
        for step in range(3):
            want = [f"row {i}" for batch in dealt[2 * step : 2 * step + 2] for (i,) in batch]
            sampler.set_epoch(9)  # where the sampler stands does not matter, and is left alone
            assert rows_of_step(sampler, Table(), 3 * epoch + step) == want
            assert sampler.epoch == 9


def test_the_default_limit_is_below_that_of_the_collectives() -> None:
    """torch gives up after 30 minutes: a slow phase at the default must not outlast it."""
    assert 3 * RunConfig().hang_timeout <= 1800


@pytest.mark.fresh("SIGSTOP would stop the client alone")
@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named(training: Callable, stopped: int) -> None:
    """SIGSTOP: a process that neither trains nor answers, as on a frozen node; rank 0 is the first judge itself."""
    run = training("--hang_timeout", 3, ranks=2)
    run.wait_for_step(2)
    pid = run.rank_pid(stopped)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        while "Hangs:" not in run.text:
            assert run.process.poll() is None and time.monotonic() - began < 60, run.text[-3000:]
            time.sleep(0.1)
        while f"process {pid} closing signal" not in run.text:  # the other rank has ended
            assert time.monotonic() - began < 60, run.text[-3000:]
            time.sleep(0.1)
    finally:
        os.kill(pid, signal.SIGKILL)  # torchrun would give it 30 s
    assert run.wait() == 1
    reason = run.status["reason"]
    assert run.status["state"] == "failed"
    assert reason.startswith(f"Hangs: rank {stopped} (") and f", process {pid}) in step " in reason, reason
    # Between batches no row is at work: the signal may find the process there.
    assert ", ids scene-" in reason or "phase data" in reason or "phase communication" in reason, reason
    assert "The process does not answer" in reason and "The other ranks wait for it" in reason
    assert "raise --hang_timeout (3)" in reason


def picture_of(data: Path, name: str) -> Path:
    import json

    return next(
        data.parent / row["image"] for row in map(json.loads, data.read_text().splitlines()) if row["id"] == name
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """16 rows with a picture each, all of the same length."""
    import json

    from PIL import Image

    turns = [{"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "a truck"}]
    with open(tmp_path / "rows.jsonl", "w") as file:
        for i in range(16):
            Image.new("RGB", (56, 56), (i, i, i)).save(tmp_path / f"{i}.png")
            file.write(json.dumps({"id": f"row-{i}", "image": f"{i}.png", "conversations": turns}) + "\n")
    return tmp_path / "rows.jsonl"


@pytest.fixture
def hang() -> Iterator[Callable[[Path], None]]:
    """`hang(path)`: a file system that hangs. Whoever opens the file waits for this process to give its write lease (fcntl(2)) back."""
    held: list[int] = []

    def lease(path: Path) -> None:
        held.append(os.open(path, os.O_RDWR))
        # The kernel asks by a signal, and SIGIO would end this process; SIGURG does nothing.
        fcntl.fcntl(held[-1], fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(held[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)

    yield lease
    for file in held:
        os.close(file)


@pytest.mark.fresh("SIGSTOP would stop the client alone")
@pytest.mark.slow
def test_a_stopped_rank_0_that_holds_the_store_is_named(training: Callable) -> None:
    """Without a store in torchrun's own process (the deepspeed launcher, Slurm's srun) nobody can be asked."""
    run = training("--hang_timeout", 3, ranks=2, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    run.wait_for_step(2)
    pid = run.rank_pid(0)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        while "Hangs or is gone: rank 0." not in run.text:
            assert run.process.poll() is None and time.monotonic() - began < 60, run.text[-3000:]
            time.sleep(0.1)
        time.sleep(2)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert run.wait() == 1
    reason = run.status["reason"]
    assert run.status["state"] == "failed"
    assert f"Last heard of: rank 0 ({socket.gethostname()}, process {pid}) in step " in reason
    assert "Stands still as well: rank 1 (" in reason


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_blocks_its_reader_is_found_by_rank_and_ids(
    training: Callable, rows: Path, hang: Callable, tmp_path: Path, workers: int
) -> None:
    cache = str(tmp_path / "cache")
    flags = ("--data", rows, "--max_steps", 1)
    assert training(*flags, DRIVE_VLM_CACHE=cache).wait() == 0
    hang(rows.parent / "5.png")
    flags = ("--data", rows, "--hang_timeout", 2, "--dataloader_num_workers", workers)
    run = training(*flags, "--max_steps", 2, "--output_dir", tmp_path / "run", ranks=2, DRIVE_VLM_CACHE=cache)
    assert run.wait() == 1
    reason = run.status["reason"]
    assert reason.startswith("Hangs: rank ") and "phase data, ids row-" in reason and "row-5" in reason, reason
    named = int(reason.removeprefix("Hangs: rank ").split()[0])
    stacks = (run.out / f"hang-rank-{named}.txt").read_text()
    assert reason in stacks and "get_batch_samples" in stacks
    assert not (run.out / f"hang-rank-{1 - named}.txt").exists()
    assert f"\nrank {named}: {reason}\n" in run.text
    commands = [path / "cmdline" for path in Path("/proc").glob("[0-9]*")]
    assert not [path for path in commands if path.exists() and str(run.out).encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_single_process_that_hangs_ends_itself(
    training: Callable, rows: Path, hang: Callable, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    assert training("--data", rows, "--max_steps", 1, DRIVE_VLM_CACHE=cache).wait() == 0
    hang(rows.parent / "5.png")
    run = training("--data", rows, "--hang_timeout", 1, "--max_steps", 2, DRIVE_VLM_CACHE=cache)
    assert run.wait() == HANG_EXIT
    assert "Hangs: rank 0" in run.status["reason"] and "row-5" in run.status["reason"]
    assert "other ranks" not in run.status["reason"]


@pytest.mark.slow
def test_slow_steps_and_saves_are_no_hang(training: Callable, synthetic_data: Path) -> None:
    """A limit just above a step's time, with a save and an evaluation at each step."""
    each = ("--save_strategy", "steps", "--save_steps", 1, "--eval_strategy", "steps", "--eval_steps", 1)
    run = training("--hang_timeout", 2, "--max_steps", 8, *each, "--eval_data", synthetic_data / "val.jsonl", ranks=2)
    assert run.wait() == 0, run.text[-3000:]
    assert run.status["state"] == "finished"
