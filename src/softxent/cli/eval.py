"""`softxent eval`: loss, perplexity, accuracy and gradient of .npy files larger than memory.

Both files are cut into blocks of rows, by their shapes alone. Workers (threads) each take the next
block, read it into a buffer of their own, compute on it and, with `--grad`, write the gradient back
from the same buffer. So reading, computing and writing overlap without a hand-over: a core always
has either to copy or to compute. Kernels run one thread a worker, and release the interpreter's
lock.

Blocks are read, never mapped: mapped pages would count as the process's memory. The main thread
collects one sum and one count a block. Sums are added exactly (`math.fsum`), so the order in which
blocks finish, the number of workers and interruptions leave no trace in the result.

A gradient grows in OUT.partial, and OUT.progress is its journal: one line for each block that is
safely in the file (synced before the line is written), with a checksum, so that a line torn by a
crash is told from a whole one. `--resume` computes the blocks that have no line. OUT itself appears
by one rename, complete.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import math
import os
import queue
import re
import stat
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

import softxent
from softxent._explain import explain
from softxent._plan import BackendUnavailableError
from softxent._threads import get_num_threads
from softxent.cli import CommandError
from softxent.losses.cross_entropy import cross_entropy, cross_entropy_with_grad
from softxent.metrics import accuracy, mean_divisor

if sys.platform != "win32":
    import fcntl

#: Bytes of logits in a block. The journal of a gradient is valid for one size only.
BLOCK_BYTES = 8 << 20
#: At most so many rows in a block: a row has costs of its own, which few classes do not outweigh.
BLOCK_ROWS = 1 << 18
#: In Fortran order a block is a piece of each class. Pieces are to have PIECE_BYTES, as long as
#: the block keeps within FORTRAN_BYTES.
PIECE_BYTES = 64 << 10
FORTRAN_BYTES = 64 << 20
#: Class numbers checked at a time.
CHECKED_ROWS = 1 << 20
#: All workers' buffers together; one worker always has its own. More workers than a memory bus can
#: serve are of no use either.
BUFFERS_BYTES = 128 << 20
MAX_WORKERS = 8
#: How much work a crash may cost, with `--grad`.
CHECKPOINT_SECONDS = 5.0
#: Everything up to a header's end; NumPy itself refuses headers of more than 10,000 characters.
HEADER_BYTES = 1 << 16

T = TypeVar("T")
#: What NumPy calls the order of an array, by what its file says of Fortran.
_ORDER: dict[bool, Literal["C", "F"]] = {False: "C", True: "F"}
#: Of one block: the sum of its rows' losses, and how many of its rows are classified rightly.
Score = tuple[float, int]


class InputChangedError(CommandError):
    """An input file is no longer what it was at the start."""


# ---- the command ---------------------------------------------------------------------------------


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval", help="loss, perplexity, accuracy and gradient of .npy files larger than memory",
        description="Mean cross-entropy, perplexity and accuracy of logits in a .npy file, block "
        "by block: the file may be larger than memory, one row of it may not.",
    )
    parser.add_argument("logits", metavar="LOGITS.npy",
                        help="float16, float32, float64 or bfloat16, shape (..., C): classes last")
    parser.add_argument("targets", metavar="TARGETS.npy",
                        help="integer class numbers, one a row, or probabilities of LOGITS' shape")
    parser.add_argument("--grad", metavar="OUT.npy",
                        help="write the mean loss's gradient, in LOGITS' shape, dtype and order; "
                        "it grows in OUT.npy.partial and OUT.npy.progress")
    parser.add_argument("--resume", action="store_true",
                        help="continue the gradient that an interrupted run left behind")
    parser.add_argument("--label-smoothing", metavar="E", type=_share, default=0.0,
                        help="within [0, 1]; default 0")
    parser.add_argument("--ignore-index", metavar="I", type=int,
                        help="rows of this class number do not count; default -100")
    parser.add_argument("--dtype", choices=["bfloat16"],
                        help="what 2-byte elements of unknown type (uint16, V2) are")
    parser.set_defaults(run=run, usage_error=parser.error)
    return parser


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Evaluate the files, and return the figures and the same as text."""
    if options.resume and not options.grad:
        options.usage_error("--resume continues a gradient: it goes with --grad")
    try:
        return _run(options)
    except (CommandError, BackendUnavailableError):
        raise
    except MemoryError as error:
        raise CommandError(f"not enough memory, one row must fit in it: {_line(error)}") from error
    except (IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(_line(error)) from error


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    begin = time.perf_counter()
    job = _prepare(options)
    grad = _Gradient(options.grad, job) if options.grad else None
    job.counted = _count(job)
    if grad is None:
        blocks: Sequence[int] = range(job.n_blocks)
        scores = _evaluate(job, blocks, None)
        _check_unchanged(job)
    else:
        with grad.opened(options.resume):
            blocks = [block for block in range(job.n_blocks) if block not in grad.scores]
            _evaluate(job, blocks, grad)
            _check_unchanged(job)
            grad.finish()
        scores = grad.scores
    seconds = time.perf_counter() - begin
    loss = _total(scores) / job.counted if job.counted else 0.0
    correct = sum(count for _, count in scores.values())
    n_bytes = sum(map(job.rows_in, blocks)) * job.table.row_bytes
    figures = {
        "rows": job.n_rows, "classes": job.n_classes, "dtype": _name(job.logits.dtype),
        "order": _ORDER[job.logits.fortran], "targets": job.kind,
        "rows_counted": job.counted, "loss": loss, "perplexity": _exp(loss),
        "accuracy": correct / job.counted if job.counted else 0.0,
        "grad": options.grad, "seconds": seconds, "gb_per_second": n_bytes / seconds / 1e9,
    }
    # JSON has no infinity and no NaN.
    machine = {name: None if isinstance(value, float) and not math.isfinite(value) else value
               for name, value in figures.items()}
    return machine, _as_text(figures)


def _as_text(figures: dict[str, Any]) -> str:
    rows, counted = figures["rows"], figures["rows_counted"]
    order = ", Fortran order" if figures["order"] == "F" else ""
    lines = [
        f"logits      {rows:,} x {figures['classes']:,} {figures['dtype']}{order}",
        f"targets     {figures['targets']}; {counted:,} of {rows:,} rows count",
        f"loss        {figures['loss']!r}",
        f"perplexity  {figures['perplexity']!r}",
        f"accuracy    {figures['accuracy']!r}",
    ]
    if figures["grad"]:
        # A file's name may hold bytes that are no text.
        lines.append(f"gradient    {figures['grad'].encode(errors='backslashreplace').decode()}")
    lines.append(f"time        {figures['seconds']:.3f} s, {figures['gb_per_second']:.2f} GB/s")
    return "\n".join(lines)


def _share(text: str) -> float:
    share = float(text)
    if not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"must be within [0, 1], got {text}")
    return share


def _line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _total(scores: dict[int, Score]) -> float:
    """Return the sum of all blocks' losses, rounded once: no order of blocks changes it."""
    try:
        return math.fsum(loss for loss, _ in scores.values())
    except OverflowError:
        return math.inf


def _note(text: str) -> None:
    print(f"softxent eval: {text}", file=sys.stderr, flush=True)


# ---- files ---------------------------------------------------------------------------------------


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
    fortran: bool
    offset: int
    stamp: tuple[int, int]


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
        status = os.fstat(file.fileno())
        head = io.BytesIO(file.read(HEADER_BYTES))
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
        raise CommandError(f"{path}: not a .npy file that can be read: {_line(error)}") from error
    if min(shape, default=0) < 0:
        raise CommandError(f"{path}: not a .npy file that can be read: shape {shape}")
    if dtype.hasobject:
        raise CommandError(f"{path}: holds Python objects, which are never unpickled; save numbers")
    promised = head.tell() + math.prod(shape) * dtype.itemsize
    if status.st_size != promised:
        what = "truncated" if status.st_size < promised else "something follows the array"
        raise CommandError(f"{path}: {what}: {status.st_size} bytes, but {dtype} of shape {shape} "
                           f"takes {promised}")
    swapped = False
    plain_void = dtype.kind == "V" and dtype.names is None and dtype.subdtype is None
    if bfloat16 and dtype.itemsize == 2 and (plain_void or dtype.kind == "u"):
        swapped = not dtype.isnative
        dtype = _bfloat16()
    return NpyFile(path, dtype, swapped, shape, fortran, head.tell(),
                   (status.st_size, status.st_mtime_ns))


def _bfloat16() -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found
    except ImportError as error:
        raise CommandError(
            f"--dtype bfloat16 needs ml_dtypes ({error}); pip install ml_dtypes") from error


def _name(dtype: np.dtype[Any]) -> str:
    name: str = dtype.newbyteorder("=").name
    return name


def _is_float(dtype: np.dtype[Any]) -> bool:
    return (dtype.kind == "f" and dtype.itemsize <= 8) or dtype.name == "bfloat16"


class Table:
    """A file's array as rows x columns, in the order in which the file has the rows.

    That is C order of all axes but the last, or, in a Fortran-ordered file, Fortran order.
    """

    def __init__(self, file: NpyFile, n_rows: int, n_columns: int) -> None:
        self.file = file
        self.n_rows = n_rows
        self.n_columns = n_columns
        self.row_bytes = n_columns * file.dtype.itemsize

    @property
    def strided(self) -> bool:
        """Whether a block of rows lies in the file in pieces, one a column."""
        return self.file.fortran and self.n_columns > 1 and self.n_rows > 1

    def array(self, buffer: NDArray[np.uint8], n: int) -> NDArray[Any]:
        """Return the first `n` rows' bytes of `buffer` as an array (n, columns)."""
        flat = buffer[: n * self.row_bytes].view(self.file.dtype)
        if self.strided:
            return flat.reshape(self.n_columns, n).T
        return flat.reshape(n, self.n_columns)

    def pieces(self, first: int, n: int, offset: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place in the file, place in the buffer, bytes) of the pieces of `n` rows."""
        if not self.strided or n == self.n_rows:
            yield offset + first * self.row_bytes, 0, n * self.row_bytes
            return
        item = self.file.dtype.itemsize
        for column in range(self.n_columns):
            yield offset + (column * self.n_rows + first) * item, column * n * item, n * item


class Rows(Protocol):
    """A worker's way to the rows of a table."""

    def __enter__(self) -> Rows:
        """Return itself."""

    def __exit__(self, *_: object) -> None:
        """Close what is open."""

    def read(self, first: int, n: int) -> NDArray[Any]:
        """Return `n` rows from row `first` on, (n, columns), valid until the next call."""


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
        """Return `n` rows from row `first` on: the buffer."""
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


class Held:
    """Class numbers that are in memory: a `Reader` for those that a file has in another order."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, first: int, n: int) -> NDArray[Any]:
        """Return `n` rows from row `first` on."""
        return self._array[first : first + n, np.newaxis]


# ---- the job -------------------------------------------------------------------------------------


@dataclass
class Job:
    """What is to be computed, and how it is cut up.

    held
        Class numbers in the logits' order of rows, if the file has another one; else None.
    kind
        "classes" or "probabilities".
    options
        What every call of the loss is given.
    counted
        Rows that count: the mean's divisor.
    """

    logits: NpyFile
    targets: NpyFile
    n_rows: int
    n_classes: int
    held: NDArray[Any] | None
    kind: str
    options: dict[str, Any]
    block_rows: int = 1
    counted: int = 0

    @property
    def table(self) -> Table:
        """The logits."""
        return Table(self.logits, self.n_rows, self.n_classes)

    @property
    def targets_table(self) -> Table:
        """The targets; class numbers have one column."""
        return Table(self.targets, self.n_rows, 1 if self.kind == "classes" else self.n_classes)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_rows // self.block_rows)

    def rows_in(self, block: int) -> int:
        """Return the number of rows of a block."""
        return min(self.block_rows, self.n_rows - block * self.block_rows)

    def targets_reader(self, most_rows: int) -> Rows:
        """Return a worker's way to the targets."""
        if self.held is not None:
            return Held(self.held)
        return Reader(self.targets_table, most_rows)

    def in_file(self, message: str, first: int) -> str:
        """Return the library's `message` on a block that begins at row `first`, with the index.

        The block's index, that is, becomes the one in the file.
        """
        shape = self.logits.shape[:-1]

        def place(match: re.Match[str]) -> str:
            row, *column = map(int, match[1].split(","))
            at = [*np.unravel_index(first + row, shape, _ORDER[self.logits.fortran]), *column] if (
                shape) else column
            return f"targets[{', '.join(map(str, at))}]" if at else "targets"

        return re.sub(r"targets\[(\d+(?:, \d+)*)\]", place, message, count=1)


def _prepare(options: argparse.Namespace) -> Job:
    """Return the job that the arguments describe; every cheap check is made here."""
    bfloat16 = options.dtype == "bfloat16"
    logits = read_header(options.logits, bfloat16)
    targets = read_header(options.targets, bfloat16)
    if not _is_float(logits.dtype):
        cure = ""
        if logits.dtype.itemsize == 2 and logits.dtype.kind in "uV":
            cure = "; bfloat16? pass --dtype bfloat16"
        elif logits.dtype.kind in "iub":
            cure = "; are LOGITS and TARGETS swapped? logits come first"
        raise CommandError(f"{logits.path}: logits must be float16, float32, float64 or bfloat16, "
                           f"got {logits.dtype}{cure}")
    if bfloat16 and logits.dtype.name != "bfloat16":
        raise CommandError(f"{logits.path}: --dtype bfloat16 reads 2-byte elements of unknown type "
                           f"(uint16, V2), but these are {logits.dtype}; leave it out")
    if not logits.shape or logits.shape[-1] == 0:
        raise CommandError(f"{logits.path}: logits must have shape (..., C) with at least one "
                           f"class, got {logits.shape}")
    kind = _kind_of_targets(logits, targets)
    arguments: dict[str, Any] = {"label_smoothing": options.label_smoothing}
    if options.ignore_index is not None:
        arguments["ignore_index"] = options.ignore_index
    n_rows, n_classes = math.prod(logits.shape[:-1]), logits.shape[-1]
    job = Job(logits, targets, n_rows, n_classes, None, kind, arguments)
    # No rows at all: the library judges dtypes and options.
    shape = (0,) if kind == "classes" else (0, n_classes)
    cross_entropy(np.empty((0, n_classes), logits.dtype), np.empty(shape, targets.dtype),
                  **arguments)
    if kind == "classes":
        arguments.setdefault("ignore_index", -100)
    _settle_order(job)
    job.block_rows = _block_rows(job)
    return job


def _kind_of_targets(logits: NpyFile, targets: NpyFile) -> str:
    rows = logits.shape[:-1]
    if targets.dtype.kind in "iu" and targets.shape == rows:
        return "classes"
    if _is_float(targets.dtype) and targets.shape == logits.shape:
        return "probabilities"
    cure = ""
    if targets.dtype.kind in "iub" and targets.shape == logits.shape:
        cure = "; one-hot rows? save targets.argmax(axis=-1)"
    elif targets.dtype.kind in "fb" and targets.shape == rows:
        cure = "; class numbers are integers: save targets.astype(numpy.intp)"
    elif targets.dtype.kind == "V" and targets.dtype.itemsize == 2:
        cure = "; bfloat16? pass --dtype bfloat16"
    raise CommandError(
        f"{targets.path}: targets must be integers of shape {rows} or probabilities of shape "
        f"{logits.shape}, the logits'; got {targets.dtype} of shape {targets.shape}{cure}"
    )


def _settle_order(job: Job) -> None:
    """See to it that both files are read in one order of rows."""
    several_axes = sum(length > 1 for length in job.logits.shape[:-1]) > 1
    if job.logits.fortran == job.targets.fortran or not several_axes or not job.n_rows:
        return
    theirs, ours = _ORDER[job.targets.fortran], _ORDER[job.logits.fortran]
    if job.kind == "probabilities":
        raise CommandError(
            f"{job.targets.path}: rows of several axes must be in the logits' order {ours!r}, got "
            f"{theirs!r}; save numpy.asarray(targets, order={ours!r})"
        )
    # Class numbers are few beside the logits.
    with Reader(job.targets_table, job.n_rows) as reader:
        array = reader.read(0, job.n_rows).reshape(job.targets.shape, order=theirs)
    job.held = array.ravel(order=ours)


def _block_rows(job: Job) -> int:
    tables = [job.table] if job.kind == "classes" else [job.table, job.targets_table]
    row_bytes = max(table.row_bytes for table in tables)
    rows = BLOCK_BYTES // row_bytes
    items = [table.file.dtype.itemsize for table in tables if table.strided]
    if items:
        rows = max(rows, min(PIECE_BYTES // min(items), FORTRAN_BYTES // row_bytes))
    return max(1, min(rows, BLOCK_ROWS, job.n_rows))


def _check_unchanged(job: Job) -> None:
    for file in (job.logits, job.targets):
        status = os.stat(file.path)
        if (status.st_size, status.st_mtime_ns) != file.stamp:
            raise InputChangedError(f"{file.path}: was modified while it was being read")


# ---- threads -------------------------------------------------------------------------------------


def spread(
    worker: Callable[[], AbstractContextManager[Callable[[int], T]]], blocks: Sequence[int], n: int
) -> Generator[tuple[int, T], None, None]:
    """Yield (block, result) of every block as it is finished, computed by `n` threads.

    `worker()` gives each thread, as a context, the function that computes a block. The first error
    is raised here; closing the iterator, as Ctrl-C should, ends the threads after their block.
    """
    waiting = iter(blocks)
    lock = threading.Lock()
    stop = threading.Event()
    finished: queue.SimpleQueue[tuple[int, T] | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            with worker() as compute:
                while not stop.is_set():
                    with lock:
                        block = next(waiting, None)
                    if block is None:
                        break
                    finished.put((block, compute(block)))
        except BaseException as error:  # raised again below
            finished.put(error)
        finally:
            finished.put(None)

    threads = [threading.Thread(target=work) for _ in range(min(n, len(blocks)))]
    try:
        for thread in threads:
            thread.start()
        ended = 0
        while ended < len(threads):
            try:
                # Without a timeout Windows would not see Ctrl-C.
                result = finished.get(timeout=0.5)
            except queue.Empty:
                continue
            if result is None:
                ended += 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _crew(job: Job, with_grad: bool) -> tuple[int, int]:
    """Return how many workers there are, and how many threads the kernels of each may use."""
    threads = get_num_threads()
    a_block = job.table.row_bytes
    if job.kind == "probabilities":
        a_block += job.targets_table.row_bytes + with_grad * job.table.row_bytes
    else:
        a_block += job.targets_table.row_bytes
    fitting = max(1, BUFFERS_BYTES // max(1, a_block * job.block_rows))
    # One more than there are cores: while one waits for the disk, each core has another.
    workers = min(threads + 1, fitting, MAX_WORKERS, max(1, job.n_blocks))
    return workers, max(1, threads // workers)


# ---- class numbers, before anything else --------------------------------------------------------


def _count(job: Job) -> int:
    """Return how many rows count, the mean's divisor.

    Raises
    ------
    IndexError
        A class number out of range, the first of the file: found before hours have been spent.
    """
    if job.kind == "probabilities":
        return job.n_rows
    ignored = job.options["ignore_index"]

    @contextlib.contextmanager
    def worker() -> Iterator[Callable[[int], tuple[int, tuple[int, int] | None]]]:
        with job.targets_reader(min(CHECKED_ROWS, job.n_rows)) as targets:

            def check(first: int) -> tuple[int, tuple[int, int] | None]:
                y = targets.read(first, min(CHECKED_ROWS, job.n_rows - first))[:, 0]
                at = _out_of_range(y, job.n_classes, ignored)
                bad = None if at is None else (first + at, int(y[at]))
                return int(mean_divisor(y, ignore_index=ignored)), bad

            yield check

    counted = 0
    offenders = []
    workers = min(get_num_threads(), MAX_WORKERS)
    pieces = range(0, job.n_rows, CHECKED_ROWS)
    with contextlib.closing(spread(worker, pieces, workers)) as results:
        for _, (count, bad) in results:
            counted += count
            if bad is not None:
                offenders.append(bad)
    if offenders:
        row, value = min(offenders)
        try:  # one row like it: the error's words are the library's
            cross_entropy(np.broadcast_to(np.float32(0), (1, job.n_classes)),
                          np.array([value], job.targets.dtype), ignore_index=ignored)
        except IndexError as error:
            raise IndexError(f"{job.targets.path}: {job.in_file(str(error), row)}") from error
    return counted


def _out_of_range(y: NDArray[Any], n_classes: int, ignored: int) -> int | None:
    """Return where the first class number is that does not exist, or None."""
    if y.min() >= 0 and y.max() < n_classes:
        return None
    bad = ((y < 0) | (y >= n_classes)) & (y != ignored)
    first = int(np.argmax(bad))
    return first if bad[first] else None


# ---- blocks --------------------------------------------------------------------------------------


def _evaluate(job: Job, blocks: Sequence[int], grad: _Gradient | None) -> dict[int, Score]:
    """Compute `blocks`; with `grad`, write and record them there too."""
    workers, threads = _crew(job, grad is not None)
    scores: dict[int, Score] = {}
    row_bytes = job.table.row_bytes
    todo = sum(job.rows_in(block) for block in blocks)
    with ExitStack() as stack:
        bar = _progress_bar(stack, job.n_rows * row_bytes, (job.n_rows - todo) * row_bytes)
        results = stack.enter_context(contextlib.closing(
            spread(lambda: _worker(job, grad, threads), blocks, workers)))
        for block, score in results:
            scores[block] = score
            if grad is not None:
                grad.record(block, score)
            if bar is not None:
                bar.update(job.rows_in(block) * row_bytes)
    return scores


@contextlib.contextmanager
def _worker(job: Job, grad: _Gradient | None, n_threads: int) -> Iterator[Callable[[int], Score]]:
    """Give a worker its open files and buffers, and the function that computes a block."""
    options = {**job.options, "reduction": "sum", "n_threads": n_threads}
    # For "mean" with the divisor D the kernels get exactly this factor; and a sum can be added up.
    scale = 1.0 / job.counted if job.counted else 1.0
    with ExitStack() as stack:
        logits = stack.enter_context(Reader(job.table, job.block_rows))
        targets = stack.enter_context(job.targets_reader(job.block_rows))
        write = stack.enter_context(grad.writer()) if grad is not None else None
        own = None  # where the gradient goes, if not over the logits
        if write is not None and job.kind == "probabilities":
            # In place, the library must check probabilities beforehand: a pass of its own.
            own = np.empty_like(logits.buffer)

        def compute(block: int) -> Score:
            first, n = block * job.block_rows, job.rows_in(block)
            z, t = logits.read(first, n), targets.read(first, n)
            classes = t[:, 0] if job.kind == "classes" else _largest(t)
            ignored = options.get("ignore_index")
            counted: float = n
            if job.counted < job.n_rows:  # some row is ignored
                counted = mean_divisor(classes, ignore_index=ignored)
            share = accuracy(z, classes, ignore_index=ignored, n_threads=n_threads)
            if job.kind == "classes":
                t = classes
            try:
                if write is None:
                    loss = cross_entropy(z, t, **options)
                else:
                    out = z if own is None else job.table.array(own, n)
                    loss, _ = cross_entropy_with_grad(z, t, upstream=scale, grad_out=out, **options)
                    write(first, n, logits.buffer if own is None else own)
            except (IndexError, ValueError) as error:
                message = job.in_file(str(error), first)
                raise type(error)(f"{job.targets.path}: {message}") from error
            return float(loss), round(share * counted)

        yield compute


def _largest(t: NDArray[Any]) -> NDArray[np.intp]:
    """Return the class of each row's largest probability, the first of equal ones.

    NumPy copies what is not C-contiguous: a few rows at a time.
    """
    step = max(1, BLOCK_BYTES // max(1, t.shape[1] * t.itemsize))
    found = np.empty(len(t), np.intp)
    for first in range(0, len(t), step):
        found[first : first + step] = t[first : first + step].argmax(axis=1)
    return found


def _progress_bar(stack: ExitStack, total: int, done: int) -> Any:
    """Return tqdm's bar on a terminal, closed with `stack`; else None."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        _note("no progress bar without tqdm; pip install 'softxent[cli]'")
        return None
    bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, file=sys.stderr,
               desc="softxent eval", leave=False, dynamic_ncols=True)
    return stack.enter_context(bar)


# ---- the gradient --------------------------------------------------------------------------------


class _Gradient:
    """OUT.npy in the making: OUT.npy.partial, and its journal OUT.npy.progress.

    scores
        The blocks that are in the file, with their scores.
    """

    def __init__(self, path: str, job: Job) -> None:
        """Check what can be checked before anything is computed."""
        self.path = os.path.realpath(path)  # a link stays, and points to the result
        self.partial = f"{self.path}.partial"
        self.journal = f"{self.path}.progress"
        self.scores: dict[int, Score] = {}
        self._job = job
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
            for file in (job.logits, job.targets):
                if os.path.samefile(ours, file.path):
                    raise CommandError(f"--grad would overwrite an input: {ours} and {file.path} "
                                       f"are one file")
        self._header = self._npy_header()

    def _npy_header(self) -> bytes:
        file = io.BytesIO()
        logits = self._job.logits
        npy.write_array_header_1_0(file, {
            "descr": npy.dtype_to_descr(logits.dtype), "fortran_order": logits.fortran,
            "shape": logits.shape,
        })
        return file.getvalue()

    @property
    def _size(self) -> int:
        return len(self._header) + self._job.n_rows * self._job.table.row_bytes

    def _fingerprint(self) -> dict[str, Any]:
        """Return what must be the same for the finished blocks to be parts of the same result."""
        job = self._job
        plan = explain((max(1, job.block_rows), job.n_classes), job.logits.dtype,
                       order="F" if job.table.strided else "C", targets=job.kind)
        return {
            "logits (size, time)": list(job.logits.stamp),
            "targets (size, time)": list(job.targets.stamp),
            "dtype": _name(job.logits.dtype), "shape": list(job.logits.shape),
            **job.options, "rows in a block": job.block_rows,
            "softxent": getattr(softxent, "__version__", "unknown"),
            "backend": f"{plan.backend} {plan.isa}".rstrip(),
        }

    @contextlib.contextmanager
    def opened(self, resume: bool) -> Iterator[None]:
        """Open the partial file, new or continued; on an error keep it if it can be continued."""
        fingerprint = self._fingerprint()
        self._lock()
        try:
            if not (resume and self._resume(fingerprint)):
                self._begin(fingerprint, resume)
            yield
        except KeyboardInterrupt:
            if self._renamed:
                _note(f"{self.path} is complete")
                self._remove()
            else:
                self._save_quietly()
                _note(f"{self._kept()}; --resume continues")
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
            raise CommandError(f"{_line(error)}; {self._kept()}; --resume continues") from error
        finally:
            if self._fd >= 0:
                os.close(self._fd)

    def _kept(self) -> str:
        rows = sum(map(self._job.rows_in, self.scores))
        return f"{rows:,} of {self._job.n_rows:,} rows are kept in {self.partial}"

    def _lock(self) -> None:
        """Open the partial file, and make sure that no other process is at it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._found = os.path.exists(self.partial) and os.path.getsize(self.partial) > 0
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

    def _begin(self, fingerprint: dict[str, Any], resume: bool) -> None:
        """Make the partial file and the journal anew."""
        if self._found:
            _note(f"{self.partial}: {'nothing to resume in it' if resume else 'discarded'}, "
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
        self._append(_journal_line(json.dumps(fingerprint)))
        self._sync_folder()

    def _resume(self, fingerprint: dict[str, Any]) -> bool:
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
        if not lines or not self._found:
            return False
        before: dict[str, Any] = json.loads(lines[0])
        changed = [f"{name} {before.get(name)!r} is now {fingerprint.get(name)!r}"
                   for name in {**before, **fingerprint}
                   if before.get(name) != fingerprint.get(name)]
        if changed:
            raise _CannotContinueError(
                f"{self.partial} cannot be resumed, it was begun otherwise: {'; '.join(changed)}; "
                "leave out --resume to start from the first row"
            )
        os.lseek(self._fd, 0, os.SEEK_SET)
        if (os.fstat(self._fd).st_size != self._size
                or os.read(self._fd, len(self._header)) != self._header):
            return False
        for line in lines[1:]:
            block, loss, correct = line.split()
            self.scores[int(block)] = (float.fromhex(loss), int(correct))
        if valid < len(data):
            os.truncate(self.journal, valid)  # or the next line would become part of a torn one
        return True

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[int, int, NDArray[np.uint8]], None]]:
        """Give a worker the function that writes the buffer of `n` rows from row `first` on."""
        table, offset = self._job.table, len(self._header)
        with open(self.partial, "r+b", buffering=0) as file:

            def write(first: int, n: int, buffer: NDArray[np.uint8]) -> None:
                with _naming(self.partial):
                    for place, start, length in table.pieces(first, n, offset):
                        file.seek(place)
                        _write_all(file.fileno(), buffer.data[start : start + length])

            yield write

    def record(self, block: int, score: Score) -> None:
        """Note that a block has been written; from time to time, make that certain."""
        self._unsaved[block] = score
        if time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS:
            self._save()

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
        with _naming(self.journal), open(self.journal, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # what comes next must not continue half a line
                raise

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

    def _remove(self) -> None:
        for path in (self.journal, self.partial):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _sync_folder(self) -> None:
        """Make what was created, renamed and removed outlive a power failure."""
        if os.name != "posix":
            return
        with contextlib.suppress(OSError):
            fd = os.open(os.path.dirname(self.path), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class _CannotContinueError(Exception):
    """A partial file of other inputs or options: it stays as it is."""


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
    for line in itertools.takewhile(lambda line: line.endswith(b"\n"), data.splitlines(True)):
        checksum, _, text = line[:-1].partition(b" ")
        if checksum != f"{zlib.crc32(text):08x}".encode():
            break
        lines.append(text.decode())
        valid += len(line)
    return lines, valid
