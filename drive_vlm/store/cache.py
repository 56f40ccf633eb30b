"""The project's cache directory, atomic writes, and keys. The cache holds only what can be computed again from the files that
a key names."""

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any

_SEAL = 16


def cache_dir() -> Path:
    """$DRIVE_VLM_CACHE, or ~/.cache/drive_vlm. Deleting it costs time only."""
    path = Path(os.environ.get("DRIVE_VLM_CACHE") or Path.home() / ".cache" / "drive_vlm")
    # Where it cannot be made, write_cache says so.
    with contextlib.suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_cache(path: Path, write: Any) -> None:
    """write_atomically for what can be computed again: where it fails, a line says so once, and it costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        _say_once(
            f"{path.parent}: the cache cannot be written ({error.strerror}); what it would hold is computed again"
        )


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """write_cache of `content` and a hash behind it, by which `read_sealed` knows that it is whole."""
    write_cache(path, lambda file: file.writelines([content, _seal(content)]))


def read_sealed(path: Path) -> memoryview | None:
    """What write_sealed kept; None where there is nothing, or a byte of it has changed: it is computed again then."""
    try:
        kept = memoryview(path.read_bytes())
    except OSError:
        return None
    content = kept[:-_SEAL]
    return content if kept[-_SEAL:] == _seal(content) else None


def _seal(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_SEAL).digest()


def array_bytes(array: Any) -> memoryview:
    """A numpy array as np.load reads it."""
    import numpy as np

    np.save(file := io.BytesIO(), array)
    return file.getbuffer()


@functools.cache
def _say_once(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a binary file next to `path`, then rename it: readers see the whole file or none."""
    # Ranks on several nodes write to one shared folder, and containers give each the same process id: the host tells them apart.
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(partial, "wb") as file:
            write(file)
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError):
            # Writing to an open file fails without its name.
            error.filename = str(path)
        # A full disk, a request to stop: half a file would take space without end.
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by the content as indented JSON, atomically."""
    text = json.dumps(finite(content), indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def finite(content: Any) -> Any:
    """`content` with null for numbers that are not finite: JSON has none, and most readers refuse the words that Python writes."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(item) for key, item in content.items()}
    return [finite(item) for item in content] if isinstance(content, list | tuple) else content


def read_json(path: Path) -> Any:
    """Raises ValueError, naming the file, where it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    # RecursionError: brackets nested thousands deep.
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error


def cache_key(*parts: Any) -> str:
    """Hash of `parts` as JSON: the same parts give the same key in every process and version."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def file_key(path: str | Path) -> str:
    """Identity of a file without reading it: resolved path, size and time of change."""
    stat = os.stat(path)
    return cache_key(str(Path(path).resolve()), stat.st_size, stat.st_mtime_ns)
