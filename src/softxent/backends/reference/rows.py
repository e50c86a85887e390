"""The definition: every operation as the textbook writes it, a block of rows at a time.

For a row of logits x, z_k = softcap(x_k) / temperature, softcap(x) = cap tanh(x / cap) (none: x).
With m = max z, e_k = exp(z_k - m) and one class a set apart,

    S' = sum of e_k over k != a,    S = S' + e_a,    lse = m + log S,    p_k = e_k / S.

The class set apart is the target y (where the target is a class) or the first largest logit (all
else), so that what decides a confident row, the sum of the *other* classes, is never a difference:

    -log p_y   = log1p(S' / e_y)           where e_y >= S'                 (a = y)
               = log S - (z_y - m)         else: two terms >= 0
    -log p_k   = log1p(S') + (m - z_k)     a is the largest: e_a = 1
    entropy    = log1p(S') + sum p_k (m - z_k)

`lse - z_y` says the same and loses every digit once the target leads by 17 (float32).

Cross-entropy, with v the class weights, epsilon the smoothing, lambda the z-loss, s the sample
weight. What class k is owed whether it is the target or not, and its sum:

    B_k = (epsilon / C) v_k                         T = epsilon mean(v)     targets are classes
    B_k = v_k ((1 - epsilon) t_k + epsilon / C)     T = sum B_k             probabilities t
    b = (1 - epsilon) v_y, what the target is owed beside that              (probabilities: none)

    row value   s [b (-log p_y) + T log1p(S') + sum B_k (m - z_k) + lambda lse^2]
    gradient    J_k w [(b + T + 2 lambda lse) p_k - B_k]
                and at the target J_y w [-b S' / S + (T + 2 lambda lse) p_y - B_y]

Focal loss, with what its gamma makes of the target's own term, 1 - p_y = S' / S:

    b (-log p_y) becomes b (S'/S)^gamma (-log p_y)                      in the row value
    b            becomes b (S'/S)^gamma (1 + gamma p_y (-log p_y) S/S') in the gradient

(where S' = 0 the last fraction is 1: -log p_y is as small as S' / S then). The KL divergence adds
sum t log t to the row value, which is not negative but by rounding where sum t is 1.

Squared error, with Q = sum p^2 over the classes but a class target, of which 1 - p_y = S' / S:

    row value   s (Q + (1 - p_y)^2) / 2                                 targets are classes
                s (Q - 2 sum p t + sum t^2) / 2                         probabilities
    gradient    w p_k (p_k - t_k - c),     c = Q - p_y (1 - p_y), or Q - sum p t
                and at the target -w p_y ((1 - p_y)^2 + Q)

Distillation, q the softmax of a teacher's logits with what is theirs marked u, h the share of
cross-entropy (at a temperature of 1, weights and smoothing included), tau the temperature:

    row value   s (1-h) tau^2 [log1p(S'_z) + sum q (m - z) - log1p(S'_u) - sum q (m_u - u)] + h ...
    gradient    w (1-h) tau (p_k - q_k) + h ...

Hessian of cross-entropy, its diagonal: w (b + T) p_k (1 - p_k); of the largest logit S' / S for
1 - p_k.

Binary cross-entropy, every logit by itself, v the weight of what targets of 1 cost:

    row value   s [|z| (v t where z < 0, else 1 - t) + (v t + 1 - t) log(1 + exp(-|z|))]
    gradient    w [(1 - t) sigma(z) - v t sigma(-z)]

with the largest set apart beside T, the target beside b, where p_y - 1 would cancel. w is s times
upstream over divisor and temperature (distillation: over the divisor); J = sech^2(x / cap) is the
softcap's derivative.

All arithmetic is float64, for narrower logits too; each result is rounded once, as it is stored.
NaN, +inf and a row of -inf alone, judged on the logits as given, make m, by decree, NaN: the row's
results follow. A -inf logit beside a finite one stays -inf, with e = 0 and J = 1. What is owed
nothing costs nothing: 0 inf = 0. Probabilities below the smallest normal number are rounded, not
flushed.

A row's bits are a function of its own values: whatever the logits' layout, the arithmetic sees a
C-contiguous float64 copy, no sum over classes depends on the shape of the block it is part of, and
the blocks of classes of a long row begin at the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from softxent._exact import (
    TANH_NEAR,
    Float64s,
    add_log1p,
    odd_float32,
    one_minus_tanh,
    over,
    remainder,
    sums,
    tanh_gap,
    times,
    two_sum,
)
from softxent.backends._contract import POINTS, Call, Native, Op

Bools: TypeAlias = NDArray[np.bool_]
Columns: TypeAlias = NDArray[np.intp]  # a class of each row
Pair: TypeAlias = tuple[Float64s, Float64s | None]  # high and low part of a number; see _exact.py
Rows: TypeAlias = tuple[Any, ...]  # an index that selects some rows of an array of the rows' shape

#: Elements in a block of rows, and classes in a block of one long row: 512 KiB of float64, of which
#: about twenty exist at a time.
BLOCK = 1 << 16

#: The smallest positive number: what stands for a product of two such that underflows.
TINY = 2.0**-1074


class _StoppedError(Exception):
    """The caller's thread asked for an early end."""


class RowsTask:
    """A call, ready to be evaluated on any range of its rows."""

    native: Native | None = None
    units = 0
    has_map = False

    def __init__(self, call: Call) -> None:
        # A single row without an axis for the rows gets one.
        lift = call.logits.ndim == 1

        def view(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return array[None] if lift and array is not None else array

        self.refused = False
        self.out_of_memory = False  # MemoryError is raised where it happens
        self._call = call
        self._logits: NDArray[np.floating] = call.logits[None] if lift else call.logits
        self._targets = view(call.targets)
        self._soft_targets = view(call.soft_targets)
        self._sample_weight = view(call.sample_weight)
        self._upstream = view(call.upstream)
        self._pos_weight = call.pos_weight
        self._out_rows = view(call.out_rows)
        self._out_map = view(call.out_map)
        self._scaling = _Scaling(call)
        # Of distillation, the part that is cross-entropy.
        self._hard: RowsTask | None = None
        if call.has_teacher and call.hard_weight:
            self._hard = RowsTask(
                replace(call, op=Op.CROSS_ENTROPY, soft_targets=None, temperature=1.0)
            )

    def __call__(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Evaluate rows lo <= i < hi; end early when `stopped()` answers true."""
        if self._call.op is Op.SIGMOID:
            with np.errstate(all="ignore"):
                self._points(lo, hi, stopped)
            return
        # A row's own numbers take as much memory as about eight classes.
        step = max(1, BLOCK // max(8, self._call.n_classes))
        # Underflow, 0/0 and NaN are results here, not accidents.
        with np.errstate(all="ignore"):
            try:
                for start in range(lo, hi, step):
                    rows = self._select(start, min(start + step, hi))
                    self._evaluate(self._block(rows, stopped))
            except _StoppedError:
                return

    def _block(self, rows: Rows, stopped: Callable[[], bool]) -> _Block:
        return _Block(self._logits, self._soft_targets, rows, self._scaling, stopped)

    def _select(self, start: int, stop: int) -> Rows:
        """Index of rows start <= i < stop: a slice, or indices where rows have several axes."""
        shape = self._logits.shape[:-1]
        if len(shape) == 1:
            return (slice(start, stop),)
        return tuple(np.unravel_index(np.arange(start, stop), shape))

    def _evaluate(self, block: _Block) -> None:
        op = self._call.op
        if op is Op.RANK:
            self._rank(block)
            return
        if op is Op.SOFTMAX_VJP:
            self._softmax_vjp(block)
            return
        if op is Op.NLL:
            self._nll(block)
            return
        block.refer_to_largest()
        if op < Op.LOGSUMEXP:
            results = {Op.SQUARED_ERROR: self._squared_error, Op.HESSIAN: self._hessian,
                       Op.DISTILLATION: self._distillation}.get(op, self._cross_entropy)(block)
            self._store(block, results)
            return

        first = _Apart(block.first)
        if op is Op.LOGSUMEXP:
            block.reduce(first)
            lse = add_log1p(*block.m, first.other())
            self._store_rows(block.rows, np.where(np.isinf(block.largest), block.largest, lse))
        elif op is Op.BELOW:
            block.reduce(first)
            self._store_rows(block.rows, np.where(block.without_result, np.nan, first.other()))
        elif op is Op.ENTROPY:
            # Where e underflows nothing is left, however large m - z is.
            gap = _Sum(lambda classes, d, e: times(e, -d))
            block.reduce(first, gap)
            other = first.other()
            entropy = np.log1p(other) + gap.total() / (other + first.e)
            self._store_rows(block.rows, np.where(block.without_result, np.nan, entropy))
        elif op is Op.SOFTMAX:
            block.reduce(first)
            total = first.other() + first.e
            for classes in block.walk():
                _, p = block.shifted(classes)
                p /= total[:, None]
                if self._upstream is not None:
                    p = times(p, self._upstream[block.rows].astype(np.float64)[:, None])
                if self._call.softcap:
                    p = times(p, self._scaling.slope(block.read(classes)))
                self._store_map(block.rows, classes, p)
        else:
            block.reduce(first)
            # 1 + S' would round away a small S', and with it log p of a dominant class. Equal
            # logits share every operand, hence their bits.
            log_total = np.log1p(first.other())
            for classes in block.walk():
                d, _ = block.shifted(classes)
                self._store_map(block.rows, classes, d - log_total[:, None])

    def _cross_entropy(self, block: _Block) -> _Results:
        call = self._call
        smoothing, z_loss = call.smoothing, call.z_loss
        is_class = self._targets is not None
        is_owed = not is_class or smoothing > 0.0  # is there a B_k?
        targets, weight, v_y, counts = self._weights(block)

        first, mass = _Apart(block.first), _Sum(lambda classes, d, e: self._mass(block, classes))
        gap = _Sum(lambda classes, d, e: times(self._owed(block, classes), -d))
        apart = _Apart(targets) if is_class else first
        wanted: list[_Apart | _Sum] = [apart]
        if is_class and (is_owed or z_loss):
            wanted += [first]
        if is_owed:
            wanted += [gap]
        own = _Sum(lambda classes, d, e: _self_information(block.soft(classes)))
        if not is_class:
            wanted += [mass]
        if call.op is Op.KL:
            wanted += [own]
        block.reduce(*wanted)
        other = apart.other()
        total = other + apart.e
        b = pull = (1.0 - smoothing) * v_y
        owed = np.full(block.n, smoothing * call.class_weight_mean)
        if not is_class:
            owed = mass.total()
        lse = add_log1p(*block.m, first.other()) if z_loss else np.zeros(block.n)
        lost = block.without_result | np.isnan(weight)  # rows whose results are NaN
        minus_log_p = np.where(apart.e >= other, np.log1p(other / apart.e), np.log(total) - apart.d)
        if call.op is Op.FOCAL:
            focus = (other / total) ** call.gamma
            per_rest = np.where(other > 0.0, minus_log_p / (other / total), 1.0)
            pull = b * times(focus, 1.0 + call.gamma * times(apart.e / total, per_rest))
            b = b * focus

        value = times(b, minus_log_p)
        if is_owed:
            value += times(owed, np.log1p(first.other())) + gap.total()
        if z_loss:
            value += z_loss * lse * lse
        if call.op is Op.KL:
            value += own.total()
            value[(value < 0.0) & (np.abs(owed - 1.0) <= call.slack)] = 0.0
        value = times(weight, value)
        value[lost] = np.nan

        w = weight * self._factor(block)
        rest = owed + 2.0 * (z_loss * lse)
        a = pull + rest
        # S'/S is exactly 1 where the target is -inf: the gradient there is exactly what it is
        # owed. And 0 - b S'/S, not its negative: where S' = 0 it is +0.
        at_target = (0.0 - times(pull, other / total)) + times(rest, apart.e / total)

        def gradient(classes: slice) -> Float64s:
            _, g = block.shifted(classes)
            g /= total[:, None]
            if is_owed or z_loss or call.op is Op.FOCAL:  # else it is 1
                g = times(g, a[:, None])
            if is_class:
                here, column = _inside(targets, classes)
                g[here, column] = at_target[here]
            if is_owed:
                g -= self._owed(block, classes)
            if call.softcap:
                g = times(g, self._scaling.slope(block.read(classes)))
            g = times(g, w[:, None])  # a weight may have overflowed
            g[lost | np.isnan(w)] = np.nan
            return g

        return _Results(value, gradient, counts)

    def _distillation(self, block: _Block) -> _Results:
        call = self._call
        _, weight, _, counts = self._weights(block)
        assert self._soft_targets is not None
        teacher = _Block(self._soft_targets, None, block.rows, self._scaling, block.stopped)
        teacher.refer_to_largest()
        first, first_of_teacher = _Apart(block.first), _Apart(teacher.first)
        teacher.reduce(first_of_teacher)
        total_of_teacher = first_of_teacher.other() + first_of_teacher.e
        impossible = np.zeros(block.n, dtype=np.bool_)

        def own_gap(classes: slice, d: Float64s, e: Float64s) -> Float64s:
            return times(e / total_of_teacher[:, None], -d)

        def gap(classes: slice, d: Float64s, e: Float64s) -> Float64s:
            # Of what both exclude, nothing.
            excluded = block.read(classes) == -np.inf
            impossible[(excluded & (teacher.read(classes) != -np.inf)).any(axis=1)] = True
            return own_gap(classes, np.where(excluded, 0.0, d), teacher.shifted(classes)[1])

        cross, own = _Sum(gap), _Sum(own_gap)
        teacher.reduce(own)
        block.reduce(first, cross)
        total = first.other() + first.e
        value = (np.log1p(first.other()) - np.log1p(first_of_teacher.other())) + (
            cross.total() - own.total())
        value = np.where(impossible, np.inf, np.maximum(value, 0.0))
        value = times(weight, (1.0 - call.hard_weight) * call.temperature**2 * value)
        lost = block.without_result | teacher.without_result | np.isnan(weight)
        value[lost] = np.nan
        w = weight * self._factor(block) * ((1.0 - call.hard_weight) * call.temperature)
        hard: _Results | None = None
        if self._hard is not None:
            hard_block = self._hard._block(block.rows, block.stopped)
            hard_block.refer_to_largest()
            hard = self._hard._cross_entropy(hard_block)
            value += call.hard_weight * np.where(hard.counts, hard.value, 0.0)

        def gradient(classes: slice) -> Float64s:
            p, q = block.shifted(classes)[1], teacher.shifted(classes)[1]
            g = times(p / total[:, None] - q / total_of_teacher[:, None], w[:, None])
            g[lost | np.isnan(w)] = np.nan
            if hard is not None:
                more = hard.gradient(classes)
                g += call.hard_weight * np.where(hard.counts[:, None], more, 0.0)
            return g

        return _Results(value, gradient, counts)

    def _squared_error(self, block: _Block) -> _Results:
        is_class = self._targets is not None
        targets, weight, _, counts = self._weights(block)

        def squares_of(classes: slice, d: Float64s, e: Float64s) -> Float64s:
            terms = e * e
            if is_class:
                here, column = _inside(targets, classes)
                terms[here, column] = 0.0
            return terms

        apart = _Apart(targets if is_class else block.first)
        squares = _Sum(squares_of)
        wanted: list[_Apart | _Sum] = [apart, squares]
        cross = _Sum(lambda classes, d, e: times(e, block.soft(classes)))
        soft = _Sum(lambda classes, d, e: block.soft(classes) ** 2)
        mass = _Sum(lambda classes, d, e: self._mass(block, classes))
        if not is_class:
            wanted += [cross, soft, mass]
        block.reduce(*wanted)
        other = apart.other()
        total = other + apart.e
        q = squares.total() / total / total
        p, rest = apart.e / total, other / total
        if is_class:
            value = 0.5 * (q + rest * rest)
            mean = q - p * rest
        else:
            pt = cross.total() / total
            value = 0.5 * np.maximum((q + soft.total()) - 2.0 * pt, 0.0)
            mean = q - pt
        lost = block.without_result | np.isnan(weight)
        value = times(weight, value)
        value[lost] = np.nan
        w = weight * self._factor(block)

        def gradient(classes: slice) -> Float64s:
            _, g = block.shifted(classes)
            g /= total[:, None]
            difference = g if is_class else g - block.soft(classes)
            g = times(g, difference - mean[:, None])
            if is_class:
                here, column = _inside(targets, classes)
                g[here, column] = (0.0 - times(p, rest * rest + q))[here]
            g = times(g, w[:, None])
            g[lost | np.isnan(w)] = np.nan
            return g

        return _Results(value, gradient, counts)

    def _hessian(self, block: _Block) -> _Results:
        """Return A p (1 - p), with 1 - p of the largest logit a sum of the others."""
        _, weight, v_y, counts = self._weights(block)
        first, mass = _Apart(block.first), _Sum(lambda classes, d, e: self._mass(block, classes))
        if self._targets is None:
            block.reduce(first, mass)
            weight = weight * mass.total()
        else:
            block.reduce(first)
            weight = weight * ((1.0 - self._call.smoothing) * v_y
                               + self._call.smoothing * self._call.class_weight_mean)
        other = first.other()
        total = other + first.e
        weight = weight * self._factor(block)
        lost = block.without_result | np.isnan(weight)

        def hessian(classes: slice) -> Float64s:
            _, h = block.shifted(classes)
            h /= total[:, None]
            rest = 1.0 - h
            here, column = _inside(block.first, classes)
            rest[here, column] = (other / total)[here]
            h = np.maximum(times(h * rest, weight[:, None]), self._call.floor)
            h[lost] = np.nan
            return h

        return _Results(np.zeros(block.n), hessian, counts)

    def _nll(self, block: _Block) -> None:
        targets, weight, _, counts = self._weights(block)
        lost = np.isnan(weight)
        if self._out_rows is not None:
            value = times(weight, 0.0 - block.at(targets))
            value[lost] = np.nan
            self._store_rows(block.rows, np.where(counts, value, 0.0))
        if self._out_map is None:
            return
        weight = 0.0 - weight * self._factor(block)
        for classes in block.walk():
            g = np.zeros((block.n, classes.stop - classes.start))
            here, column = _inside(targets, classes)
            g[here, column] = weight[here]
            g[lost] = np.nan
            g[~counts] = 0.0
            self._store_map(block.rows, classes, g)

    def _points(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Evaluate pieces lo <= i < hi of `POINTS` rows of one logit each."""
        call = self._call
        assert self._soft_targets is not None
        n = math.prod(self._logits.shape[:-1])
        step = BLOCK // POINTS
        for start in range(lo, hi, step):
            if stopped():
                return
            stop = min(start + step, hi)
            rows = self._select(start * POINTS, min(stop * POINTS, n))
            z = self._logits[(*rows, 0)].astype(np.float64)
            t = self._soft_targets[(*rows, 0)].astype(np.float64)
            s = np.ones(z.shape)
            if self._sample_weight is not None:
                s = self._sample_weight[rows].astype(np.float64)
            counts = s != 0.0
            self.refused |= bool((counts & ~((t >= 0.0) & (t <= 1.0))).any())
            z, t = np.where(counts, z, 0.0), np.where(counts, t, 0.0)
            yes, no = t, 1.0 - t
            if self._pos_weight is not None:
                yes = self._pos_weight[rows].astype(np.float64) * t
            e = np.exp(-np.abs(z))
            if self._out_rows is not None:
                side = np.where(z < 0.0, yes, no)
                value = s * (times(side, np.abs(z)) + (yes + no) * np.log1p(e))
                if call.summed:
                    whole = np.zeros((stop - start, POINTS))
                    whole.reshape(-1)[: value.size] = value
                    self._out_rows[start:stop] = sums(whole)
                else:
                    self._out_rows[rows] = value
            if self._out_map is not None:
                far, near = 1.0 / (1.0 + e), e / (1.0 + e)
                up, down = np.where(z < 0.0, near, far), np.where(z < 0.0, far, near)
                weight: Float64s | float = call.scale
                if self._upstream is not None:
                    weight = self._upstream[rows].astype(np.float64) * call.scale
                g = times(np.where(counts, s * weight, 0.0), no * up - yes * down)
                self._store_map(rows, 0, g)

    def _store(self, block: _Block, results: _Results) -> None:
        value, gradient, counts = results
        self._store_rows(block.rows, np.where(counts, value, 0.0))
        if self._out_map is None:
            return
        for classes in block.walk():
            g = gradient(classes)
            g[~counts] = 0.0
            self._store_map(block.rows, classes, g)

    def _factor(self, block: _Block) -> Float64s | float:
        """Return what multiplies the gradient beside the row's weight."""
        # In this order: one number for all rows reaches `scale` by the same products.
        if self._upstream is None:
            return self._call.scale
        factor: Float64s = self._upstream[block.rows].astype(np.float64) * self._call.scale
        return factor

    def _owed(self, block: _Block, classes: slice) -> Float64s:
        """Return B_k, of one row where it is the same for all; what is > 0 does not underflow."""
        call = self._call
        share = call.smoothing / call.n_classes
        if self._soft_targets is None:
            mass = np.full((1, classes.stop - classes.start), share)
        else:
            mass = block.soft(classes)
            if call.smoothing:
                mass = (1.0 - call.smoothing) * mass + share
        if call.smoothing:
            mass = np.maximum(mass, TINY)
        if call.class_weight is not None:
            v = call.class_weight[classes]
            mass = np.where((mass > 0.0) & (v > 0.0), np.maximum(mass * v, TINY), 0.0)
        return mass

    def _mass(self, block: _Block, classes: slice) -> Float64s:
        """Return B_k of probabilities, to be overwritten, once their values are checked."""
        t = block.soft(classes)
        bad = (~((t >= 0.0) & (t < np.inf))).any(axis=1)
        if self._sample_weight is not None:
            bad &= self._sample_weight[block.rows] != 0
        self.refused |= bool(bad.any())
        return self._owed(block, classes).copy()

    def _weights(self, block: _Block) -> tuple[Columns, Float64s, Float64s, Bools]:
        """Return target, s, v_y and whether it counts, of each row; probabilities: 0, s, 0.

        Where the target's own term is all there is, s v_y is the row's weight and v_y is 1.
        """
        call = self._call
        weight = np.ones(block.n)
        if self._sample_weight is not None:
            weight = self._sample_weight[block.rows].astype(np.float64)
        counts = weight != 0.0
        if self._targets is None:
            return np.zeros(block.n, dtype=np.intp), weight, np.zeros(block.n), counts
        targets, ignored, outside = self._classes(block)
        counts &= ~ignored
        v_y = np.ones(block.n)
        if call.class_weight is not None and not call.has_teacher:
            v_y = call.class_weight[targets]
        if not call.smoothing and not call.z_loss:
            weight *= v_y
            v_y = np.ones(block.n)
        weight[outside] = np.nan
        counts &= weight != 0.0
        return targets, weight, v_y, counts

    def _classes(self, block: _Block) -> tuple[Columns, Bools, Bools]:
        """Return each row's target, whether it is ignored, and whether it is outside [0, C).

        Only another thread can have put one there after the check: such a row, if it is not
        ignored, has no result. The class returned for it is valid.
        """
        assert self._targets is not None
        given = np.array(self._targets[block.rows])  # one copy: checked and used are the same
        outside = (given < 0) | (given >= self._call.n_classes)
        targets = np.where(outside, given.dtype.type(0), given).astype(np.intp)
        if self._call.ignore_index is None:
            return targets, np.zeros(block.n, dtype=np.bool_), outside
        return targets, given == self._call.ignore_index, outside

    def _rank(self, block: _Block) -> None:
        """Count the classes that come before the target, a NaN as the largest number."""
        targets, ignored, outside = self._classes(block)
        x_y = block.at(targets)[:, None]
        before = np.zeros(block.n)
        for classes in block.walk():
            x = block.read(classes)
            lower = np.arange(classes.start, classes.stop) < targets[:, None]
            before += np.count_nonzero(~(x <= x_y) | ((x == x_y) & lower), axis=1)
        missing = np.isnan(x_y[:, 0]) | ignored | outside
        self._store_rows(block.rows, np.where(missing, np.inf, before))

    def _softmax_vjp(self, block: _Block) -> None:
        """Store p (u - sum p u), p being given as logits, u as soft targets."""
        mean = sums(
            np.stack(
                [sums(block.read(classes) * block.soft(classes)) for classes in block.walk()],
                axis=1,
            )
        )
        for classes in block.walk():
            p, u = block.read(classes), block.soft(classes)
            self._store_map(block.rows, classes, p * (u - mean[:, None]))

    def _store_rows(self, rows: Rows, values: Float64s) -> None:
        if self._out_rows is not None:
            self._out_rows[rows] = values

    def _store_map(self, rows: Rows, classes: slice | int, values: Float64s) -> None:
        assert self._out_map is not None
        # bfloat16, which to NumPy is of no kind: its cast from float64 rounds twice.
        narrow = self._out_map.dtype.kind == "V"
        self._out_map[(*rows, classes)] = odd_float32(values) if narrow else values


class _Results(NamedTuple):
    """Of some rows: their values, the gradient of some classes, and which of them count."""

    value: Float64s
    gradient: Callable[[slice], Float64s]
    counts: Bools


class _Scaling:
    """z as a function of the logits: softcap, then temperature.

    For float64 logits z - m is rounded by up to 2**-44 where it matters (above exp's underflow),
    256 times the precision of the result: what the quotients and differences round is kept. For
    narrower logits it stays far below their precision, and is not.
    """

    def __init__(self, call: Call) -> None:
        self._cap = call.softcap
        self._temperature = call.temperature
        self._keeps_error = call.is_wide

    def capped(self, x: Float64s) -> Pair:
        """Return cap tanh(x / cap), within 0.6 units in the last place for float64 logits."""
        if not self._cap:
            return x, None
        cap = self._cap
        if not self._keeps_error:
            return np.where(np.isinf(x), x, cap * np.tanh(x / cap)), None
        a, error = self._over_cap(x)
        near = a <= TANH_NEAR
        # What tanh takes away from x, or lacks of the cap: the less, the less its error counts.
        lack, lack_low = one_minus_tanh(a, error)
        taken = cap * np.where(near, tanh_gap(a, error), lack)
        taken_low = np.where(near, 0.0, cap * lack_low - remainder(taken, lack, cap))
        high, low = two_sum(np.where(near, np.abs(x), cap), -taken)
        low -= taken_low
        infinite = np.isinf(x)
        high[infinite], low[infinite] = np.inf, 0.0
        sign = np.copysign(1.0, x)
        return sign * high, sign * low

    def slope(self, x: Float64s) -> Float64s:
        """Return the derivative of `capped`, sech^2(x / cap) = 4 e / (1 + e)^2; 1 at -inf."""
        a, error = self._over_cap(x)
        e = np.exp(-2.0 * a)
        e -= e * (2.0 * error)
        return np.where(np.isinf(x), 1.0, 4.0 * e / (1.0 + e) ** 2)

    def minus(self, x: Float64s, reference: Pair) -> Pair:
        """Return z - m, `reference` being m's `capped` as columns."""
        y, y_low = self.capped(x)
        r, r_low = reference
        if not self._keeps_error:
            return (y - r) / self._temperature, None
        d, low = two_sum(y, -r)
        if y_low is not None and r_low is not None:
            low[np.isinf(d)] = 0.0
            d, low = two_sum(d, low + (y_low - r_low))
        high, low = self.over_temperature(d, low)
        if self._temperature > 1.0:
            overflowed = np.isinf(d)  # as a difference, not as what it is of
            if overflowed.any():
                apart = y / self._temperature - r / self._temperature
                high = np.where(overflowed, apart, high)
        return high, low

    def over_temperature(self, high: Float64s, low: Float64s) -> tuple[Float64s, Float64s]:
        """Return (high + low) / temperature."""
        return over(high, low, self._temperature)

    def _over_cap(self, x: Float64s) -> tuple[Float64s, Float64s]:
        """Return |x| / cap and its rounding error."""
        x = np.abs(x)
        a = x / self._cap
        if not self._keeps_error:
            return a, np.zeros(())
        error = remainder(x, a, self._cap) / self._cap
        error[~np.isfinite(error)] = 0.0
        return a, error


class _Block:
    """Some rows of the logits, read as float64 in blocks of classes.

    Where all classes fit one block, it is read once and its exponentials are computed once. Either
    way a block of classes is copied before anything can be written over it.
    """

    #: Set by `refer_to_largest`: every row's largest logit as given and where it first occurs;
    #: whether it is not finite, so that there is no softmax; and m, z of it (NaN there).
    largest: Float64s
    first: Columns
    without_result: Bools
    m: tuple[Float64s, Float64s]

    def __init__(
        self,
        logits: NDArray[np.floating],
        soft_targets: NDArray[np.floating] | None,
        rows: Rows,
        scaling: _Scaling,
        stopped: Callable[[], bool],
    ) -> None:
        self.rows = rows
        self.n = rows[0].stop - rows[0].start if isinstance(rows[0], slice) else rows[0].size
        self._logits = logits
        self._soft_targets = soft_targets
        self._scaling = scaling
        self.stopped = stopped
        self._n_classes = logits.shape[-1]
        self._one_block = self._n_classes <= BLOCK
        self._x: Float64s | None = None
        self._t: Float64s | None = None
        self._shifted: tuple[Float64s, Float64s] | None = None
        self._reference: Pair

    def walk(self) -> Iterator[slice]:
        """Yield the blocks of classes, in order; asks for an early end before each."""
        for start in range(0, self._n_classes, BLOCK):
            if self.stopped():
                raise _StoppedError
            yield slice(start, min(start + BLOCK, self._n_classes))

    def read(self, classes: slice) -> Float64s:
        """Return a C-contiguous float64 copy of the logits, rows x classes."""
        if self._x is not None:
            return self._x
        x = np.array(self._logits[(*self.rows, classes)], dtype=np.float64, order="C")
        if self._one_block:
            self._x = x
        return x

    def soft(self, classes: slice) -> Float64s:
        """Return a C-contiguous float64 copy of the soft targets, with no -0."""
        if self._t is not None:
            return self._t
        assert self._soft_targets is not None
        t = np.array(self._soft_targets[(*self.rows, classes)], dtype=np.float64, order="C")
        t += 0.0
        if self._one_block:
            self._t = t
        return t

    def at(self, columns: Columns) -> Float64s:
        """Return one logit of each row."""
        if isinstance(self.rows[0], slice):
            found = self._logits[self.rows[0]][np.arange(self.n), columns]
        else:
            found = self._logits[(*self.rows, columns)]
        return found.astype(np.float64)

    def shifted(self, classes: slice) -> tuple[Float64s, Float64s]:
        """Return z - m and exp(z - m), both the caller's to overwrite after their last use.

        The part of z - m that rounding left is itself a float64 number, and
        exp(d + error) = exp(d) + exp(d) * error to all digits.
        """
        if self._shifted is not None:
            return self._shifted
        d, error = self._scaling.minus(self.read(classes), self._reference)
        e = np.exp(d)
        if error is not None:
            error *= e
            e += error
        if self._one_block:
            self._shifted = d, e
        return d, e

    def refer_to_largest(self) -> None:
        """Find the largest logits (NaN where a row holds one): largest z too, as both grow."""
        parts = []
        places = []
        for classes in self.walk():
            x = self.read(classes)
            place = x.argmax(axis=1)  # of a NaN, if there is one
            parts.append(x[np.arange(len(x)), place])
            places.append(place + classes.start)
        block = np.argmax(parts, axis=0)
        row = np.arange(block.size)
        self.largest, self.first = np.asarray(parts)[block, row], np.asarray(places)[block, row]
        self.without_result = ~np.isfinite(self.largest)
        high, low = self._scaling.capped(np.where(self.without_result, np.nan, self.largest))
        self._reference = high[:, None], None if low is None else low[:, None]
        self.m = self._scaling.over_temperature(high, np.zeros(self.n) if low is None else low)

    def reduce(self, *wanted: _Apart | _Sum) -> None:
        """Walk the classes once, for everything that is wanted."""
        for classes in self.walk():
            d, e = self.shifted(classes)
            for each in wanted:
                each.add(classes, d, e)


class _Apart:
    """S', the sum of e over the classes but one of each row, and the e and z - m of that one."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._parts: list[Float64s] = []
        self.e = np.empty(columns.size)
        self.d = np.empty(columns.size)

    def add(self, classes: slice, d: Float64s, e: Float64s) -> None:
        here, column = _inside(self._columns, classes)
        self.d[here] = d[here, column]
        self.e[here] = e[here, column]
        terms = e.copy()
        terms[here, column] = 0.0
        self._parts.append(sums(terms))

    def other(self) -> Float64s:
        return sums(np.stack(self._parts, axis=1))


class _Sum:
    """The sum over the classes of what `terms` makes of z - m and e; that is overwritten."""

    def __init__(self, terms: Callable[[slice, Float64s, Float64s], Float64s]) -> None:
        self._terms = terms
        self._parts: list[Float64s] = []

    def add(self, classes: slice, d: Float64s, e: Float64s) -> None:
        self._parts.append(sums(self._terms(classes, d, e)))

    def total(self) -> Float64s:
        return sums(np.stack(self._parts, axis=1))


def _self_information(t: Float64s) -> Float64s:
    """Return t log t, 0 log 0 = 0."""
    return times(t, np.log(np.where(t > 0.0, t, 1.0)))


def _inside(columns: Columns, classes: slice) -> tuple[Columns, Columns]:
    """Return the rows whose column lies in `classes`, and that column counted from its start."""
    here = np.flatnonzero((columns >= classes.start) & (columns < classes.stop))
    return here, columns[here] - classes.start
