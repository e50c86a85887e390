"""The arguments of the walk and its rows, as C lays them out: `backends/cython/call.h`.

Addresses are int64. Structures are `ctypes`' here and C's in the walk (`_jit.Struct`).
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64

MAX_AXES = 64  # NumPy's limit
# An element type, as a number: size in bytes, and what else a load must know.
TYPE_SIZE = 31
TYPE_UNSIGNED = 32
TYPE_FLOAT = 64
TYPE_SWAPPED = 128
TYPE_BRAIN = 256  # of two-byte floats: bfloat16
TYPE_F16 = TYPE_FLOAT | 2
TYPE_BF16 = TYPE_FLOAT | TYPE_BRAIN | 2
TYPE_F32, TYPE_F64 = TYPE_FLOAT | 4, TYPE_FLOAT | 8
# How a walk may use an array of the logits' shape.
ANY = 0
IN_PLACE = 1  # the walk's own type, classes side by side, aligned, native: used as it is
STRIDED = 2  # the walk's own type
SIXTEEN = 3  # two bytes wide, classes side by side: converted a stretch at a time

GROUP = 32  # rows that run together

STOPPED = 1
POLL_ELEMENTS = 1 << 22  # CONTRACT: Ctrl-C is looked for at least this often


class PerRow(ctypes.Structure):
    """An array with one element a row, or the rows of a larger one; data 0: not given."""

    _fields_ = [("data", c_int64), ("type", c_int64), ("strides", c_int64 * MAX_AXES)]


class Matrix(ctypes.Structure):
    """An array of the logits' shape."""

    _fields_ = [("rows", PerRow), ("class_stride", c_int64), ("direct", c_int64),
                ("holds_probabilities", c_int64)]


class Call(ctypes.Structure):
    """Everything about one call; see `backends/_contract.py`."""

    _fields_ = [
        ("op", c_int64), ("n_rows", c_int64), ("n_classes", c_int64), ("n_axes", c_int64),
        ("shape", c_int64 * MAX_AXES),
        ("logits", Matrix), ("out_map", Matrix), ("soft", Matrix),
        ("targets", PerRow), ("sample_weight", PerRow), ("upstream", PerRow),
        ("pos_weight", PerRow),
        # Class weights; the walk's own type, over a power of two, `class_unit`.
        ("class_weight", c_int64), ("class_weight_real", c_int64),
        ("class_unit", c_double), ("class_weight_mean", c_double),
        ("has_ignore", c_int64), ("ignore_index", c_int64),
        ("scale", c_double), ("smoothing", c_double), ("temperature", c_double),
        ("softcap", c_double), ("z_loss", c_double), ("gamma", c_double), ("slack", c_double),
        ("floor", c_double),
        # Rows that go together: how many there are, and whether out_rows has their sums.
        ("n_points", c_int64), ("summed", c_int64),
        ("all_slow", c_int64),  # every row by the slow lane
        ("streams", c_int64),  # not used: stores here go to the caches
        ("refused", c_int64),  # set by a walk that met a probability it refuses
        ("no_memory", c_int64),  # set by a walk that found none for itself
        ("hard_weight", c_double),
        ("out_rows", c_int64), ("out_rows_is_double", c_int64),
        ("second", c_int64),  # not used: such calls are carried out one after the other
    ]


class PlainCall(Call):
    """A call of a plain walk, which lacks what the default path of a loss never meets.

    That is: class numbers as targets or none, no label smoothing, softcap or z-loss; cross-entropy,
    logsumexp, softmax, log_softmax and the sum below the largest.
    """


class Cursor(ctypes.Structure):
    """Where a run over consecutive rows stands."""

    _fields_ = [("index", c_int64 * MAX_AXES)] + [
        (name, c_int64)
        for name in ("logits", "out_map", "soft", "targets", "sample_weight", "upstream",
                     "pos_weight")
    ]


class Control(ctypes.Structure):
    """`_control.h`: what a walk and the thread that runs it share."""

    _fields_ = [
        ("elements", c_int64), ("poll", c_int64), ("owner", c_int64),
        # Without the native pool (poll is 0): the caller's `stopped`, its Python thread and
        # floating-point state.
        ("stopped", c_int64), ("thread", c_int64), ("float_state", c_int64),
    ]


class Moments(ctypes.Structure):
    """Sums of some weights u, and of u (top - z), each with what its additions have lost."""

    _fields_ = [(name, c_double * GROUP) for name in ("mass", "mass_carry", "gap", "gap_carry")]


# Blocks whose power is kept: 152 of float32 (`_kept.py`, KEPT), and a shorter one a row.
KEPT_POWERS = 152 + GROUP


class Rows(ctypes.Structure):
    """A group of rows, field by field; `_walk.pxi` says what each is."""

    _fields_ = [
        ("count", c_int64),
        ("kept", c_int64), ("kept_pitch", c_int64),  # the address of kept e, or 0
        ("kept_n", c_double * KEPT_POWERS),
        *((name, c_int64 * GROUP) for name in ("z", "g", "t", "y", "lane", "k_top")),
        *((name, c_double * GROUP) for name in (
            "weight", "hard", "w", "n", "top", "rest", "carry", "e_top", "z_y", "moved",
            "no_result", "gap_unit", "mix", "mix_carry", "self", "self_carry", "square",
            "square_carry", "cross", "cross_carry", "soft_square", "soft_square_carry",
            "impossible", "focus", "pull", "value", "a", "apart", "high", "low", "b", "c", "q",
            "d")),
        ("soft", Moments),  # of the probabilities (times the class weights)
        ("flat", Moments),  # of the class weights, for smoothing
    ]
