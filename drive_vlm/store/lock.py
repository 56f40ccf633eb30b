"""One writer of a file, or of a folder, at a time, between processes and nodes."""

import contextlib
import errno
import fcntl
import functools
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Files whose locks this process holds. A child of fork() would hold them too, and outlive the parent: it closes them.
_held: set[BinaryIO] = set()
# Seconds until a file server gives up the lock of a host that is gone (NFSv4: 90 by default).
_LEASE = 120.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def sole_writer(path: Path, flag: str = "--out", wait: float = 0.0) -> Iterator[None]:
    """Hold a lock for `path` in a file next to it, for a folder in it (both are made); it ends with the process, however that dies.

    `wait`: seconds to try again, for a holder that is about to end; two minutes where it was on another host, whose lock a file
    server may keep that long after a crash. Raises ValueError with host and process of the holder, and
    where the folder cannot be written to. A file system without locks lets everybody write, and one line says so.
    """
    # The lock file stays. If it were removed, a second run could lock the removed file and a third one its successor.
    lock = path / ".writer.lock" if flag == "--output_dir" else path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise ValueError(f"{path}: cannot be written to ({error}). Give another {flag}.") from error
    try:
        _close_in_children()
        _held.add(file)
        _take(file, path, flag, wait)
        yield
    finally:
        _held.discard(file)
        file.close()


def _take(file: BinaryIO, path: Path, flag: str, wait: float) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another run"
            elsewhere = wait > 0 and " on " in holder and f" on {platform.node()} " not in holder
            if time.monotonic() - began < (_LEASE if elsewhere else wait):
                time.sleep(0.2)
                continue
            raise ValueError(
                f"{path}: another run is writing to it: {holder} (it holds {Path(file.name).name}). Wait for its end, or give "
                f"another {flag}."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ValueError(f"{path}: cannot be written to ({error}). Give another {flag}.") from error
            print(
                f"{path}: this file system has no locks ({error}): see to it that one run writes there", file=sys.stderr
            )
            return
    # A full disk has no room for the words; the lock holds without them.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}\n".encode())


@functools.cache
def _close_in_children() -> None:
    def close() -> None:
        for file in _held:
            file.close()
        _held.clear()

    os.register_at_fork(after_in_child=close)
