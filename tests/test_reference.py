"""What the NumPy backend alone can be asked: early ends, races on targets, arithmetic, memory."""

import subprocess
import sys
import textwrap

import mpmath
import numpy as np
import pytest

from softxent._exact import add_log1p, odd_float32, sums, times
from softxent.backends._contract import Call, Op
from softxent.backends.reference.rows import BLOCK, RowsTask, _Scaling

INF, NAN = np.inf, np.nan
#: Every option at once.
ALL = {"smoothing": 0.1, "temperature": 1.7, "softcap": 30.0, "z_loss": 1e-3}
#: Operations with one number a row, and no array of the logits' shape.
ROWS_ONLY = (Op.LOGSUMEXP, Op.BELOW, Op.ENTROPY, Op.RANK)
#: Operations on rows of classes; the other, on single logits, is test_sigmoid.py's.
OF_ROWS = [op for op in Op if op is not Op.SIGMOID]
#: By what they take as targets.
OF_CLASSES = (Op.CROSS_ENTROPY, Op.FOCAL, Op.SQUARED_ERROR, Op.NLL, Op.HESSIAN, Op.RANK)
OF_PROBABILITIES = (Op.CROSS_ENTROPY, Op.KL, Op.SQUARED_ERROR, Op.HESSIAN, Op.DISTILLATION,
                    Op.SOFTMAX_VJP)


def never():
    """The answer of a caller that waits for the end."""
    return False


@pytest.mark.parametrize("fields", [{}, {"smoothing": 0.1}, {"class_weight": np.arange(5.0)}],
                         ids=["plain", "smoothing", "class_weight"])
@pytest.mark.parametrize("ignore_index", [None, -100])
@pytest.mark.parametrize("bad", [-100, -1, 5, 127])
def test_target_changed_after_the_check(bad, ignore_index, fields):
    """A target that has left its range while the call runs: that row is NaN, others stand."""
    z = np.random.default_rng(0).normal(0, 1, (4, 5))
    targets = np.array([0, bad, 4, 1], dtype=np.int8)
    loss, g = np.empty(4), np.empty((4, 5))
    call = Call(Op.CROSS_ENTROPY, z, targets, ignore_index, out_rows=loss, out_map=g, **fields)
    RowsTask(call)(0, 4, never)
    if bad == ignore_index:
        assert loss[1] == 0
        assert not g[1].any()
    else:
        assert np.isnan(loss[1])
        assert np.isnan(g[1]).all()
    assert np.isfinite(loss[[0, 2, 3]]).all()
    assert np.isfinite(g[[0, 2, 3]]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, ">i8", np.int32])
def test_targets_of_any_width(dtype):
    """Comparison with an ignore_index that the dtype cannot hold is no error."""
    z = np.random.default_rng(0).normal(0, 1, (4, 5))
    loss, expected = np.empty(4), np.empty(4)
    targets = np.array([0, 3, 4, 1])
    for dt, out in ((dtype, loss), (np.int64, expected)):
        call = Call(Op.CROSS_ENTROPY, z, targets.astype(dt), -100, out_rows=out)
        RowsTask(call)(0, 4, never)
    assert (loss == expected).all()


def evaluate(logits, targets=None, *, op=Op.CROSS_ENTROPY, dtype=None, **fields):
    """Return the rows, the map and the task of a call on all rows of a matrix."""
    rows, out = np.full(len(logits), 7.0), np.full(logits.shape, 7.0, dtype or logits.dtype)
    task = RowsTask(Call(op, logits, targets, out_rows=rows, out_map=out, **fields))
    task(0, len(logits), never)
    return rows, out, task


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("op", OF_ROWS)
def test_ends_early(op, soft):
    """`stopped` is asked before every block of rows and of classes."""
    z = np.zeros((3, 2 * BLOCK + 1), dtype=np.float32)
    soft = op in OF_PROBABILITIES and (soft or op not in OF_CLASSES)
    asked = []

    def stopped(limit):
        asked.append(None)
        return len(asked) > limit

    wants_map = op not in ROWS_ONLY
    for limit in (0, 2, 5, 7):
        asked.clear()
        out_rows = np.full(3, -7.0)
        out_map = np.full_like(z, -7) if wants_map else None
        call = Call(op, z, None if soft else np.zeros(3, dtype=int),
                    out_rows=out_rows, out_map=out_map, soft_targets=z if soft else None)
        RowsTask(call)(0, 3, lambda limit=limit: stopped(limit))
        if op is Op.SOFTMAX_VJP and limit == 7:  # two walks, but no third and no value a row
            assert (out_map[2] == -7).all()
        assert len(asked) == limit + 1
        assert out_rows[2] == -7 or op is Op.NLL  # whose values come before its only walk


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_no_rows(shape):
    """An empty range does nothing."""
    z = np.empty(shape)
    call = Call(Op.SOFTMAX, z, out_map=z)
    RowsTask(call)(0, 0, never)


def test_error_state_is_left_alone():
    """No warning escapes, and the caller's np.errstate is as it was."""
    z = np.array([[np.inf, np.nan], [-np.inf, -np.inf], [1e308, -1e308]])
    with np.errstate(all="raise"):
        before = np.geterr()
        out = np.empty(3)
        call = Call(Op.CROSS_ENTROPY, z, np.array([1, 0, 1]), out_rows=out, out_map=z.copy())
        RowsTask(call)(0, 3, never)
        assert np.geterr() == before
    assert np.isnan(out[:2]).all()
    assert out[2] == np.inf


# ---- probability targets -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (1, BLOCK + 5), (2, 2, 5)])
@pytest.mark.parametrize(("value", "refused"), [
    (-0.0, False), (0.0, False), (5e-324, False), (1e308, False),
    (-5e-324, True), (-1.0, True), (NAN, True), (INF, True), (-INF, True),
])
def test_refused(value, refused, shape):
    """A probability is >= 0 and finite, in a row that counts."""
    z, t = np.zeros(shape), np.full(shape, 0.2)
    last = tuple(length - 1 for length in shape)
    t[last] = value
    for weight in (None, 1, 0):
        s = None if weight is None else np.full(shape[:-1], weight)
        rows = np.empty(shape[:-1])
        task = RowsTask(Call(Op.CROSS_ENTROPY, z, soft_targets=t, sample_weight=s, out_rows=rows))
        assert not task.refused
        task(0, rows.size, never)
        assert task.refused == (refused and weight != 0)
        if weight == 0:
            assert not rows.any()


def test_any_cotangent():
    """What the softmax's Jacobian is multiplied with is never refused."""
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.5, 0.0]])
    u = np.array([[1e308, -1e308, NAN], [1.0, -1.0, 2.0], [4.0, 0.0, -4.0], [1e308, 1e308, 3.0]])
    _, g, task = evaluate(p, op=Op.SOFTMAX_VJP, soft_targets=u)
    assert not task.refused
    assert np.isnan(g[0]).all()
    assert g[1:].tolist() == [[0, 0, 0], [0.75, -0.75, 0], [0, 0, 0]]
    for other in (u[1:3].astype("i2"), u[1:3].astype(">f4"), u[1:3] > 0):
        _, got, _ = evaluate(p[1:3], op=Op.SOFTMAX_VJP, soft_targets=other)
        expected = p[1:3] * (other - (p[1:3] * other).sum(axis=1, keepdims=True))
        assert (got == expected).all()


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.5}, {"z_loss": 0.5}, {"smoothing": 1.0}])
def test_what_is_owed_nothing_costs_nothing(options):
    """0 inf = 0 at a -inf logit; anything positive costs inf, also what underflows as a product."""
    z = np.array([[0.0, 1.0, -INF]])
    smoothed = "smoothing" in options
    t = np.array([[0.5, 0.5, -0.0]])
    weights = np.array([1.0, 1.0, 0.0])
    for v, mean in ((None, 1.0), (weights, 2 / 3)):
        rows, g, _ = evaluate(z, soft_targets=t, class_weight=v, **options)
        assert (rows[0] == INF) == (smoothed and v is None)
        assert np.isfinite(g).all()
        assert not np.signbit(g[0, 2]) or smoothed
        # The target's class of weight 0 counts only beside other terms.
        rows, g, _ = evaluate(z, np.array([2]), class_weight=v, class_weight_mean=mean, **options)
        assert np.isfinite(rows[0]) == (v is not None)
        assert (rows[0] != 0) == bool(options or v is None)
        assert g[0, 2] == (0.0 if v is not None else -1.0 if not smoothed else g[0, 2])
    t[0, 2] = 5e-324
    v = np.array([1.0, 1.0, 1e-300])
    rows, g, _ = evaluate(z, soft_targets=t, class_weight=v, **options)
    assert rows[0] == INF
    assert np.isfinite(g).all()


@pytest.mark.parametrize("options", [{}, ALL, {"smoothing": 1.0, "temperature": 0.3}])
def test_one_class(options):
    """C = 1: nothing is uncertain; without z-loss +0.0, and no gradient."""
    options = options | {"z_loss": 0.0}
    z = np.array([[3.0], [-1e300], [2.5]])
    for v in (None, np.array([0.3])):
        mean = 1.0 if v is None else 0.3
        for targets in ({"targets": np.zeros(3, int)}, {"soft_targets": np.full((3, 1), 0.7)}):
            rows, g, _ = evaluate(z, class_weight=v, class_weight_mean=mean, **targets, **options)
            for zeros in (rows, g):
                assert not zeros.any()
                assert not np.signbit(zeros).any()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_row_is_a_short_one(dtype, soft):
    """Classes in three blocks, all but some excluded by -inf, against those alone."""
    rng = np.random.default_rng(4)
    short = rng.normal(0, 8, (1, 40)).astype(dtype)
    t = rng.random((1, 40))
    places = np.sort(rng.choice(2 * BLOCK + 9, 40, replace=False))
    long, long_t = np.full((1, 2 * BLOCK + 9), -INF, dtype), np.zeros((1, 2 * BLOCK + 9))
    long[:, places], long_t[:, places] = short, t
    options = ALL | {"smoothing": 0.0}  # the excluded classes would have their share
    tolerance = 8 * np.finfo(dtype).eps
    short_p, long_p = (evaluate(z, op=Op.SOFTMAX)[1] for z in (short, long))
    for op in OF_ROWS:
        for target in (0, 17, 39):
            logits, fields = (short, long), ({}, {})
            if op is Op.SOFTMAX_VJP:
                logits = short_p, long_p
            if op in OF_PROBABILITIES and (soft or op not in OF_CLASSES):
                fields = {"soft_targets": t}, {"soft_targets": long_t}
            elif op in OF_CLASSES:
                fields = {"targets": np.array([target])}, {"targets": places[[target]]}
            if op is Op.DISTILLATION:  # a teacher that excludes them, too
                fields = fields[0], {"soft_targets": np.where(long == -INF, -INF, long_t)}
            a, b = (evaluate(z, op=op, **own, **options)
                    for z, own in zip(logits, fields, strict=True))
            np.testing.assert_allclose(b[0], a[0], rtol=tolerance)
            if op not in ROWS_ONLY:
                absolute = tolerance if op is Op.SOFTMAX_VJP else tolerance / 100
                np.testing.assert_allclose(b[1][:, places], a[1], tolerance, absolute)


# ---- ranks ---------------------------------------------------------------------------------------


def test_rank():
    """Ties: the lower class first. A NaN is the largest number, but as a target is not found."""
    z = np.array([
        [1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [NAN, 0.0, 1.0], [0.0, NAN, 1.0],
        [-INF, -INF, INF], [-INF, -INF, INF], [0.0, -0.0, -0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0],
    ])
    y = np.array([0, 0, 2, 1, 1, 1, 2, 2, -100, 5])
    expected = [2, 0, 2, 2, INF, 2, 0, 2, INF, INF]
    for dtype in ("float16", "float32", "float64"):
        for shape in ((10, 3), (5, 2, 3)):
            rows = np.empty(shape[:-1])
            call = Call(Op.RANK, z.astype(dtype).reshape(shape), y.reshape(shape[:-1]), -100)
            call.out_rows = rows
            RowsTask(call)(0, 10, never)
            assert rows.reshape(-1).tolist() == expected


def test_rank_in_a_long_row():
    """Classes in several blocks, many ties; against a stable sort."""
    z = np.random.default_rng(0).integers(0, 50, (2, BLOCK + 100)).astype(np.float32)
    order = (-z).argsort(axis=1, kind="stable").argsort(axis=1)
    for y in ([0, 5], [BLOCK - 1, BLOCK], [BLOCK + 99, 77]):
        rows, _, _ = evaluate(z, np.array(y), op=Op.RANK)
        assert rows.tolist() == order[[0, 1], y].tolist()


# ---- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1.0, 3.3, 30.0, 2.0**-500, 2.0**500])
def test_softcap(cap):
    """Within 0.75 ulp of the value, and of the logit as given where it is not saturated."""
    rng = np.random.default_rng(1)
    a = np.concatenate([10 ** rng.uniform(-12, 1.2, 200), rng.uniform(0.5, 1.0, 200), [1e-170, 0]])
    x = a * cap * rng.choice([-1, 1], a.size)
    high, low = _Scaling(Call(Op.SOFTMAX, x[None], softcap=cap)).capped(x)
    slope = _Scaling(Call(Op.SOFTMAX, x[None], softcap=cap)).slope(x)
    with mpmath.workdps(50):
        for given, *found in np.stack([x, high, low, slope], axis=1).tolist():
            ratio = mpmath.mpf(given) / cap
            true, derivative = cap * mpmath.tanh(ratio), mpmath.sech(ratio) ** 2
            error = abs(mpmath.mpf(found[0]) + found[1] - true)
            assert error <= 0.75 * np.spacing(abs(float(true)))
            assert error <= 0.75 * derivative * np.spacing(abs(given))
            assert abs(found[2] - derivative) <= 4 * 2.0**-52 * derivative


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_softcap_of_what_is_not_finite(dtype):
    """-inf, +inf and NaN stay; they are judged on the logits as given."""
    x = np.array([-INF, INF, NAN, 60000.0, -60000.0, -0.0])
    scaling = _Scaling(Call(Op.SOFTMAX, x.astype(dtype)[None], softcap=2.0))
    with np.errstate(all="ignore"):
        high, _ = scaling.capped(x)
        slope = scaling.slope(x)
    np.testing.assert_array_equal(high, [-INF, INF, NAN, 2, -2, -0.0])
    np.testing.assert_array_equal(slope[[0, 2, 3, 4, 5]], [1, NAN, 0, 0, 1])


@pytest.mark.parametrize("temperature", [1.3, 0.01, 97.3, 2.0**-500 * 1.1, 2.0**499 * 1.7])
def test_temperature_keeps_what_the_quotient_rounds(temperature):
    """softmax and log_softmax of float64 logits whose quotients are up to 700 apart."""
    rng = np.random.default_rng(2)
    z = (rng.uniform(-700, 0, (6, 8)) + rng.choice([0, 1e4], (6, 1))) * temperature
    _, p, _ = evaluate(z, op=Op.SOFTMAX, temperature=temperature)
    _, log_p, _ = evaluate(z, op=Op.LOG_SOFTMAX, temperature=temperature)
    with mpmath.workdps(400):
        for row, got, log_got in zip(z.tolist(), p.tolist(), log_p.tolist(), strict=True):
            e = [mpmath.exp(mpmath.mpf(x) / temperature) for x in row]
            for value, log_value, true in zip(got, log_got, e, strict=True):
                true /= mpmath.fsum(e)
                assert abs(value - true) <= 6 * np.spacing(float(true))
                true = mpmath.log(true)
                assert abs(log_value - true) <= 6 * np.spacing(abs(float(true)))


def test_differences_that_overflow():
    """With a temperature the quotients may be ordinary numbers where differences are not."""
    z = np.array([[1.7e308, -1.7e308]])
    rows, g, _ = evaluate(z, np.array([1]), temperature=2.0**400)
    assert abs(rows[0] / (3.4 * (1e308 / 2.0**400)) - 1) < 1e-15
    assert g.tolist() == [[1, -1]]
    assert evaluate(z, np.array([1]))[0] == INF
    assert evaluate(z, np.array([0]), smoothing=0.0, z_loss=1e-3)[0] == INF


def test_bfloat16_is_rounded_once():
    """Numbers beside the middle of two, where rounding to float32 first would make a tie."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    step = 2.0**-7
    near = np.array([1 + step / 2 + 2**-30, 1 + step / 2 - 2**-30, 1 + step / 2, -1 - 1.5 * step,
                     0.0, -0.0, 1e300, -INF, 2.0**-133, -1e-300])
    with np.errstate(all="ignore"):
        got = odd_float32(near).astype(bfloat16).astype(float)
        assert np.isnan(odd_float32(np.array([NAN]))).all()
    expected = [1 + step, 1, 1, -1 - 2 * step, 0, -0.0, INF, -INF, 2.0**-133, -0.0]
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))

    z = np.random.default_rng(0).normal(0, 2, (200, 7)).astype(bfloat16)
    p, narrow = (evaluate(z, op=Op.SOFTMAX, dtype=dtype)[1] for dtype in (np.float64, bfloat16))
    for neighbour in (-1, 1):
        other = (narrow.view(np.int16) + np.int16(neighbour)).view(bfloat16).astype(float)
        assert (abs(narrow.astype(float) - p) <= abs(other - p)).all()


def test_sums():
    """Good for cancelling and for huge terms, and as IEEE has it for the rest."""
    rows = np.array([
        [1e100, 1, -1e100], [1.7e308, -1.7e308, 3], [1e308, 1e308, -1e308], [1.7e308, 1.7e308, 0],
        [INF, 1, 2], [INF, -INF, 1], [NAN, 1, INF], [-INF, 2, 3], [5e-324, 5e-324, 1e-323],
        [0.0, 0.0, 0.0],
    ])
    with np.errstate(all="ignore"):
        got = sums(rows.copy())
    expected = [0, 0, 1e308, INF, INF, NAN, NAN, -INF, 2e-323, 0]
    np.testing.assert_array_equal(got[2:], expected[2:])
    # 1 beside 1e100 is far below an ulp of the largest term.
    assert abs(got[0]) <= 1
    assert abs(got[1]) <= 3


def test_times():
    """0 inf = 0; NaN, where there is no 0, stays."""
    with np.errstate(all="ignore"):
        got = times(np.array([0, -0.0, INF, NAN, 2]), np.array([INF, NAN, -0.0, 1, 3]))
    np.testing.assert_array_equal(got, [0, 0, 0, NAN, 6])
    assert not np.signbit(got[:3]).any()


def test_add_log1p():
    """m + log(1 + other) within 2**-52 also where it nearly cancels, and exact for tiny sums."""
    rng = np.random.default_rng(0)
    other = np.concatenate([10 ** rng.uniform(-20, 6, 200), [0.0, 1e-300]])
    m = np.concatenate([-np.log1p(other[:200]), [0.0, 1e-300]])
    got = add_log1p(m, np.zeros(202), other)
    with mpmath.workdps(50):
        for low, high, value in zip(m.tolist(), other.tolist(), got.tolist(), strict=True):
            assert abs(value - (low + mpmath.log1p(high))) <= 2.0**-52 * min(1, max(abs(low), high))


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
@pytest.mark.parametrize(("shape", "calls"), [
    ("(1, 12_500_000)", "plain"), ("(1_250_000, 10)", "plain"), ("(2, 250, 10_000)", "plain"),
    ("(1, 2_250_000)", "options"), ("(225_000, 10)", "options"), ("(2, 113, 10_000)", "options"),
])
def test_peak_memory(shape, calls):
    """M1: at most 64 MiB beside the outputs, here shared with the inputs by broadcasting.

    A constant (11 MiB) and what grows with the rows or classes. With a quarter of 50 or 9 million
    elements, a quarter of that is no less strict: a + b / 4 <= 16 is 4 a + b <= 64.
    """
    script = f"""
        import numpy as np
        from softxent.backends._contract import Call, Op
        from softxent.backends.reference.rows import RowsTask

        def status(name):
            with open("/proc/self/status") as lines:
                return next(int(line.split()[1]) for line in lines if name in line)

        shape = {shape}
        logits = np.broadcast_to(np.zeros((), dtype=np.float64), shape)
        targets = np.broadcast_to(np.zeros((), dtype=np.int64), shape[:-1])
        out = np.lib.stride_tricks.as_strided(np.zeros(1), shape, (0,) * len(shape))
        rows = np.lib.stride_tricks.as_strided(np.zeros(1), shape[:-1], (0,) * (len(shape) - 1))
        options = dict(smoothing=0.1, temperature=1.7, softcap=30.0, z_loss=1e-3,
                       class_weight=np.ones(shape[-1]), out_rows=rows, out_map=out)
        calls = dict(
            plain=[Call(Op.CROSS_ENTROPY, logits, targets, out_rows=rows, out_map=out),
                   Call(Op.LOG_SOFTMAX, logits, out_map=out)],
            options=[Call(Op.CROSS_ENTROPY, logits, targets, **options),
                     Call(Op.CROSS_ENTROPY, logits, soft_targets=logits, **options),
                     Call(Op.ENTROPY, logits, temperature=1.7, out_rows=rows),
                     Call(Op.RANK, logits, targets, out_rows=rows),
                     Call(Op.SOFTMAX_VJP, logits, soft_targets=logits, out_map=out)],
        )
        before = status("VmRSS")  # not an earlier peak, below which something would not be seen
        for call in calls[{calls!r}]:
            RowsTask(call)(0, call.n_rows, lambda: False)
        print(status("VmHWM") - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) <= 16 * 1024
