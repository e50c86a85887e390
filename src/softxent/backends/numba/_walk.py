"""The walk over a row, for every loss and every piece: reduce, head, map.

`backends/cython/_walk.pxi` is the original, and says what each step is for; names are the same, and
so are the bits (tests/bits.json).
"""

from __future__ import annotations

import ctypes

import numpy as np

from softxent.backends.numba._distillation import Distillation, walk_distillation
from softxent.backends.numba._elementary import product_rest, scale_by, subnormals, two_sum
from softxent.backends.numba._head import finish_reduce, store_values
from softxent.backends.numba._jit import (
    address_of,
    as_type,
    beyond_plain,
    fabs,
    float_state,
    fma,
    free,
    inlined,
    malloc,
    moved,
    part,
    pointer_at,
    restore_thread,
    save_thread,
    set_float_state,
    stack,
    stay_apart,
    struct_at,
    struct_type,
)
from softxent.backends.numba._kept import KEPT, NEAR_KEPT, keep_rows, keeps
from softxent.backends.numba._layout import (
    GROUP,
    IN_PLACE,
    SIXTEEN,
    STOPPED,
    Call,
    Control,
    Cursor,
    PlainCall,
    Rows,
)
from softxent.backends.numba._load import (
    cursor_next,
    cursor_start,
    greater,
    lesser,
    load_real,
    store_real,
)
from softxent.backends.numba._map import (
    has_kept,
    is_narrow,
    kind_of,
    map_apart,
    map_columns,
    map_log,
    map_mixed,
    map_run,
    map_slow,
    map_square,
    raise_to_floor,
    widely,
)
from softxent.backends.numba._points import walk_points
from softxent.backends.numba._reduce import (
    reduce_block,
    reduce_columns,
    reduce_mix_columns,
    reduce_row,
    reduce_soft_columns,
    reduce_square_columns,
)
from softxent.backends.numba._rows import (
    BLOCK,
    ENTROPY,
    FAST,
    INF,
    LANES,
    LINE,
    LOG_SOFTMAX,
    NAN,
    NEAR,
    NLL,
    POISONED,
    RANK,
    ROOM,
    ROOM_BLOCK,
    ROOM_CAPPED,
    ROOM_LOGITS,
    ROOM_OUT,
    ROOM_SLOPE,
    ROOM_SOFT,
    ROOM_TARGETS,
    SIGMOID,
    SKIPPED,
    SLOW,
    SMALL,
    SOFTMAX,
    SOFTMAX_VJP,
    SQUARED_ERROR,
    TILE_BYTES,
    TILE_GAP,
    are_fast,
    are_few,
    block_at,
    block_length,
    blocks_of,
    cap,
    clear_unused,
    fetched_ahead,
    gather,
    is_single,
    is_squared,
    load_rows,
    room_at,
    row_block,
    scatter,
    store_block,
    tick,
)

_CALL, _PLAIN_CALL, _CONTROL = map(struct_type, (Call, PlainCall, Control))
_CURSOR, _ROWS, _DISTILLATION = map(struct_type, (Cursor, Rows, Distillation))
_U8 = np.uint8(0)
# What a walk allocates for a run: its room, then a cursor, a group of rows, a control block, the e
# that it keeps, what distillation needs beside.
AT_CURSOR = ROOM
AT_ROWS = AT_CURSOR + -(-ctypes.sizeof(Cursor) // LINE) * LINE
AT_CONTROL = AT_ROWS + -(-ctypes.sizeof(Rows) // LINE) * LINE
AT_KEPT = AT_CONTROL + -(-ctypes.sizeof(Control) // LINE) * LINE
AT_PARTS = AT_KEPT + KEPT
ALLOCATION = AT_PARTS + LINE
ALLOCATION_WITH_PARTS = ALLOCATION + ctypes.sizeof(Distillation)


# ---- a block on its way --------------------------------------------------------------------------


@part
def reduce_given(call, rows, j, x, t, has_t, k0, length, scale, room):
    # A block of the logits as they are given.
    stay_apart()
    if rows.lane[j] != FAST:
        return
    if call.softcap != 0.0:
        z = room_at(room, ROOM_CAPPED, as_type(x[0], 0.0))
        cap(call, x, length, z, z, False)
        x = z
    reduce_block(call, rows, j, x, t, has_t, k0, length, scale, room)


@part
def map_given(call, rows, j, x, t, has_t, out, k0, length, scale, room, kept):
    stay_apart()
    if rows.lane[j] != FAST:
        return
    has_slope = call.softcap != 0.0
    slope = room_at(room, ROOM_SLOPE, as_type(x[0], 0.0))
    if has_slope:
        z = room_at(room, ROOM_CAPPED, as_type(x[0], 0.0))
        cap(call, x, length, z, slope, True)
        x = z
    if call.op == LOG_SOFTMAX:
        map_log(rows, j, x, out, length, scale)
    elif is_squared(call):
        map_square(call, rows, j, x, t, has_t, out, length, scale)
        raise_to_floor(call, out, length)
    elif has_t or call.smoothing > 0.0:
        map_mixed(call, rows, j, x, t, has_t, slope, has_slope, out, k0, length, scale, room,
                  kept)
    else:
        map_run(rows, j, x, slope, has_slope, out, k0, length, scale, kept)


@part
def soft_block(call, rows, j, k0, length, room):
    if call.soft.rows.data == 0 or rows.lane[j] != FAST:
        return room
    subnormals(True)
    t = block_at(call.soft, rows.t[j] + k0 * call.soft.class_stride, FAST, length, room)
    subnormals(False)
    return t


@beyond_plain(None)
def gather_soft(call, rows, k0, length, row_pitch, class_pitch, tile):
    subnormals(True)
    gather(call.soft, rows.t, rows.count, k0, length, row_pitch, class_pitch,
           fetched_ahead(call, call.soft, rows.count), tile)
    subnormals(False)


# ---- the walks: True if stopped ------------------------------------------------------------------


@part
def walk_small(call, rows, first, zero, scale, control, room):
    # C <= 64: a tile in which rows are neighbours.
    stay_apart()
    classes = call.n_classes
    e = room_at(room, ROOM_LOGITS, zero)
    x = moved(e, GROUP * SMALL)
    t = room_at(room, ROOM_SOFT, zero)
    u = moved(t, GROUP * SMALL)
    slope = moved(u, GROUP * SMALL)
    has_map = call.out_map.rows.data != 0
    has_t = call.soft.rows.data != 0
    has_slope = call.softcap != 0.0
    gather(call.logits, rows.z, rows.count, 0, classes, 1, GROUP, 0, x)
    clear_unused(rows, classes, x)
    if has_slope:
        cap(call, x, classes * GROUP, x, slope, has_map)
    reduce_columns(rows, classes, x, e, scale)
    if has_t:
        gather_soft(call, rows, 0, classes, 1, GROUP, t)
        clear_unused(rows, classes, t)
    if has_t or call.smoothing > 0.0:
        subnormals(True)
        reduce_soft_columns(call, rows, x, t, has_t, u)
        subnormals(False)
    if call.op == SQUARED_ERROR:
        reduce_square_columns(call, rows, classes, t, has_t, e)
    elif call.op == ENTROPY:
        reduce_mix_columns(call, rows, classes, x, scale)
    if finish_reduce(call, rows, first, zero, scale, control):
        return True
    if not has_map:
        return False
    map_columns(call, rows, x, t, has_t, slope, has_slope, e, scale)
    kind = kind_of(zero)
    size = 4 if is_single(zero) else 8
    for j in range(rows.count if call.op == LOG_SOFTMAX or not are_fast(rows) else 0):
        g = address_of(e) + j * size
        if rows.lane[j] != FAST and map_slow(
                call, rows, j, g, GROUP * size, kind, scale, control):
            return True
        if rows.lane[j] == SLOW or call.op == LOG_SOFTMAX:
            map_apart(call, rows, j, g, GROUP * size, kind)
    scatter(call.out_map, rows.g, rows.count, 0, classes, 1, GROUP, 0, e)
    return False


@part
def map_few(call, rows, j, e, scale):
    # map_columns, of one row.
    stay_apart()
    zero = as_type(e[0], 0.0)
    classes = call.n_classes
    out = pointer_at(rows.g[j], zero)
    a = as_type(zero, rows.a[j])
    if call.op == LOG_SOFTMAX:
        map_log(rows, j, pointer_at(rows.z[j], zero), out, classes, scale)
    elif classes == 1 and call.op == SOFTMAX:
        out[0] = as_type(zero, rows.w[j]) if rows.a[j] == rows.a[j] else as_type(zero, NAN)
    elif is_narrow(rows.a[j]):
        for i in range(classes):
            out[i] = fma(e[i], a, zero)
    else:
        for i in range(classes):
            out[i] = widely(e[i], rows.a[j], 1.0)


@part
def walk_few(call, rows, first, zero, scale, control, room):
    # C <= 64, one row at a time: a tile costs the same for one as for 32.
    stay_apart()
    e = room_at(room, ROOM_LOGITS, zero)
    for j in range(rows.count):
        if rows.lane[j] == FAST:
            reduce_row(rows, j, pointer_at(rows.z[j], zero), call.n_classes, moved(e, j * SMALL),
                       scale)
    if finish_reduce(call, rows, first, zero, scale, control):
        return True
    if call.out_map.rows.data == 0:
        return False
    for j in range(rows.count):
        if rows.lane[j] == FAST:
            map_few(call, rows, j, moved(e, j * SMALL), scale)
    return finish_map(call, rows, scale, control)


@part
def finish_map(call, rows, scale, control):
    # Rows that the map left out, and the entries that are stored last.
    stay_apart()
    stride = call.out_map.class_stride
    kind = call.out_map.rows.type
    for j in range(rows.count):
        if rows.lane[j] != FAST and map_slow(
                call, rows, j, rows.g[j], stride, kind, scale, control):
            return True
        map_apart(call, rows, j, rows.g[j], stride, kind)
    return False


@part
def walk_rows(call, rows, first, zero, scale, control, room):
    # Classes side by side in memory, here and in the output: used where they are, or, of 16 bits,
    # converted a block at a time.
    stay_apart()
    classes = call.n_classes
    has_t = call.soft.rows.data != 0
    near_x = room_at(room, ROOM_BLOCK, zero)
    near_t = room_at(room, ROOM_TARGETS, zero)
    near_out = room_at(room, ROOM_OUT, zero)
    for j in range(rows.count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            x = row_block(call, rows, j, k0, length, near_x)
            t = soft_block(call, rows, j, k0, length, near_t)
            reduce_given(call, rows, j, x, t, has_t, k0, length, scale, room)
            if tick(control, length):
                return True
    if finish_reduce(call, rows, first, zero, scale, control):
        return True
    if call.out_map.rows.data == 0:
        return False
    for j in range(rows.count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            kept = has_kept(call, rows, j, k0, length, zero)
            x = near_x
            if kept == 0:
                x = row_block(call, rows, j, k0, length, near_x)
            t = soft_block(call, rows, j, k0, length, near_t)
            g = rows.g[j] + k0 * call.out_map.class_stride
            if call.out_map.direct == IN_PLACE:
                out = pointer_at(g, zero)
                map_given(call, rows, j, x, t, has_t, out, k0, length, scale, room, kept)
            elif rows.lane[j] == FAST:
                map_given(call, rows, j, x, t, has_t, near_out, k0, length, scale, room, kept)
                store_block(call.out_map, g, length, near_out)
            if tick(control, length):
                return True
    return finish_map(call, rows, scale, control)


@inlined
def tile_pitch(call):
    # From a tile's row to the next.
    return lesser((call.n_classes + (TILE_GAP - 1)) // TILE_GAP * TILE_GAP, BLOCK) + TILE_GAP


@inlined
def begin_at_lines(matrix):
    return matrix.rows.data == 0 or (matrix.rows.data | matrix.class_stride) % LINE == 0


@inlined
def tile_rows(call, zero):
    # How many rows a tile has: whole squares of them, more where classes do not begin at lines.
    size = 4 if is_single(zero) else 8
    room = TILE_BYTES
    if begin_at_lines(call.logits) and begin_at_lines(call.out_map):
        room = TILE_BYTES // 2
    return lesser(room // (tile_pitch(call) * size), GROUP) // 8 * 8


@part
def needs_logits(call, rows, k0, length, zero):
    # Whether the map of some rows' block is made of more than the e that are kept. What the tile
    # has of a row in the slow lane is stored, perhaps over its logits, and the lane reads them
    # after that.
    for j in range(rows.count):
        if rows.lane[j] == SLOW or (
                rows.lane[j] == FAST and has_kept(call, rows, j, k0, length, zero) == 0):
            return True
    return False


@part
def walk_tiles(call, rows, first, zero, scale, control, room):
    # Any other layout: block by block through the tile.
    stay_apart()
    classes = call.n_classes
    pitch = tile_pitch(call)
    tile = room_at(room, ROOM_LOGITS, zero)
    soft = room_at(room, ROOM_SOFT, zero)
    has_t = call.soft.rows.data != 0
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        gather(call.logits, rows.z, rows.count, k0, length, pitch, 1,
               fetched_ahead(call, call.logits, rows.count), tile)
        if has_t:
            gather_soft(call, rows, k0, length, pitch, 1, soft)
        for j in range(rows.count):
            reduce_given(call, rows, j, moved(tile, j * pitch), moved(soft, j * pitch), has_t, k0,
                         length, scale, room)
        if tick(control, rows.count * length):
            return True
    if finish_reduce(call, rows, first, zero, scale, control):
        return True
    if call.out_map.rows.data == 0:
        return False
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        if needs_logits(call, rows, k0, length, zero):
            gather(call.logits, rows.z, rows.count, k0, length, pitch, 1,
                   fetched_ahead(call, call.logits, rows.count), tile)
        if has_t:
            gather_soft(call, rows, k0, length, pitch, 1, soft)
        for j in range(rows.count):
            x = moved(tile, j * pitch)
            map_given(call, rows, j, x, moved(soft, j * pitch), has_t, x, k0, length, scale,
                      room, has_kept(call, rows, j, k0, length, zero))
        scatter(call.out_map, rows.g, rows.count, k0, length, pitch, 1,
                fetched_ahead(call, call.out_map, rows.count), tile)
        if tick(control, rows.count * length):
            return True
    return finish_map(call, rows, scale, control)


# ---- what is no softmax --------------------------------------------------------------------------


@part
def count_before(x, length, y_place, z_y):
    # Classes that come before the target: larger ones and NaN; equal ones of a lower number.
    stay_apart()
    before = greater(lesser(y_place, length), 0)
    count = 0
    for i in range(before):
        count += not x[i] < z_y
    for i in range(before, length):
        count += not x[i] <= z_y
    return count


@beyond_plain(False)
def walk_rank(call, rows, first, zero, control, room):
    # With subnormals on: 1e-40 is larger than 0.
    stay_apart()
    block = room_at(room, ROOM_BLOCK, zero)
    out = pointer_at(call.out_rows, 0.0)
    for j in range(rows.count):
        value = INF
        if rows.lane[j] == POISONED:
            value = NAN
        elif rows.lane[j] != SKIPPED:
            p = rows.z[j] + rows.y[j] * call.logits.class_stride
            z_y = as_type(zero, load_real(p, call.logits.rows.type))
            rank = 0
            for b in range(blocks_of(call.n_classes)):
                k0 = b * BLOCK
                length = block_length(k0, call.n_classes)
                x = row_block(call, rows, j, k0, length, block)
                rank += count_before(x, length, rows.y[j] - k0, z_y)
                if tick(control, length):
                    return True
            if z_y == z_y:
                value = np.float64(rank)
        out[first + j] = value
    return False


@part
def fill_block(matrix, p, length, value):
    # value: 0 or NaN.
    stay_apart()
    zero = as_type(value, 0.0)
    if matrix.direct == IN_PLACE:
        out = pointer_at(p, zero)
        for k in range(length):
            out[k] = value
    else:
        for k in range(length):
            store_real(p + k * matrix.class_stride, matrix.rows.type, np.float64(value))


@beyond_plain(False)
def walk_nll(call, rows, first, zero, control):
    # With subnormals on. Only the target's entry is read, and only there is the gradient not 0.
    stay_apart()
    for j in range(rows.count):
        rows.value[j] = 0.0
        if rows.lane[j] == FAST:
            p = rows.z[j] + rows.y[j] * call.logits.class_stride
            rows.value[j] = 0.0 - load_real(p, call.logits.rows.type)
    store_values(call, rows, first)
    if call.out_map.rows.data == 0:
        return False
    stride = call.out_map.class_stride
    for j in range(rows.count):
        value = as_type(zero, NAN if rows.lane[j] == POISONED else 0.0)
        for b in range(blocks_of(call.n_classes)):
            k0 = b * BLOCK
            length = block_length(k0, call.n_classes)
            fill_block(call.out_map, rows.g[j] + k0 * stride, length, value)
            if tick(control, length):
                return True
        if rows.lane[j] == FAST:
            rows.apart[j] = 0.0 - rows.w[j]
            map_apart(call, rows, j, rows.g[j], stride, call.out_map.rows.type)
    return False


@part
def load_doubles(matrix, row, k0, length, to, zero):
    stay_apart()
    p = row + k0 * matrix.class_stride
    if matrix.direct == IN_PLACE:
        x = pointer_at(p, zero)
        for k in range(length):
            to[k] = np.float64(x[k])
    else:
        for k in range(length):
            to[k] = load_real(p + k * matrix.class_stride, matrix.rows.type)


@part
def add_products(p, u, length, sums, lost):
    for j in range(length):
        product = p[j] * u[j]
        lost[j] += product_rest(p[j], u[j], product)
        two_sum(sums, lost, j, product)


@beyond_plain(False)
def walk_vjp(call, lo, hi, zero, control, cursor, room):
    # p (u - sum p u): the sum exact to twice float64's precision in 64 lanes, all else float64.
    stay_apart()
    p = room_at(room, ROOM_BLOCK, 0.0)
    u = room_at(room, ROOM_TARGETS, 0.0)
    sums = stack(LANES, 0.0)
    lost = stack(LANES, 0.0)
    total = stack(1, 0.0)
    total_low = stack(1, 0.0)
    classes = call.n_classes
    cursor_start(cursor, call, lo)
    for _ in range(lo, hi):
        for j in range(LANES):
            sums[j] = 0.0
            lost[j] = 0.0
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            load_doubles(call.logits, cursor.logits, k0, length, p, zero)
            load_doubles(call.soft, cursor.soft, k0, length, u, zero)
            i = 0
            while i + LANES <= length:
                add_products(moved(p, i), moved(u, i), LANES, sums, lost)
                i += LANES
            add_products(moved(p, i), moved(u, i), length - i, sums, lost)
            if tick(control, length):
                return True
        total[0] = 0.0
        total_low[0] = 0.0
        for j in range(lesser(LANES, classes)):  # the others are 0
            two_sum(total, total_low, 0, sums[j])
            total_low[0] += lost[j]
        high = total[0]
        # What overflowed has left NaN in what was lost.
        low = total_low[0] if fabs(high) < INF else 0.0
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            load_doubles(call.logits, cursor.logits, k0, length, p, zero)
            load_doubles(call.soft, cursor.soft, k0, length, u, zero)
            for i in range(length):
                p[i] = p[i] * ((u[i] - high) - low)
            g = cursor.out_map + k0 * call.out_map.class_stride
            if call.out_map.direct == IN_PLACE:
                out = pointer_at(g, zero)
                for i in range(length):
                    out[i] = as_type(zero, p[i])
            else:
                for i in range(length):
                    store_real(g + i * call.out_map.class_stride, call.out_map.rows.type, p[i])
            if tick(control, length):
                return True
        cursor_next(cursor, call)
    return False


# ---- a range of rows -----------------------------------------------------------------------------


@part
def walk(call, lo, hi, zero, scale, control, cursor, rows, room):
    stay_apart()
    classes = call.n_classes
    in_order = (
        (call.logits.direct == IN_PLACE or call.logits.direct == SIXTEEN)
        and (call.out_map.rows.data == 0 or call.out_map.direct == IN_PLACE
             or call.out_map.direct == SIXTEEN))
    kept = 0
    if classes <= SMALL or (in_order and call.out_map.rows.data == 0):
        together = GROUP  # no map that would have to find them near
    elif in_order:
        near = NEAR
        if keeps(call):
            near = NEAR_KEPT
            kept = address_of(moved(room, AT_KEPT))
        together = lesser(greater(near // classes, 1), GROUP)
    else:
        together = tile_rows(call, zero)
        if keeps(call):
            kept = address_of(moved(room, AT_KEPT))
    keep_rows(rows, kept, together, classes, zero)
    for j in range(GROUP):
        rows.focus[j] = 1.0
        rows.pull[j] = 1.0
    cursor_start(cursor, call, lo)
    i = lo
    stopped = False
    while i < hi and not stopped:
        subnormals(True)
        load_rows(call, cursor, rows, lesser(hi - i, together))
        if call.op == RANK:
            stopped = walk_rank(call, rows, i, zero, control, room)
        elif call.op == NLL:
            stopped = walk_nll(call, rows, i, zero, control)
        else:
            subnormals(False)
            if are_few(call, rows.count):
                stopped = (walk_few(call, rows, i, zero, scale, control, room)
                           or tick(control, rows.count * classes))
            elif classes <= SMALL:
                stopped = (walk_small(call, rows, i, zero, scale, control, room)
                           or tick(control, rows.count * classes))
            elif in_order:
                stopped = walk_rows(call, rows, i, zero, scale, control, room)
            else:
                stopped = walk_tiles(call, rows, i, zero, scale, control, room)
        i += rows.count
    return stopped


@part
def walk_any(zero, has_temperature, has_teacher, call, lo, hi, control_address, stopped_address):
    memory = malloc(ALLOCATION if has_teacher is None else ALLOCATION_WITH_PARTS)
    if memory == 0:
        call.no_memory = 1
        return STOPPED
    room = pointer_at((memory + (LINE - 1)) // LINE * LINE, _U8)
    cursor = struct_at(moved(room, AT_CURSOR), _CURSOR)
    rows = struct_at(moved(room, AT_ROWS), _ROWS)
    control = struct_at(moved(room, AT_CONTROL), _CONTROL)
    state = np.int64(float_state())
    if control_address != 0:
        control = struct_at(control_address, _CONTROL)
    else:
        # Without the pool: in a Python thread, whose interpreter is let go meanwhile.
        control.elements = 0
        control.poll = 0
        control.stopped = stopped_address
        control.float_state = state
        control.thread = save_thread()
    subnormals(True)
    # `is None` leaves the other branch uncompiled; `is not None` does not.
    if has_teacher is None:
        if has_temperature is None:
            if call.op == SOFTMAX_VJP:
                stopped = walk_vjp(call, lo, hi, zero, control, cursor, room)
            elif call.op == SIGMOID:
                stopped = walk_points(call, lo, hi, zero, control, cursor, room)
            else:
                stopped = walk(call, lo, hi, zero, None, control, cursor, rows, room)
        else:
            scale = scale_by(call.temperature)
            stopped = walk(call, lo, hi, zero, scale, control, cursor, rows, room)
    else:
        parts = struct_at(moved(room, AT_PARTS), _DISTILLATION)
        stopped = walk_distillation(call, lo, hi, zero, scale_by(call.temperature), control, parts,
                                    room)
    set_float_state(state)
    if control_address == 0:
        restore_thread(control.thread)
    free(memory)
    return STOPPED if stopped else 0


# Walk rows lo <= i < hi of a call; STOPPED or 0. Four instances of each: exp without a temperature
# is a constant's work, and what is not met on the way need not be compiled for it. control: of the
# native pool, or 0; then `stopped` is a Python function, and the caller holds the interpreter's
# lock.


def walk_plain_f32(call, lo, hi, control, stopped):
    """Walk float32 and 16-bit logits of a `PlainCall`."""
    return walk_any(np.float32(0), None, None, struct_at(call, _PLAIN_CALL), lo, hi, control,
                    stopped)


def walk_plain_f64(call, lo, hi, control, stopped):
    """Walk float64 logits of a `PlainCall`."""
    return walk_any(np.float64(0), None, None, struct_at(call, _PLAIN_CALL), lo, hi, control,
                    stopped)


def walk_f32(call, lo, hi, control, stopped):
    """Walk float32 and 16-bit logits."""
    return walk_any(np.float32(0), None, None, struct_at(call, _CALL), lo, hi, control, stopped)


def walk_f64(call, lo, hi, control, stopped):
    """Walk float64 logits."""
    return walk_any(np.float64(0), None, None, struct_at(call, _CALL), lo, hi, control, stopped)


def walk_scaled_f32(call, lo, hi, control, stopped):
    """Walk float32 and 16-bit logits, with a temperature."""
    return walk_any(np.float32(0), True, None, struct_at(call, _CALL), lo, hi, control, stopped)


def walk_scaled_f64(call, lo, hi, control, stopped):
    """Walk float64 logits, with a temperature."""
    return walk_any(np.float64(0), True, None, struct_at(call, _CALL), lo, hi, control, stopped)


def walk_teacher_f32(call, lo, hi, control, stopped):
    """Walk float32 and 16-bit logits, and a teacher's."""
    return walk_any(np.float32(0), True, True, struct_at(call, _CALL), lo, hi, control, stopped)


def walk_teacher_f64(call, lo, hi, control, stopped):
    """Walk float64 logits, and a teacher's, or others where the teacher's are float64."""
    return walk_any(np.float64(0), True, True, struct_at(call, _CALL), lo, hi, control, stopped)
