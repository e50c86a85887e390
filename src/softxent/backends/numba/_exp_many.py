"""What LLVM does not make of a loop: vectors longer than the processor's.

exp of 32 logits at a time, for one vector's takes longer than the processor sees ahead
(`exp_block.h` has figures; the operations are `exp_of`'s, so the bits are), and 64 lanes folded to
one number, which LLVM would do lane by lane.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from softxent.backends.numba import _elementary as of

MANY = 32
_F32 = (32, ir.FloatType(), ir.IntType(32), 23, of.LOG2E_F32, of.LN2_24_F32, of.LN2_24_REST_F32,
        (of.Q4_F32, of.Q3_F32, of.Q2_F32, of.Q1_F32, of.Q0_F32, 1.0, 1.0))
# More than 16 doubles at once are more vectors than there are registers for.
_F64 = (16, ir.DoubleType(), ir.IntType(64), 52, of.LOG2E, of.LN2, of.LN2_REST,
        (of.Q9_F64, of.Q8_F64, of.Q7_F64, of.Q6_F64, of.Q5_F64, of.Q4_F64, of.Q3_F64, of.Q2_F64,
         of.Q1_F64, of.Q0_F64, 1.0, 1.0))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = a.type
    name = f"llvm.fma.v{kind.count}{'f32' if isinstance(kind.element, ir.FloatType) else 'f64'}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def _exp(builder: Any, z: Any, k: Any, low: Any, form: Any) -> Any:
    count, _, integer, shift, log2e, ln2, ln2_rest, q = form

    def all_of(value: Any) -> Any:
        return ir.Constant(z.type, [float(value)] * count)

    z = builder.select(builder.fcmp_ordered(">", low, z), low, z)
    t = _fma(builder, z, all_of(log2e), k)
    n = builder.fsub(t, k)
    r = _fma(builder, n, all_of(-ln2), z)
    r = _fma(builder, n, all_of(-ln2_rest), r)
    e = all_of(q[0])
    for next_q in q[1:]:
        e = _fma(builder, e, r, all_of(next_q))
    bits = builder.shl(builder.bitcast(t, ir.VectorType(integer, count)),
                       ir.Constant(ir.VectorType(integer, count), [shift] * count))
    return builder.fmul(e, builder.bitcast(bits, z.type))


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), places)


def _many(builder: Any, x: Any, to: Any, k: Any, low: Any, of_type: Any, finish: Any) -> None:
    form = _F32 if of_type == types.float32 else _F64
    count, element, width = form[0], form[1], form[3]
    kind = ir.VectorType(element, count)
    align = 4 if width == 23 else 8
    k, low = _splat(builder, k, kind), _splat(builder, low, kind)
    for first in range(0, MANY, count):
        places = [builder.bitcast(
            builder.gep(p, [ir.IntType(64)(first)], source_etype=element), ir.PointerType(kind))
            for p in (x, to)]
        z = builder.load(places[0], align=align)
        builder.store(finish(kind, _exp(builder, z, k, low, form)), places[1], align=align)


@intrinsic
def exp_many(typing: Any, x: Any, e: Any, k: Any, low: Any) -> Any:
    """Store `exp_of` of MANY numbers at x to e, the same memory or apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _many(builder, *args, x.dtype, lambda kind, value: value)
        return context.get_dummy_value()

    return types.void(x, e, x.dtype, x.dtype), generate


@intrinsic
def exp_times_many(typing: Any, x: Any, to: Any, k: Any, low: Any, a: Any) -> Any:
    """Store `fma(exp_of, a, 0)` of MANY numbers at x, to the same memory or apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def finish(kind: Any, value: Any) -> Any:
            zero = ir.Constant(kind, [0.0] * kind.count)
            return _fma(builder, value, _splat(builder, args[4], kind), zero)

        _many(builder, *args[:4], x.dtype, finish)
        return context.get_dummy_value()

    return types.void(x, to, x.dtype, x.dtype, x.dtype), generate


def _sum_column(builder: Any, form: Any, first: int, pointers: Any, at: Any) -> None:
    # Of rows `first` to `first` + the form's count.
    count, element = form[0], form[1]
    kind, wide = ir.VectorType(element, count), ir.VectorType(ir.DoubleType(), count)
    single = isinstance(element, ir.FloatType)

    def place(pointer: Any, kind: Any) -> Any:
        return builder.bitcast(
            builder.gep(pointer, [ir.IntType(64)(first)], source_etype=kind.element),
            ir.PointerType(kind))

    def load(pointer: Any, kind: Any) -> Any:
        return builder.load(place(pointer, kind), align=4 if kind.element == ir.FloatType() else 8)

    def store(value: Any, pointer: Any) -> None:
        builder.store(value, place(pointer, value.type),
                      align=4 if value.type.element == ir.FloatType() else 8)

    x, e, k, low, places, targets, rest, carry, e_places = pointers
    zero, at = ir.Constant(kind, [0.0] * count), _splat(builder, at, kind)
    value = _exp(builder, load(x, kind), load(k, kind), load(low, kind), form)
    store(value, e)
    value = builder.select(builder.fcmp_ordered("==", load(targets, kind), at), zero, value)
    is_place = builder.fcmp_ordered("==", load(places, kind), at)
    store(builder.fadd(load(e_places, kind), builder.select(is_place, value, zero)), e_places)
    value = builder.select(is_place, zero, value)
    total = load(rest, wide)
    if single:    # up to 64 floats are added without loss
        store(builder.fadd(total, builder.fpext(value, wide)), rest)
        return
    y = builder.fadd(value, load(carry, wide))
    more = builder.fadd(total, y)
    store(builder.fsub(y, builder.fsub(more, total)), carry)
    store(more, rest)


@intrinsic
def exp_and_sum_column(typing: Any, x: Any, e: Any, k: Any, low: Any, places: Any, targets: Any,
                       rest: Any, carry: Any, e_places: Any, at: Any) -> Any:
    """Class `at` of MANY rows: e to e, added to `rest` but for the row's place and target.

    That at the place, +0 where it is the target's, is added to `e_places`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        form = _F32 if x.dtype == types.float32 else _F64
        for first in range(0, MANY, form[0]):
            _sum_column(builder, form, first, args[:9], args[9])
        return context.get_dummy_value()

    return types.void(x, x, x, x, x, x, rest, rest, x, x.dtype), generate


def _add_terms(parts: int) -> Any:
    @intrinsic
    def add(typing: Any, e: Any, lanes: Any) -> Any:
        """Add to each of 64 lanes its terms in `parts` times 64 e, which are summed first."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            form = _F32 if e.dtype == types.float32 else _F64
            kind = ir.VectorType(form[1], 8)
            wide = ir.VectorType(ir.DoubleType(), 8)

            def place(pointer: Any, at: int, kind: Any) -> Any:
                return builder.bitcast(
                    builder.gep(pointer, [ir.IntType(64)(at)], source_etype=kind.element),
                    ir.PointerType(kind))

            def load(pointer: Any, at: int, kind: Any) -> Any:
                return builder.load(place(pointer, at, kind), align=4)

            for j in range(0, 64, kind.count):
                terms = load(args[0], j, kind)
                for i in range(1, parts):
                    terms = builder.fadd(terms, load(args[0], i * 64 + j, kind))
                if kind.element != wide.element:
                    terms = builder.fpext(terms, wide)
                builder.store(builder.fadd(load(args[1], j, wide), terms), place(args[1], j, wide),
                              align=4)
            return context.get_dummy_value()

        return types.void(e, lanes), generate

    return add


# Loops of these would store numbers one by one, and load them as vectors.
add_one, add_two, add_three, add_four = (_add_terms(parts) for parts in (1, 2, 3, 4))


def _halved(builder: Any, lanes: Any, join: Any) -> Any:
    # 32, 16, 8, 4, 2, 1 apart.
    while lanes.type.count > 1:
        half = lanes.type.count // 2
        parts = [builder.shuffle_vector(
            lanes, ir.Constant(lanes.type, ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(first, first + half))))
            for first in (0, half)]
        lanes = join(*parts)
    return builder.extract_element(lanes, ir.IntType(32)(0))


def _fold(join: Any) -> Any:
    @intrinsic
    def fold(typing: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.VectorType(context.get_data_type(lanes.dtype), 64)
            vector = builder.load(builder.bitcast(args[0], ir.PointerType(kind)), align=4)
            return _halved(builder, vector, lambda low, high: join(builder, low, high))

        return lanes.dtype(lanes), generate

    return fold


# Of 64 lanes: their sum, and the largest (a NaN in the upper half of a fold takes no part).
fold_sum = _fold(lambda builder, low, high: builder.fadd(low, high))
fold_top = _fold(lambda builder, low, high: builder.select(
    builder.fcmp_ordered(">", high, low), high, low))


def prefetch(builder: Any, pointer: Any) -> None:
    """Ask for the line at an address; nothing is read."""
    whole = ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer.type, whole, whole, whole]),
        "llvm.prefetch.p0")
    builder.call(function, [pointer, whole(0), whole(3), whole(1)])


@intrinsic
def fetch(typing: Any, x: Any, ahead: Any) -> Any:
    """Ask for what lies `ahead` bytes behind x; nothing is read."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8)
        prefetch(builder, builder.gep(builder.bitcast(args[0], ir.PointerType(byte)), [args[1]],
                                      source_etype=byte))
        return context.get_dummy_value()

    return types.void(x, types.int64), generate
