"""A group of rows, as every part of the walk sees it.

`backends/cython/_walk.pxi` begins with what is computed, and with the rules that make the bits of a
row a function of its values alone.
"""

from __future__ import annotations

import numpy as np
from numba.core import types

from softxent.backends.numba._elementary import scale_by, softcap_f64, softcap_of
from softxent.backends.numba._jit import (
    address_of,
    as_type,
    beyond_plain,
    by_type,
    call_address,
    call_object,
    choose,
    drop_reference,
    float_of_half,
    float_state,
    half_of_float,
    inlined,
    is_plain_call,
    is_true,
    moved,
    part,
    pointer_at,
    restore_thread,
    save_thread,
    set_float_state,
    stack,
    stay_apart,
)
from softxent.backends.numba._layout import (
    GROUP,
    IN_PLACE,
    POLL_ELEMENTS,
    SIXTEEN,
    STRIDED,
    TYPE_BRAIN,
    TYPE_SIZE,
)
from softxent.backends.numba._load import (
    brain_of_float,
    cursor_next,
    cursor_run,
    cursor_skip,
    float_of_brain,
    lesser,
    load_integer,
    load_real,
    probability_f32,
    store_real,
)
from softxent.backends.numba._square import (
    classes_of_rows,
    columns_of_rows,
    rows_of_classes,
    rows_of_columns,
)

INF = float("inf")
NAN = float("nan")

# backends/_contract.py's Op: the losses, then the pieces.
CROSS_ENTROPY, FOCAL, KL, SQUARED_ERROR, NLL, SIGMOID, HESSIAN, DISTILLATION = range(8)
LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, BELOW, ENTROPY, RANK, SOFTMAX_VJP = range(8, 15)

FAST = 0  # by pieces
SLOW = 1  # one term at a time
SKIPPED = 2  # ignored, or of weight 0: +0.0, logits never used
POISONED = 3  # a target changed under us: NaN, nothing read through it

SMALL = 64  # up to here a row's e are summed one by one, and kept between the passes
FEW = 8  # rows of as few classes go one by one up to here, or half of it
LANES = 64
STRIPE = 256  # four lanes' worth: what is summed in the logits' precision
BLOCK = 1024
LINE = 64
AHEAD = 2048  # how far behind the next block is fetched what follows (bytes): as in `_walk.pxi`
# What a walk needs beside its rows (bytes): logits of other layouts in class order, the
# probabilities that go with them, and some blocks' worth of intermediate results.
TILE_BYTES = 133120  # 16 rows of doubles, 32 of floats, of a block and TILE_GAP each
TILE_GAP = 16  # rows a power of two apart would share their few places in an L1
ROOM_LOGITS = 0
ROOM_SOFT = 133120
ROOM_BLOCK = 266240  # converted logits
ROOM_CAPPED = 274432  # and these behind the softcap,
ROOM_SLOPE = 282624  # with its derivative
ROOM_TARGETS = 290816  # a row's probabilities
ROOM_MASS = 299008  # times the class weights
ROOM_OUT = 307200  # a result that is yet to be made 16-bit
ROOM = 315392
# Class-major rows up to here are fetched with the rows before them, of longer ones the classes that
# many further on: as in `_walk.pxi`.
FETCHED_CLASSES, FETCHED_AHEAD = 1024, 32
# Longest stretch of rows (elements) between the passes: half of the smallest usual L1.
NEAR = 4096

# Factors within these bounds are applied in the logits' precision, others in float64.
NARROW_LEAST, NARROW_MOST = 2.0**-60, 2.0**60
# The entropy's e are over a power this much lower, and its sum is that much larger.
MIX_POWER, MIX_UNIT = 64.0, 2.0**64
WIDE_GAP = 2.0**900  # gaps from here on are summed over that unit

_U16, _I16, _U8 = np.uint16(0), np.int16(0), np.uint8(0)


def _is_single(zero):
    single = zero == types.float32
    return lambda zero: single


@by_type(_is_single)
def is_single(zero):
    """Return whether zero's type is float32, at compile time."""


@inlined
def room_at(room, offset, zero):
    return pointer_at(moved(room, offset), zero)


def _is_plain(call):
    if is_plain_call(call):
        return lambda call: True
    return lambda call: (
        call.soft.rows.data == 0 and call.smoothing == 0.0 and call.z_loss == 0.0)


@by_type(_is_plain)
def is_plain(call):
    """Return whether a row's loss is its target's alone."""


@inlined
def is_squared(call):
    # Whether the map is e (a + q e + d t).
    return call.op == SQUARED_ERROR or call.op == HESSIAN


@inlined
def are_few(call, count):
    # Whether rows of up to 64 classes are fewer than a tile is worth, used where they are, and of a
    # loss or piece that needs no further sums.
    return (count <= (FEW if call.n_classes > FEW else FEW // 2) and call.n_classes <= SMALL
            and is_plain(call) and call.softcap == 0.0
            and not is_squared(call) and call.op != ENTROPY
            and call.logits.direct == IN_PLACE
            and (call.out_map.rows.data == 0 or call.out_map.direct == IN_PLACE))


@inlined
def at_least(least, value):
    # A NaN stays.
    return least if value < least else value


@inlined
def blocks_of(classes):
    return (classes + (BLOCK - 1)) // BLOCK


@inlined
def block_length(k0, classes):
    return lesser(classes - k0, BLOCK)


# ---- looking for an interrupt --------------------------------------------------------------------


@part
def ask_python(control):
    # Without the pool: the caller's Python function, which is where signal handlers run, too.
    stay_apart()
    own = float_state()
    set_float_state(control.float_state)
    restore_thread(control.thread)
    answer = call_object(control.stopped)
    stop = np.int32(1)
    if answer != 0:  # else it raised
        stop = is_true(answer)
        drop_reference(answer)
    control.thread = save_thread()
    set_float_state(own)
    return stop


@inlined
def tick(control, elements):
    control.elements += elements
    if control.elements < POLL_ELEMENTS:
        return False
    control.elements = 0
    if control.poll != 0:
        return call_address(control.poll, address_of(control)) != 0
    return ask_python(control) != 0


# ---- rows ----------------------------------------------------------------------------------------


@inlined
def start_moments(moments, j):
    moments.mass[j] = 0.0
    moments.mass_carry[j] = 0.0
    moments.gap[j] = 0.0
    moments.gap_carry[j] = 0.0


@inlined
def start_squares(rows, j):
    rows.square[j] = 0.0
    rows.square_carry[j] = 0.0
    rows.cross[j] = 0.0
    rows.cross_carry[j] = 0.0
    rows.soft_square[j] = 0.0
    rows.soft_square_carry[j] = 0.0


@inlined
def set_weight(call, cursor, rows, j, weight):
    scale = call.scale
    if call.upstream.data != 0:
        scale *= load_real(cursor.upstream, call.upstream.type)
    rows.weight[j] = weight
    rows.w[j] = weight * scale


@inlined
def load_weight(call, cursor):
    if call.sample_weight.data == 0:
        return 1.0
    return load_real(cursor.sample_weight, call.sample_weight.type)


@inlined
def class_weight_of(call, k):
    if call.class_weight == 0:
        return 1.0
    return pointer_at(call.class_weight, 0.0)[k]


@part
def load_target(call, cursor, rows, j, weight, narrow, plain):
    y = load_integer(cursor.targets, call.targets.type)
    if call.has_ignore != 0 and y == call.ignore_index:
        rows.lane[j] = SKIPPED
    elif y < 0 or y >= call.n_classes:
        rows.lane[j] = POISONED
    else:
        v = class_weight_of(call, y)
        if plain:
            weight *= v
        else:
            rows.hard[j] = (1.0 - call.smoothing) * (v * narrow)
            weight *= call.class_unit
        if weight == 0.0:
            rows.lane[j] = SKIPPED
        else:
            rows.y[j] = y
            set_weight(call, cursor, rows, j, weight)


@inlined
def are_simple(call, cursor):
    # Whether rows differ in their targets alone: native int64 classes, aligned.
    return (is_plain(call) and call.targets.data != 0 and call.targets.type == 8
            and call.sample_weight.data == 0 and call.upstream.data == 0
            and call.class_weight == 0 and call.all_slow == 0
            and ((cursor.targets | call.targets.strides[call.n_axes - 1]) & 7) == 0)


@part
def load_simple_rows(call, cursor, rows, count):
    # Rows of one run, without a branch.
    stay_apart()
    last = call.n_axes - 1
    classes = call.n_classes
    z_stride = call.logits.rows.strides[last]
    g_stride = call.out_map.rows.strides[last]
    step = call.targets.strides[last] // 8
    ys = pointer_at(cursor.targets, np.int64(0))
    z = cursor.logits
    g = cursor.out_map
    scale = call.scale
    ignored = call.ignore_index if call.has_ignore != 0 else np.int64(-1)  # which is no class
    skipped = np.int64(SKIPPED if call.has_ignore != 0 else POISONED)
    for j in range(count):
        rows.z[j] = z + j * z_stride
        rows.g[j] = g + j * g_stride
        rows.w[j] = scale
    for j in range(count):
        rows.y[j] = ys[j * step]
    for j in range(count):
        y = rows.y[j]
        lane = choose((y >= 0) & (y < classes), np.int64(FAST), np.int64(POISONED))
        lane = choose(y == ignored, skipped, lane)
        rows.lane[j] = lane
        rows.y[j] = choose(lane == FAST, y, np.int64(-1))
    cursor_skip(cursor, call, count)


@part
def load_rows(call, cursor, rows, count):
    # With subnormals on.
    stay_apart()
    narrow = 1.0 / call.class_unit
    plain = is_plain(call)
    rows.count = count
    for j in range(GROUP):
        rows.y[j] = -1
        rows.lane[j] = FAST
        rows.weight[j] = 1.0
        rows.w[j] = 1.0
        rows.moved[j] = 0.0
    if call.n_classes > SMALL or are_few(call, count):
        # Else reduce_columns sets them all.
        for j in range(GROUP):
            rows.n[j] = 0.0
            rows.top[j] = -INF
            rows.k_top[j] = 0
            rows.rest[j] = 0.0
            rows.carry[j] = 0.0
            rows.e_top[j] = 0.0
            rows.z_y[j] = 0.0
    if not plain or call.op == ENTROPY:
        for j in range(GROUP):
            start_moments(rows.soft, j)
            start_moments(rows.flat, j)
            rows.mix[j] = 0.0
            rows.mix_carry[j] = 0.0
            rows.self[j] = 0.0
            rows.self_carry[j] = 0.0
            rows.gap_unit[j] = 1.0
            rows.hard[j] = 0.0
            rows.impossible[j] = 0.0
    if call.op == SQUARED_ERROR:
        for j in range(GROUP):
            start_squares(rows, j)
    if are_simple(call, cursor) and cursor_run(cursor, call) >= count:
        load_simple_rows(call, cursor, rows, count)
        return
    for j in range(count):
        rows.z[j] = cursor.logits
        rows.g[j] = cursor.out_map
        rows.t[j] = cursor.soft
        if call.all_slow != 0:
            rows.lane[j] = SLOW
        weight = load_weight(call, cursor)
        if weight == 0.0:
            rows.lane[j] = SKIPPED
        elif call.soft.rows.data != 0 or call.targets.data == 0:
            set_weight(call, cursor, rows, j, weight * call.class_unit)
        else:
            load_target(call, cursor, rows, j, weight, narrow, plain)
        cursor_next(cursor, call)


# ---- softcap -------------------------------------------------------------------------------------


@beyond_plain(None)
def cap(call, x, length, z, slope, wants_slope):
    # z may be x.
    stay_apart()
    softcap = call.softcap
    half = scale_by(0.5 * softcap)
    if wants_slope:
        for i in range(length):
            z[i], slope[i] = softcap_of(x[i], softcap, half)
    else:
        for i in range(length):
            z[i] = softcap_of(x[i], softcap, half)[0]


def _capped(call, x):
    if is_plain_call(call):
        return lambda call, x: (x, 1.0)
    return lambda call, x: capped_by(x, call.softcap)


@by_type(_capped)
def capped(call, x):
    """Return a logit behind the softcap, and the slope there."""


@part
def capped_by(x, softcap):
    if softcap == 0.0:
        return x, 1.0
    return softcap_f64(x, softcap, scale_by(0.5 * softcap))


# ---- other layouts -------------------------------------------------------------------------------


@part
def are_neighbours(p, count, step):
    odd = np.int64(0)
    for j in range(1, count):
        odd |= (p[j] - p[j - 1]) ^ step
    return odd == 0


@part
def widen(source, brain, length, to):
    if brain:
        for k in range(length):
            to[k] = float_of_brain(source[k])
    else:
        for k in range(length):
            to[k] = float_of_half(source[k])


@part
def narrow_down(given, brain, length, to):
    if brain:
        for k in range(length):
            to[k] = brain_of_float(given[k])
    else:
        for k in range(length):
            to[k] = half_of_float(given[k])


@part
def load_block(matrix, p, length, to):
    # Consecutive classes of one row, from address p on, as to's type.
    stay_apart()
    zero = as_type(to[0], 0.0)
    stride = matrix.class_stride
    kind = matrix.rows.type
    if matrix.direct == IN_PLACE:
        x = pointer_at(p, zero)
        for k in range(length):
            to[k] = x[k]
    elif matrix.direct == SIXTEEN:
        widen(pointer_at(p, _I16), (kind & TYPE_BRAIN) != 0, length, to)
    elif is_single(zero) and matrix.holds_probabilities != 0:
        for k in range(length):
            to[k] = probability_f32(load_real(p + k * stride, kind))
    else:
        for k in range(length):
            to[k] = as_type(zero, load_real(p + k * stride, kind))


@part
def store_block(matrix, p, length, given):
    stay_apart()
    zero = as_type(given[0], 0.0)
    if matrix.direct == IN_PLACE:
        out = pointer_at(p, zero)
        for k in range(length):
            out[k] = given[k]
    elif matrix.direct == SIXTEEN:
        narrow_down(given, (matrix.rows.type & TYPE_BRAIN) != 0, length, pointer_at(p, _I16))
    else:
        for k in range(length):
            store_real(p + k * matrix.class_stride, matrix.rows.type, np.float64(given[k]))


@inlined
def fetched_ahead(call, matrix, count):
    # How far from a tile's elements, in bytes, is what will be used next and fetched now.
    if call.n_classes <= FETCHED_CLASSES:
        return count * (matrix.rows.type & TYPE_SIZE)
    return FETCHED_AHEAD * matrix.class_stride


@inlined
def packed_rows(matrix, p, count, length, size):
    # How many of the rows lie one after another, all their classes used: whole squares of them.
    count = count // 8 * 8
    if matrix.direct != IN_PLACE or not are_neighbours(p, count, length * size):
        return 0
    return count


@part
def gather(matrix, p, count, k0, length, row_pitch, class_pitch, ahead, tile):
    # Classes k0 .. k0 + length of the rows at addresses p[0 .. count]: class k0 + k of row j to
    # j row_pitch + k class_pitch.
    stay_apart()
    zero = as_type(tile[0], 0.0)
    stride = matrix.class_stride
    size = 4 if is_single(zero) else 8
    done = 0
    if matrix.direct == STRIDED and are_neighbours(p, count, size):
        if class_pitch == 1 and count % 8 == 0:
            done = rows_of_classes(p[0] + k0 * stride, stride, count, length, size, row_pitch,
                                   ahead, tile)
        for k in range(done, length):
            x = pointer_at(p[0] + (k0 + k) * stride, zero)
            for j in range(count):
                tile[j * row_pitch + k * class_pitch] = x[j]
        return
    if class_pitch == GROUP:
        done = packed_rows(matrix, p, count, length, size)
        columns_of_rows(p[0], done, length, size, tile)
    block = stack(SMALL, zero)
    for j in range(done, count):
        if class_pitch == 1:
            load_block(matrix, p[j] + k0 * stride, length, moved(tile, j * row_pitch))
        elif matrix.direct == IN_PLACE:
            x = pointer_at(p[j] + k0 * stride, zero)
            for k in range(length):
                tile[j * row_pitch + k * class_pitch] = x[k]
        else:
            load_block(matrix, p[j] + k0 * stride, length, block)  # length <= SMALL
            for k in range(length):
                tile[j * row_pitch + k * class_pitch] = block[k]


@part
def scatter(matrix, p, count, k0, length, row_pitch, class_pitch, ahead, tile):
    # The way back.
    stay_apart()
    zero = as_type(tile[0], 0.0)
    stride = matrix.class_stride
    size = 4 if is_single(zero) else 8
    done = 0
    if matrix.direct == STRIDED and are_neighbours(p, count, size):
        if class_pitch == 1 and count % 8 == 0:
            done = classes_of_rows(tile, row_pitch, count, length, size, p[0] + k0 * stride, stride,
                                   ahead)
        for k in range(done, length):
            x = pointer_at(p[0] + (k0 + k) * stride, zero)
            for j in range(count):
                x[j] = tile[j * row_pitch + k * class_pitch]
        return
    if class_pitch == GROUP:
        done = packed_rows(matrix, p, count, length, size)
        rows_of_columns(tile, done, length, size, p[0])
    block = stack(SMALL, zero)
    for j in range(done, count):
        if class_pitch == 1:
            store_block(matrix, p[j] + k0 * stride, length, moved(tile, j * row_pitch))
        elif matrix.direct == IN_PLACE:
            x = pointer_at(p[j] + k0 * stride, zero)
            for k in range(length):
                x[k] = tile[j * row_pitch + k * class_pitch]
        else:
            for k in range(length):
                block[k] = tile[j * row_pitch + k * class_pitch]
            store_block(matrix, p[j] + k0 * stride, length, block)


@part
def block_at(matrix, p, lane, length, room):
    # Consecutive classes of one row, where they are or brought near.
    if matrix.direct == IN_PLACE:
        return pointer_at(p, as_type(room[0], 0.0))
    if lane == FAST:
        load_block(matrix, p, length, room)
    return room


@part
def row_block(call, rows, j, k0, length, room):
    return block_at(call.logits, rows.z[j] + k0 * call.logits.class_stride, rows.lane[j], length,
                    room)


@part
def are_fast(rows):
    stay_apart()
    other = np.int64(0)
    for j in range(GROUP):
        other |= rows.lane[j] ^ FAST  # behind the last row, too
    return other == 0


@part
def clear_unused(rows, classes, tile):
    # Rows whose values must not be used, and those behind the last.
    stay_apart()
    if rows.count == GROUP and are_fast(rows):
        return
    for j in range(GROUP):
        if j >= rows.count or rows.lane[j] == SKIPPED:
            for i in range(classes):
                tile[i * GROUP + j] = 0
