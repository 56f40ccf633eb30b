"""What the fork server starts is what Python would have started."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not os.environ.get("FORK_SERVER"), reason="FRESH_PYTHON is set, or the machine has a GPU"
)
SEEN = """
import json, os, sys
import mine
print(json.dumps({
    "argv": sys.argv, "name": __name__, "path": sys.path[0], "cwd": os.getcwd(), "env": dict(os.environ),
    "executable": sys.executable, "main": sys.modules["__main__"].__dict__ is globals(), "orig": sys.orig_argv[1:],
    "package": sorted(name for name in sys.modules if name.partition(".")[0] == "drive_vlm"),
}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").touch()
    (tmp_path / "seen.py").write_text(SEEN)
    return tmp_path


@pytest.mark.parametrize("start", [["seen.py"], ["-m", "seen"], ["-u", "-c", SEEN]], ids=["script", "module", "code"])
def test_a_process_sees_what_a_fresh_one_sees(run: Callable, folder: Path, start: list[str]) -> None:
    """Words, environment, directory, path of imports, __main__ and exit code; the package is not imported."""
    forked, fresh = (
        run([sys.executable, *start, "a b", "--c"], cwd=folder, COLOUR="grün", **more)
        for more in ({}, {"FRESH_PYTHON": "1"})
    )
    assert (forked.returncode, forked.stderr) == (0, ""), forked.stderr
    forked, fresh = json.loads(forked.stdout), json.loads(fresh.stdout)
    del fresh["env"]["FRESH_PYTHON"]
    assert "fork_server" in forked.pop("executable") and "fork_server" not in fresh.pop("executable")
    set_by_imports = set(forked["env"]) - set(fresh["env"])
    assert {name: value for name, value in forked["env"].items() if name not in set_by_imports} == fresh["env"]
    assert forked | {"env": {}} == fresh | {"env": {}}


def test_imports_are_done_and_nothing_else(run: Callable) -> None:
    code = "import sys; print(len({'torch', 'transformers', 'deepspeed', 'peft', 'trl'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code]).stdout == "5\n"
    assert run([sys.executable, "-c", code], FRESH_PYTHON="1").stdout == "0\n"
    assert run([sys.executable, "-c", code], HF_HOME="/nowhere").stdout == "0\n", "read at import: a fresh process"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; print('said'); sys.exit(7)",
        "import sys; sys.exit('no')",
        "print('said', end=''); 1 / 0",
        "import atexit; atexit.register(print, 'last'); file = open('left.txt', 'w'); file.write('open')",
        "import os; os.kill(os.getpid(), 9)",
        "raise KeyboardInterrupt",
        "import sys; print(sys.stdin.read()[::-1]); print('error', file=sys.stderr)",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()",
    ],
)
def test_ends_as_a_fresh_process_ends(tmp_path: Path, code: str) -> None:
    """Exit code or signal, output, traceback, what runs at the end and what an open file holds then."""
    forked, fresh = (
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, input="abc", capture_output=True, text=True, check=False, env=env
        )
        for env in (os.environ, os.environ | {"FRESH_PYTHON": "1"})
    )  # fmt: skip
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert not (tmp_path / "left.txt").exists() or (tmp_path / "left.txt").read_text() == "open"


def test_children_share_no_state(run: Callable) -> None:
    code = (
        "import random, numpy, torch, warnings, os; print(random.random(), numpy.random.rand(), os.urandom(4).hex());"
        "print(torch.rand(1), getattr(torch, 'left', None), len(warnings.filters)); torch.left = 1; random.seed(1);"
        "torch.manual_seed(9); warnings.simplefilter('ignore'); os.environ['DRIVE_VLM_LEFT'] = '1'; os.chdir('/')"
    )
    one, two = (run([sys.executable, "-c", code]).stdout.splitlines() for _ in range(2))
    assert all(a != b for a, b in zip(one[0].split(), two[0].split(), strict=True)), "seeds are a process's own"
    assert one[1] == two[1], "torch begins with the seed of a fresh process, and nothing is left behind"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that says its number, the one that a signal would reach, and the signals it got."""
    # A suite that a shell started in the background ignores SIGINT, and its children would as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    code = (
        "import os, signal, time\n"
        # Not print: the signal may come while the number is still being written, and a buffered file cannot be entered twice.
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'USR1\\n'))\n"
        "os.write(1, b'%d\\n' % os.getpid())\n"
        "while True: time.sleep(0.05)\n"
    )
    yield subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)


def is_gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals_reach_the_child_and_end_both(sleeper: subprocess.Popen, number: int) -> None:
    assert sleeper.stdout is not None
    pid = int(sleeper.stdout.readline())
    parents = sys.modules["tests_fork_server"].parents()
    assert pid != sleeper.pid and parents[pid] == sleeper.pid
    sleeper.send_signal(signal.SIGUSR1)
    assert sleeper.stdout.readline() == "USR1\n"
    sleeper.send_signal(number)
    assert sleeper.wait(10) == -number and is_gone(pid)
    assert pid not in sys.modules["tests_fork_server"].parents()


def test_a_killed_process_takes_its_own_children_along(run: Callable) -> None:
    """Python in Python: the inner one belongs to the group of the outer one's child."""
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL and is_gone(pid)


def test_files_that_are_handed_down_arrive_and_are_closed_with_the_child(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    code = f"import os, sys, time; os.write({theirs}, b'here'); os.close({theirs}); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[theirs])
    os.close(theirs)
    with open(ours, "rb") as file:
        assert file.read() == b"here", "it ends when the child closes it, which lives on"
    assert process.poll() is None and process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def test_files_of_any_number_stay_open(tmp_path: Path) -> None:
    """Among them are those that the server's own sockets had: one that was collected in the child closed a file of the request."""
    numbers = range(3, 41)
    opened = "".join(f"exec {number}>{tmp_path}/{number}; " for number in numbers)
    code = "import gc, os; gc.collect(); [os.write(number, b'here') for number in range(3, 41)]"
    subprocess.run(["bash", "-c", f'{opened} exec "{sys.executable}" -c "{code}"'], check=True, timeout=60)
    assert all((tmp_path / str(number)).read_text() == "here" for number in numbers)


def test_workers_that_are_spawned(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(
        "import multiprocessing, os\n"
        "def work(i): return i * i\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool: print(pool.map(work, range(4)))\n"
    )
    done = run([sys.executable, tmp_path / "pool.py"])
    assert (done.stdout, done.returncode) == ("[0, 1, 4, 9]\n", 0), done.stderr


@pytest.mark.slow
def test_ranks_of_torchrun_meet_and_differ_in_their_hash_seed(run: Callable, tmp_path: Path) -> None:
    """Two ranks by torchrun itself; the first that fails takes the other along."""
    (tmp_path / "ranks.py").write_text(
        "import os, sys, time, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "seen = [None] * dist.get_world_size(); dist.all_gather_object(seen, (dist.get_rank(), hash('word')))\n"
        "assert [rank for rank, _ in seen] == [0, 1] and seen[0][1] != seen[1][1], seen\n"
        "print('met', flush=True)\n"
        "sys.exit(3) if sys.argv[1:] and dist.get_rank() == 1 else time.sleep(60 if sys.argv[1:] else 0)\n"
    )
    words = [
        "torchrun",
        "--nproc_per_node",
        2,
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "127.0.0.1:0",
        "--local_addr",
        "127.0.0.1",
    ]
    done = run([*words, tmp_path / "ranks.py"])
    assert done.returncode == 0 and done.stdout.count("met") == 2, done.stderr
    began = time.monotonic()
    done = run([*words, tmp_path / "ranks.py", "fail"])
    assert done.returncode == 1 and "exitcode  : 3" in done.stderr and time.monotonic() - began < 40, done.stderr


def test_a_folder_that_shadows_an_import_is_obeyed(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("print('mine')")
    assert run([sys.executable, "-c", "import yaml"], PYTHONPATH=str(tmp_path)).stdout == "mine\n"
    assert run([sys.executable, "-m", "yaml"], cwd=tmp_path).stdout == "mine\n"


def test_the_cache_of_datasets_is_the_one_of_the_environment(run: Callable, tmp_path: Path) -> None:
    """A library read the variable when the server imported it."""
    code = "import datasets; c = datasets.config; print(c.HF_DATASETS_CACHE, c.DOWNLOADED_DATASETS_PATH)"
    for env in ({}, {"FRESH_PYTHON": "1"}):
        done = run([sys.executable, "-c", code], HF_DATASETS_CACHE=str(tmp_path), **env)
        assert done.stdout.split() == [str(tmp_path), str(tmp_path / "downloads")], done.stderr
