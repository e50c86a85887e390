"""`kernels.pyx`'s `rows`, of this backend's walks: where no extension was built.

Imported only to be compiled, by `softxent.numba`.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import binding as llvm
from numba import cfunc, njit, types

from softxent.backends._contract import Key, Op
from softxent.backends.numba._backend import BACKEND
from softxent.backends.numba._jit import address_of, stack, struct_at, struct_type
from softxent.backends.numba._layout import IN_PLACE, STRIDED, TYPE_FLOAT, Control, PlainCall

_WORD = np.int64(0)
_CALL, _CALL_WORDS = struct_type(PlainCall), ctypes.sizeof(PlainCall) // 8
_CONTROL, _CONTROL_WORDS = struct_type(Control), ctypes.sizeof(Control) // 8
_IGNORED = -100  # the public functions' default
_int = types.int64
_WALK = _int(_int, _int, _int, _int)
_walk_f32 = types.ExternalFunction("softxent_walk_plain_f32", _WALK)
_walk_f64 = types.ExternalFunction("softxent_walk_plain_f64", _WALK)


@cfunc(types.int32(_int))
def _never(control):
    return 0


_NEVER = _never.address


@njit
def _place(matrix, data, size, row_stride, class_stride):
    matrix.rows.data = data
    matrix.rows.type = TYPE_FLOAT | size
    matrix.rows.strides[0] = row_stride
    matrix.class_stride = class_stride
    matrix.direct = IN_PLACE if class_stride == size else STRIDED


@njit
def _rows(op, size, n_rows, n_classes, logits, row_stride, class_stride, targets, target_type,
          target_stride, upstream, values, value_size, out, out_row_stride, out_class_stride):
    if n_rows < 1:
        return 0
    words = stack(_CALL_WORDS, _WORD)
    for i in range(_CALL_WORDS):
        words[i] = 0
    call = struct_at(address_of(words), _CALL)
    call.op = op
    call.n_rows = n_rows
    call.n_classes = n_classes
    call.n_axes = 1
    call.shape[0] = n_rows
    _place(call.logits, logits, size, row_stride, class_stride)
    if out != 0:
        _place(call.out_map, out, size, out_row_stride, out_class_stride)
    call.targets.data = targets
    call.targets.type = target_type
    call.targets.strides[0] = target_stride
    call.has_ignore = 1 if targets != 0 else 0
    call.ignore_index = _IGNORED
    call.class_unit = 1.0
    call.class_weight_mean = 1.0
    call.temperature = 1.0
    call.scale = upstream
    call.out_rows = values
    call.out_rows_is_double = 1 if value_size == 8 else 0
    words = stack(_CONTROL_WORDS, _WORD)
    for i in range(_CONTROL_WORDS):
        words[i] = 0
    control = struct_at(address_of(words), _CONTROL)
    control.poll = _NEVER
    if size == 8:
        return _walk_f64(address_of(call), 0, n_rows, address_of(control))
    return _walk_f32(address_of(call), 0, n_rows, address_of(control))


def compile_rows(signature):
    """Load the plain walks, compiling what is not in the cache; return what has `rows`' address.

    `signature`: its types. A string: why there are no walks.
    """
    level = BACKEND.isa()
    for dtype, name in (("float32", "softxent_walk_plain_f32"),
                        ("float64", "softxent_walk_plain_f64")):
        key = Key(Op.CROSS_ENTROPY, dtype, "C", True, "classes")
        reason = BACKEND.supports(key)
        if reason is not None:
            return reason
        llvm.add_symbol(name, BACKEND.kernel(key, level, 0)[0])
    return cfunc(signature)(_rows.py_func)
