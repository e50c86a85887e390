"""Properties that hold for any call, over shapes, memory, types and options drawn by Hypothesis.

The same examples each time, and few. `SOFTXENT_EXAMPLES=20000` draws others, so many a test;
`python tests/search.py MINUTES` goes on doing so.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="draws the examples")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softxent as sx
import test_option_pairs as pairs
import truth
from guard import Guarded
from levels import share_all
from softxent import _plan

SEARCH = int(os.environ.get("SOFTXENT_EXAMPLES", "0"))
bounded = settings(
    max_examples=SEARCH or 150, derandomize=not SEARCH, deadline=None, database=None,
    # `level` sets the environment and `threads` a constant: the same for every example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EPS = 2.0**-52


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Every thread takes part, a few rows at a time, however small the call is."""
    share_all(monkeypatch)
    monkeypatch.setattr(_plan, "ROWS_TOGETHER", 1)
    plan = sx.explain((64, 2))
    assert plan.n_threads == sx.get_num_threads() or plan.backend == "numpy"
    assert plan.grain < 16
    yield
    _plan.forget_plans()


# ---- what is drawn -------------------------------------------------------------------------------


@dataclass
class Example:
    """A call with classes last, everything C-contiguous and native."""

    logits: np.ndarray
    targets: np.ndarray
    options: dict = field(default_factory=dict)

    def run(self, level, **changes):
        options = {"reduction": "none", "backend": level.backend, **self.options, **changes}
        z, targets = options.pop("logits", self.logits), options.pop("targets", self.targets)
        return sx.cross_entropy_with_grad(z, targets, **options)


DTYPES = st.sampled_from(["float32", "float64"])
CLASSES = st.integers(1, 70) | st.integers(1, 300) | st.sampled_from([1023, 1024, 1025, 1030])
WEIGHTS = st.sampled_from(["f4", "f8", "f2", "i1", "u8", ">f4", ">i4", "?"])
SEEDS = st.integers(0, 2**32 - 1)


def values(rng, dtype, shape, special):
    z = rng.normal(0, rng.choice([0.1, 3, 40, 1000]), shape)
    if special:
        z = np.where(rng.random(shape) < 0.1, np.round(z), z)  # ties
        z[rng.random(shape) < 0.05] = -np.inf
        z[..., 0] = np.where(rng.random(shape[:-1]) < 0.05, np.nan, z[..., 0])
        z *= np.where(rng.random(shape[:-1]) < 0.05, 1e30, 1.0)[..., None]
    return z.astype(dtype)


@st.composite
def examples(draw, special=True, options=True, min_rows=0):
    rng = np.random.default_rng(draw(SEEDS))
    n_classes = draw(CLASSES)
    rows = tuple(draw(st.lists(st.integers(min_rows, 9 if n_classes > 300 else 40), max_size=3)))
    while math.prod(rows) * n_classes > 30_000:
        rows = rows[1:]
    with np.errstate(over="ignore", invalid="ignore"):
        z = values(rng, draw(DTYPES), (*rows, n_classes), special)
    targets = rng.integers(0, n_classes, rows)
    example = Example(z, targets)
    if options:
        if draw(st.booleans()):
            weight = rng.integers(0, 2 if (code := draw(WEIGHTS)) == "?" else 4, rows)
            example.options["sample_weight"] = np.asarray(weight, code)
        if draw(st.booleans()):
            weight = np.asarray(rng.integers(0, 9, n_classes) / 4, draw(WEIGHTS))
            example.options["class_weight"] = weight
        if draw(st.booleans()):
            example.options["upstream"] = np.asarray(rng.integers(-4, 5, rows) / 2, "f8")
        ignored = draw(st.sampled_from([-100, None, 0, n_classes - 1]))
        example.options["ignore_index"] = ignored
        if ignored == -100:
            example.targets = np.where(rng.random(rows) < 0.2, -100, targets)
    return example


@st.composite
def memory(draw, ndim):
    """Return a function: an array of `ndim` axes to the same values in other memory."""
    order = draw(st.permutations(range(ndim)))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, -1, -3]), min_size=ndim, max_size=ndim))
    swapped, shift = draw(st.booleans()), draw(st.sampled_from([0, 0, 1, 4]))

    def place(array):
        dtype = array.dtype.newbyteorder() if swapped else array.dtype
        shape = [array.shape[axis] * abs(steps[axis]) for axis in order]
        raw = np.zeros(math.prod(shape) * dtype.itemsize + shift, np.uint8)
        moved = np.ndarray(shape, dtype, raw, shift).transpose(np.argsort(order))
        moved = moved[(..., *(slice(None, None, step) for step in steps))]
        moved[...] = array
        return moved

    return place


def same(got, expected):
    """The same bits, NaN for NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.shape, got.dtype.newbyteorder("=")) == (expected.shape, expected.dtype)
    got = np.array(got, expected.dtype, order="C")
    nan = np.isnan(expected)
    assert (np.isnan(got) == nan).all()
    raw = f"u{expected.itemsize}"
    got, expected = np.where(nan, 0, got), np.where(nan, 0, expected)
    np.testing.assert_array_equal(got.view(raw), expected.view(raw))


# ---- E7: the bits are the values' ----------------------------------------------------------------


@bounded
@given(data=st.data())
def test_same_bits_in_any_memory(level, data):
    """Axis, strides, order, byte order and alignment of every argument; threads; `grad_out`."""
    example = data.draw(examples())
    reduction = data.draw(st.sampled_from(["none", "sum", "mean"]))
    if reduction != "none":
        example.options.pop("upstream", None)
    expected = example.run(level, n_threads=1, reduction=reduction)

    ndim = example.logits.ndim
    axis = data.draw(st.integers(0, ndim - 1))
    z = data.draw(memory(ndim))(np.moveaxis(example.logits, -1, axis))
    changes = {"targets": data.draw(memory(ndim - 1))(example.targets)}
    for name in ("sample_weight", "upstream", "class_weight"):
        if name in example.options:
            array = example.options[name]
            changes[name] = data.draw(memory(array.ndim))(array)
    changes["targets"] = changes["targets"].astype(data.draw(st.sampled_from(["i2", ">i4", "i8"])))
    out = data.draw(st.sampled_from(["fresh", "in place", "elsewhere"]))
    if out == "in place":
        changes["grad_out"] = z
    elif out == "elsewhere":
        changes["grad_out"] = data.draw(memory(ndim))(np.zeros_like(z))
    loss, g = example.run(
        level, logits=z, reduction=reduction, axis=data.draw(st.sampled_from([axis, axis - ndim])),
        n_threads=data.draw(st.integers(1, 4)), **changes,
    )
    same(loss, expected[0])
    same(np.moveaxis(g, axis, -1), expected[1])
    if out != "fresh":
        assert np.shares_memory(g, changes["grad_out"]) or not g.size


@bounded
@given(data=st.data())
def test_pieces_same_bits_in_any_memory(level, data):
    example = data.draw(examples(options=False))
    ndim = example.logits.ndim
    axis = data.draw(st.integers(0, ndim - 1))
    z = data.draw(memory(ndim))(np.moveaxis(example.logits, -1, axis))
    options = {"backend": level.backend, "n_threads": data.draw(st.integers(1, 4)), "axis": axis}
    plain = {"backend": level.backend, "n_threads": 1}
    same(sx.logsumexp(z, **options), sx.logsumexp(example.logits, **plain))
    kept = sx.logsumexp(z, keepdims=True, **options)
    assert kept.shape == tuple(1 if i == axis else n for i, n in enumerate(z.shape))
    for function in (sx.softmax, sx.log_softmax):
        expected = function(example.logits, **plain)
        in_place = z.copy(order="K")
        outs = {"fresh": None, "in place": in_place,
                "elsewhere": data.draw(memory(ndim))(np.zeros_like(z))}
        for name, out in outs.items():
            got = function(in_place if name == "in place" else z, out=out, **options)
            same(np.moveaxis(got, axis, -1), expected)


@bounded
@given(data=st.data())
def test_rows_do_not_know_one_another(level, data):
    """A row's bits are the same by itself, in any subset and in any order."""
    example = data.draw(examples(min_rows=1))
    n_classes = example.logits.shape[-1]
    loss, g = example.run(level)
    some = data.draw(st.lists(st.integers(0, loss.size - 1), min_size=1, max_size=12))
    changes = {name: example.options[name].reshape(-1)[some]
               for name in ("sample_weight", "upstream") if name in example.options}
    got, g_got = example.run(level, logits=example.logits.reshape(-1, n_classes)[some],
                             targets=example.targets.reshape(-1)[some], **changes)
    same(got, loss.reshape(-1)[some])
    same(g_got, g.reshape(-1, n_classes)[some])


# ---- reductions ----------------------------------------------------------------------------------


def weights_of(example):
    """s·v of every row as exact float64 numbers, 0 where it does not count; independently."""
    targets, ignored = example.targets, example.options.get("ignore_index", -100)
    s = np.asarray(example.options.get("sample_weight", np.ones(targets.shape)), float)
    v = np.asarray(example.options.get("class_weight", np.ones(example.logits.shape[-1])), float)
    counts = np.full(targets.shape, True) if ignored is None else targets != ignored
    return np.where(counts, s * v[np.where(counts, targets, 0)], 0.0).reshape(-1)


@bounded
@given(example=examples(special=False))
def test_sum_and_mean_are_those_of_the_rows(level, example):
    """A7 against math.fsum of "none", whose rounding to float32 is all that may differ."""
    example.options.pop("upstream", None)
    rows = np.asarray(example.run(level)[0], float).reshape(-1)
    size = math.fsum(abs(rows))
    unit = 2.0**-24 if example.logits.dtype == np.float32 else 0.0
    allowed = size * (unit + 8 * EPS) + rows.size * (2.0**-149 if unit else 0)
    total, g_sum = example.run(level, reduction="sum")
    mean, g_mean = example.run(level, reduction="mean")
    assert abs(total - math.fsum(rows)) <= allowed
    divisor = math.fsum(weights_of(example))
    if divisor == 0:
        assert (mean, abs(g_mean).sum()) == (0, 0)
        return
    assert abs(mean - total / divisor) <= 2 * EPS * size / divisor
    assert sx.cross_entropy(example.logits, example.targets, backend=level.backend,
                            **example.options) == mean
    same(g_mean, example.run(level, reduction="sum", upstream=1 / divisor)[1])
    same(example.run(level, reduction="mean", divisor=1.0)[1], g_sum)


@bounded
@given(example=examples(special=False, min_rows=1), data=st.data())
def test_micro_batches_add_up(level, example, data):
    """With one divisor: gradients to the bit, losses to the rounding of the additions."""
    example.options.pop("upstream", None)
    n_classes = example.logits.shape[-1]
    z, targets = example.logits.reshape(-1, n_classes), example.targets.reshape(-1)
    divisor = math.fsum(weights_of(example))
    if "sample_weight" in example.options:
        example.options["sample_weight"] = example.options["sample_weight"].reshape(-1)
    whole, g = example.run(level, logits=z, targets=targets, reduction="mean")
    cut = data.draw(st.integers(0, len(z)))
    parts, grads = [], []
    for part in (slice(0, cut), slice(cut, None)):
        changes = {name: example.options[name][part]
                   for name in ("sample_weight",) if name in example.options}
        loss, grad = example.run(level, logits=z[part], targets=targets[part], reduction="mean",
                                 divisor=divisor, **changes)
        parts.append(loss)
        grads.append(grad)
    same(np.concatenate(grads), g)
    assert abs(sum(parts) - whole) <= 8 * EPS * whole


# ---- identities ----------------------------------------------------------------------------------


@bounded
@given(example=examples(options=False), data=st.data())
def test_weights_of_one_change_nothing(level, example, data):
    """Of any type, with any reduction."""
    reduction = data.draw(st.sampled_from(["none", "sum", "mean"]))
    expected = example.run(level, reduction=reduction)
    for name, shape in (("sample_weight", example.targets.shape),
                        ("class_weight", example.logits.shape[-1:]), ("upstream", ())):
        ones = np.ones(shape, data.draw(WEIGHTS))
        for got, wanted in zip(example.run(level, reduction=reduction, **{name: ones}), expected,
                               strict=True):
            same(got, wanted)


@bounded
@given(example=examples(special=False, options=False, min_rows=1), seed=SEEDS)
def test_a_weight_is_a_row_repeated(level, example, seed):
    """Sums, means and the gradients' column sums, for weights of 0 to 3."""
    n_classes = example.logits.shape[-1]
    z, targets = example.logits.reshape(-1, n_classes), example.targets.reshape(-1)
    times = np.random.default_rng(seed).integers(0, 4, len(z)).astype(np.uint8)
    run = {"targets": np.repeat(targets, times), "logits": np.repeat(z, times, axis=0)}
    for reduction in ("sum", "mean"):
        expected, g_repeated = example.run(level, reduction=reduction, **run)
        got, g = example.run(level, logits=z, targets=targets, sample_weight=times,
                             reduction=reduction)
        assert abs(got - expected) <= 16 * EPS * expected
        # One of times[i] equal rows; A5 for it, times[i], and for ours.
        first = np.cumsum(times) - times
        shown = times > 0
        alone = g_repeated[first[shown]].astype(truth.LD)
        ulps, flushed = {"float32": 12, "float64": 18}[z.dtype.name], 4 * truth.F[z.dtype.name]
        errors = truth.ulp_error(g[shown], alone * times[shown, None], z.dtype.name, flushed)
        assert (errors <= ulps).all()
        assert (g[~shown] == 0).all()


@bounded
@given(example=examples(special=False), power=st.integers(-40, 40), sign=st.sampled_from([-1, 1]))
def test_upstream_scales(level, example, power, sign):
    """By powers of two, and by -1: exactly, where nothing leaves the normal numbers."""
    rows = example.options.pop("upstream", np.ones(example.targets.shape))
    _, g = example.run(level, upstream=rows)
    _, scaled = example.run(level, upstream=rows * (sign * 2.0**power))
    wanted = np.ldexp(g, power) * sign
    least = truth.F[g.dtype.name] * 2.0**30
    normal = (abs(g) >= least) & (abs(wanted) >= least)
    np.testing.assert_array_equal(scaled[normal], wanted[normal])
    assert (abs(scaled[~normal]) <= 2 * max(1, 2.0**power) * least).all()
    _, scalar = example.run(level, upstream=sign * 2.0**power)
    _, filled = example.run(level, upstream=np.full(rows.shape, sign * 2.0**power))
    same(scalar, filled)


@bounded
@given(example=examples(special=False, options=False), seed=SEEDS)
def test_permuted_classes(level, example, seed):
    """Results move with their classes, within twice the bounds of A3 and A5."""
    dtype = example.logits.dtype.name
    ulps = {"float32": 4, "float64": 6}[dtype]
    n_classes = example.logits.shape[-1]
    order = np.random.default_rng(seed).permutation(n_classes)
    loss, g = example.run(level)
    moved_loss, moved = example.run(
        level, logits=np.ascontiguousarray(example.logits[..., order]),
        targets=np.argsort(order)[example.targets],
    )
    flushed = n_classes * truth.F[dtype]
    assert (truth.ulp_error(moved_loss, loss.astype(truth.LD), dtype, flushed) <= 2 * ulps).all()
    errors = truth.ulp_error(moved, g[..., order].astype(truth.LD), dtype, flushed)
    assert (errors <= 2 * ulps).all()


@bounded
@given(example=examples(special=False, options=False))
def test_pieces_and_gradient_say_the_same(level, example):
    """The gradient is softmax but for the target, whose loss is minus its log-probability."""
    dtype = example.logits.dtype.name
    ulps = {"float32": 8, "float64": 12}[dtype]
    loss, g = example.run(level)
    p = sx.softmax(example.logits, backend=level.backend)
    log_p = sx.log_softmax(example.logits, backend=level.backend)
    at = example.targets[..., None]
    flushed = example.logits.shape[-1] * truth.F[dtype]
    target_loss = -np.take_along_axis(log_p, at, -1)[..., 0].astype(truth.LD)
    assert (truth.ulp_error(loss, target_loss, dtype, flushed) <= ulps).all()
    np.put_along_axis(g, at, 0, -1)
    np.put_along_axis(p, at, 0, -1)
    assert (truth.ulp_error(g, p.astype(truth.LD), dtype, truth.F[dtype]) <= ulps).all()


# ---- any options, beside memory that faults ------------------------------------------------------

OPTIONS = {
    (loss, kind): st.fixed_dictionaries({}, optional={
        name: st.sampled_from(pairs.VALUES[name])
        for name in pairs.LOSSES[loss].options[kind]})
    for loss, kind in pairs.KINDS
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
@bounded
@given(data=st.data())
def test_any_options_beside_guards(level, data):
    """Right within the bounds, with any options together, and nothing beyond an array's ends."""
    loss, kind = data.draw(st.sampled_from(pairs.KINDS))
    values = data.draw(OPTIONS[loss, kind])
    if values.get("reduction", "mean") != "mean":
        values.pop("divisor", None)
    drawn = pairs.Combination(loss, kind, values, data.draw(st.sampled_from(pairs.DTYPES)),
                              data.draw(SEEDS))

    def placed(array, rng):
        moved = elsewhere(array, rng)
        if moved.size == 0 or rng.random() < 0.2:
            return moved
        return Guarded(moved.nbytes).place(moved, bool(rng.random() < 0.5))

    elsewhere = pairs.placed
    with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore", over="ignore"):
        patch.setattr(pairs, "placed", placed)
        found = list(pairs.faults(pairs.example(drawn), level))
    assert not found, (str(drawn), found)
