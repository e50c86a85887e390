"""What a backend is: the only file that dispatch, the run and every backend share.

A backend never names a loss. It is handed a `Call`, raw arrays and numbers, and returns a `Task`
that evaluates any range of its rows. Every check has been made before (`_problem.py`), except two:
a class number is checked again when it is used, because another thread may have changed it, and
probability targets are checked as they are read, which saves a pass over them.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Op(enum.IntEnum):
    """What the head makes of a row's sums; the compiled backends list the same, in this order."""

    # Enum's own is a call of a Python function, for every key that is looked up.
    __hash__ = int.__hash__

    CROSS_ENTROPY = 0
    FOCAL = enum.auto()
    KL = enum.auto()
    SQUARED_ERROR = enum.auto()
    NLL = enum.auto()  # of log-probabilities, given as logits
    SIGMOID = enum.auto()  # one logit a row, many rows a piece
    HESSIAN = enum.auto()  # of cross-entropy, its diagonal, not below `Call.floor`; no row values
    DISTILLATION = enum.auto()  # from a teacher's logits, and from a class
    # From here on the pieces.
    LOGSUMEXP = enum.auto()
    SOFTMAX = enum.auto()
    LOG_SOFTMAX = enum.auto()
    BELOW = enum.auto()  # sum of exp(z - max z) without the first largest itself; float64 rows
    ENTROPY = enum.auto()
    RANK = enum.auto()  # how many classes come before the target, largest logit first
    SOFTMAX_VJP = enum.auto()


#: `Op.SIGMOID`: rows, in order, of which a backend takes so many as one; what `Call.summed` sums.
POINTS = 1024


#: Classes that go together: what rows are cut into.
BLOCK = 1024
#: The most rows of a call whose rows are cut.
CUT_ROWS = 32


class Key(NamedTuple):
    """All that a backend may base a refusal on; hashable, so that plans can be cached.

    dtype
        "float32", "float64", "float16" or "bfloat16", in any byte order: the logits'; float64
        where a teacher's are.
    order
        "C" (unit class stride), "F" (unit row stride) or "strided" (anything else, foreign byte
        order and misaligned elements included).
    targets
        "classes", "probabilities", "logits" (a teacher's), or "" where there are none.
    temperature
        Whether there is one (other than 1).
    options
        Whether there is another that changes what a row's value is: `Call.has_options`.
    apart
        Whether the map's memory is the caller's and shares nothing with the logits: its pages are
        there, and in no cache of this call's.
    """

    op: Op
    dtype: str
    order: str
    wants_map: bool  # does the call fill an array of the logits' shape (gradient, softmax)?
    targets: str = ""
    temperature: bool = False
    options: bool = False
    apart: bool = False


@dataclass(slots=True)
class Call:
    """One evaluation, for a backend's eyes: arrays as views of the caller's, nothing converted.

    `rows` below is the shape that every per-row array has; logits and `out_map` have one more
    axis, the classes, last. Arrays may have any strides, byte order and alignment.

    op
        What to compute.
    logits
        rows + (C,), float32, float64, float16 or bfloat16. May be the same memory as `out_map`,
        element for element; no other output overlaps an input. `Op.SOFTMAX_VJP`: the probabilities.
    targets
        rows, any integer dtype, or None (probabilities, and the pieces). Each is in [0, C), or
        `ignore_index`.
    soft_targets
        rows + (C,), any float dtype, or None: probability targets. Their values are the backend's
        to check as it reads them: a negative, NaN or infinite one in a row that counts makes
        `Task.refused` true, and outputs then hold anything. `Op.SOFTMAX_VJP`: what its Jacobian is
        multiplied with, any real dtype, any value. `Op.DISTILLATION`: the teacher's logits, of any
        dtype that logits have.
    ignore_index
        A row with this target: loss and gradient are +0.0, its logits are never used. None: no
        row is ignored.
    sample_weight
        rows, any integer, bool or float dtype, finite and >= 0; or None for 1. A row of weight 0 is
        treated as an ignored one.
    class_weight
        (C,), contiguous, aligned, native float64, finite and >= 0; or None for 1.
    class_weight_mean
        The mean of `class_weight` (1.0 where that is None), if there is smoothing.
    upstream
        rows, a real dtype; or None for 1. Multiplies the gradient of its row; `Op.SOFTMAX`: the
        probabilities.
    scale
        Multiplies every gradient: scalar upstream / (divisor temperature). `Op.DISTILLATION`: /
        divisor.
    smoothing
        Epsilon, in [0, 1]: targets t become (1 - epsilon) t + epsilon / C.
    temperature, softcap
        Logits x become cap tanh(x / cap) (0.0: they stay), then are divided by the temperature:
        these z are what a softmax is of. Both within [2**-500, 2**500].
    z_loss
        Lambda >= 0: a row's value has lambda lse(z)**2 added.
    gamma
        `Op.FOCAL`: the exponent >= 0 of 1 - p.
    pos_weight
        `Op.SIGMOID`: rows, a real dtype, finite and >= 0; or None for 1. Multiplies what targets of
        1 cost. (Its `soft_targets` are of any real dtype and within [0, 1], or refused.)
    summed
        `Op.SIGMOID`: `out_rows` is float64 and has one element for every `POINTS` rows: their sum.
    floor
        `Op.HESSIAN`: >= 0.
    hard_weight
        `Op.DISTILLATION`: the share in [0, 1) of cross-entropy with `targets`, at a temperature of
        1, of which class weights and smoothing are. Where it is 0, `targets` only say which rows
        are ignored.
    slack
        `Op.KL`: how far from 1 the sum of a row's targets may be for the row's value to be one that
        cannot be negative.
    out_rows
        rows, C-contiguous, native float32 or float64, or None: the row values (weighted loss, not
        divided; lse; entropy; rank).
    out_map
        logits' shape, and their dtype or float32 for 16-bit ones, or None: the gradient; softmax;
        log_softmax; the product.
    streams
        Whether `out_map` should be written past the caches, where a backend can. Never in place.
    second
        For a backend that `pairs`, or None: a call of `Op.HESSIAN` beside one of cross-entropy, all
        else but scale, floor, upstream and outputs the same. Its `out_map` is not the logits.
    """

    op: Op
    logits: NDArray[np.floating]
    targets: NDArray[np.integer] | None = None
    ignore_index: int | None = None
    sample_weight: NDArray[np.generic] | None = None
    class_weight: NDArray[np.float64] | None = None
    upstream: NDArray[np.generic] | None = None
    scale: float = 1.0
    out_rows: NDArray[np.floating] | None = None
    out_map: NDArray[np.floating] | None = None
    soft_targets: NDArray[np.floating] | None = None
    class_weight_mean: float = 1.0
    smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float = 0.0
    z_loss: float = 0.0
    gamma: float = 0.0
    slack: float = 0.0
    floor: float = 0.0
    pos_weight: NDArray[np.generic] | None = None
    summed: bool = False
    hard_weight: float = 0.0
    streams: bool = False
    second: Call | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether `soft_targets` are logits, too."""
        return self.op is Op.DISTILLATION

    @property
    def is_wide(self) -> bool:
        """Whether the arithmetic is float64's."""
        return self.logits.itemsize == 8 or (
            self.op is Op.DISTILLATION and self.soft_targets is not None
            and self.soft_targets.itemsize == 8)

    @property
    def has_options(self) -> bool:
        """Whether there is label smoothing, a softcap or a z-loss."""
        return self.smoothing != 0.0 or self.softcap != 0.0 or self.z_loss != 0.0

    @property
    def n_rows(self) -> int:
        """Number of rows: the product of the rows' shape; where they go together, of pieces."""
        n = 1
        for length in self.logits.shape[:-1]:
            n *= length
        return -(-n // POINTS) if self.op is Op.SIGMOID else n

    @property
    def n_classes(self) -> int:
        """Number of classes, C >= 1; where rows go together, that of a piece."""
        return POINTS if self.op is Op.SIGMOID else int(self.logits.shape[-1])


class Native(NamedTuple):
    """A kernel as the pool calls it: `int64_t f(void *args, int64_t lo, int64_t hi, sx_control *)`.

    A run's ranges are all its rows, once each: a kernel may move the bounds between them, all
    alike. `owner` keeps the memory behind `args` alive.
    """

    function: int
    args: int
    owner: Any


class Task(Protocol):
    """A call bound to a kernel. Rows are numbered in C order of the rows' shape."""

    #: The kernel's address and its arguments', for the native pool; None: Python only.
    native: Native | None
    #: Of a kernel that cuts rows: blocks of all rows; else 0.
    units: int
    #: Whether such a kernel writes a map.
    has_map: bool

    @property
    def refused(self) -> bool:
        """After the run: whether a probability target was negative, NaN or infinite."""

    @property
    def out_of_memory(self) -> bool:
        """After a run that gave up: whether that was for want of memory."""

    def __call__(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Evaluate rows lo <= i < hi. Asks `stopped()` at least every 2**22 elements."""


class Backend(abc.ABC):
    """One way to compute everything. Subclasses are final and hold no state of a call."""

    #: The public name: what `backend=`, `set_backend` and `SOFTXENT_BACKEND` take.
    name: str
    #: Whether ranges of a call's rows may run side by side.
    parallel: bool = True
    #: Whether it serves a `Call.second` in the same walk.
    pairs: bool = False

    @abc.abstractmethod
    def availability(self) -> str:
        """Return "available", or why it is not, in words for the user; cheap to ask again."""

    @abc.abstractmethod
    def supports(self, key: Key) -> str | None:
        """Return None if the backend can serve `key`, else why not (not available, say).

        What it needs for that it loads, or compiles: a plan names only what will run.
        """

    @abc.abstractmethod
    def isa(self) -> str:
        """Return the instruction set in use ("v2", "v3", "v4", "generic"), or "" if it has none."""

    @abc.abstractmethod
    def bind(self, call: Call, isa: str, cut: bool = False) -> Task:
        """Return the task that evaluates `call` with the instruction set that `isa()` gave.

        cut: by a kernel that cuts rows among threads, for a key that the backend `cuts`.
        """

    def kernel(self, key: Key, isa: str, units: int) -> tuple[int, int] | None:
        """Return the address of the kernel that takes `call.h`'s arguments, or None.

        units: 0, or the blocks of all rows, for the kernel that cuts them; second comes how many
        bytes that one's arguments have, behind the call's address.
        """
        return None

    def cuts(self, key: Key) -> bool:
        """Return whether rows of such a call can be cut among threads, up to `CUT_ROWS` of them."""
        return False
