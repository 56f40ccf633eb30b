"""Where runs write: free space, the kind of file system, and whether it keeps the promises that checkpoints rest on."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drive_vlm.doctor.finding import Finding, Setting, judge
from drive_vlm.doctor.software import extensions_dir

_GIB = 2**30
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_OVER_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs")
_PARALLEL = ("lustre", "gpfs", "beegfs", "ceph", "wekafs", "panfs", "fuse.glusterfs")
_STALE_S = 600


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`: the mount with the longest matching directory, the last of equals."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounts = [(Path(line[1].replace("\\040", " ")), line[2]) for line in reversed(lines)]
    here = [mount for mount in mounts if path.resolve().is_relative_to(mount[0])]
    return max(here, key=lambda mount: len(mount[0].parts))[1]


def nearest_existing(path: Path) -> Path:
    """`path`, or the first of its parents that is there."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return here


def broken_promises(directory: Path) -> list[str]:
    """What does not work in `directory`, tried with temporary files: hard links, renaming over a file, fsync, many small files."""
    broken = []
    with tempfile.TemporaryDirectory(prefix=".drive_vlm_doctor_", dir=directory) as name:
        folder = Path(name)
        old, new = folder / "old", folder / "new"
        old.write_text("old")
        new.write_text("new")
        # Frozen weights are written once and hard-linked into each checkpoint.
        try:
            os.link(old, folder / "link")
            if os.stat(old).st_nlink != 2:
                broken.append("hard links")
        except OSError:
            broken.append("hard links")
        # A checkpoint is moved into place by one rename of its directory, status.json by a rename over the old file.
        try:
            os.replace(new, old)
            (folder / "part").mkdir()
            os.rename(folder / "part", folder / "whole")
            if old.read_text() != "new" or not (folder / "whole").is_dir():
                broken.append("atomic rename")
        except OSError:
            broken.append("atomic rename")
        # The marker of a checkpoint may only be written when its files are on the disk.
        try:
            with open(old, "rb") as file:
                os.fsync(file.fileno())
        except OSError:
            broken.append("fsync")
    return broken


def output_directory(setting: Setting) -> Iterator[Finding]:
    """Space, kind and promises of the disk below --output_dir."""
    place = nearest_existing(setting.output_dir)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        todo = "Give another --output_dir, or fix its permissions."
        yield Finding("output disk", "fail", f"{place} cannot be written", todo)
        return
    kind, space, slots = file_system(place), shutil.disk_usage(place), os.statvfs(place)
    broken = broken_promises(place)
    seen = f"{place}: {kind}{' (parallel)' if kind in _PARALLEL else ''}, {space.free / _GIB:.1f} of {space.total / _GIB:.1f} GiB free; "
    seen += f"no {' and no '.join(broken)}" if broken else "hard links, atomic rename and fsync work"
    # fmt: off
    yield judge(
        "output disk", seen,
        ("atomic rename" in broken, "fail", "A checkpoint could be torn there: write to another file system."),
        (space.free < 2 * _GIB, "fail", "Free some space: a checkpoint of a 1B model takes about 12 GiB."),
        (slots.f_files and slots.f_favail < 10_000, "warn", f"{slots.f_favail} more files allowed: remove small files, or ask for more inodes."),
        (kind in _IN_MEMORY, "warn", "It is memory: lost with the job, and it counts as memory of the run. Write to a disk."),
        (kind in _OVER_NETWORK, "warn", "Slow for checkpoints of many ranks, and other nodes see files late. Prefer scratch space."),
        (broken, "warn", "Frozen weights are written again with every checkpoint."),
        (space.free < 20 * _GIB, "warn", "Little for checkpoints: compare with `python -m drive_vlm plan`, or lower --keep."),
    )
    # fmt: on


def caches(setting: Setting) -> Iterator[Finding]:
    """Where models, compiled ops and row indices are kept; a lock that an aborted compilation left makes the next run wait without end."""
    home = Path.home() / ".cache"
    folders = {
        "HF_HOME": Path(os.environ.get("HF_HOME") or home / "huggingface"),
        "TORCH_EXTENSIONS_DIR": extensions_dir(),
        "DRIVE_VLM_CACHE": Path(os.environ.get("DRIVE_VLM_CACHE") or home / "drive_vlm"),
    }
    for name, folder in folders.items():
        place = nearest_existing(folder)
        kind, free = file_system(place), shutil.disk_usage(place).free / _GIB
        seen = f"{folder} ({'set' if name in os.environ else 'default'}): {kind}, {free:.1f} GiB free"
        # torch.utils.file_baton waits for this file without a limit, and a killed compilation leaves it.
        stale = [lock for lock in folder.glob("*/*/lock") if time.time() - lock.stat().st_mtime > _STALE_S]
        ops = name == "TORCH_EXTENSIONS_DIR"
        yield judge(
            name,
            seen,
            (not os.access(place, os.W_OK), "fail", f"Not writable: set {name} to a directory of your own."),
            (
                ops and stale,
                "warn",
                f"A lock is left. When nothing is compiling: rm {' '.join(map(str, stale))}. Runs wait for it.",
            ),
            (
                ops and kind in _OVER_NETWORK,
                "warn",
                "Nodes of different kinds would share compiled code. Set it to a local disk, one for each kind.",
            ),
            (name == "HF_HOME" and free < 10, "warn", "Little for models: set HF_HOME to a larger disk."),
        )
