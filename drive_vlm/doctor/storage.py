"""Where runs write: free space, the kind of file system, and whether it keeps the promises that checkpoints rest on."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drive_vlm.doctor.finding import Finding, Setting, fail, ok, warn
from drive_vlm.doctor.software import extensions_dir

_GIB = 2**30
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_OVER_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs")
_PARALLEL = ("lustre", "gpfs", "beegfs", "ceph", "wekafs", "panfs", "fuse.glusterfs")
_STALE_S = 600


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`: the mount with the longest matching directory, the last of equals."""
    inside = path.resolve()
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mount = Path(line.split()[1].replace("\\040", " "))
        if inside.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), line.split()[2]
    return kind


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
    check = "output disk"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield fail(check, f"{place} cannot be written", "Give another --output_dir, or fix its permissions.")
        return
    kind, space, slots = file_system(place), shutil.disk_usage(place), os.statvfs(place)
    seen = f"{place}: {kind}, {space.free / _GIB:.1f} of {space.total / _GIB:.1f} GiB free"
    broken = broken_promises(place)
    if "atomic rename" in broken:
        todo = "A checkpoint could be torn there: write to another file system."
        yield fail(check, f"{seen}; no {' and no '.join(broken)}", todo)
    elif space.free < 2 * _GIB:
        yield fail(check, seen, "Free some space: a checkpoint of a 1B model takes about 12 GiB.")
    elif slots.f_files and slots.f_favail < 10_000:
        yield warn(check, f"{seen}, {slots.f_favail} more files allowed", "Remove small files, or ask for more inodes.")
    elif kind in _IN_MEMORY:
        yield warn(check, seen, "It is memory: lost with the job, and it counts as memory of the run. Write to a disk.")
    elif kind in _OVER_NETWORK:
        todo = "Slow for checkpoints of many ranks, and other nodes see files late. Prefer scratch space."
        yield warn(check, seen, todo)
    elif broken:
        todo = "Frozen weights are written again with every checkpoint."
        yield warn(check, f"{seen}; no {' and no '.join(broken)}", todo)
    elif space.free < 20 * _GIB:
        yield warn(check, seen, "Little for checkpoints: compare with `python -m drive_vlm plan`, or lower --keep.")
    else:
        shared = " (parallel)" if kind in _PARALLEL else ""
        yield ok(check, f"{seen}{shared}; hard links, atomic rename and fsync work")


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
        if not os.access(place, os.W_OK):
            yield fail(name, f"{seen}, not writable", f"Set {name} to a directory of your own.")
        elif name == "TORCH_EXTENSIONS_DIR" and stale:
            todo = f"When nothing is compiling: rm {stale[0]}. Runs wait for it."
            yield warn(name, f"{seen}; a lock is left in {stale[0].parent}", todo)
        elif name == "TORCH_EXTENSIONS_DIR" and kind in _OVER_NETWORK:
            todo = "Nodes of different kinds would share compiled code. Set it to a local disk, one for each kind."
            yield warn(name, seen, todo)
        elif name == "HF_HOME" and free < 10:
            yield warn(name, seen, "Little for models: set HF_HOME to a larger disk.")
        else:
            yield ok(name, seen)
