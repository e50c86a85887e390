"""Fills the arguments of the walk from a `Call`, as `backends/cython/_bind.pyx` does."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent.backends._contract import Call
from softxent.backends.numba import _layout as layout

# Temperatures, caps and (relatively) class weights that float32 walks serve by pieces; others go
# through the slow lane, in float64. No product of theirs with an e leaves float32.
NARROW_LEAST, NARROW_MOST = 2.0**-60, 2.0**60


def _is_narrow(scale: float) -> bool:
    return NARROW_LEAST <= scale <= NARROW_MOST


@functools.cache
def _type_of(dtype: np.dtype[Any]) -> int:
    code = dtype.itemsize
    if dtype.kind == "f":
        code |= layout.TYPE_FLOAT
        if code & layout.TYPE_SIZE > 8 and np.finfo(dtype).nmant != 63:
            raise TypeError(f"no kernel loads this machine's {dtype}")
    elif dtype.name == "bfloat16":
        code |= layout.TYPE_BF16
    elif dtype.kind in "ub":
        code |= layout.TYPE_UNSIGNED
    elif dtype.kind != "i":
        raise TypeError(f"no kernel loads {dtype}")
    return code if dtype.isnative else code | layout.TYPE_SWAPPED


class Bound:
    """The C arguments of one call, and the arrays that they point into."""

    def __init__(self, call: Call) -> None:
        self.owners: list[Any] = []
        self.c = c = layout.Call()
        self.wide = call.is_wide
        c.op = call.op
        c.n_rows = call.n_rows
        c.n_classes = call.n_classes
        shape = call.logits.shape[:-1] or (1,)
        c.n_axes = len(shape)
        for axis, length in enumerate(shape):
            c.shape[axis] = length
        c.scale = call.scale
        c.smoothing = call.smoothing
        c.temperature = call.temperature
        c.softcap = call.softcap
        c.z_loss = call.z_loss
        c.gamma = call.gamma
        c.slack = call.slack
        c.floor = call.floor
        c.hard_weight = call.hard_weight
        self._matrix(c.logits, call.logits)
        self._matrix(c.out_map, call.out_map)
        self._matrix(c.soft, call.soft_targets)
        c.soft.holds_probabilities = not call.has_teacher
        self._rows(c.targets, call.targets)
        self._rows(c.sample_weight, call.sample_weight)
        self._rows(c.upstream, call.upstream)
        self._rows(c.pos_weight, call.pos_weight)
        c.n_points = call.logits.size
        c.summed = call.summed
        if c.n_axes > 1:
            self._merge_axes()
        if call.ignore_index is not None:
            c.has_ignore = 1
            # As the loads see it: uint64 wraps, and so does what it is compared with.
            c.ignore_index = call.ignore_index
        if not self.wide:
            c.all_slow = not (_is_narrow(call.temperature)
                              and (call.softcap == 0.0 or _is_narrow(call.softcap)))
        c.class_unit = 1.0
        c.class_weight_mean = call.class_weight_mean
        if call.class_weight is not None:
            c.class_weight = c.class_weight_real = self._keep(call.class_weight)
            if not self.wide and (call.smoothing != 0.0 or call.soft_targets is not None):
                self._narrow_class_weight(call.class_weight)
        if call.out_rows is not None:
            c.out_rows = self._keep(call.out_rows)
            c.out_rows_is_double = call.out_rows.dtype.itemsize == 8

    @property
    def address(self) -> int:
        """Where the C arguments are; valid while this object lives."""
        return ctypes.addressof(self.c)

    def _keep(self, array: NDArray[Any]) -> int:
        self.owners.append(array)
        return array.ctypes.data

    def _narrow_class_weight(self, class_weight: NDArray[np.float64]) -> None:
        most = class_weight.max() or 1.0
        unit = 2.0 ** max(int(np.frexp(most)[1]) - 1, -1022)  # its inverse is finite
        narrow = np.empty(len(class_weight), np.float32)
        np.divide(class_weight, unit, out=narrow, casting="unsafe")
        least = np.min(class_weight, initial=most, where=class_weight > 0.0)
        if least < NARROW_LEAST * unit:
            self.c.all_slow = 1
        self.c.class_weight_real = self._keep(narrow)
        self.c.class_unit = unit
        self.c.class_weight_mean /= unit

    def _rows(self, into: layout.PerRow, array: NDArray[Any] | None) -> None:
        if array is None:
            return
        into.data = self._keep(array)
        into.type = _type_of(array.dtype)
        for axis, stride in enumerate(array.strides):
            into.strides[axis] = stride

    def _merge_axes(self) -> None:
        # Axes of length 1 go, neighbours that every array steps through evenly become one.
        c = self.c
        arrays = (c.logits.rows, c.out_map.rows, c.soft.rows, c.targets, c.sample_weight,
                  c.upstream, c.pos_weight)
        lengths, kept = c.shape[: c.n_axes], 0
        for axis, length in enumerate(lengths):
            if length == 1:
                continue
            if kept == 0 or any(a.strides[kept - 1] != a.strides[axis] * length for a in arrays):
                c.shape[kept] = 1
                kept += 1
            c.shape[kept - 1] *= length
            for array in arrays:
                array.strides[kept - 1] = array.strides[axis]
        c.n_axes = max(kept, 1)
        if kept == 0:
            c.shape[0] = 1

    def _matrix(self, into: layout.Matrix, array: NDArray[Any] | None) -> None:
        if array is None:
            return
        self._rows(into.rows, array)
        into.class_stride = array.strides[-1]
        into.rows.strides[array.ndim - 1] = 0
        into.direct = layout.ANY
        kind = into.rows.type
        if kind & layout.TYPE_SWAPPED or not array.flags.aligned:
            return
        side_by_side = into.class_stride == array.itemsize or self.c.n_classes == 1
        if kind == layout.TYPE_FLOAT | (8 if self.wide else 4):
            into.direct = layout.IN_PLACE if side_by_side else layout.STRIDED
        elif kind in (layout.TYPE_F16, layout.TYPE_BF16) and side_by_side and not self.wide:
            into.direct = layout.SIXTEEN
