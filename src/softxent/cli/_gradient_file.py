"""A .npy file that is written block by block, and survives whatever ends the process.

OUT.npy grows in OUT.npy.partial, and OUT.npy.progress is its journal. The first line says what the
gradient is made of; then there is one for each block that is safely in the file (synced before the
line is written). Each line begins with a checksum, so that one torn by a crash is told from a whole
one. To resume is to compute the blocks that have no line. OUT.npy itself appears by one rename,
complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent.cli import CommandError
from softxent.cli._npy import InputChangedError, NpyFile, Table, in_one_line

if sys.platform != "win32":
    import fcntl

#: How much work a crash may cost.
CHECKPOINT_SECONDS = 5.0

#: Of one block: the sum of its rows' losses, and how many of its rows are classified rightly.
Score = tuple[float, int]


class GradientFile:
    """OUT.npy in the making. Workers write blocks, and the main thread records them.

    Parameters
    ----------
    path
        OUT.npy.
    table
        The logits: the gradient has their shape, dtype and order.
    inputs
        Files that must not be written over.
    origin
        All that a block's gradient and score depend on, as JSON gives it back: only what was begun
        with the same is continued.
    rows_in
        Returns the number of rows of a block.

    Attributes
    ----------
    scores
        The blocks that are in the file and in the journal, with their scores.

    Raises
    ------
    CommandError
        Nothing can be written there; found before anything is computed.
    """

    def __init__(self, path: str, table: Table, inputs: Sequence[NpyFile], origin: dict[str, Any],
                 rows_in: Callable[[int], int]) -> None:
        self.path = os.path.realpath(path)  # a link stays, and points to the result
        self.partial = f"{self.path}.partial"
        self.journal = f"{self.path}.progress"
        self.scores: dict[int, Score] = {}
        self._table = table
        self._header = table.file.new_header()
        self._size = len(self._header) + table.n_rows * table.row_bytes
        self._origin = origin
        self._rows_in = rows_in
        self._unsaved: dict[int, Score] = {}
        self._saved_at = time.monotonic()
        self._fd = -1
        self._renamed = False
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise CommandError(f"cannot write {path}: there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CommandError(f"cannot write {path}: no permission to create files in {folder}")
        for ours in (self.path, self.partial, self.journal):
            if not os.path.lexists(ours):
                continue
            if not stat.S_ISREG(os.lstat(ours).st_mode):
                raise CommandError(f"cannot write {path}: {ours} is there and not a regular file")
            for file in inputs:
                if os.path.samefile(ours, file.path):
                    raise CommandError(f"--grad would overwrite an input: {ours} and {file.path} "
                                       f"are one file")

    @contextlib.contextmanager
    def opened(self, resume: bool) -> Iterator[None]:
        """Open the partial file, new or continued; on an error keep it if it can be continued."""
        self._lock()
        try:
            if not (resume and self._resume()):
                self._begin(resume)
            yield
        except KeyboardInterrupt:
            if self._renamed:
                note(f"{self.path} is complete")
                self._remove()
            else:
                self._save_quietly()
                note(f"{self._kept()}; --resume continues")
            raise
        except _CannotContinueError as error:
            raise CommandError(str(error)) from error
        except (InputChangedError, IndexError, TypeError, ValueError):
            self._remove()  # the inputs must change, and this with them
            raise
        except Exception as error:  # a full disk, memory: what is in the way may be moved out of it
            self._save_quietly()
            if not self.scores:
                self._remove()
                raise
            raise CommandError(
                f"{in_one_line(error)}; {self._kept()}; --resume continues") from error
        finally:
            if self._fd >= 0:
                os.close(self._fd)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[int, int, NDArray[np.uint8]], None]]:
        """Give a worker the function that writes the buffer of `n` rows from row `first` on."""
        with open(self.partial, "r+b", buffering=0) as file:

            def write(first: int, n: int, buffer: NDArray[np.uint8]) -> None:
                with _naming(self.partial):
                    for place, start, length in self._table.pieces(first, n, len(self._header)):
                        file.seek(place)
                        _write_all(file.fileno(), buffer.data[start : start + length])

            yield write

    def record(self, block: int, score: Score) -> None:
        """Note that a block has been written; from time to time, make that certain."""
        self._unsaved[block] = score
        if time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS:
            self._save()

    def finish(self) -> None:
        """Give the complete file its name."""
        self._save()
        if os.name == "nt":  # an open file cannot be renamed there
            os.close(self._fd)
            self._fd = -1
        os.replace(self.partial, self.path)
        self._renamed = True
        self._sync_folder()
        with contextlib.suppress(OSError):
            os.unlink(self.journal)

    def _lock(self) -> None:
        """Open the partial file, and make sure that no other process is at it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(self.partial, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if sys.platform == "win32":
            return  # nobody is kept from writing one gradient twice at a time
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._busy() from error
        except OSError:
            return  # a file system without locks
        # The other process may have renamed it just now.
        try:
            same = os.path.samestat(os.fstat(self._fd), os.stat(self.partial))
        except FileNotFoundError:
            same = False
        if not same:
            raise self._busy()

    def _busy(self) -> CommandError:
        os.close(self._fd)
        return CommandError(f"{self.partial}: another process is writing it")

    def _resume(self) -> bool:
        """Take over what is finished. Return whether there is anything to continue.

        Raises
        ------
        _CannotContinueError
            It was begun with other inputs or options.
        """
        try:
            with open(self.journal, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return False
        lines, valid = _journal_lines(data)
        size = os.fstat(self._fd).st_size
        if not lines or not size:
            return False
        before: dict[str, Any] = json.loads(lines[0])
        changed = [f"{name} {before.get(name)!r} is now {self._origin.get(name)!r}"
                   for name in {**before, **self._origin}
                   if before.get(name) != self._origin.get(name)]
        if changed:
            raise _CannotContinueError(
                f"{self.partial} cannot be resumed, it was begun otherwise: {'; '.join(changed)}; "
                "leave out --resume to start from the first row"
            )
        # Opened a moment ago, it is read from its beginning.
        if size != self._size or os.read(self._fd, len(self._header)) != self._header:
            return False
        for line in lines[1:]:
            block, loss, correct = line.split()
            self.scores[int(block)] = (float.fromhex(loss), int(correct))
        if valid < len(data):
            os.truncate(self.journal, valid)  # or the next line would become part of a torn one
        return True

    def _begin(self, resume: bool) -> None:
        """Make the partial file and the journal anew."""
        if os.fstat(self._fd).st_size:
            note(f"{self.partial}: {'nothing to resume in it' if resume else 'discarded'}, "
                 f"starting from the first row"
                 + ("" if resume else " (--resume would have continued it)"))
        # The old journal goes first: no moment may have one that tells of other data.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.journal)
        self._sync_folder()
        with _naming(self.partial):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            _write_all(self._fd, self._header)
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        self._append(_journal_line(json.dumps(self._origin)))
        self._sync_folder()

    def _save(self) -> None:
        """Enter into the journal what has been written, once it is on the disk."""
        if self._unsaved:
            with _naming(self.partial):
                os.fsync(self._fd)
            self._append(b"".join(
                _journal_line(f"{block} {loss.hex()} {correct}")
                for block, (loss, correct) in self._unsaved.items()
            ))
            self.scores.update(self._unsaved)
            self._unsaved.clear()
        self._saved_at = time.monotonic()

    def _save_quietly(self) -> None:
        with contextlib.suppress(OSError):  # another error is on its way already
            self._save()

    def _append(self, data: bytes) -> None:
        """Write to the journal's end: all of `data`, or nothing."""
        with _naming(self.journal), open(self.journal, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # what comes next must not continue half a line
                raise

    def _kept(self) -> str:
        rows = sum(map(self._rows_in, self.scores))
        return f"{rows:,} of {self._table.n_rows:,} rows are kept in {self.partial}"

    def _remove(self) -> None:
        for path in (self.journal, self.partial):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _sync_folder(self) -> None:
        """Make what was created, renamed and removed outlive a power failure."""
        with contextlib.suppress(OSError):  # Windows opens no folders
            fd = os.open(os.path.dirname(self.path), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class _CannotContinueError(Exception):
    """A partial file of other inputs or options: it stays as it is."""


def note(text: str) -> None:
    """Tell the user something that is no error, on stderr."""
    print(f"softxent eval: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in errors of calls that know no more than its number."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _journal_line(text: str) -> bytes:
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


def _journal_lines(data: bytes) -> tuple[list[str], int]:
    """Return the whole lines of a journal up to the first torn one, and the bytes they take."""
    lines: list[str] = []
    valid = 0
    for line in data.splitlines(keepends=True):
        text = line[9:-1].decode(errors="replace")  # between the checksum and the line's end
        if line != _journal_line(text):
            break
        lines.append(text)
        valid += len(line)
    return lines, valid
