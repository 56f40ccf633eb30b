"""Hashes of what a run is made of: data files by content, models by a sample of their weights, the code by its sources and its
git state."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drive_vlm.store.cache import cache_dir, cache_key, file_key, read_sealed, write_sealed

ROOT = Path(__file__).resolve().parents[2]
_CODE = ("drive_vlm/**/*.py", "recipes/*.sh", "slurm/*", "ds_configs/*.json")
_BLOCK = 1 << 20
_SAMPLES = 64
_LARGEST_NEW_FILE = 1 << 20
# What a run writes next to the model it saves. It does not count as the model: later runs may start from that directory.
_OF_THE_RUN = {"run.json", "status.json", "data_audit.json", "trainer_state.json", "train_results.json"}
_OF_THE_RUN |= {"all_results.json", "training_args.bin"}


def content_hash(path: str | Path, cached: bool = True) -> str:
    """blake2b of a file's content. `cached`: taken from the cache directory when path, size and times are the same."""
    stat = os.stat(path)
    # The time of status change as well: `cp -p` and `rsync -t` can give other content the old size and modification time.
    kept = cache_dir() / f"hash-{cache_key(file_key(path), stat.st_ctime_ns)}.txt"
    if cached and (found := read_sealed(kept)) is not None:
        return bytes(found).decode()
    digest = _digest(Path(path), range(0, stat.st_size, _BLOCK))
    write_sealed(kept, digest.encode())
    return digest


def sampled_hash(path: Path) -> str:
    """blake2b of the size and of 64 blocks of 1 MiB, evenly spread over a large file. Training changes most
    of them, so that the sample tells two checkpoints apart without reading all of their bytes."""
    size = path.stat().st_size
    blocks = -(-size // _BLOCK)
    if blocks <= _SAMPLES:
        return _digest(path, range(0, size, _BLOCK))
    return _digest(path, ((blocks - 1) * i // (_SAMPLES - 1) * _BLOCK for i in range(_SAMPLES)), str(size).encode())


def _digest(path: Path, offsets: Iterable[int], first: bytes = b"") -> str:
    digest = hashlib.blake2b(first, digest_size=16)
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def file_hashes(paths: Iterable[str | Path], cached: bool = True) -> dict[str, str | None]:
    """Absolute path -> content hash; None for a file that is not there."""
    files = sorted({str(Path(path).absolute()) for path in paths})
    return {name: content_hash(name, cached) if Path(name).is_file() else None for name in files}


def model_fingerprint(name: str) -> dict[str, Any]:
    """A model directory: hash of its small files (configuration, tokenizer, template) and of its weights, sampled.

    A hub id: the commit that the local hub cache holds as its main, None where it holds none.
    """
    directory = Path(name)
    if not directory.is_dir():
        return {"name": name, "hub_commit": _hub_commit(name)}
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    kinds = (".safetensors", ".bin", ".gguf")
    weights = [path for path in files if path.suffix in kinds and path.name not in _OF_THE_RUN]
    small = [path for path in files if path.suffix in (".json", ".jinja", ".txt", ".model", ".py")]
    return {
        "name": str(directory.absolute()),
        "config": cache_key({path.name: content_hash(path) for path in small if path.name not in _OF_THE_RUN}),
        "weights": cache_key({path.name: sampled_hash(path) for path in weights}),
    }


def same_model(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any] | None:
    """The newer fingerprint where both are of one model, None where they are of two.

    A directory may have been moved: its hashes decide. A hub id is the same if name and commit are; before the model is
    downloaded its commit is unknown, and any fits.
    """
    if "hub_commit" in then and "hub_commit" in now:
        commits = then["hub_commit"] or now["hub_commit"], now["hub_commit"] or then["hub_commit"]
        first, second = then | {"hub_commit": commits[0]}, now | {"hub_commit": commits[1]}
        return first if first == second else None
    return now if _without_name(then) == _without_name(now) else None


def _without_name(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "name"} or model


def _hub_commit(name: str) -> str | None:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    ref = hub / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def code_hash() -> str:
    """Hash of the sources that a run executes, in a git checkout or installed without one."""
    files = sorted({path for pattern in _CODE for path in ROOT.glob(pattern) if path.is_file()})
    return cache_key({str(path.relative_to(ROOT)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files})


def git_state() -> dict[str, Any] | None:
    """Commit of the code and what was changed since; None outside a git checkout."""
    try:
        _git("ls-files", "--error-unmatch", "drive_vlm/__init__.py")
        changed = _git("status", "--porcelain").splitlines()
        state = {"commit": _git("rev-parse", "HEAD").strip(), "changed_files": changed}
    except (OSError, subprocess.CalledProcessError):
        return None
    if changed:
        state["diff_hash"] = hashlib.blake2b(git_diff().encode(), digest_size=16).hexdigest()
    return state


def git_diff() -> str:
    """What `git apply` needs to get from the commit to the code that ran: changes, and new files up to 1 MiB.

    A new file that disappears between listing and reading belongs to another run (its temporary output), and is left out.
    """
    new = [ROOT / name for name in _git("ls-files", "--others", "--exclude-standard", "-z").split("\0") if name]
    parts = [_git("diff", "HEAD", "--binary")]
    for path in new:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size <= _LARGEST_NEW_FILE:
                # git diff --no-index ends with 1 where files differ, which they do, and with 128 where one has disappeared.
                words = ("diff", "--binary", "--no-index", "--", "/dev/null", str(path.relative_to(ROOT)))
                parts.append(_git(*words, expected=(0, 1) if path.exists() else (0, 1, 128)))
    return "".join(parts)


def _git(*words: str, expected: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode not in expected:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout.decode("utf-8", "replace")
