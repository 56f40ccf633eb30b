"""Python processes of the tests without their imports: forked from a process that has imported torch and the rest already.

`install` puts a folder with a `python` of its own in the place of `sys.executable`. That `python` (fork_client.py) hands
its words, directory, environment and open files to a server, which forks a child that runs them as Python would. It lives
as long as the child: it passes signals on, ends as the child ends, and takes the child with it when it is killed.
Whatever a test starts, a recipe in Bash, torchrun or a tool that starts others, therefore runs as always, but for the
6 to 14 seconds of imports. All of it is real but the start of the interpreter.

A process is fresh, that is a real one, where
- its environment has FRESH_PYTHON=1: that of the test run, or of a test with the mark `fresh`, which says why;
- it asks for an option of the interpreter (-X, -W, -) or a module that brings its own world (FRESH_MODULES);
- a variable that libraries read while they are imported differs from that of the test run (READ_AT_IMPORT);
- a folder of its path would give it another module in the place of an imported one;
- it lives in another namespace (a node of the Slurm tests).

What differs from a real process: the child has a session of its own and the server as its parent, so that SIGSTOP, a
signal to a whole process group and `wait4` reach or measure the client only; its memory starts with that of the imports.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import importlib.machinery
import importlib.util
import io
import marshal
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# A process keeps the hash seed it began with: ranks with even and odd numbers shall not agree on the order of a set.
SERVERS = 2
# What the commands of the package and the tools import of other packages, found by running them.
MODULES = (
    "torch", "torchvision", "torch.distributed.run", "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.utils.tensorboard", "torch._dynamo", "torch.profiler", "transformers", "transformers.hf_argparser",
    "transformers.trainer", "transformers.integrations.deepspeed", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto", "transformers.generation", "deepspeed", "deepspeed.launcher.runner",
    "accelerate", "peft", "datasets", "trl", "trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer", "open_clip", "spacy",
    "scipy.stats", "sklearn.feature_extraction.text", "matplotlib.pyplot", "openai", "multiprocessing.spawn",
    "multiprocessing.resource_tracker", "concurrent.futures.process", "rich.progress", "yaml",
    *(f"transformers.models.{name}.modeling_{name}" for name in (
        "internvl", "llava_next", "idefics3", "smolvlm", "siglip", "qwen2", "qwen3", "llama", "mistral", "clip",
    )),
    *(f"transformers.models.{name}.processing_{name}" for name in ("internvl", "llava_next", "idefics3", "smolvlm", "clip")),
    *(f"transformers.models.{name}.image_processing_{pil}{name}" for pil in ("", "pil_") for name in (
        "got_ocr2", "llava_next", "idefics3", "smolvlm", "siglip", "clip",
    )),
    *(f"transformers.models.{name}.video_processing_{name}" for name in ("internvl", "smolvlm")),
)  # fmt: skip
READ_AT_IMPORT = re.compile(
    r"PYTHON(?!PATH$|UNBUFFERED$|DONTWRITEBYTECODE$).*|LANG|LANGUAGE|LC_.*|TZ|LD_PRELOAD|HOME|XDG_.*|HF_(?!DATASETS_CACHE$).*|HUGGINGFACE_.*"
    r"|TRANSFORMERS_.*|DS_.*|DEEPSPEED_.*|OMP_(?!NUM_THREADS$).*|MKL_.*|OPENBLAS_.*|KMP_.*|ACCELERATE_(?!USE_DEEPSPEED$).*|MPL.*|TRL_.*|USE_.*|PYTORCH_.*"
    r"|TORCH_(LOGS|DEVICE|SHOW|HOME|EXT|ALLOW|FORCE).*|TORCH_DISTRIBUTED_DEBUG|TORCHDYNAMO_.*"
)
FRESH_MODULES = {"pip", "mypy", "venv", "ruff", "pytest", "ensurepip"}


# --- in the processes of pytest


def install(config: Any) -> None:
    """Called by each process of pytest: the first makes the folder of programs, those that run tests use it.

    Not where a GPU is: an import may touch it, and no forked child can use it then.
    """
    if os.environ.get("FRESH_PYTHON") or shutil.which("nvidia-smi"):
        return
    if not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="fork_server_", dir="/tmp"))  # the path of a socket must be short
        _make_programs(folder, Path(sys.executable))
        stop = _listen(folder, sys.executable)
        os.environ["FORK_SERVER"] = str(folder)

        def clean() -> None:
            stop()
            if log := os.environ.get("FORK_SERVER_LOG"):  # what ran fresh, and why
                shutil.copy(folder / "server.log", log)
            shutil.rmtree(folder, ignore_errors=True)
            del os.environ["FORK_SERVER"]

        config.add_cleanup(clean)
    # xdist starts its workers by sys.executable: the process that only distributes keeps the real one.
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        programs = f"{os.environ['FORK_SERVER']}/bin"
        real, path = sys.executable, os.environ["PATH"]
        sys.executable, os.environ["PATH"] = f"{programs}/python", f"{programs}{os.pathsep}{path}"
        config.add_cleanup(lambda: (setattr(sys, "executable", real), os.environ.update(PATH=path)))


def parents() -> dict[int, int]:
    """The client of each forked child that lives, as process numbers: its parent as far as a test is concerned."""
    folder = os.environ.get("FORK_SERVER")
    pairs = [path.name.split("-") for path in Path(folder, "children").iterdir()] if folder else []
    return {int(child): int(client) for client, child in pairs}


def _make_programs(folder: Path, real: Path) -> None:
    """The programs of the environment; python and the launchers, which are Python scripts, are ours."""
    (folder / "bin").mkdir()
    (folder / "children").mkdir()
    (folder / "server.log").touch()
    pythons = ("python", "python3", f"python3.{sys.version_info[1]}")
    for path in real.parent.iterdir():
        if path.name not in (*pythons, "torchrun", "deepspeed"):
            (folder / "bin" / path.name).symlink_to(path)
    space = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "net", "pid", "uts")]
    constants = f"REAL, SOCKET, SPACE = {str(real)!r}, {str(folder / 'server')!r}, {space!r}\n"
    client = f"#!{real} -IS\n{constants}{Path(__file__).with_name('fork_client.py').read_text()}"
    texts = dict.fromkeys(pythons, client)
    for name in ("torchrun", "deepspeed"):
        texts[name] = f'#!/bin/sh\nexec "{folder}/bin/python" "{real.parent / name}" "$@"\n'
    for name, text in texts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def _listen(folder: Path, real: str) -> Callable[[], None]:
    """Sockets that clients may connect to at once; each server is started when the first client does. -> how to stop them."""
    listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(SERVERS)]
    for i, listener in enumerate(listeners):
        listener.bind(f"{folder}/server{i}")
        listener.listen(256)
    ended, end = os.pipe()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    servers: list[subprocess.Popen] = []

    def start(listener: socket.socket) -> None:
        with open(folder / "server.log", "a") as log:
            servers.append(
                subprocess.Popen(
                    [real, __file__, str(listener.fileno()), str(folder)], stdin=subprocess.PIPE, stdout=log, stderr=log, env=env,
                    pass_fds=[listener.fileno()], start_new_session=True,
                )
            )  # fmt: skip

    def wait() -> None:
        waiting = list(listeners)
        while ended not in (ready := select.select([*waiting, ended], [], [])[0]):
            for listener in ready:
                waiting.remove(listener)
                start(listener)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()

    def stop() -> None:
        os.close(end)
        thread.join()
        for server in servers:
            assert server.stdin is not None
            server.stdin.close()  # at its end a server kills what it started, and ends
            server.wait(60)
        for listener in listeners:
            listener.close()
        os.close(ended)

    return stop


# --- in the server


class Request:
    """What a client asks for: how Python is started, and the world around it."""

    def __init__(self, text: bytes, files: list[int]) -> None:
        start, self.words, self.cwd, environment, self.numbers, self.ignored, self.blocked, self.umask, self.client = (
            marshal.loads(text)
        )
        self.unbuffered, self.kind, self.what, self.rest = start
        self.env = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
        self.files = files

    def first_folder(self) -> str:
        """sys.path[0] of the process."""
        if self.kind == "script":
            return os.path.dirname(os.path.realpath(os.path.join(self.cwd, self.what)))
        return self.cwd if self.kind == "-m" else ""

    def folders(self) -> list[str]:
        """Folders in front of the installed packages."""
        given = [word for word in self.env.get("PYTHONPATH", "").split(os.pathsep) if word]
        return [os.path.join(self.cwd, self.first_folder()), *(os.path.join(self.cwd, word) for word in given)]


class Server:
    def __init__(self, listener: socket.socket, folder: Path) -> None:
        self.listener, self.folder = listener, folder
        before = dict(os.environ)
        self.threads = before.get("OMP_NUM_THREADS", "")
        self.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
        sys.executable = f"{folder}/bin/python"  # before multiprocessing keeps it
        sys.path[:] = self.path
        _import_everything()
        self.set_by_imports = {name: value for name, value in os.environ.items() if name not in before}
        self.at_import = read_at_import(self.set_by_imports | before)
        self.top_level = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
        # jemalloc, which comes with datasets, stops and starts its own thread around a fork; no other thread would survive one.
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        self.safe = threads.count("jemalloc_bg_thd") == len(threads) - 1
        print(f"server {os.getpid()}: {len(sys.modules)} modules, threads: {threads}", flush=True)
        self.children: dict[int, tuple[socket.socket, int, Path]] = {}  # by the number of the child's pidfd
        self.clients: dict[int, int] = {}  # number of a connection -> pidfd of its child

    def serve(self) -> Request:
        """Returns in each child, with its request; the server itself ends here when its standard input does."""
        gc.collect()
        gc.freeze()  # or the first collection in a child would copy all of this memory
        poll = select.poll()
        for number in (0, self.listener.fileno()):
            poll.register(number, select.POLLIN)
        while True:
            for number, _ in poll.poll():
                if number == 0:
                    self.end()
                elif number == self.listener.fileno():
                    if (child := self.answer(poll)) is not None:
                        return child
                elif number in self.children:
                    poll.unregister(number)
                    self.report(number, poll)
                elif number in self.clients:
                    self.forward(number, poll)

    def answer(self, poll: select.poll) -> Request | None:
        connection, _ = self.listener.accept()
        request = _receive(connection)
        if request is None:
            connection.close()
            return None
        why = self.why_fresh(request)
        if why:
            print(f"fresh ({why}): {request.words[:4]}", flush=True)
            with contextlib.suppress(OSError):
                connection.sendall(b"F")
            self.drop(connection, request)
            return None
        pid = os.fork()
        if pid == 0:
            os.setsid()
            # Detached: a socket that is collected later would close its number again, which by then may be a file of the request.
            sockets = [self.listener, connection, *(one for one, _, _ in self.children.values())]
            self.become(request, [0, *self.children, *(one.detach() for one in sockets)])
            return request
        handle = os.pidfd_open(pid)
        note = self.folder / "children" / f"{request.client}-{pid}"
        note.touch()
        self.children[handle] = (connection, pid, note)
        self.clients[connection.fileno()] = handle
        poll.register(handle, select.POLLIN)
        poll.register(connection.fileno(), select.POLLIN)
        for file in request.files:
            os.close(file)
        with contextlib.suppress(OSError):
            connection.sendall(b"S")
        return None

    def drop(self, connection: socket.socket, request: Request) -> None:
        connection.close()
        for file in request.files:
            os.close(file)

    def why_fresh(self, request: Request) -> str:
        if not self.safe:
            return "imports started threads"
        if request.kind == "-m" and request.what.partition(".")[0] in FRESH_MODULES:
            return request.what
        given = read_at_import(self.set_by_imports | request.env)
        if different := {name for name, _ in given.items() ^ self.at_import.items()}:
            return f"{sorted(different)} read at import"
        for folder in request.folders():
            with contextlib.suppress(OSError):
                for entry in os.scandir(folder):
                    name = entry.name.partition(".")[0]
                    if name in self.top_level | {"sitecustomize", "usercustomize"} and (
                        entry.name.endswith((".py", ".so")) or os.path.exists(f"{entry.path}/__init__.py")
                    ):
                        return f"{entry.path} in the place of an imported module"
        return ""

    def forward(self, number: int, poll: select.poll) -> None:
        """A signal that the client got, or the end of the client."""
        connection, pid, _ = self.children[self.clients[number]]
        try:
            signals = connection.recv(16)
        except OSError:
            signals = b""
        if not signals:
            poll.unregister(number)
            del self.clients[number]
            _kill(pid)
        for one in signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, one)

    def report(self, handle: int, poll: select.poll) -> None:
        """A child has ended."""
        connection, pid, note = self.children.pop(handle)
        _, status = os.waitpid(pid, 0)
        os.close(handle)
        note.unlink(missing_ok=True)
        with contextlib.suppress(KeyError):
            poll.unregister(connection.fileno())
        self.clients.pop(connection.fileno(), None)
        with contextlib.suppress(OSError):
            connection.sendall(status.to_bytes(4, "big"))
        connection.close()

    def end(self) -> None:
        for _, pid, _ in self.children.values():
            _kill(pid)
        os._exit(0)

    def become(self, request: Request, known: list[int]) -> None:
        """The child's files, directory, environment and interpreter as a new process would find them."""
        for number in known:
            os.close(number)
        high = [fcntl.fcntl(file, fcntl.F_DUPFD, 512) for file in request.files]
        for file in request.files:
            os.close(file)
        for number in {0, 1, 2} - set(request.numbers):
            with contextlib.suppress(OSError):
                os.close(number)
        for file, number in zip(high, request.numbers, strict=True):
            os.dup2(file, number, inheritable=True)
            os.close(file)
        os.umask(request.umask)
        os.chdir(request.cwd)
        os.environ.clear()
        os.environ.update(self.set_by_imports | request.env)
        for number in request.ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, request.blocked)
        sys.path[:] = [request.first_folder(), *request.folders()[1:], *self.path]
        sys.orig_argv[:] = [sys.executable, *request.words]
        if request.unbuffered or request.env.get("PYTHONUNBUFFERED"):
            sys.stdout.reconfigure(line_buffering=True, write_through=True)
        sys.dont_write_bytecode = bool(request.env.get("PYTHONDONTWRITEBYTECODE"))
        importlib.invalidate_caches()
        import numpy
        import torch

        numpy.random.seed()
        _move_datasets_cache(request.env.get("HF_DATASETS_CACHE"))
        threads = request.env.get("OMP_NUM_THREADS", "")
        if threads != self.threads:  # nothing has run in parallel yet, so that the number can still be set
            torch.set_num_threads(int(threads) if threads.isdigit() else os.cpu_count() or 1)


def _move_datasets_cache(folder: str | None) -> None:
    """`datasets` reads HF_DATASETS_CACHE when it is imported: its paths below the cache become those below `folder`."""
    if folder is None or (config := sys.modules.get("datasets.config")) is None:
        return
    before = str(config.HF_DATASETS_CACHE)
    for name, value in vars(config).copy().items():
        if isinstance(value, str | os.PathLike) and Path(value).is_relative_to(before):
            setattr(config, name, type(value)(Path(folder, Path(value).relative_to(before))))


def read_at_import(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if READ_AT_IMPORT.fullmatch(name)}


def _import_everything() -> None:
    """The modules of MODULES, with the package's own cure for the public torchvision wheel beside a CPU torch."""
    cure = next((ROOT / "drive_vlm").rglob("_torchvision_cpu.py"))
    spec = importlib.util.spec_from_file_location("fork_server_torchvision", cure)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    finders = list(sys.meta_path)
    module.install_hook()
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:  # another version has it elsewhere, or the package is not installed
            print(f"not imported: {name}: {error}", flush=True)
    # What every process would find or compile at its first picture and its first load of a model.
    from PIL import Image
    from transformers import conversion_mapping

    Image.init()
    conversion_mapping.get_checkpoint_conversion_mapping("")
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != spec.name or finder in finders]


def _receive(connection: socket.socket) -> Request | None:
    """The client's request, or None where it has died."""
    head, files, _, _ = socket.recv_fds(connection, 4, 253)
    text, size = b"", int.from_bytes(head, "big")
    while len(text) < size:
        if not (more := connection.recv(size - len(text))):
            return None
        text += more
    return Request(text, files) if text else None


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # the group is the child's own unless it has only just been forked
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


# --- in the child


def run_as_python(request: Request) -> None:
    """What `python WORDS` does after its start, in a __main__ of its own."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main
    sys.argv[:] = [request.kind if request.kind != "script" else request.what, *request.rest]
    if request.kind == "-m":
        import runpy

        runpy._run_module_as_main(request.what)  # type: ignore[attr-defined]
        return
    if request.kind == "-c":
        main.__dict__["__loader__"] = importlib.machinery.BuiltinImporter
        code = compile(request.what, "<string>", "exec", dont_inherit=True)
    else:
        main.__dict__.update(
            __file__=request.what,
            __cached__=None,
            __loader__=importlib.machinery.SourceFileLoader("__main__", request.what),
        )
        try:
            with open(request.what, "rb") as file:
                text = file.read()
        except OSError as error:
            sys.stderr.write(
                f"{sys.executable}: can't open file {os.path.abspath(request.what)!r}: [Errno {error.errno}] {error.strerror}\n"
            )
            sys.exit(2)
        code = compile(text, request.what, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def run_to_the_end(request: Request) -> NoReturn:
    """Exit codes, messages and the order of the last acts are those of Python's own end, which would take another second.

    What that second does is to free every imported module. What a test could see of it are files that nobody closed.
    """
    code: Any = 0
    try:
        run_as_python(request)
    except SystemExit as error:
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for kind in (io.TextIOWrapper, io.BufferedWriter):  # objects of before the fork are frozen, and not listed
        for file in [sys.stdout, sys.stderr, *(one for one in gc.get_objects() if type(one) is kind)]:
            with contextlib.suppress(Exception):
                file.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    run_to_the_end(Server(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])).serve())
