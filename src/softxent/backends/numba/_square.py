"""Rows to columns and back, in squares of 8 by 8 floats or 4 by 4 doubles, each in registers.

LLVM makes single loads and stores of such loops. `lanes.h` has the same for Cython.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from softxent.backends.numba._exp_many import prefetch
from softxent.backends.numba._jit import as_type, moved, part, pointer_at, stack, stay_apart
from softxent.backends.numba._layout import GROUP

LAST = 8 * 64 + 8  # eight rows of up to 64 classes, and what a square writes behind them

# Pairs within 128 bits, fours within 128 bits, then the halves: what processors with 256 bits do in
# an instruction each.
_PAIRS = ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
_FOURS = ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
_HALVES = ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
_DOUBLES = ((0, 4, 2, 6), (1, 5, 3, 7))
_DOUBLE_HALVES = ((0, 1, 4, 5), (2, 3, 6, 7))


def _transposed(builder: Any, v: list[Any]) -> list[Any]:
    def both(a: Any, b: Any, places: Any) -> list[Any]:
        kind = ir.VectorType(ir.IntType(32), len(v))
        return [builder.shuffle_vector(a, b, ir.Constant(kind, list(some))) for some in places]

    if len(v) == 4:
        a, b = both(v[0], v[1], _DOUBLES), both(v[2], v[3], _DOUBLES)
        low, high = (both(a[i], b[i], _DOUBLE_HALVES) for i in range(2))
        return [low[0], high[0], low[1], high[1]]
    pairs = [both(v[i], v[i + 1], _PAIRS) for i in range(0, 8, 2)]
    fours = [both(pairs[i][half], pairs[i + 1][half], _FOURS)
             for i in (0, 2) for half in range(2)]
    columns = [(fours[half][k], fours[half + 2][k]) for half in range(2) for k in range(2)]
    halves = [both(a, b, _HALVES) for a, b in columns]
    return [pair[0] for pair in halves] + [pair[1] for pair in halves]


@intrinsic
def square(typing: Any, x: Any, step: Any, to: Any, to_step: Any, ahead: Any) -> Any:
    """Store the transpose of the square at x, its rows `step` bytes apart, to `to`.

    What lies `ahead` bytes behind either is fetched.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size, element, align = (
            (8, ir.FloatType(), 4) if x.dtype == types.float32 else (4, ir.DoubleType(), 8))
        kind, byte, whole = ir.VectorType(element, size), ir.IntType(8), ir.IntType(64)

        def places(base: Any, step: Any) -> list[Any]:
            base = builder.bitcast(base, ir.PointerType(byte))
            return [builder.gep(base, [builder.mul(step, whole(i))], source_etype=byte)
                    for i in range(size)]

        vectors = []
        for place in places(args[0], args[1]):
            vectors.append(builder.load(builder.bitcast(place, ir.PointerType(kind)), align=align))
            prefetch(builder, builder.gep(place, [args[4]], source_etype=byte))
        for place, vector in zip(places(args[2], args[3]), _transposed(builder, vectors),
                                 strict=True):
            builder.store(vector, builder.bitcast(place, ir.PointerType(kind)), align=align)
            prefetch(builder, builder.gep(place, [args[4]], source_etype=byte))
        return context.get_dummy_value()

    return types.void(x, types.int64, x, types.int64, types.int64), generate


@part
def columns_of_rows(rows, count, classes, size, tile):
    # Packed rows, a multiple of eight of them, of up to 64 classes of `size` bytes, at the address
    # `rows`: class k of row j to k GROUP + j, k up to whole squares. What a square takes behind its
    # rows is the next ones'; the last rows go by way of memory that has such room.
    stay_apart()
    side = 32 // size
    last = stack(LAST, as_type(tile[0], 0.0))
    for j in range(0, count, side):
        row = pointer_at(rows + j * classes * size, as_type(tile[0], 0.0))
        if j + side >= count:
            for k in range(side * classes):
                last[k] = row[k]
            row = last
        for k in range(0, classes, side):
            square(moved(row, k), classes * size, moved(tile, k * GROUP + j), GROUP * size, 0)


@part
def rows_of_columns(tile, count, classes, size, rows):
    # The way back. From the last classes to the first, for what a square writes behind its rows'
    # ends is the next rows', which come later.
    stay_apart()
    side = 32 // size
    last = stack(LAST, as_type(tile[0], 0.0))
    for j in range(0, count, side):
        out = pointer_at(rows + j * classes * size, as_type(tile[0], 0.0))
        row = last if j + side >= count else out
        for k in range((classes - 1) // side * side, -1, -side):
            square(moved(tile, k * GROUP + j), GROUP * size, moved(row, k), classes * size, 0)
        if j + side >= count:
            for k in range(side * classes):
                out[k] = last[k]


@part
def rows_of_classes(at, stride, count, length, size, pitch, ahead, tile):
    # Class-major logits, class k of row j at `at` + k stride bytes + j, to row j's classes side by
    # side, rows `pitch` apart; `count` a multiple of eight. Returns how many classes are done.
    stay_apart()
    side = 32 // size
    whole = length // side * side
    for k in range(0, whole, side):
        for j in range(0, count, side):
            square(pointer_at(at + k * stride + j * size, as_type(tile[0], 0.0)), stride,
                   moved(tile, j * pitch + k), pitch * size, ahead)
    return whole


@part
def classes_of_rows(tile, pitch, count, length, size, at, stride, ahead):
    # The way back.
    stay_apart()
    side = 32 // size
    whole = length // side * side
    for k in range(0, whole, side):
        for j in range(0, count, side):
            square(moved(tile, j * pitch + k), pitch * size,
                   pointer_at(at + k * stride + j * size, as_type(tile[0], 0.0)), stride, ahead)
    return whole
