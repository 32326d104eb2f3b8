"""Build a cache file once, under an inter-process lock."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

# What a folder answers that takes no writes, as in an image.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def build_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Returns ``target``, a file or folder, after calling ``make`` with a path to write it to if it does not exist yet.

    Several processes may call this at once: one builds, the others wait. The target appears atomically. Once it exists
    nothing is written, so its folder may then be read-only. What a read-only folder lacks, such as a measurement of
    this machine in an image that another one made, is kept in a temporary folder of this user instead.
    """
    if target.exists():
        return target
    try:
        return _built(target, make)
    except OSError as error:
        if error.errno not in _READ_ONLY or os.access(_existing(target.parent), os.W_OK):
            raise
        return _built(_own(target), make)


def _built(target: Path, make: Callable[[Path], None]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as work:
                made = Path(work) / target.name
                make(made)
                made.rename(target)
    return target


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _own(target: Path) -> Path:
    """Where this user alone can have written it."""
    folder = Path(tempfile.gettempdir()) / f"biobracket-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            errno.EACCES, f"is not this user's alone, and {target.parent} cannot be written to: remove it", str(folder)
        )
    return folder / target.name
