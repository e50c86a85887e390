"""The contract's lines on accuracy and exactness, on every backend and level of this machine.

A1 (exp alone) has a test of its own; A6, A8 and A9 belong to losses tested elsewhere. The hard rows
are those of `rows.py`, the bounds those of `accuracy_table.BOUNDS`.
"""

import hashlib

import numpy as np
import pytest

import rows
import softxent as sx
import truth
from accuracy_table import BOUNDS, bound, kept, measure

LENGTHS = (1, 2, 3, 7, 10, 33, 64, 65, 130, 1000, 1025, 2049)


def evaluate(backend, logits, targets, **options):
    """Every result of a call without reduction, by name."""
    loss, gradient = sx.cross_entropy_with_grad(
        logits, targets, reduction="none", backend=backend, **options
    )
    threads = {"n_threads": options["n_threads"]} if "n_threads" in options else {}
    return {
        "loss": loss,
        "gradient": gradient,
        "lse": sx.logsumexp(logits, backend=backend, **threads),
        "softmax": sx.softmax(logits, backend=backend, **threads),
        "log_softmax": sx.log_softmax(logits, backend=backend, **threads),
    }


def bits(array):
    """Contiguous native bytes of an array; every NaN has one pattern."""
    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    array[np.isnan(array)] = np.nan
    return array.tobytes()


def digests(results):
    """A hash of every result."""
    return {name: hashlib.sha256(bits(array)).hexdigest() for name, array in results.items()}


def assert_positive_zero(array):
    """All +0.0."""
    array = np.asarray(array)
    assert not array.any()
    assert not np.signbit(array).any()


@pytest.mark.parametrize("quantity", BOUNDS)
def test_bound(level, dtype, quantity):
    """A2 to A5 and the sums of E1: worst error over every family and number of classes.

    And no worse than it was.
    """
    worst = measure(*level, dtype)[quantity]
    assert worst.error <= bound(quantity, dtype), worst.where
    assert worst.error <= kept(level.isa, dtype, "")[quantity], worst.where


@pytest.mark.parametrize("n_classes", [4099, 32000])
def test_lse_near_0(level, dtype, n_classes):
    """A2 where m and log S cancel: the logarithm's own rounding, 4 eps here, must not show."""
    rng = np.random.default_rng(n_classes)
    z = rng.normal(-np.log(n_classes), 0.01, (400_000 // n_classes, n_classes)).astype(dtype)
    error = truth.absolute_error(sx.logsumexp(z, backend=level.backend), truth.lse(z), dtype)
    assert error.max() <= bound("lse", dtype) * truth.EPS[dtype]


@pytest.fixture
def weighted(dtype):
    """Calls with weights of rows and classes and an upstream: (case, options, s v, upstream)."""
    calls = []
    for n_classes in (1, 2, 3, 10, 64, 65, 100, 257, 1025, 4099):
        case = rows.case(n_classes, dtype)
        rng = np.random.default_rng(n_classes)
        options = {
            "sample_weight": np.exp(rng.normal(0, 2, len(case.targets))),
            "class_weight": np.exp(rng.normal(0, 2, n_classes)),
            "upstream": rng.normal(0, 1, len(case.targets)) * 10.0 ** rng.integers(-5, 6),
        }
        weight = options["sample_weight"] * truth.LD(1) * options["class_weight"][case.targets]
        calls.append((case, options, weight))
    return calls


def test_weighted_rows(level, dtype, weighted):
    """A3, A5, E1: weights and upstream are folded in before the one rounding."""
    f, eps = truth.F[dtype], truth.EPS[dtype]
    for case, options, weight in weighted:
        z, targets = case.logits, case.targets
        loss, g = sx.cross_entropy_with_grad(
            z, targets, reduction="none", backend=level.backend, **options
        )
        # A loss beyond float64, before its weight brings it back, is an overflow too.
        unweighted = truth.loss(z, targets)
        true = np.where(unweighted > np.finfo(np.float64).max, np.inf, weight * unweighted)
        errors = truth.ulp_error(loss, true, dtype, weight * z.shape[1] * f)
        worst = np.argmax(errors)
        assert errors[worst] <= bound("loss", dtype), (case.name, case.families[worst])

        w = weight * options["upstream"]
        size = np.abs(w)
        true = w[:, None] * truth.gradient(z, targets)
        at_target = np.arange(z.shape[1]) == targets[:, None]
        counts = (np.abs(true) >= f) & (truth.softmax(z) >= f)
        allowance = np.where(at_target, (size * z.shape[1] * f)[:, None], 0)
        errors = np.where(counts, truth.ulp_error(g, true, dtype, allowance), 0)
        worst = np.unravel_index(np.argmax(errors), errors.shape)
        assert errors[worst] <= bound("gradient", dtype), (case.name, case.families[worst[0]])

        wide = g.astype(truth.LD)
        allowed = bound("sum g", dtype) * eps * np.abs(wide).sum(axis=1) + size * z.shape[1] * f
        assert (np.abs(wide.sum(axis=1)) <= allowed).all(), case.name


def test_sum_and_mean(level, dtype, weighted):
    """A7: a float64 total of unrounded row values; the mean's gradient is divided by the same D."""
    eps = truth.EPS[dtype]
    relative = 2 * eps if dtype == "float32" else (6 + 4) * eps
    for case, options, weight in weighted:
        finite = np.isfinite(truth.loss(case.logits, case.targets))
        if dtype == "float64":  # a total that overflows
            finite &= ~np.isin(case.families, ["largest_numbers"])
        z, targets, weight = case.logits[finite], case.targets[finite], weight[finite]
        kept = {
            "sample_weight": options["sample_weight"][finite],
            "class_weight": options["class_weight"],
            "backend": level.backend,
        }
        true = weight * truth.loss(z, targets)
        size = np.abs(true).sum()
        flushed = weight.sum() * z.shape[1] * truth.F[dtype]
        divisor = weight.sum()
        for reduction, divided in (("sum", truth.LD(1)), ("mean", divisor)):
            got, g = sx.cross_entropy_with_grad(z, targets, reduction=reduction, **kept)
            assert isinstance(got, float)
            assert got == sx.cross_entropy(z, targets, reduction=reduction, **kept)
            allowed = (relative * size + flushed) / divided
            assert abs(truth.LD(got) - true.sum() / divided) <= allowed, case.name
            at_target = g[np.arange(len(z)), targets]
            true_g = truth.gradient(z, targets)[np.arange(len(z)), targets] * weight / divided
            counts = np.abs(true_g) >= truth.F[dtype]
            errors = truth.ulp_error(
                at_target, true_g, dtype, weight / divided * z.shape[1] * truth.F[dtype]
            )
            assert errors[counts].max(initial=0) <= bound("gradient", dtype), case.name
        got = sx.cross_entropy(z, targets, reduction="mean", divisor=7.0, **kept)
        assert abs(truth.LD(got) - true.sum() / 7) <= (relative * size + flushed) / 7


def test_constant_offset(level, dtype):
    """E2: adding c exactly moves nothing beyond the bounds."""
    rng = np.random.default_rng(2)
    for n_classes in LENGTHS:
        base, moved = rows.offset_pair(n_classes, dtype, rng)
        targets = rng.integers(0, n_classes, len(base))
        expected = {
            "loss": truth.loss(base, targets),
            "gradient": truth.gradient(base, targets),
            "softmax": truth.softmax(base),
            "log_softmax": truth.log_softmax(base),
        }
        for logits in (base, moved):
            results = evaluate(level.backend, logits, targets)
            for name, true in expected.items():
                errors = truth.ulp_error(results[name], true, dtype)
                assert errors.max() <= bound(name, dtype), (n_classes, name)


def test_equal_logits_get_equal_bits(level, dtype):
    """E3: in any column; in the gradient, among the columns that are not the target."""
    for n_classes in (2, 3, 7, 33, 64, 65, 129, 320, 1025, 4099):
        case = rows.case(n_classes, dtype)
        order = np.argsort(case.logits, axis=1, kind="stable")
        z = np.take_along_axis(case.logits, order, axis=1)
        same = z[:, 1:] == z[:, :-1]
        results = evaluate(level.backend, case.logits, case.targets)
        target = order == case.targets[:, None]
        for name in ("softmax", "log_softmax", "gradient"):
            values = np.take_along_axis(results[name], order, axis=1)
            if name == "gradient":
                # Give the target its neighbour's value, so that it breaks no chain of equals.
                row, column = np.nonzero(target)
                beside = np.where(column > 0, column - 1, 1)
                values[row, column] = values[row, beside]
                compared = same & ~(target[:, 1:] & ~same) & ~target[:, :-1]
            else:
                compared = same
            raw = values.view(f"u{values.itemsize}")
            assert (raw[:, 1:] == raw[:, :-1])[compared].all(), (n_classes, name)


def test_losses_are_not_negative(level, dtype):
    """E4: >= +0.0, never -0.0."""
    for case in rows.cases(dtype):
        if case.logits.shape[1] > 5000:
            continue
        loss = sx.cross_entropy(case.logits, case.targets, reduction="none", backend=level.backend)
        assert not np.signbit(loss).any()
        assert not np.isnan(loss).any()


def test_one_class(level, dtype):
    """E4: C = 1 costs +0.0 and has no gradient."""
    z = np.array([[-3e38], [-1.5], [-0.0], [0.0], [1e-40], [88.0], [3e38]], dtype=dtype)
    results = evaluate(level.backend, z, np.zeros(len(z), dtype=int))
    assert_positive_zero(results["loss"])
    assert_positive_zero(results["gradient"])
    assert (results["softmax"] == 1).all()
    assert_positive_zero(np.abs(results["log_softmax"]))
    error = truth.absolute_error(results["lse"], z[:, 0].astype(truth.LD), dtype)
    assert (error <= bound("lse", dtype) * truth.EPS[dtype] * np.maximum(1, np.abs(z[:, 0]))).all()


@pytest.mark.parametrize("how", ["ignore_index", "ignore_index in range", "sample", "class"])
@pytest.mark.parametrize("n_classes", [1, 3, 64, 65, 1025])
def test_rows_that_do_not_count(level, dtype, n_classes, how):
    """E5: loss and gradient +0.0 whatever the logits hold; the rows beside are untouched."""
    rng = np.random.default_rng(n_classes)
    z = rng.normal(0, 3, (9, n_classes)).astype(dtype)
    targets = rng.integers(0, n_classes, 9)
    upstream = -np.ones(9)
    blank = np.array([0, 3, 4, 8])
    z[0] = np.nan
    z[3, 0] = np.inf
    z[4] = -np.inf
    options = {"upstream": upstream}
    if how == "ignore_index":
        targets[blank] = -100
    elif how == "ignore_index in range":
        targets[:] = n_classes - 1
        options["ignore_index"] = n_classes - 1
        blank = np.arange(9)
    elif how == "sample":
        options["sample_weight"] = np.where(np.isin(np.arange(9), blank), 0, 2).astype(np.float32)
    else:
        targets[:] = 0
        targets[blank] = n_classes - 1
        blank = np.flatnonzero(targets == n_classes - 1)
        options["class_weight"] = np.where(np.arange(n_classes) == n_classes - 1, 0.0, 2.0)
    rest = np.setdiff1d(np.arange(9), blank)
    loss, g = sx.cross_entropy_with_grad(
        z, targets, reduction="none", backend=level.backend, **options
    )
    assert_positive_zero(loss[blank])
    assert_positive_zero(g[blank])
    clean = z.copy()
    clean[blank] = 0
    alone, g_alone = sx.cross_entropy_with_grad(
        clean, targets, reduction="none", backend=level.backend, **options
    )
    assert bits(loss[rest]) == bits(alone[rest])
    assert bits(g[rest]) == bits(g_alone[rest])
    if n_classes > 1 and len(rest):
        assert (loss[rest] > 0).any()


@pytest.mark.parametrize("n_classes", [2, 3, 10, 64, 65, 1025, 4099])
def test_masked_classes(level, dtype, n_classes):
    """E6: probability +0 and gradient 0 at -inf; -w and loss +inf at a -inf target."""
    rng = np.random.default_rng(n_classes)
    z = rng.normal(0, 3, (16, n_classes)).astype(dtype)
    z[rng.random(z.shape) < 0.5] = -np.inf
    z[np.arange(16), rng.integers(0, n_classes, 16)] = 0.5
    targets = rng.integers(0, n_classes, 16)
    weight = rng.uniform(0.5, 2, 16).astype(np.float32)
    results = evaluate(level.backend, z, targets, sample_weight=weight)
    masked = z == -np.inf
    at_target = np.arange(n_classes) == targets[:, None]
    assert_positive_zero(results["softmax"][masked])
    assert (results["log_softmax"][masked] == -np.inf).all()
    assert_positive_zero(results["gradient"][masked & ~at_target])
    impossible = (masked & at_target).any(axis=1)
    assert impossible.any()
    assert (results["loss"][impossible] == np.inf).all()
    assert (results["gradient"][masked & at_target] == -weight[impossible]).all()
    assert np.isfinite(results["loss"][~impossible]).all()
    assert np.isfinite(results["gradient"]).all()


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 64, 65, 130, 1025, 4099])
def test_rows_without_a_softmax(level, dtype, n_classes):
    """NaN, +inf or -inf alone: loss and whole gradient NaN, in that row and no other."""
    rng = np.random.default_rng(n_classes)
    clean = rng.normal(0, 3, (9, n_classes)).astype(dtype)
    z = clean.copy()
    targets = rng.integers(0, n_classes, 9)
    last = n_classes - 1
    z[1, rng.integers(n_classes)] = np.nan
    z[2, targets[2]] = np.nan
    z[3, rng.integers(n_classes)] = np.inf
    z[4, targets[4]] = np.inf
    z[5] = -np.inf
    z[6] = -np.inf
    z[6, last] = np.nan
    z[7, [0, last]] = np.inf
    bad = np.arange(1, 8)
    good = [0, 8]
    got = evaluate(level.backend, z, targets)
    expected = evaluate(level.backend, clean, targets)
    for name, array in got.items():
        assert bits(array[good]) == bits(expected[name][good]), name
        if name != "lse":
            assert np.isnan(array[bad]).all(), name
    nan, inf = np.nan, np.inf
    np.testing.assert_array_equal(got["lse"][bad], [nan, nan, inf, inf, -inf, nan, inf])
    z[3, last], z[3, 0] = np.inf, np.nan
    assert np.isnan(sx.logsumexp(z, backend=level.backend)[3])


def hard_call(n_classes, dtype):
    """Logits and targets of every family, a NaN row and ignored rows among them."""
    case = rows.case(n_classes, dtype)
    keep = np.linspace(0, len(case.targets) - 1, min(41, len(case.targets))).astype(int)
    z, targets = case.logits[keep].copy(), case.targets[keep].copy()
    z[5, n_classes // 2] = np.nan
    targets[11] = -100
    return z, targets


@pytest.mark.parametrize("n_classes", LENGTHS)
def test_same_bits_however_rows_are_grouped(level, dtype, n_classes):
    """E7: thread count, batch split, row position."""
    z, targets = hard_call(n_classes, dtype)
    expected = evaluate(level.backend, z, targets, n_threads=1)
    for n_threads in (2, 3, 7):
        again = evaluate(level.backend, z, targets, n_threads=n_threads)
        assert digests(again) == digests(expected), n_threads

    order = np.random.default_rng(0).permutation(len(z))
    permuted = evaluate(level.backend, z[order], targets[order])
    assert digests(permuted) == digests({name: a[order] for name, a in expected.items()})

    for pieces in ([1], [3, 4, 20], list(range(len(z)))):
        for part in np.split(np.arange(len(z)), pieces):
            if len(part):
                got = evaluate(level.backend, z[part], targets[part])
                wanted = {name: array[part] for name, array in expected.items()}
                assert digests(got) == digests(wanted), part
    one = evaluate(level.backend, z[7], targets[7])
    assert digests(one) == digests({name: array[7] for name, array in expected.items()})


def layouts(z):
    """Yield (name, array): the same logits in other memory."""
    n, c = z.shape
    yield "Fortran", z.copy(order="F")
    wide = np.full((n, 2 * c), np.nan, dtype=z.dtype)
    wide[:, ::2] = z
    yield "every second class", wide[:, ::2]
    padded = np.full((n, c + 3), np.nan, dtype=z.dtype)
    padded[:, :c] = z
    yield "padded rows", padded[:, :c]
    backwards = np.array(z[:, ::-1])
    yield "classes backwards", backwards[:, ::-1]
    upside = np.array(z[::-1])
    yield "rows backwards", upside[::-1]
    skipped = np.full((2 * n, c), np.nan, dtype=z.dtype)
    skipped[::2] = z
    yield "every second row", skipped[::2]
    yield "foreign byte order", z.astype(z.dtype.newbyteorder())
    record = np.zeros(n, dtype=[("flag", "u1"), ("row", z.dtype, (c,))])
    record["row"] = z
    yield "misaligned", record["row"]
    deep = np.full((c, 3, n), np.nan, dtype=z.dtype)
    deep[:, 1] = z.T
    yield "classes outermost", deep[:, 1].T


@pytest.mark.parametrize("n_classes", LENGTHS)
def test_same_bits_in_any_memory(level, dtype, n_classes):
    """E7: strides, memory order, byte order, alignment; out of place and in place."""
    z, targets = hard_call(n_classes, dtype)
    expected = evaluate(level.backend, z, targets)
    wanted = digests(expected)
    for name, logits in layouts(z):
        assert digests(evaluate(level.backend, logits, targets)) == wanted, name
        loss, g = sx.cross_entropy_with_grad(
            logits, targets, reduction="none", backend=level.backend, grad_out=logits
        )
        assert np.shares_memory(g, logits)
        in_place = {"loss": loss, "gradient": logits}
        assert digests(in_place) == {key: wanted[key] for key in in_place}, name

    half = len(z) // 2 * 2
    stacked = evaluate(
        level.backend, z[:half].reshape(2, -1, n_classes), targets[:half].reshape(2, -1)
    )
    flat = {key: array.reshape(half, *array.shape[2:]) for key, array in stacked.items()}
    assert digests(flat) == digests({key: array[:half] for key, array in expected.items()})
    # Rows with several axes that no reshape can join.
    many = np.full((n_classes, 2, 3, half // 2), np.nan, dtype=dtype)
    many[:, :, 1] = np.moveaxis(z[:half].reshape(2, -1, n_classes), -1, 0)
    many = np.moveaxis(many[:, :, 1], 0, -1)
    apart = evaluate(level.backend, many, targets[:half].reshape(2, -1))
    assert digests(apart) == digests(stacked)
    same = evaluate(level.backend, np.broadcast_to(z[3], (6, n_classes)), np.repeat(targets[3], 6))
    assert digests(same) == digests({k: np.repeat(a[3:4], 6, 0) for k, a in expected.items()})


@pytest.mark.parametrize("n_classes", [3, 33, 64, 65, 321, 1025])
def test_same_bits_at_any_alignment(level, dtype, n_classes):
    """E7: logits and outputs at every offset of 0 to 63 bytes from a cache line."""
    z, targets = hard_call(n_classes, dtype)
    z, targets = z[:8], targets[:8]
    wanted = digests(evaluate(level.backend, z, targets))
    memory = np.zeros(2 * z.nbytes + 512, dtype=np.uint8)
    line = -memory.ctypes.data % 64
    for offset in range(64):
        first = memory[line + offset :][: z.nbytes].view(dtype).reshape(z.shape)
        first[...] = z
        assert digests(evaluate(level.backend, first, targets)) == wanted, offset
        # The gradient at another offset, then in place.
        start = line + (z.nbytes // 64 + 3) * 64 - offset
        second = memory[start:][: z.nbytes].view(dtype).reshape(z.shape)
        for out in (second, first):
            loss, _ = sx.cross_entropy_with_grad(
                first, targets, reduction="none", backend=level.backend, grad_out=out
            )
            got = digests({"loss": loss, "gradient": out})
            assert got == {key: wanted[key] for key in got}, offset


@pytest.mark.parametrize("shape", [(3, 200_003), (700, 300), (30_000, 10)])
def test_same_bits_of_large_calls(level, dtype, shape):
    """E7: where threads do share the work, "sum" and "mean" included."""
    rng = np.random.default_rng(7)
    z = rng.normal(0, 6, shape).astype(dtype)
    targets = rng.integers(0, shape[1], shape[0])
    expected = {}
    for n_threads in (1, 2, 3, 7):
        options = {"backend": level.backend, "n_threads": n_threads}
        got = evaluate(level.backend, z, targets, n_threads=n_threads)
        for reduction in ("sum", "mean"):
            loss, g = sx.cross_entropy_with_grad(z, targets, reduction=reduction, **options)
            got[f"{reduction}, loss"] = np.array(loss)
            got[f"{reduction}, gradient"] = g
            in_place = z.copy(order="F")
            again, _ = sx.cross_entropy_with_grad(
                in_place, targets, reduction=reduction, grad_out=in_place, **options
            )
            assert again == loss
            assert bits(in_place) == bits(g)
        expected = expected or digests(got)
        assert digests(got) == expected, n_threads


def test_inputs_are_not_modified(level, dtype):
    """Read-only inputs are accepted and stay as they are."""
    z, targets = hard_call(33, dtype)
    weights = np.ones(len(z)), np.ones(33)
    for array in (z, targets, *weights):
        array.setflags(write=False)
    before = bits(z)
    evaluate(level.backend, z, targets, sample_weight=weights[0], class_weight=weights[1])
    assert bits(z) == before


def test_one_finite_logit_in_a_million(level, dtype):
    """A certain class, wherever it stands: loss +0.0, gradient 0; any other, +inf."""
    z = np.full((3, 1_000_003), -np.inf, dtype)
    places = [0, 500_001, 1_000_002]
    z[np.arange(3), places] = [-3.5, 1e6, 0.25]
    loss, g = sx.cross_entropy_with_grad(z, places, reduction="none", backend=level.backend)
    assert_positive_zero(loss)
    assert_positive_zero(g)
    true = z[np.arange(3), places]
    off = np.abs(sx.logsumexp(z, backend=level.backend) - true)
    assert (off <= bound("lse", dtype) * truth.EPS[dtype] * np.maximum(1, np.abs(true))).all()
    loss, g = sx.cross_entropy_with_grad(z, [1, 1, 1], reduction="none", backend=level.backend)
    assert np.isposinf(loss).all()
    np.testing.assert_allclose(g[np.arange(3), places], 1, rtol=truth.EPS[dtype])
    assert (g[:, 1] == -1).all()
    assert np.count_nonzero(g) == 6
