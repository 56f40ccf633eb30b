"""One writer of a file at a time, between processes."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold a lock for `path` in a file next to it (the folder is made); it ends with the process, however that dies.

    Raises ValueError while another process holds it, and where the folder cannot be written to or has no locks.
    """
    # The lock file stays. If it were removed, a second run could lock the removed file and a third one its successor.
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(lock, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{path}: another run is writing to it (it holds {lock.name}). Wait for its end, or give another --out."
            ) from error
        except OSError as error:
            raise ValueError(f"{path}: cannot be written to ({error}). Give another --out.") from error
        yield
