"""Files that make later processes faster, and that nothing depends on.

A file that is missing, damaged, of another version or of another user is as good as none, and one
that cannot be written is not: no function here raises for what it finds in the file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path

_MAGIC = b"softxent\x00cache\x001\n"
_DIGEST = 32
#: Files of one name: a new one for every version of anything.
KEPT = 8


def directory() -> Path | None:
    """Return `SOFTXENT_CACHE_DIR`, or else where this system keeps a user's caches; None: nowhere.

    It need not exist.
    """
    given = os.environ.get("SOFTXENT_CACHE_DIR")
    if given:
        return Path(given)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local, "softxent", "Cache") if local else None
    caches = os.environ.get("XDG_CACHE_HOME")
    if caches:
        return Path(caches, "softxent")
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no such user
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "softxent"


def read(name: str, key: bytes) -> bytes | None:
    """Return what `write(name, key, ...)` has stored; None if there is no such file to be trusted.

    To be trusted, a file must be the user's own, writable by nobody else, whole, and of this `key`
    (whatever decides whether its content is the right one: versions, sources).
    """
    folder = directory()
    if folder is None:
        return None
    try:
        # Not to be kept waiting by a pipe of that name.
        handle = os.open(_path(folder, name, key), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if not _is_own(os.fstat(file.fileno())):
                return None
            content = file.read()
    except (OSError, ValueError):  # ValueError: a null byte in the directory's name
        return None
    body = content[len(_MAGIC) + _DIGEST :]
    if content != _MAGIC + _digest(key, body) + body:
        return None
    return body


def write(name: str, key: bytes, body: bytes) -> None:
    """Store `body`, at once or not at all; of each name the last KEPT are kept."""
    folder = directory()
    if folder is None:
        return
    with contextlib.suppress(OSError, ValueError):
        _forget_all_but(KEPT - 1, folder, name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Others see the old file or the new one: each writer has a file of its own until then.
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + _digest(key, body) + body)
            os.replace(temporary, _path(folder, name, key))
        except BaseException:  # a full disk, Ctrl-C
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _path(folder: Path, name: str, key: bytes) -> Path:
    # Versions that share the directory have a file each.
    return folder / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}"


def _forget_all_but(kept: int, folder: Path, name: str) -> None:
    """Delete the oldest files of a name, and what killed writers have left of it an hour ago."""
    written = {path: path.stat().st_mtime for path in folder.glob(f"{name}-*")}
    for path in sorted(written, key=written.__getitem__)[: max(0, len(written) - kept)]:
        path.unlink(missing_ok=True)
    for path in folder.glob(f".{name}.*"):
        if path.stat().st_mtime < time.time() - 3600.0:
            path.unlink(missing_ok=True)


def _digest(key: bytes, body: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key).digest() + body).digest()


def _is_own(status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    if not hasattr(os, "geteuid"):  # Windows: a user's own folders are closed to others
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
