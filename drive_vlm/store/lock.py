"""One writer of a file at a time, between processes."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold a lock beside `path` (its folder is made); it ends with the process, however that dies.

    The lock file stays: if it were removed, two runs could each lock a file of that name. Raises ValueError while another
    process holds it, and where the folder cannot be written to or has no locks.
    """
    beside = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(beside, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{path}: another run is writing to it (it holds {beside.name}). Wait for its end, or give another --out."
            ) from error
        except OSError as error:
            raise ValueError(f"{path}: cannot be written to ({error}). Give another --out.") from error
        yield
