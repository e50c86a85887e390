"""One logit a row: binary cross-entropy, POINTS rows at a time.

`backends/cython/_points.pxi` says what is computed; loops over float32 and over float64 are apart
here.
"""

from __future__ import annotations

import numpy as np

from softxent.backends.numba._elementary import exp_of, log1p, power_of, subnormals, times
from softxent.backends.numba._jit import (
    as_type,
    beyond_plain,
    fabs,
    load,
    moved,
    part,
    pointer_at,
    stack,
    stay_apart,
)
from softxent.backends.numba._layout import TYPE_BF16, TYPE_BRAIN, TYPE_F32, TYPE_F64
from softxent.backends.numba._load import (
    cursor_run,
    cursor_skip,
    cursor_start,
    is_no_share,
    lesser,
    load_real,
    store_real,
)
from softxent.backends.numba._map import kind_of
from softxent.backends.numba._reduce import block_sum
from softxent.backends.numba._rows import LANES, is_single, narrow_down, room_at, tick, widen

POINTS = 1024
# Of float64, in the walk's room; the logits and the gradient in its own type. Not a multiple of
# 4 KiB apart: a loop reads and writes all of them at one place.
ROOM_X = 0
ROOM_G = 8512
ROOM_T = 17024
ROOM_V = 25536
ROOM_S = 34048
ROOM_W = 42560
ROOM_VALUE = 51072

_F32, _F64, _I16 = np.float32(0), np.float64(0), np.int16(0)


@part
def load_run(p, kind, stride, count, to):
    # Some rows' numbers of any type, as float64.
    stay_apart()
    if stride == 0:
        value = load_real(p, kind)
        for i in range(count):
            to[i] = value
    elif kind == TYPE_F64:
        for i in range(count):
            to[i] = load(p + i * stride, _F64)
    elif kind == TYPE_F32:
        for i in range(count):
            to[i] = np.float64(load(p + i * stride, _F32))
    else:
        for i in range(count):
            to[i] = load_real(p + i * stride, kind)


@part
def is_sixteen(p, kind, stride):
    return (kind | TYPE_BRAIN) == TYPE_BF16 and stride == 2 and p & 1 == 0


@part
def load_logits(p, kind, stride, count, to):
    stay_apart()
    zero = as_type(to[0], 0.0)
    if kind == kind_of(zero):
        for i in range(count):
            to[i] = load(p + i * stride, zero)
    elif is_single(zero) and is_sixteen(p, kind, stride):
        widen(pointer_at(p, _I16), (kind & TYPE_BRAIN) != 0, count, to)
    else:
        for i in range(count):
            to[i] = as_type(zero, load_real(p + i * stride, kind))


@part
def store_run(p, kind, stride, count, given):
    stay_apart()
    zero = as_type(given[0], 0.0)
    if is_single(zero) and is_sixteen(p, kind, stride):
        narrow_down(given, (kind & TYPE_BRAIN) != 0, count, pointer_at(p, _I16))
    else:
        for i in range(count):
            store_real(p + i * stride, kind, np.float64(given[i]))


@part
def load_points(call, cursor, length, zero, room):
    # And the weights' products: what multiplies the loss, what multiplies the gradient. With
    # subnormals on.
    stay_apart()
    last = call.n_axes - 1
    x = room_at(room, ROOM_X, zero)
    t = room_at(room, ROOM_T, 0.0)
    v = room_at(room, ROOM_V, 0.0)
    s = room_at(room, ROOM_S, 0.0)
    w = room_at(room, ROOM_W, 0.0)
    for i in range(length):
        v[i] = 1.0
        s[i] = 1.0
        w[i] = 1.0
    i = 0
    while i < length:
        run = lesser(cursor_run(cursor, call), length - i)
        load_logits(cursor.logits, call.logits.rows.type, call.logits.rows.strides[last], run,
                    moved(x, i))
        load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], run, moved(t, i))
        if call.pos_weight.data != 0:
            load_run(cursor.pos_weight, call.pos_weight.type, call.pos_weight.strides[last], run,
                     moved(v, i))
        if call.sample_weight.data != 0:
            load_run(cursor.sample_weight, call.sample_weight.type,
                     call.sample_weight.strides[last], run, moved(s, i))
        if call.upstream.data != 0:
            load_run(cursor.upstream, call.upstream.type, call.upstream.strides[last], run,
                     moved(w, i))
        cursor_skip(cursor, call, run)
        i += run
    for i in range(length):
        if s[i] == 0.0:  # nothing of it is used
            x[i] = 0.0
            t[i] = 0.0
            w[i] = 0.0
        elif is_no_share(t[i]):
            call.refused = 1
        w[i] = s[i] * (call.scale * w[i])


@part
def compute_points(length, zero, room):
    stay_apart()
    e = stack(LANES, zero)
    power_k, power_low = power_of(0.0, zero, None)
    for i0 in range(0, length, LANES):  # what is behind the last is harmless
        x = moved(room_at(room, ROOM_X, zero), i0)
        t = moved(room_at(room, ROOM_T, 0.0), i0)
        v = moved(room_at(room, ROOM_V, 0.0), i0)
        s = moved(room_at(room, ROOM_S, 0.0), i0)
        w = moved(room_at(room, ROOM_W, 0.0), i0)
        values = moved(room_at(room, ROOM_VALUE, 0.0), i0)
        g = moved(room_at(room, ROOM_G, zero), i0)
        for j in range(LANES):
            e[j] = exp_of(zero - fabs(x[j]), power_k, power_low, None)
        for j in range(LANES):
            z = np.float64(x[j])
            small = np.float64(e[j])
            far = 1.0 / (1.0 + small)
            near = small * far
            yes = v[j] * t[j]
            no = 1.0 - t[j]
            side = yes if z < 0.0 else no
            up = near if z < 0.0 else far
            down = far if z < 0.0 else near
            values[j] = s[j] * (times(side, fabs(z)) + (yes + no) * log1p(small))
            g[j] = as_type(zero, times(w[j], no * up - yes * down))


@part
def store_points(call, first, piece, length, room):
    # The losses, or their sum; with subnormals on.
    stay_apart()
    values = room_at(room, ROOM_VALUE, 0.0)
    doubles = pointer_at(call.out_rows, 0.0)
    floats = pointer_at(call.out_rows, _F32)
    if call.summed != 0:
        doubles[piece] = block_sum(values, length)
    elif call.out_rows_is_double != 0:
        for i in range(length):
            doubles[first + i] = values[i]
    else:
        for i in range(length):
            floats[first + i] = values[i]


@beyond_plain(False)
def walk_points(call, lo, hi, zero, control, cursor, room):
    stay_apart()
    last = call.n_axes - 1
    g = room_at(room, ROOM_G, zero)
    for piece in range(lo, hi):
        first = piece * POINTS
        length = lesser(POINTS, call.n_points - first)
        cursor_start(cursor, call, first)
        subnormals(True)
        load_points(call, cursor, length, zero, room)
        subnormals(False)
        compute_points(length, zero, room)
        subnormals(True)
        store_points(call, first, piece, length, room)
        subnormals(False)
        if call.out_map.rows.data != 0:
            cursor_start(cursor, call, first)
            i = 0
            while i < length:
                run = lesser(cursor_run(cursor, call), length - i)
                store_run(cursor.out_map, call.out_map.rows.type,
                          call.out_map.rows.strides[last], run, moved(g, i))
                cursor_skip(cursor, call, run)
                i += run
        if tick(control, length):
            return True
    return False
