""".npy files that are read block by block: what their headers say, and where rows lie in them.

Blocks are read, never mapped: mapped pages would count as the process's memory. In a file of C
order a block of rows is one piece; in Fortran order it is one piece a column. `Table` knows the
pieces, for files that are read and for those that are written alike.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from softxent.cli import CommandError

#: Everything up to a header's end; NumPy itself refuses headers of more than 10,000 characters.
HEADER_BYTES = 1 << 16


class InputChangedError(CommandError):
    """An input file is no longer what it was at the start."""


def in_one_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


# ---- headers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NpyFile:
    """What the header of a .npy file says, and where its data begin.

    dtype
        Of the elements as they are computed with.
    swapped
        bfloat16 saved as uint16 of foreign byte order: NumPy has no such dtype, so that the bytes
        are swapped as they are read.
    stamp
        Size and time of modification.
    """

    path: str
    dtype: np.dtype[Any]
    swapped: bool
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int
    stamp: tuple[int, int]

    @property
    def dtype_name(self) -> str:
        """The dtype's name, without its byte order."""
        name: str = self.dtype.newbyteorder("=").name
        return name

    @property
    def is_float(self) -> bool:
        """Whether its numbers are of a type that losses are computed in."""
        return (self.dtype.kind == "f" and self.dtype.itemsize <= 8) or (
            self.dtype.name == "bfloat16")

    def new_header(self) -> bytes:
        """Return the header that `numpy.save` writes before such an array."""
        file = io.BytesIO()
        npy.write_array_header_1_0(file, {
            "descr": npy.dtype_to_descr(self.dtype), "fortran_order": self.order == "F",
            "shape": self.shape,
        })
        return file.getvalue()

    def check_unchanged(self) -> None:
        """Raise `InputChangedError` if the file has another stamp by now."""
        if _stamp(os.stat(self.path)) != self.stamp:
            raise InputChangedError(f"{self.path}: was modified while it was being read")


def read_header(path: str, bfloat16: bool) -> NpyFile:
    """Return what the .npy file at `path` holds; `bfloat16`: as which 2-byte elements are read.

    Raises
    ------
    CommandError
        It is no .npy file, holds Python objects, or is shorter or longer than its header says.
    OSError
        It cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would block
        raise CommandError(f"{path}: not a regular file; blocks are read from any place in it")
    with open(path, "rb", buffering=0) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        head = io.BytesIO(file.read(HEADER_BYTES))
    unreadable = f"{path}: not a .npy file that can be read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on headers that Python 2 wrote
            version = npy.read_magic(head)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"format version {version[0]}.{version[1]} is unknown")
            # Version 3 is 2 with names in UTF-8, and numbers have no names.
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(head)
    except Exception as error:  # whatever a header made of anything leads Python's parser to
        raise CommandError(f"{unreadable}: {in_one_line(error)}") from error
    if min(shape, default=0) < 0:
        raise CommandError(f"{unreadable}: shape {shape}")
    if dtype.hasobject:
        raise CommandError(f"{path}: holds Python objects, which are never unpickled; save numbers")
    size, promised = stamp[0], head.tell() + math.prod(shape) * dtype.itemsize
    if size != promised:
        what = "truncated" if size < promised else "something follows the array"
        raise CommandError(f"{path}: {what}: {size} bytes, but {dtype} of shape {shape} takes "
                           f"{promised}")
    swapped = False
    plain_void = dtype.kind == "V" and dtype.names is None and dtype.subdtype is None
    if bfloat16 and dtype.itemsize == 2 and (plain_void or dtype.kind == "u"):
        swapped = not dtype.isnative
        dtype = _bfloat16()
    return NpyFile(path, dtype, swapped, shape, "F" if fortran else "C", head.tell(), stamp)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _bfloat16() -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found
    except ImportError as error:
        raise CommandError(
            f"--dtype bfloat16 needs ml_dtypes ({error}); pip install ml_dtypes") from error


# ---- rows ----------------------------------------------------------------------------------------


class Table:
    """A file's array as rows x columns, in the order in which the file has the rows.

    That is C order of all axes but the last, or, in a Fortran-ordered file, Fortran order.
    """

    def __init__(self, file: NpyFile, n_columns: int) -> None:
        self.file = file
        self.n_rows = math.prod(file.shape) // n_columns
        self.n_columns = n_columns
        self.row_bytes = n_columns * file.dtype.itemsize

    @property
    def strided(self) -> bool:
        """Whether a block of rows lies in the file in pieces, one a column."""
        return self.file.order == "F" and self.n_columns > 1 and self.n_rows > 1

    def array(self, buffer: NDArray[np.uint8], n: int) -> NDArray[Any]:
        """Return the first `n` rows' bytes of `buffer` as an array (n, columns)."""
        flat = buffer[: n * self.row_bytes].view(self.file.dtype)
        if self.strided:
            return flat.reshape(self.n_columns, n).T
        return flat.reshape(n, self.n_columns)

    def pieces(self, first: int, n: int, offset: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place in the file, place in the buffer, bytes) of the pieces of `n` rows.

        Row `first` is the first of them, and `offset` where the data begin in the file.
        """
        if not self.strided or n == self.n_rows:
            yield offset + first * self.row_bytes, 0, n * self.row_bytes
            return
        item = self.file.dtype.itemsize
        for column in range(self.n_columns):
            yield offset + (column * self.n_rows + first) * item, column * n * item, n * item


class Reader:
    """One worker's own open file and buffer, for blocks of a table."""

    def __init__(self, table: Table, most_rows: int) -> None:
        self.table = table
        self.buffer = np.empty(most_rows * table.row_bytes, np.uint8)
        self._file = open(table.file.path, "rb", buffering=0)  # noqa: SIM115

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, first: int, n: int) -> NDArray[Any]:
        """Return `n` rows from row `first` on, (n, columns): the buffer, until the next call."""
        view = self.buffer.data
        for place, start, length in self.table.pieces(first, n, self.table.file.offset):
            self._file.seek(place)
            got = 0
            while got < length:  # the system may read less at a time
                more = self._file.readinto(view[start + got : start + length])
                if not more:
                    raise InputChangedError(f"{self.table.file.path}: became shorter meanwhile")
                got += more
        if self.table.file.swapped:
            self.buffer[: n * self.table.row_bytes].view(np.uint16).byteswap(inplace=True)
        return self.table.array(self.buffer, n)
