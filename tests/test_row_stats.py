"""Row statistics: any split of the classes, merged in any way, is the unsplit cross-entropy."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rows
import softxent as sx
import truth
from accuracy_table import (
    FORMATS,
    beyond,
    bound,
    forgiven,
    gradient_allowance,
    loss_allowance,
    loss_unit,
    quantities,
    storage,
)
from test_accuracy import assert_positive_zero, bits

#: Options of the loss, and of the statistics, by name.
SETTINGS = {
    "plain": {},
    "weights": {"class_weight": True, "sample_weight": True},
    "temperature": {"temperature": 0.7},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, weights": {"label_smoothing": 0.2, "class_weight": True, "sample_weight": True,
                           "temperature": 3.0},
    "z-loss": {"z_loss": 1e-2, "temperature": 1.5},
    "softcap": {"softcap": 30.0},
    "everything": {"label_smoothing": 0.1, "class_weight": True, "sample_weight": True,
                   "temperature": 1.7, "softcap": 20.0, "z_loss": 1e-2},
}
OF_STATS = ("temperature", "softcap")
OF_ROWS = ("sample_weight", "upstream")


class Sharded:
    """A call whose classes are in blocks between `cuts`."""

    def __init__(self, level, z, y, cuts, *, axis=-1, **options):
        self.level, self.z, self.y, self.axis = level, z, y, axis
        self.run = {"backend": level.backend}
        self.v = options.pop("class_weight", None)
        self.stats_options = {name: options.pop(name) for name in OF_STATS if name in options}
        self.softcap = self.stats_options.get("softcap")
        self.options = options
        edges = [0, *cuts, z.shape[axis]]
        self.blocks = list(pairwise(edges))

    def block(self, a, b):
        """Logits and what else a block has."""
        z = np.take(self.z, range(a, b), self.axis)
        return z, {"class_offset": a, "axis": self.axis, **self.run,
                   "class_weight": None if self.v is None else self.v[a:b]}

    def parts(self):
        """Statistics of every block."""
        found = []
        for a, b in self.blocks:
            z, own = self.block(a, b)
            ignored = {name: self.options[name] for name in ("ignore_index",)
                       if name in self.options}
            found.append(sx.row_stats(z, self.y, **own, **self.stats_options, **ignored))
        return found

    def stats(self):
        """All of them, merged left to right."""
        merged, *rest = self.parts()
        for part in rest:
            merged = sx.merge_row_stats(merged, part)
        return merged

    def results(self, **more):
        """Loss and gradient."""
        stats, options = self.stats(), {**self.options, **more}
        alone = {name: value for name, value in options.items() if name != "upstream"}
        loss = sx.finish_row_stats(stats, self.y, **alone)
        gradients = []
        for a, b in self.blocks:
            z, own = self.block(a, b)
            gradients.append(sx.grad_from_row_stats(z, self.y, stats, softcap=self.softcap, **own,
                                                    **options))
        return loss, np.concatenate(gradients, self.axis)


def drawn(name, n_classes, n_rows):
    """The options of a setting, their arrays drawn."""
    rng = np.random.default_rng([n_classes, n_rows])
    options = dict(SETTINGS[name])
    if options.get("class_weight"):
        options["class_weight"] = np.where(
            rng.random(n_classes) < 0.1, 0, np.exp(rng.normal(0, 1, n_classes)))
    if options.get("sample_weight"):
        options["sample_weight"] = np.exp(rng.normal(0, 1, n_rows))
        options["upstream"] = rng.normal(0, 3, n_rows)
    return options


@pytest.mark.parametrize("n_classes", [1, 2, 3, 33, 65, 1025])
@pytest.mark.parametrize("name", SETTINGS)
def test_any_split_is_within_the_contract(level, any_dtype, name, n_classes):
    """A3, A5, A6, A8 over every family of rows, whatever the split."""
    wide = "float64" if any_dtype == "float64" else "float32"
    case = rows.some(rows.case(n_classes, wide), 1)
    with np.errstate(over="ignore"):
        z = case.logits.astype(storage(any_dtype))
    kept = np.isfinite(z.astype(float).max(axis=1))
    z, y = z[kept], case.targets[kept]
    options = drawn(name, n_classes, len(z))
    given_options = dict(options)
    factor = given_options.pop("upstream", None)
    weight = given_options.pop("sample_weight", np.ones(len(z)))
    exact = z.astype(wide)
    true = truth.cross_entropy(exact, y, weight=weight, factor=factor, **given_options)
    names = quantities("cross_entropy", "classes", {k: v for k, v in options.items()
                                                    if isinstance(v, float)})
    # Sums of gaps beyond float64 are so, though their share may not be.
    overflow = (np.abs(exact.astype(float)) >= 1e290).any(axis=1) & bool(
        options.get("label_smoothing"))
    for cuts in ([], [n_classes // 2], [n_classes // 3, 2 * n_classes // 3], [1, n_classes - 1]):
        cuts = sorted({cut for cut in cuts if 0 < cut < n_classes})
        loss, g = Sharded(level, z, y, cuts, reduction="none", **options).results()
        assert loss.dtype == wide
        assert g.dtype == z.dtype
        allowance = loss_allowance(true, wide, weight * np.max(options.get("class_weight", 1.0)))
        # The cap of the largest logit is taken twice, in float64 and by the kernel.
        allowance = allowance + true.moved_loss
        errors = beyond(loss, true.loss, wide, allowance, loss_unit(true, names.loss, wide))
        errors = np.where(overflow & np.isinf(loss), 0, forgiven(errors, loss, true))
        assert errors.max(initial=0) <= bound(names.loss, wide), cuts
        rounded_to = any_dtype if any_dtype in FORMATS else ""
        allowance = gradient_allowance(true, wide, rounded_to) + true.moved_gradient
        errors = beyond(g, true.gradient, any_dtype, allowance, truth.EPS[wide] * true.scale)
        errors = forgiven(errors, g, true, rounded_to)
        assert errors.max(initial=0) <= bound("other gradient", wide), cuts
        if names.relative and not rounded_to:
            at = np.arange(n_classes) == y[:, None]
            counts = (np.abs(true.gradient) >= truth.F[wide]) & (
                (true.softmax >= truth.F[wide]) | at)
            flushed = np.maximum(true.size, true.w) * n_classes * truth.F[wide]
            ulps = truth.ulp_error(g, true.gradient, wide, np.where(at, flushed[:, None], 0))
            merges = 4 * len(cuts) if wide == "float64" else 0
            assert np.where(counts, ulps, 0).max() <= bound("gradient", wide) + merges, cuts


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_grouping_agrees(data):
    """Any order and tree of merges: within 4 eps of float64 a merge."""
    n_classes = data.draw(st.integers(2, 40))
    n_blocks = data.draw(st.integers(2, min(n_classes, 6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    cuts = np.sort(rng.choice(np.arange(1, n_classes), n_blocks - 1, replace=False))
    z = rng.normal(0, rng.choice([0.1, 3, 100]), (8, n_classes))
    z[rng.random(z.shape) < 0.1] = -np.inf
    z[:, 0] = np.where(np.isneginf(z[:, 0]), 1.5, z[:, 0])
    y = rng.integers(0, n_classes, 8)
    tau = data.draw(st.sampled_from([1.0, 0.7, 4.0]))
    v = rng.uniform(0, 2, n_classes)
    edges = [0, *cuts, n_classes]
    parts = [sx.row_stats(z[:, a:b], y, class_offset=a, temperature=tau, class_weight=v[a:b])
             for a, b in pairwise(edges)]
    one = sx.row_stats(z, y, temperature=tau, class_weight=v)
    while len(parts) > 1:
        i, j = sorted(rng.choice(len(parts), 2, replace=False))
        right, left = parts.pop(j), parts.pop(i)
        parts.append(sx.merge_row_stats(*((left, right) if rng.random() < 0.5 else (right, left))))
    merged = parts[0]
    for name in ("max", "target_logit", "has_target", "target_weight", "n_classes", "temperature"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(one, name), err_msg=name)
    # Sums of up to 40 terms here and there, each a few eps; what is below F is no promise.
    eps = 4 * n_blocks * truth.EPS["float64"] + 40 * 2.0**-53
    for name in ("other_sumexp", "below_sumexp", "shifted_sum", "weighted_shifted_sum",
                 "class_weight_sum"):
        np.testing.assert_allclose(getattr(merged, name), getattr(one, name), rtol=eps,
                                   atol=40 * truth.F["float64"], err_msg=name)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", ["plain", "smoothing, weights", "everything"])
def test_reductions_are_cross_entropys(level, dtype, name, reduction):
    """Every reduction and a divisor; with rows ignored and of weight 0, whatever they hold."""
    rng = np.random.default_rng(4)
    z = rng.normal(0, 3, (11, 10)).astype(dtype)
    y = rng.integers(0, 10, 11)
    y[3] = -100
    z[3] = np.nan
    options = drawn(name, 10, 11)
    options["sample_weight"] = options.get("sample_weight", np.ones(11)).copy()
    options["sample_weight"][5] = 0
    z[5] = np.inf
    if reduction != "none":
        options["upstream"] = -2.5
    for divisor in (None, 7.0, 0.0) if reduction == "mean" else (None,):
        given_options = {**options, "reduction": reduction, "divisor": divisor}
        loss, g = Sharded(level, z, y, [4, 5], **given_options).results()
        wanted, g_wanted = sx.cross_entropy_with_grad(z, y, backend=level.backend, **given_options)
        rtol = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(loss, wanted, rtol=rtol)
        assert type(loss) is type(wanted)
        np.testing.assert_allclose(g, g_wanted, rtol=30 * rtol, atol=30 * rtol)
        assert_positive_zero(g[[3, 5]])
    assert Sharded(level, z[3:4], y[3:4], [4]).results()[0] == 0.0


def test_targets_divisor_is_of_class_weights(level):
    """D is the sum of s v[target], which only the merged statistics know."""
    z, y, v = np.zeros((3, 4)), np.array([0, 3, -100]), np.array([1.0, 0.0, 0.0, 4.0])
    for cuts in ([], [1], [1, 2, 3]):
        loss, g = Sharded(level, z, y, cuts, class_weight=v, upstream=5.0).results()
        assert loss == pytest.approx(np.log(4))
        assert g[0, 0] == pytest.approx(-0.75)
        assert g[1, 3] == pytest.approx(-3.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_blocks_and_rows_without_a_softmax(level, any_dtype, smoothing):
    """-inf blocks are nothing; NaN, +inf or -inf alone make NaN of the row's whole, no other's."""
    rng = np.random.default_rng(1)
    z = rng.normal(0, 3, (9, 12)).astype(storage(any_dtype))
    y = np.array([0, 5, 11, 3, 4, 0, 1, 2, 7])
    z[0, 4:8] = -np.inf
    z[1, 4:8] = -np.inf  # the target's
    z[2, :8] = -np.inf
    z[3, 9], z[4, 0], z[5] = np.nan, np.inf, -np.inf
    options = {"label_smoothing": smoothing, "reduction": "none"}
    loss, g = Sharded(level, z, y, [4, 8], **options).results()
    wanted, g_wanted = sx.cross_entropy_with_grad(z, y, backend=level.backend, **options)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(g.astype(float), g_wanted.astype(float), rtol=2e-2 if (
        any_dtype == "bfloat16") else 3e-3 if any_dtype == "float16" else 1e-5, atol=1e-7)
    assert np.isnan(loss[[3, 4, 5]]).all()
    assert np.isnan(g[[3, 4, 5]].astype(float)).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis_layout_and_place(level, any_dtype, axis):
    """Classes along any axis, Fortran order, negative strides; in place and elsewhere."""
    rng = np.random.default_rng(2)
    z = rng.normal(0, 3, (4, 5, 6)).astype(storage(any_dtype))
    y = rng.integers(0, z.shape[axis], np.delete(z.shape, axis))
    for smoothing in (0.0, 0.2):
        options = {"reduction": "none", "label_smoothing": smoothing}
        expected, g_expected = Sharded(level, z, y, [2], axis=axis, **options).results()
        stats = Sharded(level, z, y, [2], axis=axis).stats()
        for array in (np.asfortranarray(z), z[::-1, :, ::-1].copy()[::-1, :, ::-1]):
            found = sx.row_stats(array, y, axis=axis, backend=level.backend)
            loss = sx.finish_row_stats(found, y, **options)
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            run = {"axis": axis, "backend": level.backend, **options}
            fresh = sx.grad_from_row_stats(array, y, stats, **run)
            rtol = 2 * float(np.spacing(np.ones((), storage(any_dtype))).astype(float))
            np.testing.assert_allclose(fresh.astype(float), g_expected.astype(float), rtol, 1e-7)
            assert fresh.strides == np.empty_like(array, order="K").strides
            again = sx.grad_from_row_stats(array, y, stats, grad_out=array, **run)
            assert again is array
            assert bits(again) == bits(fresh)


def test_rows_of_a_class_of_weight_0(level):
    """They do not count, whatever they hold, unless there is more to a row than its target."""
    z, y, v = np.array([[np.nan, 1.0], [0.5, 1.0]]), [1, 0], np.array([1.0, 0.0])
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        given_options = {"class_weight": v, "reduction": "none", **options}
        loss, g = Sharded(level, z, np.array(y), [1], **given_options).results()
        wanted, g_wanted = sx.cross_entropy_with_grad(z, y, backend=level.backend, **given_options)
        np.testing.assert_allclose(loss, wanted, rtol=1e-14)
        np.testing.assert_allclose(g, g_wanted, rtol=1e-14)
    assert wanted[0] != 0


def test_equal_logits_have_equal_gradients(level, dtype):
    """E3, wherever the target is."""
    rng = np.random.default_rng(6)
    for n_classes in (4, 70):
        z = rng.integers(-3, 3, (40, n_classes)).astype(dtype)
        z[:, 0] = z[:, 1]
        y = np.full(40, n_classes - 1)
        _, g = Sharded(level, z, y, [2], reduction="none").results()
        assert (g[:, 0] == g[:, 1]).all()


def test_one_row(level):
    """1-D logits are one row, whose statistics have no axis."""
    z = np.array([2.0, 0.0, -1.0, 0.5])
    for y in (0, 3):
        loss, g = Sharded(level, z, np.array(y), [2], reduction="none").results()
        assert loss.shape == ()
        np.testing.assert_allclose(loss, sx.cross_entropy(z, y), rtol=1e-15)
        np.testing.assert_allclose(g, sx.cross_entropy_with_grad(z, y)[1], rtol=1e-14)
    empty = np.zeros((0, 4))
    loss, g = Sharded(level, empty, np.zeros(0, int), [2]).results()
    assert (loss, g.shape) == (0.0, (0, 4))


def _of_half(z, y, offset):
    return pickle.dumps(sx.row_stats(z, y, class_offset=offset))


def test_classes_in_two_processes():
    """Each with half of them; statistics travel."""
    rng = np.random.default_rng(3)
    z, y = rng.normal(0, 3, (6, 10)), rng.integers(0, 10, 6)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        left, right = map(pickle.loads, pool.map(
            _of_half, (z[:, :5], z[:, 5:]), (y, y), (0, 5)))
    loss = sx.finish_row_stats(sx.merge_row_stats(right, left), y)
    assert loss == pytest.approx(sx.cross_entropy(z, y), rel=1e-14)


# ---- what is refused -----------------------------------------------------------------------------

Z, Y = np.zeros((3, 4)), np.array([0, 3, 6])


@pytest.mark.parametrize(("error", "match", "call"), [
    (IndexError, r"targets\[1\] = -2 is no class number", lambda: sx.row_stats(Z, [0, -2, 1])),
    (TypeError, "class_offset must be an integer", lambda: sx.row_stats(Z, Y, class_offset=0.5)),
    (ValueError, "class_offset must be >= 0", lambda: sx.row_stats(Z, Y, class_offset=-1)),
    (TypeError, "targets must be integers", lambda: sx.row_stats(Z, Y / 2)),
    (ValueError, "targets must have the logits' shape without axis 1",
     lambda: sx.row_stats(Z, Y[:2])),
    (ValueError, "at least one class", lambda: sx.row_stats(Z[:, :0], Y)),
    (ValueError, r"class_weight must have shape \(4,\), one a class of the block",
     lambda: sx.row_stats(Z, Y, class_weight=np.ones(7))),
    (ValueError, "temperature must be", lambda: sx.row_stats(Z, Y, temperature=0)),
    (TypeError, "stats must be RowStats", lambda: sx.merge_row_stats(sx.row_stats(Z, Y), 1)),
    (ValueError, "a and b must be of the same rows",
     lambda: sx.merge_row_stats(sx.row_stats(Z, Y), sx.row_stats(Z[:2], Y[:2], class_offset=4))),
    (ValueError, "a and b must have one temperature",
     lambda: sx.merge_row_stats(sx.row_stats(Z, Y), sx.row_stats(Z, Y, temperature=2.0))),
    (ValueError, r"both have the target of row \[0\]; is class_offset",
     lambda: sx.merge_row_stats(sx.row_stats(Z, Y), sx.row_stats(Z, Y))),
    (IndexError, "targets.2. = 6 is out of range for 4 classes",
     lambda: sx.finish_row_stats(sx.row_stats(Z, Y), Y)),
    (ValueError, r"targets\[2\] was in none of the blocks",
     lambda: sx.finish_row_stats(sx.merge_row_stats(
         sx.row_stats(Z, Y), sx.row_stats(Z, Y, class_offset=8)), Y)),
    (ValueError, "reduction must be", lambda: sx.finish_row_stats(
        sx.row_stats(Z, [0, 1, 2]), [0, 1, 2], reduction="all")),
    (ValueError, "label_smoothing must be within", lambda: sx.finish_row_stats(
        sx.row_stats(Z, [0, 1, 2]), [0, 1, 2], label_smoothing=2)),
    (ValueError, "temperature must be that of stats, 1; got 2.0", lambda: sx.grad_from_row_stats(
        Z, [0, 1, 2], sx.row_stats(Z, [0, 1, 2]), temperature=2.0)),
    (ValueError, "stats must be of all classes", lambda: sx.grad_from_row_stats(
        Z, [0, 1, 2], sx.row_stats(Z, [0, 1, 2]), class_offset=4)),
])
def test_what_is_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_statistics_of_another_shape_are_refused():
    stats = sx.row_stats(Z[:2], [0, 1])
    out = np.full((3, 4), 2.0)
    with pytest.raises(ValueError, match="targets must have the logits' shape"):
        sx.grad_from_row_stats(Z, [0, 1, 2], stats, grad_out=out)
    with pytest.raises(ValueError, match="grad_out shares memory with sample_weight"):
        sx.grad_from_row_stats(Z, [0, 1, 2], sx.row_stats(Z, [0, 1, 2]), grad_out=out,
                               sample_weight=out[:, 0])
    assert (out == 2).all()
