"""The e of a row's sums, kept for its map: `_kept.pxi`, where every function has its words.

By blocks over their own powers, which an exact shift makes the row's.
"""

from __future__ import annotations

from softxent.backends.numba._jit import inlined
from softxent.backends.numba._load import lesser
from softxent.backends.numba._rows import BLOCK, LANES, LOG_SOFTMAX, is_single, is_squared

KEPT = 622592  # bytes a walk; a row of 155,648 float32
# Longest stretch of rows (elements) between the passes, where e is kept.
NEAR_KEPT = 16384


@inlined
def least_shift(zero):
    return -100.0 if is_single(zero) else -900.0


@inlined
def keeps(call):
    # Whether the map is made of e as it is.
    return (call.out_map.rows.data != 0 and call.softcap == 0.0 and call.op != LOG_SOFTMAX
            and not is_squared(call))


@inlined
def keep_rows(rows, kept, together, classes, zero):
    # kept: an address; 0: nowhere.
    size = 4 if is_single(zero) else 8
    rows.kept = kept
    rows.kept_pitch = lesser(KEPT // (size * together), classes + (LANES - 1)) // LANES * LANES


@inlined
def kept_power_at(rows, j, k0):
    return j * ((rows.kept_pitch + (BLOCK - 1)) // BLOCK) + k0 // BLOCK


@inlined
def kept_block(rows, j, k0, length, zero):
    # The address of a block's e, or 0.
    if rows.kept == 0 or k0 + (length + (LANES - 1)) // LANES * LANES > rows.kept_pitch:
        return 0
    return rows.kept + (j * rows.kept_pitch + k0) * (4 if is_single(zero) else 8)


@inlined
def keep_power(rows, j, k0, n):
    rows.kept_n[kept_power_at(rows, j, k0)] = n


@inlined
def kept_steps(rows, j, k0):
    return rows.kept_n[kept_power_at(rows, j, k0)] - rows.n[j]
