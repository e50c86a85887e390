"""The definition: every operation as the textbook writes it, a block of rows at a time.

For a row of logits z, with m = max z, e_k = exp(z_k - m) and one class a set apart,

    S' = sum of e_k over k != a,    S = S' + e_a,    lse = m + log S,    p_k = e_k / S.

The class set apart is the target y (cross-entropy) or the first largest logit (all else), so that
what decides a confident row, the sum of the *other* classes, is never a difference:

    loss = -log p_y   = log1p(S' / e_y)           where e_y >= S'
                      = log S - (z_y - m)         else: two terms >= 0
    log p_k           = (z_k - m) - log1p(S')     a is the largest: e_a = 1
    gradient          = w p_k,  and at the target w (p_y - 1) = -w S' / S

`lse - z_y` and `p_y - 1` say the same and lose every digit once the target leads by 17 (float32).

All arithmetic is float64, for float32 logits too; each result is rounded once, as it is stored.
NaN, +inf and a row of -inf alone make m, by decree, NaN: the row's results follow. A -inf logit
beside a finite one has e = 0. Probabilities below the smallest normal number are rounded, not
flushed.

A row's bits are a function of its own values: whatever the logits' layout, the arithmetic sees a
C-contiguous float64 copy, no sum over classes depends on the shape of the block it is part of, and
the blocks of classes of a long row begin at the same classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from softxent.backends._contract import Call, Native, Op

Float64s: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = tuple[Any, ...]  # an index that selects some rows of an array of the rows' shape

#: Elements in a block of rows, and classes in a block of one long row: 512 KiB of float64, of which
#: about six exist at a time.
BLOCK = 1 << 16

#: ln 2 in two parts. The first ends in 20 zero bits: its product with any exponent is exact.
LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")


class _StoppedError(Exception):
    """The caller's thread asked for an early end."""


class RowsTask:
    """A call, ready to be evaluated on any range of its rows."""

    native: Native | None = None

    def __init__(self, call: Call) -> None:
        # A single row without an axis for the rows gets one.
        lift = call.logits.ndim == 1

        def view(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return array[None] if lift and array is not None else array

        self._call = call
        self._logits: NDArray[np.floating] = call.logits[None] if lift else call.logits
        self._targets = view(call.targets)
        self._sample_weight = view(call.sample_weight)
        self._upstream = view(call.upstream)
        self._out_rows = view(call.out_rows)
        self._out_map = view(call.out_map)

    def __call__(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Evaluate rows lo <= i < hi; end early when `stopped()` answers true."""
        # A row's own numbers take as much memory as about eight classes.
        step = max(1, BLOCK // max(8, self._call.n_classes))
        # Underflow, 0/0 and NaN are results here, not accidents.
        with np.errstate(all="ignore"):
            try:
                for start in range(lo, hi, step):
                    self._evaluate(self._select(start, min(start + step, hi)), stopped)
            except _StoppedError:
                return

    def _select(self, start: int, stop: int) -> Rows:
        """Index of rows start <= i < stop: a slice, or indices where rows have several axes."""
        shape = self._logits.shape[:-1]
        if len(shape) == 1:
            return (slice(start, stop),)
        return tuple(np.unravel_index(np.arange(start, stop), shape))

    def _evaluate(self, rows: Rows, stopped: Callable[[], bool]) -> None:
        call = self._call
        block = _Block(self._logits, rows, stopped)
        largest, first = block.largest()
        # No softmax without a finite maximum: a NaN here reaches the whole row.
        m = np.where(np.isfinite(largest), largest, np.nan)

        if call.op is Op.CROSS_ENTROPY:
            self._cross_entropy(block, m)
        elif call.op is Op.LOGSUMEXP:
            other, e_first, _ = block.sums(m, first)
            lse = _add_log(m, other + e_first)
            self._store_rows(rows, np.where(np.isinf(largest), largest, lse))
        elif call.op is Op.SOFTMAX:
            other, e_first, _ = block.sums(m, first)
            total = other + e_first
            for classes in block.walk():
                p = block.exp_shifted(classes, m)
                p /= total[:, None]
                self._store_map(rows, classes, p)
        else:
            other, _, _ = block.sums(m, first)
            # 1 + S' would round away a small S', and with it log p of a dominant class. Equal
            # logits share every operand, hence their bits.
            log_total = np.log1p(other)
            for classes in block.walk():
                self._store_map(
                    rows, classes, (block.read(classes) - m[:, None]) - log_total[:, None]
                )

    def _cross_entropy(self, block: _Block, m: Float64s) -> None:
        rows = block.rows
        targets, weight, counts = self._targets_and_weights(rows, m.size)
        other, e_target, z_target = block.sums(m, targets)
        total = other + e_target

        if self._out_rows is not None:
            loss = np.where(
                e_target >= other, np.log1p(other / e_target), np.log(total) - (z_target - m)
            )
            self._store_rows(rows, np.where(counts, weight * loss, 0.0))
        if self._out_map is None:
            return

        if self._upstream is not None:
            weight = weight * self._upstream[rows].astype(np.float64)
        weight = weight * self._call.scale
        # S'/S is exactly 1 where the target is -inf: the gradient there is exactly -w. And
        # 0 - w S'/S, not its negative: where S' = 0 the gradient is +0.
        # 0 times a weight that overflowed is 0; times NaN, a row without a result, it is NaN.
        refused, share = np.isnan(weight), other / total
        at_target = 0.0 - np.where((share == 0.0) & ~refused, 0.0, weight * share)
        for classes in block.walk():
            g = block.exp_shifted(classes, m)
            g /= total[:, None]
            np.multiply(g, weight[:, None], out=g, where=(g != 0.0) | refused[:, None])
            here, column = _inside(targets, classes)
            g[here, column] = at_target[here]
            g[~counts] = 0.0
            self._store_map(rows, classes, g)

    def _targets_and_weights(
        self, rows: Rows, n: int
    ) -> tuple[NDArray[np.intp], Float64s, NDArray[np.bool_]]:
        """Return target, s v_y and whether it counts, of each row.

        A target outside [0, C) that counts, which only another thread can have put there after
        the check, weighs NaN; the index returned for it is valid.
        """
        call = self._call
        assert self._targets is not None
        given = np.array(self._targets[rows])  # one copy: checked and used values are the same
        outside = (given < 0) | (given >= call.n_classes)
        targets = np.where(outside, given.dtype.type(0), given).astype(np.intp)

        weight = np.ones(n)
        counts = np.ones(n, dtype=np.bool_)
        if call.ignore_index is not None:
            counts &= given != call.ignore_index
        if self._sample_weight is not None:
            weight *= self._sample_weight[rows].astype(np.float64)
            counts &= weight != 0.0
        if call.class_weight is not None:
            weight *= call.class_weight[targets]
        weight[outside] = np.nan
        counts &= weight != 0.0
        return targets, weight, counts

    def _store_rows(self, rows: Rows, values: Float64s) -> None:
        if self._out_rows is not None:
            self._out_rows[rows] = values

    def _store_map(self, rows: Rows, classes: slice, values: Float64s) -> None:
        assert self._out_map is not None
        self._out_map[(*rows, classes)] = values


class _Block:
    """Some rows of the logits, read as float64 in blocks of classes.

    Where all classes fit one block, it is read once and its exponentials are computed once. Either
    way a block of classes is copied before anything can be written over it.
    """

    def __init__(
        self, logits: NDArray[np.floating], rows: Rows, stopped: Callable[[], bool]
    ) -> None:
        self.rows = rows
        self._logits = logits
        self._stopped = stopped
        self._n_classes = logits.shape[-1]
        self._one_block = self._n_classes <= BLOCK
        self._z: Float64s | None = None
        self._e: Float64s | None = None

    def walk(self) -> Iterator[slice]:
        """Yield the blocks of classes, in order; asks for an early end before each."""
        for start in range(0, self._n_classes, BLOCK):
            if self._stopped():
                raise _StoppedError
            yield slice(start, min(start + BLOCK, self._n_classes))

    def read(self, classes: slice) -> Float64s:
        """Return a C-contiguous float64 copy of the logits, rows x classes."""
        if self._z is not None:
            return self._z
        z = np.array(self._logits[(*self.rows, classes)], dtype=np.float64, order="C")
        if self._one_block:
            self._z = z
        return z

    def exp_shifted(self, classes: slice, m: Float64s) -> Float64s:
        """Return exp(z - m), the caller's to overwrite after its last use.

        For float64 logits z - m is rounded by up to 2**-44 where it matters (above exp's
        underflow), 256 times the precision of the result. The rounding error is itself a float64
        number (Knuth's two-sum), and exp(d + error) = exp(d) + exp(d) * error to all digits.
        For float32 logits it stays far below their precision.
        """
        if self._e is not None:
            return self._e
        z = self.read(classes)
        d = z - m[:, None]
        e = np.exp(d)
        if self._logits.dtype.itemsize == 8:
            minus_m = d - z
            error = (z - (d - minus_m)) - (m[:, None] + minus_m)
            # inf - inf, at -inf logits and where z - m overflows: e is 0 there.
            error[np.isnan(error)] = 0.0
            error *= e
            e += error
        if self._one_block:
            self._e = e
        return e

    def largest(self) -> tuple[Float64s, NDArray[np.intp]]:
        """Return every row's largest logit (NaN if it holds one) and where it first occurs."""
        parts = []
        places = []
        for classes in self.walk():
            z = self.read(classes)
            place = z.argmax(axis=1)  # of a NaN, if there is one
            parts.append(z[np.arange(len(z)), place])
            places.append(place + classes.start)
        block = np.argmax(parts, axis=0)
        row = np.arange(block.size)
        return np.asarray(parts)[block, row], np.asarray(places)[block, row]

    def sums(self, m: Float64s, apart: NDArray[np.intp]) -> tuple[Float64s, Float64s, Float64s]:
        """Return S' (all classes but `apart`), and e and z of the class set apart."""
        parts = []
        e_apart = np.empty(m.size)
        z_apart = np.empty(m.size)
        for classes in self.walk():
            z = self.read(classes)
            e = self.exp_shifted(classes, m)
            here, column = _inside(apart, classes)
            z_apart[here] = z[here, column]
            e_apart[here] = e[here, column]
            terms = e.copy()
            terms[here, column] = 0.0
            parts.append(_sum(terms))
        return _sum(np.stack(parts, axis=1)), e_apart, z_apart


def _inside(columns: NDArray[np.intp], classes: slice) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows whose column lies in `classes`, and that column counted from its start."""
    here = np.flatnonzero((columns >= classes.start) & (columns < classes.stop))
    return here, columns[here] - classes.start


def _sum(terms: Float64s) -> Float64s:
    """Sum over the last axis of a 2-D array of numbers >= 0, which is overwritten.

    Each term is cut in two at the same power of two (Rump's extraction), chosen so that the high
    parts add up without rounding, in whatever order `np.sum` likes for the array's shape. What the
    low parts' sum rounds is far below the result, but must not depend on the shape either: they
    are added as a tree of halves, element by element. Plainly, a term near 1 would meet a rounding
    at each of 16 levels, and the sum would be 2 to 4 eps off.
    """
    n = terms.shape[1]
    _, exponent = np.frexp(terms.max(axis=1))
    cut = np.ldexp(1.0, exponent + n.bit_length())[:, None]  # > the sum
    high = terms + cut
    high -= cut
    low = terms
    low -= high
    while n > 1:
        kept = (n + 1) // 2
        low[:, : n - kept] += low[:, kept:n]
        n = kept
    return np.asarray(high.sum(axis=1) + low[:, 0])


def _add_log(m: Float64s, total: Float64s) -> Float64s:
    """Return m + log(total), also where the two nearly cancel.

    log(total) as one number is rounded at its own size (2**-50 for 14, the log of a million); at
    lse near 0 that would stand. With total = f 2**n, n ln2 is exact in two parts, m + n ln2 keeps
    its rounding error, and log f, within ln(2)/2 of 0, is rounded below 2**-54.
    """
    f, n = np.frexp(total)
    below = f < np.sqrt(0.5)
    f = np.where(below, 2 * f, f)
    n = np.where(below, n - 1, n)
    n_ln2 = n * LN2_HIGH
    high = m + n_ln2
    from_n = high - m
    error = (m - (high - from_n)) + (n_ln2 - from_n)
    return high + (error + (n * LN2_LOW + np.log(f)))
