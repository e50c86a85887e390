"""`softxent eval`: loss, perplexity, accuracy and gradient of .npy files larger than memory.

Both files are cut into blocks of rows, by their shapes alone. Workers (threads) each take the next
block, read it into a buffer of their own (`_npy`), compute on it and, with `--grad`, write the
gradient back from the same buffer (`_gradient_file`). So reading, computing and writing overlap
without a hand-over: a core always has either to copy or to compute. Kernels run one thread a
worker, and release the interpreter's lock.

The main thread collects one sum and one count a block. Sums are added exactly (`math.fsum`), so the
order in which blocks finish, the number of workers and interruptions leave no trace in the result.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import softxent
from softxent._explain import explain
from softxent._plan import BackendUnavailableError
from softxent._threads import get_num_threads
from softxent.cli import CommandError
from softxent.cli._gradient_file import GradientFile, Score, note
from softxent.cli._npy import NpyFile, Reader, Table, in_one_line, read_header
from softxent.losses.cross_entropy import cross_entropy, cross_entropy_with_grad
from softxent.metrics import accuracy, mean_divisor

#: Bytes of logits in a block. The journal of a gradient is valid for one size only.
BLOCK_BYTES = 4 << 20
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

T = TypeVar("T")
#: A worker's way to rows: `read(first, n)` returns `n` rows from row `first` on, (n, columns),
#: valid until the next call.
Read = Callable[[int, int], NDArray[Any]]


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
    except BackendUnavailableError:
        raise
    except MemoryError as error:
        raise CommandError(
            f"not enough memory, one row must fit in it: {in_one_line(error)}") from error
    except (IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(in_one_line(error)) from error


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    begin = time.perf_counter()
    job = _prepare(options)
    inputs = job.logits.file, job.targets.file
    grad = None
    if options.grad:
        grad = GradientFile(options.grad, job.logits, inputs, job.origin(), job.rows_in)
    job.counted = _count(job)
    with grad.opened(options.resume) if grad else contextlib.nullcontext():
        done = grad.scores if grad else {}
        blocks = [block for block in range(job.n_blocks) if block not in done]
        scores = _evaluate(job, blocks, grad)
        for file in inputs:
            file.check_unchanged()
        if grad:
            grad.finish()
    scores.update(done)
    seconds = time.perf_counter() - begin
    loss = _total(scores) / job.counted if job.counted else 0.0
    correct = sum(count for _, count in scores.values())
    n_bytes = sum(map(job.rows_in, blocks)) * job.logits.row_bytes
    figures = {
        "rows": job.n_rows, "classes": job.logits.n_columns, "dtype": job.logits.file.dtype_name,
        "order": job.logits.file.order, "targets": job.kind,
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


# ---- the job -------------------------------------------------------------------------------------


@dataclass
class Job:
    """What is to be computed, and how it is cut up.

    targets
        Class numbers have one column.
    kind
        "classes" or "probabilities".
    options
        What every call of the loss is given.
    held
        Class numbers in the logits' order of rows, if the file has another one; else None.
    counted
        Rows that count: the mean's divisor.
    """

    logits: Table
    targets: Table
    kind: str
    options: dict[str, Any]
    held: NDArray[Any] | None
    block_rows: int
    counted: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.logits.n_rows

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_rows // self.block_rows)

    def rows_in(self, block: int) -> int:
        """Return the number of rows of a block."""
        return min(self.block_rows, self.n_rows - block * self.block_rows)

    @contextlib.contextmanager
    def targets_reader(self, most_rows: int) -> Iterator[Read]:
        """Give a worker its way to the targets."""
        held = self.held
        if held is not None:
            yield lambda first, n: held[first : first + n, np.newaxis]
            return
        with Reader(self.targets, most_rows) as reader:
            yield reader.read

    def in_file(self, message: str, first: int) -> str:
        """Return the library's `message` on a block that begins at row `first`, with the index.

        The block's index, that is, becomes the one in the file.
        """
        file = self.logits.file
        shape = file.shape[:-1]

        def place(match: re.Match[str]) -> str:
            row, *column = map(int, match[1].split(","))
            rows = np.unravel_index(first + row, shape, file.order) if shape else ()
            at = [*rows, *column]
            return f"targets[{', '.join(map(str, at))}]" if at else "targets"

        return re.sub(r"targets\[(\d+(?:, \d+)*)\]", place, message, count=1)

    def origin(self) -> dict[str, Any]:
        """Return all that a block's result depends on, of JSON's types."""
        logits = self.logits.file
        plan = explain((self.block_rows, self.logits.n_columns), logits.dtype,
                       order="F" if self.logits.strided else "C", targets=self.kind)
        return {
            "logits (size, time)": list(logits.stamp),
            "targets (size, time)": list(self.targets.file.stamp),
            "dtype": logits.dtype_name, "shape": list(logits.shape),
            **self.options, "rows in a block": self.block_rows,
            "softxent": getattr(softxent, "__version__", "unknown"),
            "backend": f"{plan.backend} {plan.isa}".rstrip(),
        }


def _prepare(options: argparse.Namespace) -> Job:
    """Return the job that the arguments describe; every cheap check is made here."""
    bfloat16 = options.dtype == "bfloat16"
    logits = read_header(options.logits, bfloat16)
    targets = read_header(options.targets, bfloat16)
    if not logits.is_float:
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
    n_classes = logits.shape[-1]
    arguments: dict[str, Any] = {"label_smoothing": options.label_smoothing}
    if options.ignore_index is not None:
        arguments["ignore_index"] = options.ignore_index
    elif kind == "classes":
        arguments["ignore_index"] = -100
    # No rows at all: the library judges dtypes and options.
    shape = (0,) if kind == "classes" else (0, n_classes)
    cross_entropy(np.empty((0, n_classes), logits.dtype), np.empty(shape, targets.dtype),
                  **arguments)
    tables = Table(logits, n_classes), Table(targets, 1 if kind == "classes" else n_classes)
    held = _in_order_of(*tables, kind)
    return Job(*tables, kind, arguments, held, _block_rows(*tables, kind))


def _kind_of_targets(logits: NpyFile, targets: NpyFile) -> str:
    rows = logits.shape[:-1]
    if targets.dtype.kind in "iu" and targets.shape == rows:
        return "classes"
    if targets.is_float and targets.shape == logits.shape:
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


def _in_order_of(logits: Table, targets: Table, kind: str) -> NDArray[Any] | None:
    """Return class numbers in the logits' order of rows, or None if the file has them so."""
    ours, theirs, shape = logits.file.order, targets.file.order, logits.file.shape[:-1]
    several_axes = sum(length > 1 for length in shape) > 1
    if ours == theirs or not several_axes or not logits.n_rows:
        return None
    if kind == "probabilities":
        raise CommandError(
            f"{targets.file.path}: rows of several axes must be in the logits' order {ours!r}, got "
            f"{theirs!r}; save numpy.asarray(targets, order={ours!r})"
        )
    # Class numbers are few beside the logits.
    with Reader(targets, targets.n_rows) as reader:
        array = reader.read(0, targets.n_rows).reshape(shape, order=theirs)
    return array.ravel(order=ours)


def _block_rows(logits: Table, targets: Table, kind: str) -> int:
    tables = [logits] if kind == "classes" else [logits, targets]
    row_bytes = max(table.row_bytes for table in tables)
    rows = BLOCK_BYTES // row_bytes
    items = [table.file.dtype.itemsize for table in tables if table.strided]
    if items:
        rows = max(rows, min(PIECE_BYTES // min(items), FORTRAN_BYTES // row_bytes))
    return max(1, min(rows, BLOCK_ROWS, logits.n_rows))


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
    row_bytes = job.logits.row_bytes + job.targets.row_bytes
    if with_grad and job.kind == "probabilities":
        row_bytes += job.logits.row_bytes
    fitting = max(1, BUFFERS_BYTES // (row_bytes * job.block_rows))
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
        with job.targets_reader(min(CHECKED_ROWS, job.n_rows)) as read:

            def check(first: int) -> tuple[int, tuple[int, int] | None]:
                y = read(first, min(CHECKED_ROWS, job.n_rows - first))[:, 0]
                at = _out_of_range(y, job.logits.n_columns, ignored)
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
            cross_entropy(np.broadcast_to(np.float32(0), (1, job.logits.n_columns)),
                          np.array([value], job.targets.file.dtype), ignore_index=ignored)
        except IndexError as error:
            raise IndexError(f"{job.targets.file.path}: {job.in_file(str(error), row)}") from error
    return counted


def _out_of_range(y: NDArray[Any], n_classes: int, ignored: int) -> int | None:
    """Return where the first class number is that does not exist, or None."""
    if y.min() >= 0 and y.max() < n_classes:
        return None
    bad = ((y < 0) | (y >= n_classes)) & (y != ignored)
    first = int(np.argmax(bad))
    return first if bad[first] else None


# ---- blocks --------------------------------------------------------------------------------------


def _evaluate(job: Job, blocks: Sequence[int], grad: GradientFile | None) -> dict[int, Score]:
    """Compute `blocks`; with `grad`, write and record them there too."""
    workers, threads = _crew(job, grad is not None)
    scores: dict[int, Score] = {}
    row_bytes = job.logits.row_bytes
    todo = sum(map(job.rows_in, blocks))
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
def _worker(
    job: Job, grad: GradientFile | None, n_threads: int
) -> Iterator[Callable[[int], Score]]:
    """Give a worker its open files and buffers, and the function that computes a block."""
    options = {**job.options, "reduction": "sum", "n_threads": n_threads}
    ignored = job.options.get("ignore_index")
    # For "mean" with the divisor D the kernels get exactly this factor; and a sum can be added up.
    scale = 1.0 / job.counted if job.counted else 1.0
    with ExitStack() as stack:
        logits = stack.enter_context(Reader(job.logits, job.block_rows))
        read_targets = stack.enter_context(job.targets_reader(job.block_rows))
        write = stack.enter_context(grad.writer()) if grad is not None else None
        own = None  # where the gradient goes, if not over the logits
        if write is not None and job.kind == "probabilities":
            # In place, the library must check probabilities beforehand: a pass of its own.
            own = np.empty_like(logits.buffer)

        def compute(block: int) -> Score:
            first, n = block * job.block_rows, job.rows_in(block)
            z, t = logits.read(first, n), read_targets(first, n)
            classes = t[:, 0] if job.kind == "classes" else _largest(t)
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
                    out = z if own is None else job.logits.array(own, n)
                    loss, _ = cross_entropy_with_grad(z, t, upstream=scale, grad_out=out, **options)
                    write(first, n, logits.buffer if own is None else own)
            except (IndexError, ValueError) as error:
                message = job.in_file(str(error), first)
                raise type(error)(f"{job.targets.file.path}: {message}") from error
            return float(loss), round(share * counted)

        yield compute


def _largest(t: NDArray[Any]) -> NDArray[np.intp]:
    """Return the class of each row's largest probability, the first of equal ones.

    NumPy copies what is not C-contiguous: a few rows at a time.
    """
    step = max(1, BLOCK_BYTES // (t.shape[1] * t.itemsize))
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
        note("no progress bar without tqdm; pip install 'softxent[cli]'")
        return None
    bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, file=sys.stderr,
               desc="softxent eval", leave=False, dynamic_ncols=True)
    return stack.enter_context(bar)
