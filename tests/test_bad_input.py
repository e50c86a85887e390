"""Bad and extreme input: what is refused, and what must come out of what is accepted.

Refused means: the exception's type, the parts of its text that help, inputs as they were, and not
one byte of `grad_out` written. Results on ordinary rows are test_accuracy.py's.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import softxent as sx
from levels import usable_levels
from softxent import _threads
from softxent._problem import normalise
from softxent.backends import backend as backend_of
from softxent.backends._contract import Call, Op
from softxent.losses import LOSSES

C = 5
TARGETS = np.array([0, 1, 2, 4])
SENTINEL = 7.25
compiled = pytest.mark.parametrize(
    "name", sorted({level.backend for level in usable_levels() if level.backend != "numpy"})
)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect, overcommit")


def logits(dtype="float32", shape=(4, C)):
    return np.random.default_rng(3).normal(0, 3, shape).astype(dtype)


def bits(*arrays):
    return [np.ascontiguousarray(a).astype(a.dtype.newbyteorder("=")).tobytes() for a in arrays]


def with_grad(z, targets, backend="numpy", **options):
    options.setdefault("reduction", "none")
    return sx.cross_entropy_with_grad(z, targets, backend=backend, **options)


def refused(error, parts, **arguments):
    """`cross_entropy_with_grad` refuses the call, and touches nothing."""
    arguments = {"logits": logits(), "targets": TARGETS, **arguments}
    if "grad_out" not in arguments:
        z = np.asarray(arguments["logits"])
        arguments["grad_out"] = np.full(z.shape, SENTINEL, z.dtype if z.dtype.kind == "f" else "f4")
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray) and a.dtype != object]
    before = bits(*arrays)
    with pytest.raises(error) as caught:
        sx.cross_entropy_with_grad(arguments.pop("logits"), arguments.pop("targets"), **arguments)
    assert type(caught.value) is error
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    assert bits(*arrays) == before


# ---- refused: one row a line of the contract's table ---------------------------------------------

NAN, INF = np.nan, np.inf
REFUSED = {
    # targets' values
    "beyond the classes": (IndexError, ["targets[2] = 7 is out of range for 5 classes (0…4)",
                                        "padding? pass ignore_index=7"], {"targets": [0, 1, 7, 3]}),
    "labels from 1": (IndexError, ["targets[3] = 5", "labels that start at 1? subtract 1",
                                   "ignore_index=5"], {"targets": [1, 2, 3, 5]}),
    "the first of several": (IndexError, ["targets[1] = -3 "], {"targets": [0, -3, 9, 5]}),
    "N-D index": (IndexError, ["targets[1, 0] = 6 "], {"logits": logits(shape=(2, 2, C)),
                                                       "targets": [[0, -100], [6, 2]]}),
    "a single row": (IndexError, ["targets = 5 "], {"logits": logits(shape=(C,)), "targets": 5}),
    "-100 is not the ignore_index": (IndexError, ["targets[1] = -100 "],
                                     {"targets": [3, -100, 0, 0], "ignore_index": 3}),
    "ignore_index=None": (IndexError, ["targets[0] = -100 "],
                          {"targets": [-100, 1, 0, 0], "ignore_index": None}),
    "uint64 2**63": (IndexError, ["targets[1] = 9223372036854775808 "],
                     {"targets": np.array([0, 2**63, 0, 0], np.uint64)}),
    "uint64 that wraps to -100": (IndexError, [f"targets[1] = {2**64 - 100} "],
                                  {"targets": np.array([0, 2**64 - 100, 0, 0], np.uint64)}),
    "uint8 that wraps to -100": (IndexError, ["targets[1] = 156 "],
                                 {"targets": np.array([0, 156, 0, 0], np.uint8)}),
    "int64 that is 2**64 - 100 wrapped": (IndexError, ["targets[1] = -100 "],
                                          {"targets": [0, -100, 0, 0],
                                           "ignore_index": 2**64 - 100}),
    # targets' shape and dtype
    "targets of another length": (ValueError, ["(4, 5)", "(4,)", "(3,)"], {"targets": [0, 1, 2]}),
    "targets as a column": (ValueError, ["(4,)", "(4, 1)", "reshape"],
                            {"targets": TARGETS[:, None]}),
    "PyTorch's class axis": (ValueError, ["(2, 5, 3)", "(2, 5)", "(2, 3)", "axis=1"],
                             {"logits": logits(shape=(2, C, 3)), "targets": np.zeros((2, 3), int)}),
    "arguments swapped": (TypeError, ["int64", "swapped"],
                          {"logits": TARGETS.astype("i8"), "targets": logits()}),
    "one-hot": (ValueError, ["one-hot", "argmax(axis=1)", "(4, 5)"],
                {"targets": np.eye(C, dtype=int)[TARGETS]}),
    # probabilities
    "float targets of the rows' shape": (TypeError, ["float32", "(4,)", "astype(numpy.intp)",
                                                     "probabilities have the logits' shape (4, 5)"],
                                         {"targets": TARGETS.astype("f4")}),
    "probabilities of another shape": (ValueError, ["(4, 5)", "(5, 4)", "probability"],
                                       {"targets": np.full((5, 4), 0.2)}),
    "probabilities of one class less": (ValueError, ["(4, 5)", "(4, 4)"],
                                        {"targets": np.full((4, 4), 0.25)}),
    "ignore_index with probabilities": (TypeError, ["probabilities", "no ignore_index", "3"],
                                        {"targets": np.full((4, C), 0.2), "ignore_index": 3}),
    "ignore_index=None with probabilities": (TypeError, ["no ignore_index", "None"],
                                             {"targets": np.full((4, C), 0.2),
                                              "ignore_index": None}),
    "masked probabilities": (TypeError, ["targets", "masked array"],
                             {"targets": np.ma.masked_less(np.eye(4, C), 0.5)}),
    # what smoothes and bends
    **{f"{name} {value}": (ValueError, [name, wanted, str(value)], {name: value})
       for name, wanted, values in (
           ("label_smoothing", "within [0, 1]", (-0.1, 1.5, NAN, INF)),
           ("temperature", "> 0 and finite", (0.0, -1.0, NAN, INF, 1e-200)),
           ("softcap", "> 0 and finite", (0.0, -30.0, NAN, INF)),
           ("z_loss", ">= 0 and finite", (-1e-4, NAN, INF)))
       for value in values},
    **{f"{name} as {type(value).__name__}": (TypeError, [name, "number", repr(value)],
                                             {name: value})
       for name in ("label_smoothing", "temperature", "softcap", "z_loss")
       for value in ("0.1x", [1.0, 2.0], 1j)},
    "no targets": (TypeError, ["targets must be integers"], {"targets": None}),
    **{f"{dtype} targets": (TypeError, ["targets must be integers", str(np.dtype(dtype)), "pass "],
                            {"targets": TARGETS.astype(dtype)})
       for dtype in ("float64", "bool", "object", "S3", "U3", "complex128")},
    # logits
    **{f"{dtype} logits": (TypeError, ["float32", "float64", np.dtype(dtype).name],
                           {"logits": logits().astype(dtype)})
       for dtype in ("int32", "uint8", "bool", "object", "complex64", "longdouble")},
    "ragged logits": (TypeError, ["logits"], {"logits": [[0.0, 1.0], [2.0]], "targets": [0, 0],
                                              "grad_out": None}),
    "0-d logits": (ValueError, ["class axis", "(N, C)"], {"logits": np.float64(1), "targets": 0}),
    "no classes": (ValueError, ["at least one class", "(4, 0)"], {"logits": logits(shape=(4, 0))}),
    "axis beyond": (ValueError, ["axis 2", "(4, 5)"], {"axis": 2}),
    "axis of no integer": (TypeError, ["axis", "float"], {"axis": 1.0}),
    # masks
    **{f"masked {name}": (TypeError, [name, "masked array", "ignore_index", "sample_weight=0"],
                          {name: np.ma.array(value, mask=np.arange(np.size(value)) == 1)})
       for name, value in {"targets": TARGETS, "sample_weight": np.ones(4),
                           "class_weight": np.ones(C), "upstream": np.ones(4)}.items()},
    "masked logits": (TypeError, ["logits", "masked array", "-inf"],
                      {"logits": np.ma.masked_less(logits(), 0)}),
    # weights
    **{f"{what} {name}": (ValueError, [f"{name}[2] = {what}", ">= 0"],
                          {name: np.array([1, 2, float(what), -3, 5][:n])})
       for name, n in (("sample_weight", 4), ("class_weight", C))
       for what in ("-0.5", "nan", "inf")},
    "negative integer weight": (ValueError, ["sample_weight[3] = -1"],
                                {"sample_weight": np.array([1, 2, 3, -1], np.int8)}),
    "N-D weight": (ValueError, ["sample_weight[1, 0] = -1"],
                   {"logits": logits(shape=(2, 2, C)), "targets": np.zeros((2, 2), int),
                    "sample_weight": [[0.0, 1.0], [-1.0, NAN]]}),
    "sample_weight's shape": (ValueError, ["sample_weight", "(4,)", "(5,)"],
                              {"sample_weight": np.ones(5)}),
    "class_weight's shape": (ValueError, ["class_weight", "(5,)", "(4,)"],
                             {"class_weight": np.ones(4)}),
    "complex weight": (TypeError, ["sample_weight", "complex128"],
                       {"sample_weight": np.ones(4, complex)}),
    "object weight": (TypeError, ["class_weight", "object"],
                      {"class_weight": np.ones(C, object)}),
    # options
    "reduction": (ValueError, ["reduction", "'mean'", "'average'"], {"reduction": "average"}),
    **{f"divisor {d}": (ValueError, ["divisor", "finite and > 0", str(d)], {"divisor": d})
       for d in (-1.0, NAN, INF)},
    "divisor beyond float64": (ValueError, ["divisor", "finite"], {"divisor": 10**400}),
    "divisor as text": (TypeError, ["divisor", "str"], {"divisor": "3"}),
    "divisor of a sum": (ValueError, ["divisor", "'mean'", "'sum'"],
                         {"divisor": 2.0, "reduction": "sum"}),
    "upstream of a mean": (ValueError, ["upstream", "scalar", "'mean'", "(4,)"],
                           {"upstream": np.ones(4)}),
    "upstream's shape": (ValueError, ["upstream", "(4,)", "(3,)"],
                         {"upstream": np.ones(3), "reduction": "none"}),
    "upstream as text": (TypeError, ["upstream", "real"], {"upstream": "1"}),
    "ignore_index of no integer": (TypeError, ["ignore_index", "None", "float"],
                                   {"ignore_index": -100.0}),
    "no backend of that name": (ValueError, ["'cython'", "'numpy'", "'fortran'"],
                                {"backend": "fortran"}),
    "backend of no name": (TypeError, ["'numpy'", "int"], {"backend": 3}),
    "no threads": (ValueError, ["n_threads", "at least 1", "0"], {"n_threads": 0}),
    "half a thread": (TypeError, ["n_threads", "float"], {"n_threads": 1.5}),
    # grad_out, but for memory (below)
    "grad_out's shape": (ValueError, ["grad_out", "(4, 5)", "(5, 4)"],
                         {"grad_out": np.full((5, 4), SENTINEL, "f4")}),
    "grad_out's dtype": (ValueError, ["grad_out", "float32", "float64"],
                         {"grad_out": np.full((4, 5), SENTINEL)}),
    "grad_out of no array": (TypeError, ["grad_out", "list"], {"grad_out": [[0.0] * 5] * 4}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    error, parts, arguments = REFUSED[case]
    refused(error, parts, **arguments)


def test_read_only_grad_out_is_refused():
    out = np.full((4, C), SENTINEL, "f4")
    out.flags.writeable = False
    refused(ValueError, ["grad_out", "read-only"], grad_out=out)
    z = logits()
    z.flags.writeable = False
    refused(ValueError, ["grad_out", "read-only"], logits=z, grad_out=z)


def test_pieces_refuse_the_same():
    """Logits and `out` of the pieces pass the same checks."""
    for function in (sx.softmax, sx.log_softmax):
        out = np.full((4, C), SENTINEL, "f4")
        for error, part, arguments in (
            (ValueError, "out must have the logits' dtype", {"logits": logits("float64")}),
            (ValueError, "out must have the logits' shape", {"logits": logits()[1:]}),
            (TypeError, "logits must be float32, float64, float16 or bfloat16",
             {"logits": TARGETS}),
            (ValueError, "temperature must be > 0", {"logits": logits(), "temperature": 0}),
            (ValueError, "axis 7 is out of range", {"logits": logits(), "axis": 7}),
            (ValueError, "out shares memory with logits", {"logits": out[::-1]}),
        ):
            with pytest.raises(error, match=part):
                function(arguments.pop("logits"), out=out, **arguments)
        assert (out == SENTINEL).all()
    for bad, error in ((TARGETS, TypeError), (np.float32(1), ValueError)):
        for function in (sx.logsumexp, sx.softmax_entropy):
            with pytest.raises(error, match="logits must"):
                function(bad)
    out = np.full((4, C), SENTINEL, "f4")
    for error, part, arguments in (
        (ValueError, r"upstream must have the probabilities' shape \(4, 5\), got \(4,\)",
         {"upstream": np.ones(4)}),
        (TypeError, "upstream must be real numbers, got dtype complex128",
         {"upstream": np.ones((4, C), complex)}),
        (ValueError, "out shares memory with upstream", {"upstream": out}),
    ):
        with pytest.raises(error, match=part):
            sx.softmax_vjp(logits(), out=out, **arguments)
    assert (out == SENTINEL).all()
    for function in (sx.target_log_probs, sx.accuracy):
        for error, part, targets in (
            (IndexError, r"targets\[1\] = 9 is out of range", [0, 9, 1, 1]),
            (TypeError, "targets must be integers, got", np.full((4, C), 0.2)),
            (ValueError, "need targets of shape", [0, 1]),
        ):
            with pytest.raises(error, match=part):
                function(logits(), targets)
    for k, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match="k must be"):
            sx.accuracy(logits(), TARGETS, k=k)


def test_mean_divisor_refuses():
    for error, part, targets, options in (
        (TypeError, "must be integers, got dtype float64; the divisor of probability targets",
         np.full((4, C), 0.2), {}),
        (IndexError, r"targets\[3\] = 4 is out of range for 3 classes", TARGETS,
         {"class_weight": [1, 2, 3]}),
        (ValueError, r"sample_weight must have shape \(4,\)", TARGETS, {"sample_weight": [1.0]}),
        (ValueError, r"class_weight must have shape \(2,\)", TARGETS,
         {"class_weight": np.ones((2, 3))}),
        (ValueError, r"sample_weight\[1\] = -1", TARGETS, {"sample_weight": [1, -1, 0, 0]}),
        (TypeError, "ignore_index must be an integer", TARGETS, {"ignore_index": 0.5}),
    ):
        with pytest.raises(error, match=part):
            sx.mean_divisor(targets, **options)
    assert sx.mean_divisor([]) == 0.0
    assert sx.mean_divisor(3, class_weight=[0, 0, 0, 2.5]) == 2.5


# ---- probabilities that are none -----------------------------------------------------------------

BAD_PROBABILITIES = {"negative": -0.25, "-1e-45": -1e-45, "nan": NAN, "inf": INF, "-inf": -INF}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_classes", [5, 64, 65, 2049])
@pytest.mark.parametrize("value", BAD_PROBABILITIES.values(), ids=BAD_PROBABILITIES)
def test_bad_probability(level, dtype, value, n_classes, order):
    """Found while they are read; index and value in the message; logits to overwrite are whole."""
    z = np.asarray(logits(dtype, (2, 40, n_classes)), order=order)
    t = np.asarray(np.full(z.shape, 1 / n_classes, dtype), order=order)
    t[1, 17, n_classes - 1] = value
    t[1, 23, 0] = -3
    options = {"backend": level.backend, "label_smoothing": 0.1}
    wanted = rf"finite and >= 0, got targets\[1, 17, {n_classes - 1}\] = {t[1, 17, -1]}"
    for call in (sx.cross_entropy, sx.cross_entropy_with_grad):
        with pytest.raises(ValueError, match=wanted):
            call(z, t, **options)
    before = bits(z)
    with pytest.raises(ValueError, match=wanted):
        sx.cross_entropy_with_grad(z, t, grad_out=z, **options)
    assert bits(z) == before
    with pytest.raises(ValueError, match=rf"targets\[1, {n_classes - 1}, 17\]"):
        sx.cross_entropy(np.moveaxis(z, -1, 1), np.moveaxis(t, -1, 1), axis=1, **options)
    single = t[1, 17].copy()
    with pytest.raises(ValueError, match=rf"targets\[{n_classes - 1}\] = "):
        sx.cross_entropy(z[1, 17], single, **options)
    weight = np.ones((2, 40))
    weight[1, [17, 23]] = 0    # what does not count is not looked at
    t_clean = np.where(weight[..., None] == 0, t.dtype.type(0.5), t)
    for grad_out in (None, z):
        got = sx.cross_entropy_with_grad(z.copy(order="K") if grad_out is None else z, t,
                                         sample_weight=weight, grad_out=grad_out, **options)
        if grad_out is None:
            expected = sx.cross_entropy_with_grad(z, t_clean, sample_weight=weight, **options)
        assert got[0] == expected[0]
        assert bits(got[1]) == bits(expected[1])


def test_bad_probability_in_the_slow_lane(level, dtype):
    z = logits(dtype, (3, 100))
    z[1] *= 1e30
    t = np.full(z.shape, 0.01, dtype)
    t[1, 70] = NAN
    with pytest.raises(ValueError, match=r"targets\[1, 70\] = nan"):
        sx.cross_entropy(z, t, backend=level.backend)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_no_probability_on_an_excluded_class(level, dtype, value):
    """0 against -inf costs nothing."""
    for n_classes in (3, 65, 1030):
        z = logits(dtype, (4, n_classes))
        z[:, 1] = -INF
        t = np.full(z.shape, 1 / (n_classes - 1), dtype)
        t[:, 1] = value
        loss, g = with_grad(z, t, level.backend)
        kept = np.arange(n_classes) != 1
        rest, g_rest = with_grad(z[:, kept], t[:, kept], level.backend)
        np.testing.assert_allclose(loss, rest, rtol=1e-5 if dtype == "float32" else 1e-14)
        assert (g[:, 1] == 0).all()
        np.testing.assert_allclose(g[:, kept], g_rest, atol=1e-6 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("target", [0.5, 1e-300, 5e-324], ids=str)
def test_some_probability_on_an_excluded_class(level, dtype, target):
    """However small: +inf, and the gradient is -w t there."""
    target = max(target, float(np.finfo(dtype).smallest_subnormal))
    for n_classes in (3, 65, 1030):
        for scale in (1, 1e30):
            z = logits(dtype, (4, n_classes)) * np.dtype(dtype).type(scale)
            z[1, 2] = -INF
            t = np.zeros(z.shape, dtype)
            t[:, 0] = 1
            t[:, 2] = target
            loss, g = with_grad(z, t, level.backend)
            assert loss[1] == INF
            assert np.isfinite(loss[[0, 2, 3]]).all()
            assert np.isfinite(g).all()
            assert abs(g[1, 2] + target) <= np.finfo(dtype).tiny


def test_smoothing_with_an_excluded_class(level, dtype):
    """+inf, gradient finite; where that class has weight 0, finite too."""
    for n_classes in (3, 65, 1030):
        z = logits(dtype, (4, n_classes))
        z[1:3, 2] = -INF
        weight = np.ones(n_classes)
        loss, g = with_grad(z, np.zeros(4, int), level.backend, label_smoothing=0.1)
        assert (loss == INF).tolist() == [False, True, True, False]
        assert np.isfinite(g).all()
        np.testing.assert_allclose(g[1:3, 2], -0.1 / n_classes, rtol=1e-6)
        weight[2] = 0
        loss, g = with_grad(z, np.zeros(4, int), level.backend, label_smoothing=0.1,
                            class_weight=weight)
        assert np.isfinite(loss).all()
        assert (g[1:3, 2] == 0).all()


def test_a_class_of_weight_0_leaves_the_rows_other_terms(level, dtype):
    """Smoothing and z-loss still count, though the target's own term does not."""
    z, weight = logits(dtype), np.array([0.0, 1, 2, 1, 1])
    for options in ({"label_smoothing": 0.2}, {"z_loss": 0.1}):
        loss, g = with_grad(z, np.zeros(4, int), level.backend, class_weight=weight, **options)
        assert (loss > 0).all()
        assert (g != 0).any(axis=1).all()
    z[:, 0] = -INF    # 0 * inf
    loss, g = with_grad(z, np.zeros(4, int), level.backend, class_weight=weight, **options)
    assert np.isfinite(loss).all()
    assert np.isfinite(g).all()


def test_softcap_judges_the_logits_as_given(level, dtype):
    """-inf stays excluded, +inf and NaN spoil their row; what overflows a cap is the cap."""
    for n_classes in (5, 65, 1030):
        z = logits(dtype, (5, n_classes))
        z[0, 1], z[1, 1], z[2, 1], z[3, 1] = -INF, INF, NAN, np.finfo(dtype).max
        z[4] = -INF
        loss, g = with_grad(z, np.zeros(5, int), level.backend, softcap=30.0)
        assert np.isnan(loss).tolist() == [False, True, True, False, True]
        assert np.isnan(g).all(axis=1).tolist() == [False, True, True, False, True]
        assert g[0, 1] == 0
        assert g[3, 1] == 0    # flat there
        expected = with_grad(np.where(z > 1e30, 1e6, z).astype(dtype), np.zeros(5, int),
                             level.backend, softcap=30.0)
        assert bits(loss[[0, 3]], g[[0, 3]]) == bits(expected[0][[0, 3]], expected[1][[0, 3]])


@pytest.mark.parametrize("option", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [2.0**-500, 1e-30, 1e30, 2.0**500])
def test_far_scales(level, dtype, option, value):
    """Divisors of the logits beyond float32: right or saturated, never NaN."""
    for n_classes in (3, 65):
        z = logits(dtype, (4, n_classes))
        z[0] = 0
        loss, g = with_grad(z, np.zeros(4, int), level.backend, **{option: value})
        assert not np.isnan(loss).any()
        assert not np.isnan(g).any()
        np.testing.assert_allclose(loss[0], np.log(n_classes), rtol=1e-6)
        if option == "temperature" and value > 1:
            np.testing.assert_allclose(loss, np.log(n_classes), rtol=1e-6)
        if option == "softcap" and value > 1:
            np.testing.assert_allclose(loss, with_grad(z, np.zeros(4, int), level.backend)[0],
                                       rtol=1e-6)


def test_class_weights_of_any_size(level, dtype):
    """From 1e-300 to 1e300 in one call, with probabilities and smoothing."""
    z = logits(dtype).astype("float64")
    weight = np.array([1e-300, 1e-30, 1.0, 1e20, 1e300])
    t = sx.softmax(logits()[::-1].astype("float64"))
    shifted = z - z.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    for targets, masses in ((t, 0.9 * t + 0.1 / C), (TARGETS, 0.9 * np.eye(C)[TARGETS] + 0.1 / C)):
        expected = -(weight * masses * log_p).sum(axis=1)
        total = sx.cross_entropy(z.astype(dtype), targets, class_weight=weight, reduction="sum",
                                 label_smoothing=0.1, backend=level.backend)
        np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)


def test_sixteen_bit_logits_and_outputs(level):
    """A gradient in the logits' type or float32, and nothing else."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16: pip install ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        z = logits().astype(dtype)
        loss, g = with_grad(z, TARGETS, level.backend)
        assert (loss.dtype, g.dtype) == (np.float32, z.dtype)
        out = np.zeros(z.shape, np.float32)
        _, wide = with_grad(z, TARGETS, level.backend, grad_out=out)
        assert wide is out
        assert bits(wide.astype(dtype)) == bits(g)
        for other in ("f8", "f2" if dtype is not np.float16 else ml_dtypes.bfloat16, "i2"):
            out = np.zeros(z.shape, other)
            with pytest.raises(ValueError, match=r"grad_out must have .* or float32"):
                with_grad(z, TARGETS, level.backend, grad_out=out)
        for function in (sx.softmax, sx.log_softmax):
            assert function(z, backend=level.backend).dtype == z.dtype
        assert sx.logsumexp(z, backend=level.backend).dtype == np.float32
        with_grad(z, TARGETS, level.backend, grad_out=z)
        assert bits(z) == bits(g)


def test_probabilities_of_every_float_type(level, dtype):
    """Any float type and byte order; float32's values are float64's."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16: pip install ml_dtypes")
    for n_classes in (5, 65, 1030):
        z = logits(dtype, (4, n_classes))
        t = np.random.default_rng(1).integers(0, 5, z.shape) / 8
        expected = bits(*with_grad(z, t.astype(dtype), level.backend))
        for code in ("f2", "f4", "f8", "g", ">f4", ">f8", ">f2", ml_dtypes.bfloat16):
            for order in "CF":
                given = np.asarray(t.astype(code), order=order)
                assert bits(*with_grad(z, given, level.backend)) == expected, code


def test_probabilities_are_judged_as_they_are_given(level):
    """Whatever the logits' type: not after a conversion that rounds, flushes or overflows."""
    one = {"reduction": "none", "backend": level.backend}
    single, double = np.float32, np.float64
    for n_classes in (3, 70, 1030):
        z = np.zeros((1, n_classes))
        t = np.zeros((1, n_classes))
        t[0, 0] = 1
        masked = z.copy()
        masked[0, 1] = -INF
        for logit, target, value in ((single, double, 1e-40), (single, double, 1e-50),
                                     (double, single, 1e-39), (single, np.longdouble, 5e-324)):
            t[0, 1] = value
            for scale in (1, 2e6):    # the slow lane agrees
                row = masked.copy()
                row[0, [0, 2]] = scale
                loss = sx.cross_entropy(row.astype(logit), t.astype(target), **one)
                assert loss == INF, (logit, target, value, scale)
        t[0, 1] = 1e-39
        z[0, 1] = -1e39
        loss = sx.cross_entropy(z, t.astype(single), **one)
        np.testing.assert_allclose(loss, math.log(n_classes - 1) + 1, rtol=1e-5)
        z[0, 1] = 0
        for logit, target, value in ((single, double, -1e-46), (double, single, -1e-39),
                                     (single, double, -5e-324)):
            t[0, 1] = value
            with pytest.raises(ValueError, match=r"targets\[0, 1\] = -"):
                sx.cross_entropy(z.astype(logit), t.astype(target), **one)
        t[0, :2] = 1e39    # legal, and beyond float32: the loss too
        total = sx.cross_entropy(z.astype(single), t, reduction="sum", backend=level.backend)
        np.testing.assert_allclose(total, 2e39 * math.log(n_classes), rtol=1e-6)
        with pytest.raises(ValueError, match=r"targets\[0, 0\] = -"):
            sx.cross_entropy(z, -t, divisor=0, backend=level.backend)


def test_class_weights_that_are_subnormal(level):
    """Of float32 logits they cancel in a mean."""
    options = {"label_smoothing": 0.1, "backend": level.backend}
    expected = sx.cross_entropy(logits(), TARGETS, **options)
    got = sx.cross_entropy(logits(), TARGETS, class_weight=np.full(C, 1e-310), **options)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_flat_softcap_takes_any_factor(level):
    """Where the slope is 0 the gradient is, however large what it multiplies."""
    for n_classes in (3, 65, 1030):
        z = np.zeros((1, n_classes), np.float32)
        z[0, 0] = 5000
        for options in ({"upstream": 1e39}, {"upstream": 1e39, "label_smoothing": 0.1},
                        {"z_loss": 1e37}):
            _, g = sx.cross_entropy_with_grad(z, [1], softcap=30.0, backend=level.backend,
                                              **options)
            assert g[0, 0] == 0
            assert not np.isnan(g).any()


def test_text_is_no_number(level):
    for name in ("label_smoothing", "temperature", "softcap", "z_loss"):
        with pytest.raises(TypeError, match=f"{name} must be a number, got '1'"):
            sx.cross_entropy(logits(), TARGETS, backend=level.backend, **{name: "1"})
    with pytest.raises(TypeError, match="probs must be float32"):
        sx.softmax_vjp(TARGETS, TARGETS)


def test_a_thread_with_a_small_stack(level):
    """What a walk needs beside its rows is not on the stack of a thread of somebody else's."""
    import threading

    z, failures, before = logits("float64", (200, 1500)), [], threading.stack_size()
    t = sx.softmax(z)

    def work():
        try:
            for array in (z, np.asarray(z, order="F"), z[:, :40]):
                with_grad(array, t[:, : array.shape[1]], level.backend, softcap=3.0)
        except BaseException as error:
            failures.append(error)

    threading.stack_size(65536 if level.backend == "cython" else before)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert not failures


# ---- memory of grad_out --------------------------------------------------------------------------


def shared_memory(case):
    """Arguments whose `grad_out` shares memory in the way of `case`."""
    block = np.full((9, 2 * C), SENTINEL, "f4")
    block[:4, :C] = logits()
    z = block[:4, :C]
    views = {
        "rows backwards": z[::-1],
        "classes backwards": z[:, ::-1],
        "one element on": block[:4, 1 : C + 1],
        "one row on": block[1:5, :C],
        "foreign byte order": z.view(z.dtype.newbyteorder()),
        "one byte on": np.ndarray((4, C), "f4", block.tobytes() and block, 1, z.strides),
        "other strides": np.ndarray((4, C), "f4", block, 0, (2 * z.strides[0], 4)),
        "transposed": block[:C, :C].T,
    }
    if case == "transposed":
        return {"logits": block[:C, :C], "targets": np.zeros(C, int), "grad_out": views[case]}
    if case in views:
        return {"logits": z, "grad_out": views[case]}
    out = np.zeros((4, C), "f4")
    memory = out.reshape(-1)
    return {"grad_out": out} | {
        "targets": {"targets": memory.view(np.int32)[3:7]},
        "targets, strided": {"targets": memory.view(np.int32)[2::5]},
        "sample_weight": {"sample_weight": memory[16:]},
        "class_weight": {"class_weight": memory[15:]},
        "class_weight, float64": {"class_weight": memory[:10].view(np.float64)},
        "class_weight by the buffer protocol": {
            "class_weight": memoryview(memory[:10].view(np.float64))},
        "upstream": {"upstream": memory[8:12], "reduction": "none"},
    }[case]


@pytest.mark.parametrize("case", [
    "rows backwards", "classes backwards", "one element on", "one row on", "foreign byte order",
    "one byte on", "other strides", "transposed", "targets", "targets, strided", "sample_weight",
    "class_weight", "class_weight, float64", "class_weight by the buffer protocol", "upstream",
])
def test_grad_out_sharing_memory_is_refused(case):
    arguments = shared_memory(case)
    culprit = case.split()[0].strip(",")
    culprit = culprit if culprit in arguments else "logits"
    refused(ValueError, ["grad_out", "shares memory", culprit], **arguments)


@pytest.mark.parametrize("strides", [(0, 4), (20, 0), (4, 4), (16, 4)])
def test_grad_out_overlapping_itself_is_refused(strides):
    """Rows or classes of stride 0, and rows that reach into one another."""
    memory = np.full(4 * C, SENTINEL, "f4")
    out = np.ndarray((4, C), "f4", memory, 0, strides)
    refused(ValueError, ["grad_out", "overlap itself"], grad_out=out)


def interleaved():
    """(name, logits, grad_out): one buffer, no element in common."""
    flat = np.zeros((4, 2 * C))
    deep = np.zeros((3, 2 * C, 4, 2, 6))
    back = deep[::-1, ::2, ::-1]
    record = np.zeros(4, [("z", "f8", C), ("flag", "u1"), ("g", "f8", C)])
    return {
        "columns": (flat[:, ::2], flat[:, 1::2], -1),
        "halves": (flat[:, :C], flat[:, C:], -1),
        "columns, backwards": (flat[:, ::2], flat[:, ::-2], -1),
        "5-D": (deep[:, ::2], deep[:, 1::2], 1),
        "5-D, backwards": (back[..., ::2], deep[:, 1::2, :, :, 1::2], 1),
        "misaligned fields": (record["z"], record["g"], -1),
    }


@pytest.mark.parametrize("case", interleaved())
def test_grad_out_may_interleave_with_the_logits(level, case):
    """What shares a buffer, but no element, is legal."""
    z, out, axis = interleaved()[case]
    z[...] = logits("float64", z.shape)
    targets = np.random.default_rng(0).integers(0, C, np.delete(z.shape, axis))
    before = z.copy()
    loss, expected = with_grad(before, targets, level.backend, axis=axis)
    again, got = with_grad(z, targets, level.backend, axis=axis, grad_out=out)
    assert bits(again, got, z) == bits(loss, expected, before)
    assert np.shares_memory(got, out)


def test_in_place_by_another_view_of_the_same_elements(level):
    """Exactly the logits: the same elements at the same places, whatever object says so."""
    for shape, view in (
        ((4, C), lambda z: z[:]),
        ((4, C), lambda z: z.T.T),
        ((1, C), lambda z: np.ndarray((1, C), z.dtype, z, 0, (400, z.itemsize))),
        ((4, 1), lambda z: np.ndarray((4, 1), z.dtype, z, 0, (z.itemsize, 400))),
    ):
        z = logits(shape=shape)
        targets = np.zeros(len(z), int)
        expected = with_grad(z.copy(), targets, level.backend)
        loss, _ = with_grad(z, targets, level.backend, grad_out=view(z))
        assert bits(loss, z) == bits(*expected)


# ---- layouts and types that are accepted -----------------------------------------------------


class Subclass(np.ndarray):
    """Hostile to anyone who computes with it."""

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("computed with the subclass")


def memories(values, folder):
    """Yield (name, array): the same values in other memory, type or class."""
    a = np.ascontiguousarray(values)
    pad = np.full((*a.shape[:-1], 3 * a.shape[-1] + 1), 99, a.dtype)
    pad[..., 1::3] = a
    yield "strided", pad[..., 1::3]
    yield "backwards", a[..., ::-1].copy()[..., ::-1]
    yield "Fortran", a.copy(order="F")
    yield "foreign byte order", a.astype(a.dtype.newbyteorder())
    odd = np.zeros(a.nbytes + 1, np.uint8)[1:].view()
    odd[...] = np.frombuffer(a.tobytes(), np.uint8)
    yield "misaligned", np.ndarray(a.shape, a.dtype, odd.data)
    fixed = a.copy()
    fixed.flags.writeable = False
    yield "read-only", fixed
    mapped = np.memmap(folder / f"{a.dtype}{a.ndim}", a.dtype, "w+", shape=a.shape)
    mapped[...] = a
    mapped.flush()
    yield "memmap", np.memmap(mapped.filename, a.dtype, "r", shape=a.shape)
    yield "subclass", a.view(Subclass)
    yield "no mask", np.ma.array(a)
    yield "empty mask", np.ma.array(a, mask=np.zeros(a.shape, bool))
    yield "list", a.tolist()
    yield "buffer", memoryview(a)


ARGUMENTS = {
    "targets": TARGETS,
    "sample_weight": np.array([0.5, 0, 3, 1]),
    "class_weight": np.array([1.5, 2, 0.25, 0, 3]),
    "upstream": np.array([-1.5, 2, 0.5, 8]),
}


@pytest.mark.parametrize("argument", ["logits", *ARGUMENTS])
def test_same_bits_whatever_an_argument_lies_in(level, argument, tmp_path):
    arguments = {"logits": logits("float64"), **ARGUMENTS}
    expected = bits(*sx.cross_entropy_with_grad(**arguments, reduction="none",
                                                backend=level.backend))
    seen = 0
    for name, array in memories(arguments[argument], tmp_path):
        got = sx.cross_entropy_with_grad(**arguments | {argument: array}, reduction="none",
                                         backend=level.backend)
        assert [type(a) for a in got] == [np.ndarray, np.ndarray], name
        assert bits(*got) == expected, name
        seen += 1
    assert seen == 12


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix(level):
    """np.matrix keeps two axes, come what may."""
    loss, g = with_grad(np.matrix(logits()), TARGETS, level.backend)
    assert bits(loss, g) == bits(*with_grad(logits(), TARGETS, level.backend))
    assert type(g) is np.ndarray


def test_grad_out_in_any_memory(level, dtype, tmp_path):
    expected = with_grad(logits(dtype), TARGETS, level.backend)
    for name, out in memories(np.zeros((4, C), dtype), tmp_path):
        if isinstance(out, np.ma.MaskedArray | list | memoryview):
            continue
        if name == "memmap":
            out = np.memmap(out.filename, dtype, "r+", shape=out.shape)
        if name != "read-only":
            loss, g = with_grad(logits(dtype), TARGETS, level.backend, grad_out=out)
            assert g is out
            assert bits(loss, np.asarray(g), np.asarray(out)) == bits(*expected, expected[1]), name


def test_every_integer_type(level):
    """Targets and `ignore_index` of every width and sign, and beside the largest numbers."""
    expected = bits(*with_grad(logits(), TARGETS, level.backend))
    skipped = with_grad(logits(), [0, 1, -100, 4], level.backend)
    assert skipped[0][2] == 0
    for code in "bBhHiIlLqQnNpP":
        for order in "<>":
            targets = TARGETS.astype(np.dtype(code).newbyteorder(order))
            assert bits(*with_grad(logits(), targets, level.backend)) == expected, code
            edges = np.iinfo(targets.dtype)
            for ignored in (edges.max, edges.min, edges.max // 2 + 1):
                if ignored not in (0, 1, 2, 4):
                    targets[2] = ignored
                    got = with_grad(logits(), targets, level.backend, ignore_index=ignored)
                    assert bits(*got) == bits(*skipped), (code, ignored)


@pytest.mark.parametrize("ignored", [10**30, -(10**30), 2**64 + 1, 1 - 2**64, 2**64, 2**63, 2**200])
def test_ignore_index_that_no_target_can_have(level, ignored):
    """It ignores nothing; a number that wraps onto a class is not that class."""
    for targets in (TARGETS, TARGETS.astype(np.uint64), TARGETS.astype(np.int8)):
        for reduction in ("none", "mean"):
            options = {"reduction": reduction, "backend": level.backend}
            expected = sx.cross_entropy(logits(), targets, ignore_index=None, **options)
            got = sx.cross_entropy(logits(), targets, ignore_index=ignored, **options)
            assert np.array_equal(got, expected)


def test_ignore_index_inside_the_classes(level):
    z = logits()
    loss, g = with_grad(z, TARGETS, level.backend, ignore_index=2)
    plain, g_plain = with_grad(z, TARGETS, level.backend, ignore_index=None)
    counts = TARGETS != 2
    assert bits(loss[counts], g[counts]) == bits(plain[counts], g_plain[counts])
    assert bits(loss[~counts], g[~counts]) == bits(np.zeros(1, "f4"), np.zeros((1, C), "f4"))
    mean = sx.cross_entropy(z, TARGETS, ignore_index=2, backend=level.backend)
    assert mean == sx.cross_entropy(z, TARGETS, ignore_index=2, divisor=3, backend=level.backend)


@pytest.mark.parametrize("shape", [(3, C), (2, C, 3), (2, C, 3, 2), (2, C, 3, 1, 2)])
def test_class_axis_inside(level, shape):
    """axis=1 of 2-D to 5-D, and -ndim + 1: the bits of the class-last call."""
    z = logits("float64", shape)
    targets = np.random.default_rng(1).integers(0, C, np.delete(shape, 1))
    moved = np.ascontiguousarray(np.moveaxis(z, 1, -1))
    loss, g = with_grad(moved, targets, level.backend)
    for axis in (1, 1 - len(shape), np.int8(1)):
        got = with_grad(z, targets, level.backend, axis=axis)
        assert bits(*got) == bits(loss, np.moveaxis(g, -1, 1))
    lse = sx.logsumexp(z, axis=1, keepdims=True, backend=level.backend)
    assert lse.shape == (shape[0], 1, *shape[2:])
    assert bits(lse[:, 0]) == bits(sx.logsumexp(moved, backend=level.backend))


def test_64_dimensions(level):
    """NumPy's limit, axes that cannot be merged among them."""
    z = logits("float64", (2,) * 12 + (C,))[::-1, :, ::-1]
    z = z.reshape((2,) * 12 + (1,) * 51 + (C,))
    targets = np.random.default_rng(1).integers(0, C, z.shape[:-1])
    flat = with_grad(z.reshape(-1, C), targets.reshape(-1), level.backend)
    # Axes in an order in which no two neighbours are one.
    order = [*range(1, 12, 2), *range(12, 63), *range(10, -1, -2)]
    z, targets = z.transpose(*order, 63), targets.transpose(order)
    loss, g = with_grad(z, targets, level.backend)
    assert loss.shape == targets.shape
    back = np.argsort(order)
    loss, g = loss.transpose(back), g.transpose(*back, 63)
    assert bits(loss.reshape(-1), g.reshape(-1, C)) == bits(*flat)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [3, 64, 65, 1025])
def test_no_bad_row_touches_another(level, dtype, n_classes):
    """Every kind of NaN and infinity, at every place of a group of rows."""
    clean = logits(dtype, (41, n_classes))
    targets = np.arange(41) % n_classes
    # Quiet, negative, signalling NaN, one of all bits; +inf.
    raw, patterns = {
        "float32": ("u4", [0x7FC0 << 16, 0xFFC0 << 16, 0x7F800001, 2**32 - 1, 0x7F80 << 16]),
        "float64": ("u8", [0x7FF8 << 48, 0xFFF8 << 48, (0x7FF0 << 48) + 1, 2**64 - 1,
                           0x7FF0 << 48]),
    }[dtype]
    expected = with_grad(clean, targets, level.backend)
    pieces = [function(clean, backend=level.backend) for function in (sx.softmax, sx.log_softmax)]
    for i, pattern in enumerate(patterns):
        z = clean.copy()
        bad = np.arange(41) % 5 == i
        z.view(raw)[bad, i % n_classes] = pattern
        got = [*with_grad(z, targets, level.backend),
               *(function(z, backend=level.backend) for function in (sx.softmax, sx.log_softmax))]
        for array, wanted in zip(got, (*expected, *pieces), strict=True):
            assert np.isnan(array[bad]).all()
            assert bits(array[~bad]) == bits(wanted[~bad])


@pytest.mark.parametrize("n_classes", [2, 3, 64, 65, 1025])
def test_largest_logits(level, dtype, n_classes):
    """+inf only on true overflow, never NaN."""
    big = float(np.finfo(dtype).max)
    z = np.zeros((4, n_classes), dtype)
    z[0, 0], z[1, 0], z[2, :], z[3, :] = big, -big, big, -big
    z[0, 1] = -big
    targets = np.zeros(4, int)
    loss, g = with_grad(z, targets, level.backend)
    n, log = n_classes, math.log(n_classes)
    log_rest = math.log(n_classes - 1)
    np.testing.assert_allclose(loss, [0, big, log, log], rtol=1e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(
            sx.logsumexp(z, backend=level.backend), [big, log_rest, big, -big], rtol=1e-6,
            atol=1e-7)
    assert g[0].tolist() == [0] * n
    assert g[1, 0] == -1
    np.testing.assert_allclose(g[1, 1:], 1 / (n - 1), rtol=1e-6)
    np.testing.assert_allclose(g[2:], np.tile(np.eye(n)[0] * -1 + 1 / n, (2, 1)), rtol=1e-6)
    # Twice the largest number apart: the loss overflows in truth, and the gradient does not.
    loss, g = with_grad(z[:1], [1], level.backend)
    assert loss.tolist() == [INF]
    assert g[0].tolist() == [1, -1] + [0] * (n - 2)
    p, log_p = sx.softmax(z, backend=level.backend), sx.log_softmax(z, backend=level.backend)
    assert p[0].tolist() == [1] + [0] * (n - 1)
    assert log_p[0, :2].tolist() == [0, -INF]
    assert (log_p[0, 2:] == -big).all()
    assert not np.isnan([p, log_p]).any()


REDUCTIONS = ("none", "sum", "mean")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, C), (0, 1), (3, 0, C), (0, 2000)])
def test_no_rows(level, dtype, reduction, shape):
    z, targets = np.zeros(shape, dtype), np.zeros(shape[:-1], np.int16)
    options = {"reduction": reduction, "backend": level.backend}
    weights = {"sample_weight": np.ones(shape[:-1]), "class_weight": np.ones(shape[-1])}
    for extra in ({}, weights, {"grad_out": z}):
        loss, g = sx.cross_entropy_with_grad(z, targets, **options, **extra)
        assert (g.shape, g.dtype) == (shape, dtype)
        if reduction == "none":
            assert (loss.shape, loss.dtype) == (shape[:-1], dtype)
        else:
            assert type(loss) is float
            assert math.copysign(1, loss) == 1 - loss
    assert sx.logsumexp(z, backend=level.backend).shape == shape[:-1]
    assert sx.softmax(z, backend=level.backend).shape == shape


NOTHING_COUNTS = {
    "ignored": {"targets": np.full(4, -100)},
    "ignored, in range": {"targets": np.full(4, 3), "ignore_index": 3},
    "sample_weight 0": {"sample_weight": np.zeros(4, np.uint8)},
    "class_weight 0": {"class_weight": np.zeros(C)},
    "no class in use": {"class_weight": [0, 0, 0, 1, 0]},
    "divisor 0": {"divisor": 0},
    "divisor -0.0": {"divisor": -0.0},
}


@pytest.mark.parametrize(("case", "reduction"), [
    (case, reduction)
    for case, options in NOTHING_COUNTS.items()
    for reduction in (("mean",) if "divisor" in options else REDUCTIONS)
])
def test_nothing_counts(level, case, reduction):
    """Loss +0.0 and gradient +0.0, never NaN, into a used `grad_out` too."""
    arguments = {"logits": np.full((4, C), NAN), "targets": TARGETS, **NOTHING_COUNTS[case]}
    out = np.full((4, C), SENTINEL)
    loss, g = sx.cross_entropy_with_grad(
        **arguments, reduction=reduction, grad_out=out, backend=level.backend, upstream=-1.0
    )
    assert bits(np.atleast_1d(loss)) == bits(np.zeros(4 if reduction == "none" else 1))
    assert bits(g, out) == bits(np.zeros((4, C)), np.zeros((4, C)))


def test_extreme_weights(level, dtype):
    """Overflow is +inf, underflow 0, where the true value is; no NaN and no warning."""
    z = logits(dtype)
    run = {"backend": level.backend, "reduction": "sum"}
    big = {"sample_weight": np.full(4, 1e200), "class_weight": np.full(C, 1e200)}
    assert sx.cross_entropy(z, TARGETS, **big, **run) == INF
    tiny = {"sample_weight": np.full(4, 1e-200), "class_weight": np.full(C, 1e-200)}
    loss, g = sx.cross_entropy_with_grad(z, TARGETS, **tiny, **run)
    assert (loss, abs(g).max()) == (0, 0)
    ordinary = sx.cross_entropy(z, TARGETS, **run)
    scaled = sx.cross_entropy(z, TARGETS, **run, sample_weight=np.full(4, 2.0**900))
    assert scaled == ordinary * 2.0**900


@pytest.mark.parametrize("weights", [
    {"sample_weight": np.full(4, 1e200), "class_weight": np.full(C, 1e200)},
    {"sample_weight": np.full(4, 1e308)},
])
def test_mean_whose_divisor_overflows(level, weights):
    """D beyond float64 is refused, with the cure; a divisor of one's own is that cure."""
    refused(ValueError, ["divisor", "overflows", "scale"], backend=level.backend,
            reduction="mean", **weights)
    loss, g = sx.cross_entropy_with_grad(
        logits(), TARGETS, **weights, divisor=1e308, backend=level.backend)
    assert not np.isnan(loss)
    assert not np.isnan(g).any()


@pytest.mark.parametrize("factors", [
    {"divisor": 1e-310},
    {"upstream": 1e200, "sample_weight": [1e200], "reduction": "sum"},
    {"upstream": [1e200], "sample_weight": [1e200], "reduction": "none"},
], ids=["divisor", "upstream", "upstream of the row"])
def test_gradient_whose_factor_overflows(level, factors):
    """+-inf where the true gradient overflows, 0 where p is e**-2000 or 0: never NaN."""
    z = np.array([[0.0, -2000.0, 1.0, -INF]])
    _, g = sx.cross_entropy_with_grad(z, [0], backend=level.backend, **factors)
    assert g[0].tolist() == [-INF, 0, INF, 0]


@pytest.mark.parametrize(
    ("name", "n"), [("sample_weight", 4), ("class_weight", C), ("upstream", 4)]
)
def test_longdouble_that_float64_cannot_hold(name, n):
    """Weights become float64 without a warning; what overflows there is refused."""
    if np.finfo(np.longdouble).maxexp <= 1024:
        pytest.skip("longdouble has float64's range")
    weight = np.full(n, np.longdouble("1e4000"))
    if name == "upstream":
        _, g = with_grad(logits(), TARGETS, upstream=weight)
        assert np.isinf(g).all()
    else:
        refused(ValueError, [name, "finite"], **{name: weight})


# ---- a target that another thread changed after the check ---------------------------------------


@pytest.mark.parametrize("n_classes", [1, C, 64, 65, 1025])
@pytest.mark.parametrize("order", ["C", "F"])
def test_target_changed_after_the_check(level, dtype, n_classes, order):
    """The kernel checks again: that row NaN, the rows beside it untouched, nothing out of bounds.

    It is the backend that is asked, for `softxent` itself would refuse.
    """
    n = 40
    z = np.asarray(logits(dtype, (n, n_classes)), order=order)
    serving = backend_of(level.backend)

    def run(targets):
        rows, out = np.full(n, SENTINEL), np.full_like(z, SENTINEL)
        call = Call(Op.CROSS_ENTROPY, z, targets, ignore_index=-100, scale=0.5,
                    class_weight=np.linspace(1, 2, n_classes), upstream=np.full(n, -2.0),
                    sample_weight=np.ones(n, np.float32), out_rows=rows, out_map=out)
        _threads.run(serving.bind(call, level.isa), n, 7, 2)
        return rows, out

    for code in ("i8", "u8", "i4", "i1", ">i8"):
        targets = (np.arange(n) % min(n_classes, 100)).astype(code)
        expected = run(targets)
        edges = np.iinfo(targets.dtype)
        outside = [-1, edges.min, edges.max, n_classes, n_classes + 2**40, 2**63, 2**64 - 99]
        for value in {v for v in outside if edges.min <= v <= edges.max}:
            if 0 <= value < n_classes:
                continue
            changed = targets.copy()
            bad = np.arange(n) % 9 == 4
            changed[bad] = value
            got = run(changed)
            for array, wanted in zip(got, expected, strict=True):
                assert np.isnan(array[bad]).all(), (code, value)
                assert bits(array[~bad]) == bits(wanted[~bad]), (code, value)


# ---- more than 32 bits --------------------------------------------------------------------------

@compiled
def test_more_than_2_to_the_31_elements(name):
    """C and N·C beyond 2**31, by arrays of stride 0; one value a row is all that is stored."""
    n_classes = 2**31 + 3
    row = np.broadcast_to(np.float32(1), (n_classes,))
    expected = math.log(n_classes)
    assert abs(sx.cross_entropy(row, n_classes - 1, backend=name) - expected) < 1e-5
    rows = np.broadcast_to(logits("float32", (50_000,)), (50_000, 50_000))
    targets = np.full(50_000, 7)
    targets[-1] = 11
    loss = sx.cross_entropy(rows, targets, reduction="none", backend=name)
    wanted = [sx.cross_entropy(rows[0], t, reduction="none", backend=name) for t in (7, 11)]
    assert (loss[:-1] == wanted[0]).all()
    assert loss[-1] == wanted[1]
    assert wanted[0] != wanted[1]


@linux
@compiled
def test_more_than_2_to_the_31_rows(name):
    """The kernel on the last rows of 2**32 + 99, whose values lie in 32 GiB of untouched memory."""
    n = 2**32 + 99
    try:
        memory = mmap.mmap(-1, 8 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except OSError as error:
        pytest.skip(f"no 32 GiB of address space: {error}")
    last = np.frombuffer(memory, np.float64)
    z = logits("float64", (1, 3))
    call = Call(Op.CROSS_ENTROPY, np.broadcast_to(z, (n, 3)), np.broadcast_to(np.int8(1), (n,)),
                out_rows=last)
    serving = backend_of(name)
    task = serving.bind(call, serving.isa())
    if task.native is None:  # no pool, which would call the kernel by its address
        task(n - 50, n, lambda: False)
    else:
        kernel = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                  ctypes.c_void_p)(task.native.function)
        control = (ctypes.c_int64 * 4)()
        assert kernel(task.native.args, n - 50, n, ctypes.byref(control)) == 0
    expected = sx.cross_entropy(z, [1], reduction="none", backend=name)
    assert (last[-50:] == expected).all()
    assert (last[-99:-50] == 0).all()


def test_memory_that_cannot_be_had():
    """`MemoryError`, and nothing written: 64 TiB of row values."""
    with pytest.raises(MemoryError):
        sx.logsumexp(np.broadcast_to(np.float32(1), (2**44, 3)))


# ---- backends and the environment ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "allowed"), [
    ("SOFTXENT_BACKEND", "cython or numba or numpy"), ("SOFTXENT_MAX_ISA", "v2, v3 or v4"),
    ("SOFTXENT_NUM_THREADS", "at least 1"),
])
def test_environment_value_that_means_nothing(monkeypatch, name, allowed):
    """One RuntimeWarning that names variable, value and cure; then the default, in silence."""
    if name == "SOFTXENT_MAX_ISA" and not sx.explain((1, 1)).isa.startswith("v"):
        pytest.skip("no levels here")
    z, targets = np.zeros((4000, 100)), np.zeros(4000, int)
    monkeypatch.delenv(name, raising=False)
    default = sx.explain(z.shape)
    monkeypatch.setenv(name, f"nonsense of {name}")
    with pytest.warns(RuntimeWarning, match=allowed) as caught:
        sx.cross_entropy(z, targets)
    assert len(caught) == 1
    for part in (name, f"nonsense of {name}"):
        assert part in str(caught[0].message)
    sx.cross_entropy(z, targets)
    plan = sx.explain(z.shape)
    assert (plan.backend, plan.isa, plan.n_threads) == (
        default.backend, default.isa, default.n_threads)


UNAVAILABLE = """
    import os, sys
    import numpy as np

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("softxent.backends.cython._") and name[-5:] != "ckend":
                raise ModuleNotFoundError(name, name=name)

    sys.meta_path.insert(0, Blocker())
    import softxent as sx

    out = np.full((2, 3), 7.25)
    z, targets = np.zeros((2, 3)), [0, 1]
    assert sx.available_backends()["cython"] != "available"
    assert sx.explain((2, 3)).backend in ("numba", "numpy")
    assert sx.cross_entropy(z, targets) > 1

    def by_environment():
        os.environ["SOFTXENT_BACKEND"] = "cython"
        sx.cross_entropy_with_grad(z, targets, grad_out=out)

    for ask in (
        lambda: sx.cross_entropy_with_grad(z, targets, grad_out=out, backend="cython"),
        lambda: sx.softmax(z, backend="cython"),
        lambda: sx.cross_entropy(z[:0], [], backend="cython"),
        lambda: sx.set_backend("cython"),
        lambda: sx.explain((2, 3), backend="cython"),
        by_environment,
    ):
        try:
            ask()
        except sx.BackendUnavailableError as error:
            text = str(error)
            there = text.partition("available: ")[2]
            assert "'cython'" in text and "not built" in text, text
            assert there in ("numpy", "numba, numpy"), text
        else:
            raise AssertionError("accepted")
    assert (out == 7.25).all()
    assert issubclass(sx.BackendUnavailableError, RuntimeError)
"""


def test_backend_that_cannot_be_used(tmp_path):
    """Asked for in any way: the error says why and what there is; nothing is written."""
    path = tmp_path / "case.py"
    path.write_text(textwrap.dedent(UNAVAILABLE))
    done = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=60,
        env={**{k: v for k, v in os.environ.items()
                if k == "SOFTXENT_CACHE_DIR" or not k.startswith("SOFTXENT")},
             "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_misaligned_class_weight_is_realigned():
    """Kernels read class weights through a pointer to float64."""
    record = np.zeros(1, [("flag", "u1"), ("v", "f8", C)])
    record["v"] = np.linspace(1, 2, C)
    weights = record["v"][0]
    assert not weights.flags.aligned
    problem = normalise(LOSSES["cross_entropy"], logits(), TARGETS, class_weight=weights)
    assert problem.call.class_weight.flags.aligned
    assert np.array_equal(problem.call.class_weight, weights)


@pytest.mark.slow  # it measures time, which a busy machine does not keep
def test_rows_of_nan_cost_no_more(level, dtype):
    """M2, roughly: far from the 12 times as long that a masked load from NULL once took."""
    z = logits(dtype, (200, 1025))
    bad = z.copy()
    bad[:, 3] = np.nan
    targets, out = np.arange(200), np.empty_like(z)
    taken = {id(z): [], id(bad): []}
    for _ in range(15):
        for rows in (z, bad):
            began = time.perf_counter()
            with_grad(rows, targets, level.backend, grad_out=out, n_threads=1)
            taken[id(rows)].append(time.perf_counter() - began)
    assert min(taken[id(bad)]) < 3 * min(taken[id(z)])
