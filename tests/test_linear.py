"""softxent.linear: a linear layer's loss and gradients, chunk by chunk, are those of the whole."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import softxent as sx
from softxent import linear
from softxent.linear import LinearGrads, linear_cross_entropy, linear_cross_entropy_with_grad
from test_layers import described, sections

FUNCTIONS = [linear_cross_entropy, linear_cross_entropy_with_grad]


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    """Every test below in one chunk, and in chunks of few rows and blocks of few classes."""
    if request.param == "many chunks":
        monkeypatch.setattr(linear, "_ROWS", 3)
        monkeypatch.setattr(linear, "_LEAST", 0)
        monkeypatch.setattr(linear, "_BLOCK", 4 * 8 * 5)
    return request.param


def layer(n=29, d=5, c=11, dtype=np.float64, seed=0):
    """Input, weight, bias, targets (some ignored)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    y[1::6] = -100
    return (rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((c, d)).astype(dtype),
            rng.standard_normal(c).astype(dtype), y)


def plain(x, w, b, y, *, v=None, s=None, epsilon=0.0, tau=1.0, cap=None, z_loss=0.0,
          ignored=-100):
    """Row losses, straight from `cross_entropy`'s formula, in float64; and D."""
    z = x @ w.T + b
    if cap is not None:
        z = cap * np.tanh(z / cap)
    z = z / tau
    top = z.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    v = np.ones(len(w)) if v is None else np.asarray(v, float)
    s = np.ones(len(x)) if s is None else np.asarray(s, float)
    counts = y != ignored
    safe = np.where(counts, y, 0)
    t = (1 - epsilon) * np.eye(len(w))[safe] + epsilon / len(w)
    losses = s * ((v * t * (lse - z)).sum(axis=1) + z_loss * lse[:, 0] ** 2)
    return np.where(counts, losses, 0.0), float((s * v[safe])[counts].sum())


SETTINGS = {
    "plain": ({}, {}),
    "smoothing": ({"epsilon": 0.1}, {"label_smoothing": 0.1}),
    "temperature": ({"tau": 2.5}, {"temperature": 2.5}),
    "softcap": ({"cap": 2.0}, {"softcap": 2.0}),
    "z-loss": ({"z_loss": 0.02}, {"z_loss": 0.02}),
    "class weights": ({"v": np.arange(11) % 3}, {"class_weight": np.arange(11) % 3}),
    "sample weights": ({"s": np.arange(29) % 4}, {"sample_weight": np.arange(29) % 4}),
    "another ignore_index": ({"ignored": 3}, {"ignore_index": 3}),
    "everything": (
        {"v": np.arange(11) % 3, "s": np.arange(29) % 4, "epsilon": 0.2, "tau": 0.7, "cap": 3.0,
         "z_loss": 0.01},
        {"class_weight": np.arange(11) % 3, "sample_weight": np.arange(29) % 4,
         "label_smoothing": 0.2, "temperature": 0.7, "softcap": 3.0, "z_loss": 0.01}),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_is_the_formula(name, reduction, chunks):
    x, w, b, y = layer()
    of_truth, options = SETTINGS[name]
    if "ignored" in of_truth:
        y = np.where(y == -100, 0, y)
    losses, d = plain(x, w, b, y, **of_truth)
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / d}[reduction]
    loss = linear_cross_entropy(x, w, y, bias=b, reduction=reduction, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-13, atol=1e-15)
    assert isinstance(loss, np.ndarray if reduction == "none" else float)
    again, _ = linear_cross_entropy_with_grad(x, w, y, bias=b, reduction=reduction, **options)
    np.testing.assert_allclose(again, loss, rtol=1e-14)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_finite_differences(name, chunks):
    """Along random directions in x, weight and bias, of the formula: not of the code under test."""
    x, w, b, y = layer()
    of_truth, options = SETTINGS[name]
    if "ignored" in of_truth:
        y = np.where(y == -100, 0, y)
    _, grads = linear_cross_entropy_with_grad(x, w, y, bias=b, reduction="sum", **options)
    rng = np.random.default_rng(1)
    step = 1e-5
    for i, gradient in enumerate(grads):
        for _ in range(4):
            direction = rng.standard_normal(gradient.shape)
            ends = []
            for sign in (1, -1):
                arrays = [x, w, b]
                arrays[i] = arrays[i] + sign * step * direction
                ends.append(plain(*arrays, y, **of_truth)[0].sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            assert (gradient * direction).sum() == pytest.approx(slope, rel=2e-7, abs=1e-7)


@pytest.mark.parametrize(("reduction", "upstream"), [
    ("mean", 1.0), ("mean", -3.5), ("sum", 1024.0), ("none", 2.0),
    ("none", np.linspace(-2, 3, 29))])
def test_gradients_are_the_whole_logits_products(reduction, upstream, chunks):
    x, w, b, y = layer()
    options = {**SETTINGS["everything"][1], "reduction": reduction, "upstream": upstream}
    loss, g = sx.cross_entropy_with_grad(x @ w.T + b, y, **options)
    found, grads = linear_cross_entropy_with_grad(x, w, y, bias=b, **options)
    np.testing.assert_allclose(found, loss, rtol=1e-13)
    for ours, whole in zip(grads, (g @ w, g.T @ x, g.sum(axis=0)), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-11, atol=1e-14)


def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_narrow_dtypes(kind, chunks):
    """Within what products in float32 can lose, against float64; 16-bit: rounded once."""
    dtype = np.dtype(bfloat16() if kind == "bfloat16" else kind)
    x, w, b, y = layer(dtype=dtype)
    wide = [a.astype(np.float64) for a in (x, w, b)]
    losses, d = plain(*wide, y)
    loss, grads = linear_cross_entropy_with_grad(x, w, y, bias=b)
    assert loss == pytest.approx(losses.sum() / d, rel=1e-6)
    rows = linear_cross_entropy(x, w, y, bias=b, reduction="none")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, losses, rtol=1e-5, atol=1e-7)
    g = sx.cross_entropy_with_grad(wide[0] @ wide[1].T + wide[2], y)[1]
    unit = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[kind]
    for ours, whole in zip(grads, (g @ wide[1], g.T @ wide[0], g.sum(axis=0)), strict=True):
        assert ours.dtype == dtype
        smallest = 2.0**-25 if kind == "float16" else 0.0
        np.testing.assert_allclose(ours.astype(np.float64), whole, rtol=1.001 * unit,
                                   atol=1e-6 + smallest)


def test_sums_of_16_bit_gradients_are_not_of_16_bits(monkeypatch):
    """Four thousand equal shares of 2**-12 each: a bfloat16 sum would stop at a few."""
    dtype = bfloat16()
    monkeypatch.setattr(linear, "_ROWS", 1)
    monkeypatch.setattr(linear, "_LEAST", 0)
    n = 4096
    x, w = np.ones((n, 1), dtype), np.zeros((2, 1), dtype)
    _, grads = linear_cross_entropy_with_grad(x, w, np.zeros(n, int), bias=np.zeros(2, dtype))
    assert grads.weight.astype(float).tolist() == [[-0.5], [0.5]]
    assert grads.bias.astype(float).tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("layout", ["F", "reversed", "strided", "foreign", "read-only", "weight.T"])
def test_layouts(layout, chunks):
    x, w, b, y = layer()
    expected = linear_cross_entropy_with_grad(x, w, y, bias=b)
    if layout == "F":
        x, w = np.asfortranarray(x), np.asfortranarray(w)
    elif layout == "reversed":
        x, w, y = x[::-1].copy()[::-1], w[:, ::-1].copy()[:, ::-1], y[::-1].copy()[::-1]
    elif layout == "strided":
        x, w, b = np.repeat(x, 2, 1)[:, ::2], np.repeat(w, 3, 0)[::3], np.repeat(b, 2)[::2]
    elif layout == "foreign":
        x, w, y = x.astype(">f8"), w.astype(">f8"), y.astype(">i4")
    elif layout == "weight.T":
        w = w.T.copy().T
    else:
        for array in (x, w, b, y):
            array.flags.writeable = False
    before = [array.copy() for array in (x, w, b, y)]
    loss, grads = linear_cross_entropy_with_grad(x, w, y, bias=b)
    for array, copy in zip((x, w, b, y), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert loss == pytest.approx(expected[0], rel=1e-13)
    for ours, other, given in zip(grads, expected[1], (x, w, b), strict=True):
        assert ours.dtype == given.dtype
        assert ours.flags.c_contiguous
        np.testing.assert_allclose(ours, other, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("order", ["C", "F"])
def test_more_dimensions(order, chunks):
    x, w, b, y = layer(n=24)
    s = np.arange(24) % 3
    whole, of_rows = linear_cross_entropy_with_grad(x, w, y, bias=b, sample_weight=s,
                                                    reduction="none")
    cube = x.reshape(2, 3, 4, 5).copy(order)
    shape = (2, 3, 4)
    losses, grads = linear_cross_entropy_with_grad(
        cube, w, y.reshape(shape), bias=b, sample_weight=s.reshape(shape), reduction="none",
        upstream=np.ones(shape))
    np.testing.assert_allclose(losses, whole.reshape(shape), rtol=1e-13)
    assert grads.x.shape == cube.shape
    np.testing.assert_allclose(grads.x.reshape(24, 5), of_rows.x, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(grads.weight, of_rows.weight, rtol=1e-12, atol=1e-15)


def test_one_row():
    x, w, b, _ = layer(n=1)
    loss, grads = linear_cross_entropy_with_grad(x[0], w, 4, bias=b, reduction="none")
    assert loss.shape == ()
    assert loss == pytest.approx(plain(x, w, b, np.array([4]))[0][0])
    assert grads.x.shape == (5,)


def test_without_bias(chunks):
    x, w, b, y = layer()
    loss, grads = linear_cross_entropy_with_grad(x, w, y)
    same, others = linear_cross_entropy_with_grad(x, w, y, bias=0 * b)
    assert loss == same
    assert grads.bias is None
    np.testing.assert_array_equal(grads.x, others.x)
    np.testing.assert_array_equal(grads.weight, others.weight)


@pytest.mark.parametrize("left_out", ["ignored", "sample weight", "class weight"])
def test_rows_that_do_not_count_are_not_used(left_out, chunks):
    """NaN in them reaches nothing: 0 times NaN is not 0, so they must not be multiplied."""
    x, w, b, y = layer()
    y[y == -100] = 7
    out = y == 7
    options = {"ignored": {"ignore_index": 7}, "sample weight": {"sample_weight": 1.0 - out},
               "class weight": {"class_weight": (np.arange(11) != 7).astype(float)}}[left_out]
    kept = linear_cross_entropy_with_grad(x[~out], w, y[~out], bias=b, reduction="none")
    x[out] = np.nan
    losses, grads = linear_cross_entropy_with_grad(x, w, y, bias=b, reduction="none", **options)
    assert np.array_equal(losses[out], np.zeros(out.sum()))
    assert not np.signbit(losses[out]).any()
    np.testing.assert_allclose(losses[~out], kept[0], rtol=1e-13)
    assert not grads.x[out].any()
    for ours, other in zip(grads[1:], kept[1][1:], strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-12, atol=1e-15)
    mean, _ = linear_cross_entropy_with_grad(x, w, y, bias=b, **options)
    assert mean == pytest.approx(kept[0].mean(), rel=1e-13)


@pytest.mark.parametrize("empty", ["all ignored", "no rows", "divisor 0", "no features"])
def test_nothing(empty):
    x, w, b, y = layer()
    options = {}
    expected = 0.0
    if empty == "all ignored":
        y[:] = -100
    elif empty == "no rows":
        x, y = x[:0], []
    elif empty == "divisor 0":
        options = {"divisor": 0}
    else:
        x, w, b = x[:, :0], w[:, :0], 0 * b
        expected = np.log(11)
    loss, grads = linear_cross_entropy_with_grad(x, w, y, bias=b, **options)
    assert loss == pytest.approx(expected)
    assert [g.shape for g in grads] == [x.shape, w.shape, b.shape]
    if empty != "no features":
        assert not any(g.any() for g in grads)


def test_a_bias_of_minus_infinity_excludes_a_class(chunks):
    x, w, b, y = layer()
    y[y == 6] = 5
    kept = np.arange(11) != 6
    narrower = np.where(y > 6, y - 1, y)
    expected = linear_cross_entropy_with_grad(x, w[kept], narrower, bias=b[kept])
    b[6] = -np.inf
    loss, grads = linear_cross_entropy_with_grad(x, w, y, bias=b)
    assert loss == pytest.approx(expected[0], rel=1e-13)
    assert not grads.weight[6].any()
    assert not grads.bias[6]
    np.testing.assert_allclose(grads.x, expected[1].x, rtol=1e-12, atol=1e-15)


def test_overflow_is_silent_and_stays_in_its_rows(chunks):
    x, w, _, y = layer(dtype=np.float32)
    x[2] = 3e38
    losses, grads = linear_cross_entropy_with_grad(x, w * 10, y, reduction="none")
    assert np.isnan(losses[2])
    others = np.arange(len(x)) != 2
    assert np.isfinite(losses[others]).all()
    assert np.isfinite(grads.x[others]).all()


def test_micro_batches_add_up():
    x, w, b, y = layer()
    whole, of_whole = linear_cross_entropy_with_grad(x, w, y, bias=b)
    d = sx.mean_divisor(y)
    parts = [linear_cross_entropy_with_grad(x[rows], w, y[rows], bias=b, divisor=d)
             for rows in (slice(0, 10), slice(10, 29))]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-13)
    np.testing.assert_allclose(sum(g.weight for _, g in parts), of_whole.weight, rtol=1e-12,
                               atol=1e-16)


def test_backends_and_threads():
    x, w, b, y = layer()
    loss = linear_cross_entropy(x, w, y, bias=b)
    for backend, state in sx.available_backends().items():
        if state == "available":
            assert linear_cross_entropy(x, w, y, bias=b, backend=backend,
                                        n_threads=1) == pytest.approx(loss, rel=1e-13)


# ---- bad input -----------------------------------------------------------------------------------

X, W, B, Y = layer()
BAD = {
    "x: integers": (TypeError, "x must be float32, float64, float16 or bfloat16, got int64; "
                    "convert it with x.astype", (X.astype(int), W, Y), {}),
    "x: a scalar": (ValueError, "x must have shape (..., 5)", (np.float64(1), W, Y), {}),
    "x: features": (ValueError, "weight's features last; got x (29, 4) and weight (11, 5)",
                    (X[:, :4], W, Y), {}),
    "x: masked": (TypeError, "x must not be a masked array",
                  (np.ma.masked_array(X, X > 1), W, Y), {}),
    "weight: transposed": (ValueError, "pass weight.T", (X[:, :5], W.T, Y), {}),
    "weight: dimensions": (ValueError, "weight must have shape (C, D) with C >= 1, got (5,)",
                           (X, W[0], Y), {}),
    "weight: no class": (ValueError, "C >= 1, got (0, 5)", (X, W[:0], Y), {}),
    "weight: dtype": (TypeError, "weight must have the dtype of x, float64, got float32",
                      (X, W.astype("f4"), Y), {}),
    "bias: dtype": (TypeError, "bias must have the dtype of x", (X, W, Y),
                    {"bias": B.astype("f4")}),
    "bias: shape": (ValueError, "bias must have shape (11,), one a class; got (5,)", (X, W, Y),
                    {"bias": B[:5]}),
    "targets: shape": (ValueError, "x (29, 5) needs targets of shape (29,), got (28,)",
                       (X, W, Y[1:]), {}),
    "targets: floats": (TypeError, "targets must be integers, got dtype float64",
                        (X, W, Y * 1.0), {}),
    "targets: bool": (TypeError, "targets must be integers, got dtype bool", (X, W, Y > 3), {}),
    "targets: masked": (TypeError, "masked", (X, W, np.ma.masked_array(Y, Y > 3)), {}),
    "targets: range": (IndexError, "targets[27] = 11 is out of range for 11 classes (0…10); "
                       "labels that start at 1?", (X, W, np.where(np.arange(29) == 27, 11, Y)), {}),
    "targets: N-D range": (IndexError, "targets[3, 1] = -7 is out of range", (
        X[:28].reshape(4, 7, 5), W, np.where(np.arange(28) == 22, -7, Y[:28]).reshape(4, 7)), {}),
    "class_weight: shape": (ValueError, "class_weight must have shape (11,)", (X, W, Y),
                            {"class_weight": np.ones(10)}),
    "class_weight: value": (ValueError, "class_weight[4] = -1", (X, W, Y),
                            {"class_weight": np.where(np.arange(11) == 4, -1, 1)}),
    "sample_weight: shape": (ValueError, "sample_weight must have shape (29,)", (X, W, Y),
                             {"sample_weight": np.ones(28)}),
    "sample_weight: value": (ValueError, "sample_weight[23] = nan", (X, W, Y),
                             {"sample_weight": np.where(np.arange(29) == 23, np.nan, 1.0)}),
    "sample_weight: sum": (ValueError, "overflows float64", (X, W, Y),
                           {"sample_weight": np.full(29, 1e308)}),
    "reduction": (ValueError, "reduction must be one of", (X, W, Y), {"reduction": "total"}),
    "divisor": (ValueError, "divisor replaces the mean's", (X, W, Y),
                {"reduction": "sum", "divisor": 3.0}),
    "label_smoothing": (ValueError, "label_smoothing must be within [0, 1]", (X, W, Y),
                        {"label_smoothing": 1.5}),
    "temperature": (ValueError, "temperature must be > 0", (X, W, Y), {"temperature": 0.0}),
    "ignore_index": (TypeError, "ignore_index must be an integer", (X, W, Y),
                     {"ignore_index": 1.5}),
    "backend": (ValueError, "backend", (X, W, Y), {"backend": "cuda"}),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_input(function, name, monkeypatch):
    """Refused with what must hold, what came and what to do, before a product is computed."""
    error, message, arguments, options = BAD[name]
    monkeypatch.setattr(np, "matmul", None)
    with pytest.raises(error, match=re.escape(message)):
        function(*arguments, **options)


@pytest.mark.parametrize(("upstream", "reduction"), [
    (np.ones(28), "none"), (np.ones(29), "mean"), (np.ones((1, 1)), "sum")])
def test_bad_upstream(upstream, reduction):
    with pytest.raises(ValueError, match="upstream must be a scalar"):
        linear_cross_entropy_with_grad(X, W, Y, reduction=reduction, upstream=upstream)
    with pytest.raises(TypeError, match="upstream must be real numbers"):
        linear_cross_entropy_with_grad(X, W, Y, reduction=reduction, upstream=None)


# ---- memory --------------------------------------------------------------------------------------


def rise(function, *arguments):
    """The most that a call had at a time, of what NumPy tells tracemalloc; what it returns."""
    x, w, y = arguments
    function(x[:2], w, y[:2])    # what is imported at a first call
    tracemalloc.start()
    try:
        found = function(*arguments)
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("n", "d", "c", "dtype"), [
    (4000, 8, 20_000, "f4"),                 # logits of 320 MB
    (4000, 8, 20_000, "f8"),
    (4000, 8, 20_000, "f2"),
    (120, 40_000, 600, "f4"),                # weight of 96 MB, added to in blocks
    (400_000, 30, 4, "f4"),                  # many rows of few classes
    (40, 2, 700_000, "f4"),
])
def test_memory(n, d, c, dtype):
    """Beside inputs and gradients 64 MB, and 16 bits: a float32 array of the weight's shape."""
    x, w = np.ones((n, d), dtype), np.zeros((c, d), dtype)
    y = np.arange(n) % c
    peak, (_, grads) = rise(linear_cross_entropy_with_grad, x, w, y)
    beside = peak - grads.x.nbytes - grads.weight.nbytes
    assert beside <= 64e6 + (4 * w.size if dtype == "f2" else 0)
    if n * c > 1e8:
        assert beside < n * c * x.itemsize / 1.9
    y[::3] = -100    # rows are then gathered
    peak, _ = rise(linear_cross_entropy, x, w, y)
    assert peak <= 64e6


def test_memory_of_strided_input_of_more_dimensions():
    """No copy of all of it."""
    x = np.ones((30, 1000, 2000), np.float32).transpose(1, 2, 0)[:, :1000]    # 120 MB
    peak, _ = rise(linear_cross_entropy, x, np.zeros((4, 30), np.float32),
                   np.zeros(x.shape[:-1], np.int8))
    assert peak <= 64e6


# ---- names ---------------------------------------------------------------------------------------


def test_options_are_those_of_cross_entropy():
    """All of them but the axis and the logits' own output, with the same defaults."""
    for ours, theirs in zip(FUNCTIONS, (sx.cross_entropy, sx.cross_entropy_with_grad), strict=True):
        options = dict(inspect.signature(theirs).parameters)
        for name in ("logits", "targets", "axis", "grad_out"):
            options.pop(name, None)
        found = dict(inspect.signature(ours).parameters)
        for name in ("x", "weight", "targets", "bias"):
            del found[name]
        assert found == options


@pytest.mark.parametrize("function", FUNCTIONS)
def test_is_documented(function):
    found = sections(function)
    assert described(found["Parameters"]) == list(inspect.signature(function).parameters)
    assert {"Returns", "Raises", "Notes", "Examples"} <= set(found)
    assert "memory" in found["Notes"].lower()


def test_is_imported_only_when_asked_for():
    done = subprocess.run([sys.executable, "-W", "error", "-c", """
import sys
import softxent as sx
assert "softxent.linear" not in sys.modules
sx.LinearGrads
assert "softxent.linear" in sys.modules
"""], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(
            os.path.abspath(path) for path in sys.path if path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert sx.LinearGrads is LinearGrads
