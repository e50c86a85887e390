"""Row statistics: cross-entropy of rows whose classes are spread over blocks.

Each block is read where it is; what is exchanged are a few float64 numbers a row. Sums of
exponentials are the kernels' (`Op.BELOW`: all but the largest, which decides a sure row); what is
done here is done once a row, or, where a block's logits are read again, a chunk at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._exact import (
    Float64s,
    add_log1p,
    odd_float32,
    over,
    times,
    two_sum,
)
from softxent._plan import select
from softxent._problem import Problem, block_of_classes, matrix, normalise
from softxent._run import evaluate
from softxent._sums import tree_sum
from softxent.backends._contract import Op
from softxent.losses._spec import Spec
from softxent.losses.cross_entropy import SPEC as CROSS_ENTROPY

#: Of a block: the sum of exponentials below its largest logit; its softmax, times a row's factor.
BELOW = Spec("row_stats", Op.BELOW)
SHARE = Spec("grad_from_row_stats", Op.SOFTMAX)
#: Elements that are read at a time: 512 KiB of float64.
CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class RowStats:
    """What a block of classes contributes to cross-entropy, row by row.

    Arrays have the rows' shape and are float64 (`has_target`: bool); logits are those behind the
    softcap, before the temperature. Made by `row_stats` and `merge_row_stats`; plain arrays and
    numbers, to be pickled or sent as they are.

    Attributes
    ----------
    max
        The largest logit; -inf of a row that is ignored.
    other_sumexp
        Sum of exp((z - max) / temperature) without the target's.
    below_sumexp
        The same without the largest logit's first: what is left of a sure row.
    target_logit
        The target's logit, -inf if it is in another block.
    has_target
        Whether the target is in this block.
    target_weight
        Its class weight, 0 if it is elsewhere.
    shifted_sum, weighted_shifted_sum
        Sums of max - z, and of v (max - z) with the class weights v: +inf where a class (of a
        weight above 0) has logit -inf.
    n_classes
        Number of classes.
    class_weight_sum
        Sum of their weights.
    temperature
        What divides the logits.
    dtype
        "float32" or "float64", of a row's loss.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> stats = sx.row_stats(np.array([[2.0, 0.0, -1.0]]), [0])
    >>> stats.max, stats.n_classes
    (array([2.]), 3)
    """

    max: Float64s
    other_sumexp: Float64s
    below_sumexp: Float64s
    target_logit: Float64s
    has_target: NDArray[np.bool_]
    target_weight: Float64s
    shifted_sum: Float64s
    weighted_shifted_sum: Float64s
    n_classes: int
    class_weight_sum: float
    temperature: float = 1.0
    dtype: str = "float64"


def row_stats(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    class_offset: SupportsIndex = 0,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: SupportsIndex | None = -100,
    class_weight: ArrayLike | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> RowStats:
    r"""Return the statistics of one block of classes, from which any split gives the same loss.

    .. math::

        m_i = \max_k z_{ik}, \qquad S'_i = \sum_{k \ne y_i} e^{(z_{ik} - m_i) / \tau}

    and the target's logit, where the block has it. Blocks are merged by `merge_row_stats`;
    `finish_row_stats` makes the loss of what they have together, and `grad_from_row_stats` each
    block's part of the gradient: logits of which no one place has all classes [1]_.

    Parameters
    ----------
    logits : array of shape (..., C_block, ...), float32, float64, float16 or bfloat16
        Of this block's classes.
    targets : array of integers of the rows' shape
        Class numbers among all classes, wherever they are, or `ignore_index`.
    class_offset : int, >= 0
        Number of the block's first class.
    axis, temperature, softcap
        As `cross_entropy`; the same for all blocks.
    ignore_index : int or None
        Rows with this target have no statistics: their logits are not used.
    class_weight : array of shape (C_block,), optional
        Weights v >= 0 of the block's classes.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    RowStats

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; a `class_offset` that is no integer >= 0.
    IndexError
        A negative target other than `ignore_index`.
    BackendUnavailableError
        As `cross_entropy`.

    See Also
    --------
    merge_row_stats, finish_row_stats, grad_from_row_stats

    Notes
    -----
    Memory: 13 numbers a row and 2 MiB. The logits are read twice.

    References
    ----------
    .. [1] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using
       model parallelism" (2019), arXiv:1909.08053, section 3.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0, 0.5], [0.0, 3.0, 0.0, 1.0]])
    >>> left = sx.row_stats(logits[:, :2], [0, 3])
    >>> right = sx.row_stats(logits[:, 2:], [0, 3], class_offset=2)
    >>> stats = sx.merge_row_stats(left, right)
    >>> sx.finish_row_stats(stats, [0, 3]) == sx.cross_entropy(logits, [0, 3])
    True
    """
    z, last, y, counts, offset, v = block_of_classes(
        logits, targets, axis, class_offset, class_weight, ignore_index)
    problem = normalise(BELOW, z, axis=last, temperature=temperature, softcap=softcap)
    call, n_classes, rows_shape = problem.call, z.shape[last], y.shape
    x, cap = matrix(z, last), call.softcap
    y, counts = y.reshape(-1), counts.reshape(-1)
    with np.errstate(all="ignore"):
        below = np.asarray(evaluate(problem, backend, n_threads)[0]).reshape(-1)
        top = np.where(counts, _capped(_largest(x), cap), -np.inf)
        inside = counts & (y >= offset) & (y < offset + n_classes)
        place = np.where(inside, y - offset, 0).astype(np.intp)
        at_target = np.where(inside, _capped(_at(x, place), cap), -np.inf)
        e_target = _exp_of_difference(at_target, top, call.temperature)
        # Where the target is the largest, that sum itself; else there is the largest's 1, beside
        # which taking away what is at most 1 loses nothing.
        others = np.where(inside & (at_target == top), below,
                          1.0 + (below - np.where(inside, e_target, 0.0)))
        has_top = counts & np.isfinite(top)
        shifted, weighted = _shifted_sums(x, top, cap, v)

        def of_rows(values: Any, nothing: float = 0.0, where: NDArray[np.bool_] = counts) -> Any:
            return np.where(where, values, nothing).reshape(rows_shape)

        return RowStats(
            max=top.reshape(rows_shape),
            other_sumexp=of_rows(others, where=has_top),
            below_sumexp=of_rows(below, where=has_top),
            target_logit=of_rows(at_target, -np.inf),
            has_target=inside.reshape(rows_shape),
            target_weight=of_rows(1.0 if v is None else v[place], where=inside),
            shifted_sum=of_rows(shifted),
            weighted_shifted_sum=of_rows(weighted),
            n_classes=n_classes,
            class_weight_sum=float(n_classes) if v is None else tree_sum(v),
            temperature=call.temperature,
            dtype="float64" if z.itemsize == 8 else "float32",
        )


def merge_row_stats(a: RowStats, b: RowStats) -> RowStats:
    r"""Return the statistics of two blocks together.

    .. math::

        m = \max(m_a, m_b), \qquad
        S' = S'_a e^{(m_a - m) / \tau} + S'_b e^{(m_b - m) / \tau}

    Any order and grouping of blocks agrees within 4 eps of float64 a merge.

    Parameters
    ----------
    a, b : RowStats
        Of blocks that have no class in common, of the same rows.

    Returns
    -------
    RowStats

    Raises
    ------
    TypeError
        Something else than `RowStats`.
    ValueError
        Of other rows, at another temperature, or both with a row's target.

    See Also
    --------
    row_stats : makes them, with an example.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> parts = [sx.row_stats(np.array([[z]]), [1], class_offset=k)
    ...          for k, z in enumerate([2.0, 0.0, -1.0])]
    >>> sx.merge_row_stats(sx.merge_row_stats(*parts[:2]), parts[2]).n_classes
    3
    """
    for stats in (a, b):
        _check(stats)
    if a.max.shape != b.max.shape:
        raise ValueError(
            f"a and b must be of the same rows, got shapes {a.max.shape} and {b.max.shape}")
    if a.temperature != b.temperature:
        raise ValueError("a and b must have one temperature, got "
                         f"{a.temperature:g} and {b.temperature:g}; make both with the same")
    both = a.has_target & b.has_target
    if both.any():
        where = [int(i) for i in np.argwhere(both)[0]]
        raise ValueError(f"a and b must have no class in common, but both have the target of row "
                         f"{where}; is class_offset that of the block's first class?")
    with np.errstate(all="ignore"):
        top = np.maximum(a.max, b.max)  # a NaN stays
        first = a.max >= b.max
        shift_a, shift_b = (_exp_of_difference(stats.max, top, a.temperature) for stats in (a, b))
        below_a = (a.below_sumexp + np.where(first, 0.0, a.max > -np.inf)) * shift_a
        below_b = (b.below_sumexp + np.where(first, b.max > -np.inf, 0.0)) * shift_b

        def rise(stats: RowStats, sums: Float64s, mass: float) -> Float64s:
            # By what the largest logit has risen. -inf to -inf is none, of no mass nothing.
            step = np.where(stats.max == top, 0.0, top - stats.max)
            return np.asarray(sums + times(step, np.float64(mass)))

        return RowStats(
            max=top,
            other_sumexp=a.other_sumexp * shift_a + b.other_sumexp * shift_b,
            below_sumexp=below_a + below_b,
            target_logit=np.maximum(a.target_logit, b.target_logit),
            has_target=a.has_target | b.has_target,
            target_weight=a.target_weight + b.target_weight,
            shifted_sum=rise(a, a.shifted_sum, a.n_classes) + rise(b, b.shifted_sum, b.n_classes),
            weighted_shifted_sum=(rise(a, a.weighted_shifted_sum, a.class_weight_sum)
                                  + rise(b, b.weighted_shifted_sum, b.class_weight_sum)),
            n_classes=a.n_classes + b.n_classes,
            class_weight_sum=a.class_weight_sum + b.class_weight_sum,
            temperature=a.temperature,
            dtype="float64" if "float64" in (a.dtype, b.dtype) else "float32",
        )


def finish_row_stats(
    stats: RowStats,
    targets: ArrayLike,
    *,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
) -> float | NDArray[np.floating]:
    r"""Return cross-entropy from the statistics of all classes.

    .. math::

        L_i = s_i \Bigl( (1 - \epsilon) v_{y_i} \ell_i
              + \frac{\epsilon}{C} \sum_k v_k (\mathrm{lse}_i - z_{ik} / \tau)
              + \lambda\, \mathrm{lse}_i^2 \Bigr), \qquad
        \ell_i = \log \bigl( 1 + S'_i / e^{(z_{i y_i} - m_i) / \tau} \bigr)

    in the letters of `cross_entropy` and `row_stats`: `cross_entropy` of the rows, with the class
    weights that `row_stats` was given.

    Parameters
    ----------
    stats : RowStats
        Of all blocks, merged.
    targets : array of integers of the rows' shape
        As `row_stats` had them.
    ignore_index, label_smoothing, z_loss
        As `cross_entropy`.
    sample_weight, reduction, divisor
        As `cross_entropy`.

    Returns
    -------
    float, or array of the rows' shape
        As `cross_entropy`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`; a row that counts whose target was in no block.

    See Also
    --------
    row_stats : with an example.
    grad_from_row_stats : the gradient, block by block.

    Notes
    -----
    Within `cross_entropy`'s bounds. Sums of gaps between logits that are beyond float64 make the
    loss with label smoothing +inf. Memory: about ten numbers a row.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> stats = sx.row_stats(np.array([[2.0, 0.0, -1.0]]), [0])
    >>> sx.finish_row_stats(stats, [0])
    0.16984601955628564
    """
    problem = _finished(stats, targets, ignore_index=ignore_index,
                        label_smoothing=label_smoothing, z_loss=z_loss,
                        sample_weight=sample_weight, reduction=reduction, divisor=divisor)
    call, weight = problem.call, _row_weights(problem, stats)
    smoothing = call.smoothing
    with np.errstate(all="ignore"):
        flat = _Flat(stats)
        value = times((1.0 - smoothing) * flat.target_weight, flat.minus_log_p())
        if smoothing:
            share = smoothing / stats.n_classes
            value += share * (times(np.log1p(flat.below), np.float64(stats.class_weight_sum))
                              + flat.weighted_shifted / stats.temperature)
        if call.z_loss:
            value += call.z_loss * flat.lse() ** 2
        value[flat.lost] = np.nan
        value = np.where(weight != 0.0, weight * value, 0.0)
        if reduction == "none":
            return value.astype(stats.dtype).reshape(stats.max.shape)
        return tree_sum(value) / problem.divisor if problem.divisor else 0.0


def grad_from_row_stats(
    logits: ArrayLike,
    targets: ArrayLike,
    stats: RowStats,
    *,
    class_offset: SupportsIndex = 0,
    axis: SupportsIndex = -1,
    temperature: float | None = None,
    softcap: float | None = None,
    ignore_index: SupportsIndex | None = -100,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    upstream: ArrayLike = 1.0,
    grad_out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Return the gradient of `finish_row_stats` with respect to one block's logits.

    .. math::

        g_{ik} = \frac{s_i u_i}{\tau D} \, J_{ik} \Bigl( A_i p_{ik} - B_{ik} \Bigr), \qquad
        p_{ik} = \frac{e^{(z_{ik} - m_i) / \tau}}{S_i}

    in the letters of `cross_entropy_with_grad`, m and S those of `stats`.

    Parameters
    ----------
    logits, targets
        The block's, as `row_stats` had them.
    stats : RowStats
        Of all blocks, merged.
    class_offset, axis
        As `row_stats` had them.
    temperature : float, optional
        That of `stats`, which None stands for.
    softcap, ignore_index, class_weight
        As `row_stats` had them.
    label_smoothing, z_loss, sample_weight, reduction, divisor
        As `finish_row_stats`.
    upstream, grad_out
        As `cross_entropy_with_grad`.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    TypeError, ValueError, IndexError, BackendUnavailableError
        As `row_stats`, `finish_row_stats` and `cross_entropy_with_grad`; `stats` of other rows, of
        fewer classes than the block has, or at another temperature.

    See Also
    --------
    row_stats : with an example of the loss.

    Notes
    -----
    Within `cross_entropy_with_grad`'s bounds, and 4 eps of float64 more for every merge. Without
    label smoothing the compiled kernels write the gradient, in three reads of the logits; with it
    NumPy does, a chunk at a time. Memory: about twenty numbers a row and 2 MiB.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0, 0.5]])
    >>> blocks = {0: logits[:, :2], 2: logits[:, 2:]}
    >>> stats = sx.merge_row_stats(*(sx.row_stats(z, [3], class_offset=k)
    ...                              for k, z in blocks.items()))
    >>> g = [sx.grad_from_row_stats(z, [3], stats, class_offset=k) for k, z in blocks.items()]
    >>> print(np.hstack(g).round(6))
    [[ 0.7101    0.096102  0.035354 -0.841555]]
    """
    z, last, y, _, offset, v = block_of_classes(
        logits, targets, axis, class_offset, class_weight, ignore_index)
    n_classes = z.shape[last]
    whole = _finished(stats, targets, ignore_index=ignore_index, label_smoothing=label_smoothing,
                      z_loss=z_loss, sample_weight=sample_weight, reduction=reduction,
                      divisor=divisor, upstream=upstream)
    if temperature is not None and temperature != stats.temperature:
        raise ValueError(f"temperature must be that of stats, {stats.temperature:g}; got "
                         f"{temperature!r}")
    if stats.n_classes < offset + n_classes:
        raise ValueError(
            f"stats must be of all classes: the block ends at {offset + n_classes}, stats have "
            f"{stats.n_classes}; merge those of the other blocks")
    weight, smoothing = _row_weights(whole, stats), whole.call.smoothing
    counts, y = weight != 0.0, y.reshape(-1)
    inside = counts & (y >= offset) & (y < offset + n_classes)
    place = np.where(inside, y - offset, 0).astype(np.intp)
    taken = whole.inputs | ({} if v is None else {"class_weight": np.asarray(class_weight)})
    problem = normalise(SHARE, z, axis=last, temperature=stats.temperature, softcap=softcap,
                        wants_map=True, out=grad_out, taken=taken)
    with np.errstate(all="ignore"):
        flat = _Flat(stats)
        factor: Any = whole.call.scale
        if whole.call.upstream is not None:
            factor = whole.call.upstream.reshape(-1).astype(np.float64) * factor
        hard = (1.0 - smoothing) * flat.target_weight
        rest = np.full(y.shape, smoothing / stats.n_classes * stats.class_weight_sum)
        if whole.call.z_loss:
            rest = rest + 2.0 * (whole.call.z_loss * flat.lse())
        x = matrix(z, last)
        p = _exp_of_difference(_capped(_at(x, place), problem.call.softcap), flat.max,
                               stats.temperature) / flat.total
        block = _Block(
            problem, x, flat, counts & flat.lost, inside, place,
            w=np.where(counts, weight * (factor / stats.temperature), 0.0), mass=hard + rest,
            apart=(0.0 - times(hard, flat.others / flat.total)) + times(rest, p))
        plan = select(problem.key, problem.call.n_rows, n_classes, backend, n_threads)
        if smoothing or plan.backend == "numpy":
            return block.write(smoothing / stats.n_classes, v)
        return block.evaluate(backend, n_threads)


# ---- one call ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """One block's part of the gradient: w J (A p - B), with what its rows have of the whole.

    `mass` is A, and `apart` what stands for A p - B at a target `inside`, at `place`, smoothing's B
    aside.
    """

    problem: Problem
    x: NDArray[np.floating]
    flat: _Flat
    lost: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    place: NDArray[np.intp]
    w: Float64s
    mass: Float64s
    apart: Float64s

    def evaluate(self, backend: str | None, n_threads: int | None) -> NDArray[np.floating]:
        """Let the kernel write it, without smoothing: the block's softmax by rows' factors."""
        call, flat = self.problem.call, self.flat
        below = normalise(BELOW, self.problem.logits, axis=self.problem.axis or 0,
                          temperature=call.temperature, softcap=call.softcap or None)
        # What the block's sum is of the whole's.
        share = _exp_of_difference(_capped(_largest(self.x), call.softcap), flat.max,
                                   call.temperature) / flat.total
        share *= 1.0 + np.asarray(evaluate(below, backend, n_threads)[0]).reshape(-1)
        factor = times(share, times(self.w, self.mass))
        here = (share > 0.0) & ~self.lost & (self.w != 0.0)
        entry = times(times(self.apart, self.w), _slope(_at(self.x, self.place), call.softcap))
        rows = call.logits.shape[:-1]
        call.scale = 1.0
        call.upstream = np.where(here, factor, 0.0).reshape(rows)
        call.sample_weight = here.reshape(rows)  # the others are 0
        result: NDArray[np.floating] = evaluate(self.problem, backend, n_threads)[1]
        g = self._out(result)
        at = np.unravel_index(np.flatnonzero(self.inside), rows)
        g[(*at, self.place[self.inside])] = entry[self.inside].astype(g.dtype)
        g[np.unravel_index(np.flatnonzero(self.lost), rows)] = np.nan
        return result

    def write(self, share: float, v: Float64s | None) -> NDArray[np.floating]:
        """Write it chunk by chunk, every class owed `share` times its weight."""
        problem, flat, cap = self.problem, self.flat, self.problem.call.softcap
        out = problem.out
        if out is None:
            out = np.empty_like(problem.logits, order="K")
        g = self._out(out)
        for at, rows, classes in _chunks(self.x):
            z = self.x[(*at, classes)].astype(np.float64)
            p = _exp_of_difference(_capped(z, cap), flat.max[rows, None], problem.call.temperature)
            terms = times(p / flat.total[rows, None], self.mass[rows, None])
            place = self.place[rows]
            here = np.flatnonzero(
                self.inside[rows] & (place >= classes.start) & (place < classes.stop))
            terms[here, place[here] - classes.start] = self.apart[rows][here]
            terms -= share if v is None else share * v[classes]
            terms = times(times(terms, _slope(z, cap)), self.w[rows, None])
            terms[self.lost[rows]] = np.nan
            terms[self.w[rows] == 0.0] = 0.0
            g[(*at, classes)] = (odd_float32(terms) if g.dtype.kind == "V" else terms)
        return out if problem.given_out is None else problem.given_out

    def _out(self, result: NDArray[np.floating]) -> NDArray[np.floating]:
        assert self.problem.axis is not None
        return matrix(np.asarray(result), self.problem.axis)


class _Flat:
    """Merged statistics as columns, and what follows from them; NaN where there is no softmax."""

    def __init__(self, stats: RowStats) -> None:
        self._temperature = stats.temperature
        self.max = stats.max.reshape(-1)
        self.others = stats.other_sumexp.reshape(-1)
        self.below = stats.below_sumexp.reshape(-1)
        self.target_logit = stats.target_logit.reshape(-1)
        self.target_weight = stats.target_weight.reshape(-1)
        self.weighted_shifted = stats.weighted_shifted_sum.reshape(-1)
        self.lost = ~np.isfinite(self.max) | np.isnan(self.target_logit)
        self.e_target = _exp_of_difference(self.target_logit, self.max, self._temperature)
        self.total = self.others + self.e_target

    def minus_log_p(self) -> Float64s:
        """Return -log p of the target: log1p(S'/e_y) where it leads, else a sum of terms >= 0."""
        leads = self.e_target >= self.others
        to_target = (self.target_logit - self.max) / self._temperature
        return np.where(leads, np.log1p(self.others / self.e_target),
                        np.log(self.total) - to_target)

    def lse(self) -> Float64s:
        """Return log-sum-exp."""
        high, low = over(self.max, np.zeros(self.max.shape), self._temperature)
        return add_log1p(high, low, self.below)


def _check(stats: Any) -> None:
    if not isinstance(stats, RowStats):
        raise TypeError(f"stats must be RowStats, as row_stats returns them; got "
                        f"{type(stats).__name__}")


def _finished(stats: RowStats, targets: ArrayLike, **options: Any) -> Problem:
    """Check what finishes statistics, as a call on logits that there are none of."""
    _check(stats)
    zeros = np.broadcast_to(np.zeros((), stats.dtype), (*stats.max.shape, stats.n_classes))
    problem = normalise(CROSS_ENTROPY, zeros, targets, wants_map="upstream" in options, **options)
    weight = _row_weights(problem, stats)
    missing = (weight != 0.0) & ~stats.has_target.reshape(-1)
    if missing.any():
        first = np.unravel_index(int(np.argmax(missing)), stats.max.shape)
        where = f"[{', '.join(map(str, first))}]" if first else ""
        raise ValueError(f"targets{where} was in none of the blocks that stats are of; merge "
                         "those of all classes, made with the same targets")
    if problem.reduction == "mean" and options.get("divisor") is None:
        d = tree_sum(np.where(weight != 0.0, weight * stats.target_weight.reshape(-1), 0.0))
        if d == math.inf:
            raise ValueError("the mean's divisor, the sum of the weights of the rows that count, "
                             "overflows float64; scale the weights down, or pass a divisor")
        # The scale has the divisor of rows that all have a class weight of 1.
        problem.call.scale *= problem.divisor / d if d else 0.0
        problem.divisor = d
    return problem


def _row_weights(problem: Problem, stats: RowStats) -> Float64s:
    """Return the sample weights, 0 for rows that do not count."""
    call = problem.call
    assert call.targets is not None
    weight: Float64s = np.ones(call.targets.shape)
    if call.sample_weight is not None:
        weight = call.sample_weight.astype(np.float64)
    if call.ignore_index is not None:
        weight = np.where(call.targets == call.ignore_index, 0.0, weight)
    weight = weight.reshape(-1)
    if not call.smoothing and not call.z_loss:
        # Its target's term is all there is: of a class of weight 0 the row does not count.
        found = stats.has_target & (stats.target_weight == 0.0)
        weight = np.where(found.reshape(-1), 0.0, weight)
    return weight


# ---- numbers -------------------------------------------------------------------------------------


def _chunks(x: NDArray[Any]) -> Iterator[tuple[tuple[Any, ...], slice, slice]]:
    """Yield rows as an index, rows as a slice of all, and classes: some at a time."""
    n, n_classes = math.prod(x.shape[:-1]), x.shape[-1]
    step = max(1, CHUNK // n_classes)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        at: tuple[Any, ...] = (rows,)
        if x.ndim > 2:
            at = np.unravel_index(np.arange(rows.start, rows.stop), x.shape[:-1])
        for first in range(0, n_classes, CHUNK):
            yield at, rows, slice(first, min(first + CHUNK, n_classes))


def _largest(x: NDArray[np.floating]) -> Float64s:
    """Return each row's largest logit; NaN where there is one."""
    top: Float64s = x.max(axis=-1).astype(np.float64).reshape(-1)
    return top


def _at(x: NDArray[np.floating], place: NDArray[np.intp]) -> Float64s:
    """Return one logit of each row."""
    rows = np.unravel_index(np.arange(place.size), x.shape[:-1])
    found: Float64s = x[(*rows, place)].astype(np.float64)
    return found


def _shifted_sums(x: NDArray[np.floating], top: Float64s, cap: float,
                  v: Float64s | None) -> tuple[Float64s, Float64s]:
    """Return the sums of top - z, and of v (top - z)."""
    sums, weighted = np.zeros(top.shape), np.zeros(top.shape)
    for at, rows, classes in _chunks(x):
        z = _capped(x[(*at, classes)].astype(np.float64), cap)
        gap = np.subtract(top[rows, None], z, out=z)
        gap[np.isnan(gap)] = np.inf  # of rows of -inf alone; others with a NaN are NaN anyway
        sums[rows] += gap.sum(axis=1)
        if v is not None:
            weighted[rows] += times(gap, v[classes]).sum(axis=1)
    return sums, sums if v is None else weighted


def _capped(z: Float64s, cap: float) -> Float64s:
    return np.where(np.isfinite(z), cap * np.tanh(z / cap), z) if cap else z


def _slope(z: Float64s, cap: float) -> Float64s:
    """Return the softcap's derivative, sech^2; 1 at -inf."""
    if not cap:
        return np.ones(z.shape)
    e = np.exp(-2.0 * np.abs(z) / cap)
    return np.where(np.isinf(z), 1.0, 4.0 * e / (1.0 + e) ** 2)


def _exp_of_difference(z: Float64s, reference: Float64s, temperature: float) -> Float64s:
    """Return exp((z - reference) / temperature), what rounding takes from the exponent put back.

    1 where both are the same, -inf too.
    """
    d, low = two_sum(z, -reference)
    d, low = over(d, low, temperature)
    e = np.exp(d)
    return np.where(z == reference, 1.0, e + e * low)
