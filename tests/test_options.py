"""The contract's lines for cross-entropy with its options, and for the pieces.

Bounds over the hard rows (A2 to A9, E1) are measured by `accuracy_table.measure_options`; the
exact lines (E3 to E8) are stated here, for every option that could break them.
"""

import copy
import functools

import numpy as np
import pytest

import rows
import softxent as sx
import truth
from accuracy_table import (
    FORMATS,
    HESSIANS,
    PIECES,
    POINTS,
    SETTINGS,
    Setting,
    bound,
    kept,
    measure_options,
    measured,
    storage,
)
from levels import force, usable_levels
from softxent.losses import LOSSES
from test_accuracy import assert_positive_zero, bits, digests, layouts

DTYPES = ("float32", "float64", *FORMATS)
#: Settings that between them have every option, for what is not measured but stated.
FEW = ("temperature 0.7", "class_weight, temperature", "smoothing, class_weight", "z_loss 1e-4",
       "softcap 30", "probabilities", "probabilities, weights", "everything, classes",
       "everything, probabilities", "focal", "focal, everything", "KL, everything", "distillation",
       "distillation, everything", "NLL", "squared error", "squared error, probabilities")
#: Options with a number for every row.
OF_ROWS = ("sample_weight", "upstream", "hard_targets")


def is_of_a_softmax(name):
    """Whether a setting's loss is; NLL is of any numbers, one a row: test_losses.py has it."""
    return SETTINGS[name].loss != "nll_loss"


def has_classes(name):
    """Whether a setting has class numbers, which `ignore_index` may be one of."""
    return SETTINGS[name].kind == "classes" or "hard_weight" in SETTINGS[name].names


@pytest.mark.parametrize("name", [*SETTINGS, *POINTS, *HESSIANS, *PIECES])
def test_bound(level, any_dtype, name):
    """Worst errors over every family and number of classes, per setting."""
    worst = measure_options(*level, any_dtype, name)
    found = {quantity: (worst[quantity].error, worst[quantity].where)
             for quantity in measured(name, any_dtype)}
    before = kept(level.isa, any_dtype, name)
    beyond = {quantity: (*seen, before[quantity]) for quantity, seen in found.items()
              if not seen[0] <= min(bound(quantity, any_dtype), before[quantity])}
    assert not beyond


# ---- calls ---------------------------------------------------------------------------------------


@functools.cache
def drawn(name, n_classes, dtype, n_rows):
    """What `call` hands out copies of."""
    case = rows.case(n_classes, "float64" if dtype == "float64" else "float32")
    keep = np.linspace(0, len(case.targets) - 1, min(n_rows, len(case.targets))).astype(int)
    case = rows.Case(case.name, case.logits[keep], case.targets[keep],
                     [case.families[i] for i in keep])
    setting = SETTINGS[name]
    shared, of_rows = setting.arrays(case)
    with np.errstate(over="ignore"):
        z = case.logits.astype(storage(dtype))
    options = {**dict(setting.options), **shared, **of_rows}
    return z, setting.targets(case), {"loss": setting.loss, **options}


def call(name, n_classes, dtype, n_rows=41):
    """Return logits, targets, options of a call with a setting, on rows of every family.

    Among the options, for `run`: the loss. All of it is the caller's to change.
    """
    return copy.deepcopy(drawn(name, n_classes, dtype, n_rows))


def run(level, z, targets, options, **more):
    """Loss and gradient, by name; `options` may name another loss than cross-entropy."""
    given = {"reduction": "none", "backend": level.backend, **options, **more}
    function = getattr(sx, f"{given.pop('loss', 'cross_entropy')}_with_grad")
    loss, gradient = function(z, targets, **given)
    return {"loss": loss, "gradient": gradient}


def run_pieces(level, z, targets, **more):
    """Every piece at a temperature, by name."""
    given = {"backend": level.backend, **more}
    tempered = {"temperature": 0.7, **given}
    p = sx.softmax(z, **tempered)
    u = np.arange(z.size, dtype=np.float32).reshape(z.shape) % 7 - 2
    u = u if z.ndim == 1 else u[:1] * np.ones_like(u)
    return {
        "softmax": p,
        "log_softmax": sx.log_softmax(z, **tempered),
        "entropy": sx.softmax_entropy(z, **tempered),
        "target_log_probs": sx.target_log_probs(z, targets, **tempered),
        "vjp": sx.softmax_vjp(p, u, **given),
        "lse": sx.logsumexp(z, **given),
    }


def of(options, index):
    """Options of some rows."""
    return {key: value[index] if key in OF_ROWS and np.ndim(value) else value
            for key, value in options.items()}


def raw(array):
    """Bits of every element; NaN for NaN."""
    array = np.where(np.isnan(array), np.zeros((), array.dtype), array).astype(array.dtype)
    return array.view(f"u{array.itemsize}")


# ---- E1, E3 to E6 --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_equal_columns_get_equal_bits(level, any_dtype, name):
    """E3: columns of equal logit, target and class weight have equal gradients."""
    for n_classes in (2, 3, 7, 33, 65, 130, 1025):
        z, targets, options = call(name, n_classes, any_dtype)
        rng = np.random.default_rng(n_classes)
        # Every column has a twin somewhere, but for a class target's own.
        twin = rng.permutation(n_classes)
        n_pairs = n_classes // 2
        left, right = twin[:n_pairs], twin[n_pairs : 2 * n_pairs]
        z[:, left] = z[:, right]
        if "class_weight" in options:
            options["class_weight"][left] = options["class_weight"][right]
        compared = np.ones((len(z), n_pairs), bool)
        if targets.ndim == 2:
            targets[:, left] = targets[:, right]
        classes = options.get("hard_targets", targets)
        if classes.ndim == 1:
            compared = (left != classes[:, None]) & (right != classes[:, None])
        g = raw(run(level, z, targets, options)["gradient"])
        assert (g[:, left] == g[:, right])[compared].all(), n_classes
        pieces = run_pieces(level, z, np.zeros(len(z), int))
        for piece in ("softmax", "log_softmax"):
            values = raw(pieces[piece])
            assert (values[:, left] == values[:, right]).all(), (n_classes, piece)


@pytest.mark.parametrize("name", [*filter(is_of_a_softmax, SETTINGS)])
def test_losses_are_not_negative(level, any_dtype, name):
    """E4: >= +0.0, never -0.0; a softmax entropy too."""
    for n_classes in (1, 2, 10, 65, 257):
        z, targets, options = call(name, n_classes, any_dtype, 100)
        kept = np.isfinite(z.astype(np.float64).max(axis=1))  # overflow of 16 bits
        if SETTINGS[name].loss == "kl_divergence":
            mass = targets.sum(axis=1, dtype=np.float64)
            kept &= np.abs(mass - 1) <= 8 * np.finfo(targets.dtype).eps
        results = run(level, z[kept], targets[kept], of(options, kept))
        assert not np.signbit(results["loss"]).any()
        assert not np.isnan(results["loss"]).any()
        assert not np.isnan(results["gradient"]).any()
        entropy = sx.softmax_entropy(z[kept], backend=level.backend)
        assert not np.signbit(entropy).any()
        assert not np.isnan(entropy).any()


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_one_class(level, any_dtype, kind):
    """E4: C = 1 costs +0.0 and has no gradient, whatever the options but z-loss."""
    z = np.array([[-3e4], [-1.5], [-0.0], [0.0], [1e-7], [88.0], [3e4]]).astype(storage(any_dtype))
    targets = np.zeros(7, int) if kind == "classes" else np.linspace(0, 3, 7)[:, None]
    for options in ({}, {"temperature": 0.3}, {"label_smoothing": 0.3}, {"softcap": 5.0},
                    {"temperature": 0.3, "label_smoothing": 0.3, "softcap": 5.0,
                     "class_weight": [0.7], "upstream": -3.0}):
        results = run(level, z, targets, options)
        assert_positive_zero(results["loss"])
        assert not results["gradient"].astype(np.float64).any(), options
    p = sx.softmax(z, temperature=0.3, backend=level.backend)
    assert (p == 1).all()
    assert_positive_zero(sx.softmax_entropy(z, temperature=0.3, backend=level.backend))
    assert_positive_zero(
        np.abs(sx.target_log_probs(z, [0] * 7, temperature=0.3, backend=level.backend)))


@pytest.mark.parametrize(("name", "how"), [
    *((name, "sample_weight") for name in FEW),
    *((name, "ignore_index") for name in FEW if has_classes(name)),
])
def test_rows_that_do_not_count(level, any_dtype, name, how):
    """E5: loss and gradient +0.0 whatever logits and probabilities hold; other rows untouched."""
    for n_classes in (1, 3, 65, 1025):
        z, targets, options = call(name, n_classes, any_dtype)
        expected = run(level, z, targets, options)
        blank = np.arange(len(z)) % 3 == 0
        z[blank] = np.resize([np.nan, np.inf, -np.inf], (blank.sum(), n_classes))
        if targets.ndim == 2:
            targets[blank] = np.resize([np.nan, -1, np.inf], (blank.sum(), n_classes))
        if how == "sample_weight":
            s = options.get("sample_weight", np.ones(len(z)))
            options["sample_weight"] = np.where(blank, 0.0, s)
        elif targets.ndim == 2:
            options["hard_targets"] = np.where(blank, -100, options["hard_targets"])
        else:
            targets = np.where(blank, -100, targets)
        results = run(level, z, targets, options)
        for key, values in results.items():
            assert_positive_zero(values[blank].astype(np.float64))
            assert bits(values[~blank]) == bits(expected[key][~blank]), (n_classes, key)
        for reduction in ("sum", "mean"):
            scalar = {**options, "upstream": 1.0}
            total = run(level, z, targets, scalar, reduction=reduction)
            wanted = run(level, z[~blank], targets[~blank], of(scalar, ~blank), reduction=reduction)
            assert total["loss"] == pytest.approx(wanted["loss"], rel=1e-14, nan_ok=True)
            assert_positive_zero(total["gradient"][blank].astype(np.float64))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("with_classes", [False, True])
def test_weights_by_either_loader(level, dtype, order, with_classes):
    """Native weights and class weights are read a group of rows at a time: to the same bits.

    In the other byte order they are read row by row, as every weight once was.
    """
    rng = np.random.default_rng(8)
    for n, n_classes in ((1, 3), (33, 2), (200, 10), (70, 64), (50, 65), (9, 1500)):
        z = np.asarray(rng.normal(0, 3, (n, n_classes)), dtype, order=order)
        y = rng.integers(0, n_classes, n)
        y[::7] = -100
        y[-1] = 0
        v = rng.random(n_classes) if with_classes else None
        if with_classes:
            v[1::3] = 0
        for weights in ("float32", "float64"):
            s = rng.random(n).astype(weights)
            s[3::4] = 0
            found = [sx.cross_entropy_with_grad(
                z, y, sample_weight=w, class_weight=v, reduction=reduction, backend=level.backend)
                for reduction in ("none", "mean")
                for w in (s, s.astype(s.dtype.newbyteorder()), np.repeat(s, 2)[::2])]
            for i in (0, 3):
                for loss, grad in found[i + 1 : i + 3]:
                    assert bits(np.asarray(found[i][0])) == bits(np.asarray(loss))
                    assert bits(found[i][1]) == bits(grad)


def test_ignored_targets_of_the_pieces(level, any_dtype):
    """E5: a log-probability of +0.0, whatever the row holds."""
    z = np.array([[1.0, 2.0], [np.nan, 1.0], [-np.inf, -np.inf], [0.5, 0.0]])
    z = z.astype(storage(any_dtype))
    for ignored, targets in ((-100, [0, -100, -100, 1]), (0, [1, 0, 0, 1])):
        got = sx.target_log_probs(z, targets, ignore_index=ignored, backend=level.backend)
        assert_positive_zero(got[1:3])
        assert (got[[0, 3]] < 0).all()


@pytest.mark.parametrize("n_classes", [2, 3, 10, 64, 65, 1025])
def test_masked_classes(level, dtype, n_classes):
    """E6: at a -inf logit the gradient is -B_k; the loss is +inf where B_k > 0, else finite."""
    rng = np.random.default_rng(n_classes)
    z = rng.normal(0, 3, (24, n_classes)).astype(dtype)
    z[rng.random(z.shape) < 0.5] = -np.inf
    z[np.arange(24), rng.integers(0, n_classes, 24)] = 0.5
    masked = z == -np.inf
    classes = rng.integers(0, n_classes, 24)
    t = rng.dirichlet(np.ones(n_classes), 24).astype(dtype)
    t[:12][masked[:12]] = 0
    v = np.exp(rng.normal(0, 1, n_classes))
    v[rng.random(n_classes) < 0.2] = 0
    s = rng.uniform(0.5, 2, 24)
    for name, setting in SETTINGS.items():
        if setting.loss == "softmax_squared_error" or setting.kind == "logits":
            continue  # a factor p in its gradient; a teacher masks classes, too: test_losses.py
        options = {"loss": setting.loss, **dict(setting.options)}
        if setting.class_weight:
            options["class_weight"] = v
        if setting.row_weights:
            options |= {"sample_weight": s, "upstream": -s[::-1]}
        targets = classes if setting.kind == "classes" else t
        results = run(level, z, targets, options)
        weight = s * -s[::-1] if setting.row_weights else np.ones(24)
        q = truth.shares(targets, n_classes, options.get("class_weight"),
                         options.get("label_smoothing", 0.0))
        b = (weight / truth.LD(options.get("temperature", 1.0)))[:, None] * q
        g = results["gradient"]
        assert np.isfinite(g).all(), name
        assert_positive_zero(g[masked & (q == 0)])
        # -B_k is a product of up to six numbers: with weights within A6, else within an ulp or
        # two. Subnormal ones may be flushed.
        if setting.class_weight or setting.row_weights:
            errors = truth.absolute_error(g, -b, dtype) - truth.F[dtype]
            most = bound("other gradient", dtype) * truth.EPS[dtype] * np.abs(b)
            assert (errors <= most)[masked].all(), name
        else:
            ulps = truth.ulp_error(g, -b, dtype, truth.F[dtype])
            assert ulps[masked].max() <= 2, name
        if not setting.class_weight and not setting.row_weights and not setting.names:
            assert (g[masked] == -q[masked]).all()
        impossible = (masked & (q > 0)).any(axis=1)
        assert (results["loss"][impossible] == np.inf).all(), name
        assert np.isfinite(results["loss"][~impossible]).all(), name
    plain = run(level, z, t, {})["gradient"]
    normal = masked & (t >= truth.F[dtype])
    assert (plain[normal] == -t[normal]).all()


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 64, 65, 130, 1025])
@pytest.mark.parametrize("name", [*filter(is_of_a_softmax, FEW)])
def test_rows_without_a_softmax(level, any_dtype, name, n_classes):
    """NaN, +inf or -inf alone: loss and whole gradient NaN, in that row and no other."""
    rng = np.random.default_rng(n_classes)
    setting = SETTINGS[name]
    clean = rng.normal(0, 3, (9, n_classes)).astype(storage(any_dtype))
    targets = rng.integers(0, n_classes, 9)
    options = {"loss": setting.loss, **dict(setting.options)}
    if "hard_weight" in options:
        options["hard_targets"] = targets
    if setting.kind == "probabilities":
        targets = rng.dirichlet(np.ones(n_classes), 9)
        targets[6] = 0.0
    elif setting.kind == "logits":
        targets = rng.normal(0, 3, clean.shape)
    if setting.class_weight:
        options["class_weight"] = rng.uniform(0.5, 2, n_classes)
    z = clean.copy()
    z[1, rng.integers(n_classes)] = np.nan
    z[3, rng.integers(n_classes)] = np.inf
    z[4] = np.inf
    z[5] = -np.inf
    z[6] = -np.inf
    z[6, -1] = np.nan
    z[7, [0, -1]] = [np.inf, -np.inf][: min(n_classes, 2)]
    bad, good = [1, 3, 4, 5, 6, 7], [0, 2, 8]
    if n_classes == 1:
        bad, good = [1, 3, 4, 5, 6], [0, 2, 8]
    got, expected = run(level, z, targets, options), run(level, clean, targets, options)
    pieces = run_pieces(level, z, np.zeros(9, int)), run_pieces(level, clean, np.zeros(9, int))
    for found, wanted in ((got, expected), pieces):
        for key, array in found.items():
            assert bits(array[good]) == bits(wanted[key][good]), key
            if key != "lse":
                assert np.isnan(array[bad]).all(), key


def test_nan_is_not_hidden_by_a_weight(level, dtype):
    """A class weight of 0 at the target, or no mass: the row still counts, its other terms stay."""
    z = np.array([[1.0, 2.0, 0.5], [-np.inf, 2.0, 0.5]], dtype=dtype)
    v = [0.0, 1.0, 1.0]
    smoothed = run(level, z, [0, 0], {"class_weight": v, "label_smoothing": 0.3})
    true = truth.cross_entropy(z, np.array([0, 0]), class_weight=v, label_smoothing=0.3)
    assert np.isfinite(smoothed["loss"]).all()  # 0 times inf
    assert (truth.ulp_error(smoothed["loss"], true.loss, dtype) <= bound("soft loss", dtype)).all()
    assert smoothed["gradient"][1, 0] == 0
    regular = run(level, z, [0, 0], {"class_weight": v, "z_loss": 0.5})
    np.testing.assert_allclose(
        regular["loss"].astype(float), 0.5 * true.lse.astype(float) ** 2, rtol=1e-6)
    assert (regular["gradient"][:, 1:] > 0).all()
    nothing = run(level, z, np.zeros_like(z), {})
    assert_positive_zero(nothing["loss"])
    assert_positive_zero(nothing["gradient"])


# ---- E7, E8 --------------------------------------------------------------------------------------


def spoiled(name, n_classes, dtype):
    """`call`, with a NaN row and a row that does not count."""
    z, targets, options = call(name, n_classes, dtype)
    z[5, n_classes // 2] = np.nan
    if targets.ndim == 1:
        targets[11] = -100
    else:
        options["sample_weight"] = options.get("sample_weight", np.ones(len(z)))
        options["sample_weight"][11] = 0
    return z, targets, options


@pytest.mark.parametrize("n_classes", [3, 33, 65, 1025])
@pytest.mark.parametrize("name", FEW)
def test_same_bits_however_rows_are_grouped(level, any_dtype, all_take_part, name, n_classes):
    """E7: thread count, batch split, row position; "sum" and "mean" too by threads."""
    z, targets, options = spoiled(name, n_classes, any_dtype)
    expected = run(level, z, targets, options, n_threads=1)
    totals = {}
    for n_threads in (1, 2, 3, 7):
        again = run(level, z, targets, options, n_threads=n_threads)
        assert digests(again) == digests(expected), n_threads
        for reduction in ("sum", "mean"):
            scalar = {**options, "upstream": 0.3}
            total = run(level, z, targets, scalar, n_threads=n_threads, reduction=reduction)
            found = digests({key: np.asarray(value) for key, value in total.items()})
            assert found == totals.setdefault(reduction, found), (n_threads, reduction)

    order = np.random.default_rng(0).permutation(len(z))
    permuted = run(level, z[order], targets[order], of(options, order))
    assert digests(permuted) == digests({key: a[order] for key, a in expected.items()})
    for pieces in ([1], [3, 4, 20], range(0, len(z), 7)):
        for part in np.split(np.arange(len(z)), pieces):
            if len(part):
                got = run(level, z[part], targets[part], of(options, part))
                assert digests(got) == digests({k: a[part] for k, a in expected.items()}), part
    one = run(level, z[7], targets[7], of(options, 7))
    assert digests(one) == digests({key: a[7] for key, a in expected.items()})


@pytest.mark.parametrize("n_classes", [3, 33, 65, 1025])
@pytest.mark.parametrize("name", FEW)
def test_same_bits_in_any_memory(level, any_dtype, name, n_classes):
    """E7: strides, order, byte order and alignment of logits and probabilities; in place."""
    z, targets, options = spoiled(name, n_classes, any_dtype)
    wanted = digests(run(level, z, targets, options))
    for how, logits in layouts(z):
        if how == "foreign byte order" and any_dtype == "bfloat16":
            continue  # ml_dtypes has none
        assert digests(run(level, logits, targets, options)) == wanted, how
        in_place = run(level, logits, targets, options, grad_out=logits)
        assert np.shares_memory(in_place["gradient"], logits)
        assert digests(in_place) == wanted, how
    if targets.ndim == 2:
        for how, t in layouts(targets):
            assert digests(run(level, z, t, options)) == wanted, how
    half = len(z) // 2 * 2
    z, targets, options = z[:half], targets[:half], of(options, slice(half))
    expected = run(level, z, targets, options)
    shape = (2, half // 2)
    deep = {key: value.reshape(shape) if key in OF_ROWS else value
            for key, value in options.items()}
    t = targets.reshape(*shape, *targets.shape[1:])
    middle = np.moveaxis(z.reshape(*shape, n_classes), -1, 1)
    t = np.moveaxis(t, -1, 1) if t.ndim == 3 else t
    for logits in (middle, np.ascontiguousarray(middle)):
        got = run(level, logits, t, deep, axis=1)
        assert bits(np.moveaxis(got["gradient"], 1, -1)) == bits(expected["gradient"])
        assert bits(got["loss"]) == bits(expected["loss"])


@pytest.mark.parametrize("n_classes", [3, 33, 65, 1025])
@pytest.mark.parametrize("name", ["everything, classes", "everything, probabilities"])
def test_same_bits_at_any_alignment(level, any_dtype, name, n_classes):
    """E7: logits, probabilities and outputs at offsets from a cache line."""
    z, targets, options = spoiled(name, n_classes, any_dtype)
    z, targets, options = z[:7], targets[:7], of(options, slice(7))
    wanted = digests(run(level, z, targets, options))

    def at(array, offset):
        memory = np.zeros(array.nbytes + 192, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved

    for offset in (0, 1, 2, 4, 8, 12, 28, 36, 62):
        logits = at(z, offset)
        t = at(targets, 64 - offset)
        out = at(np.zeros_like(z), offset // 2)
        assert digests(run(level, logits, t, options, grad_out=out)) == wanted, offset
        assert digests(run(level, logits, t, options, grad_out=logits)) == wanted, offset


@pytest.mark.parametrize("shape", [(3, 20_003), (300, 300), (3_000, 10)])
@pytest.mark.parametrize("name", ["everything, classes", "everything, probabilities"])
def test_same_bits_of_large_calls(level, any_dtype, all_take_part, name, shape):
    """E7: rows and blocks of a row cut among threads, "sum" and "mean" included; in place."""
    rng = np.random.default_rng(7)
    setting = SETTINGS[name]
    z = rng.normal(0, 6, shape).astype(storage(any_dtype))
    targets = rng.integers(0, shape[1], shape[0])
    if setting.kind == "probabilities":
        targets = rng.exponential(1, shape)
    options = {**dict(setting.options), "class_weight": rng.uniform(0, 2, shape[1]),
               "sample_weight": rng.integers(0, 3, shape[0])}
    expected = {}
    for n_threads in (1, 3):
        for reduction in ("none", "mean"):
            again = run(level, z, targets, options, n_threads=n_threads, reduction=reduction)
            found = digests({key: np.asarray(value) for key, value in again.items()})
            assert found == expected.setdefault(reduction, found), (n_threads, reduction)
    in_place = z.copy(order="F")
    run(level, in_place, targets, options, n_threads=2, grad_out=in_place)
    assert digests({"gradient": in_place})["gradient"] == expected["none"]["gradient"]


@pytest.mark.parametrize("n_classes", [1, 3, 33, 65, 1025])
def test_pieces_have_the_same_bits(level, any_dtype, n_classes):
    """E7 for softmax, log_softmax, entropy, log-probabilities and vjp, at a temperature."""
    z, targets, _ = call("temperature 0.7", n_classes, any_dtype)
    z[5, n_classes // 2] = np.nan
    targets[11] = -100
    expected = run_pieces(level, z, targets)
    wanted = digests(expected)
    for n_threads in (2, 3, 7):
        assert digests(run_pieces(level, z, targets, n_threads=n_threads)) == wanted, n_threads
    for how, logits in layouts(z):
        if how == "foreign byte order" and any_dtype == "bfloat16":
            continue
        assert digests(run_pieces(level, logits, targets)) == wanted, how
    for part in (slice(0, 1), slice(1, 20), slice(20, None), slice(None, None, -3)):
        got = run_pieces(level, z[part], targets[part])
        assert digests(got) == digests({key: a[part] for key, a in expected.items()}), part
    across = run_pieces(level, z.T, targets, axis=0) if n_classes > 1 else None
    if across is not None:
        for key in ("softmax", "log_softmax"):
            assert bits(across[key].T) == bits(expected[key]), key
        for key in ("entropy", "target_log_probs", "lse"):
            assert bits(across[key]) == bits(expected[key]), key
    for function in (sx.softmax, sx.log_softmax):
        out = z.copy()
        assert function(out, temperature=0.7, out=out, backend=level.backend) is out
        assert bits(out) == bits(expected[function.__name__])
    p = expected["softmax"].copy()
    u = np.ones_like(z) * (np.arange(z.shape[1]) % 7 - 2).astype(z.dtype)
    fresh = sx.softmax_vjp(p, u, backend=level.backend)
    assert bits(sx.softmax_vjp(p, u, out=p, backend=level.backend)) == bits(fresh)


WITH_FMA = [level for level in usable_levels() if level.isa in ("v3", "v4")]


@pytest.mark.skipif(len(WITH_FMA) < 2, reason="this processor has no two levels with FMA")
@pytest.mark.parametrize("name", [*SETTINGS, "pieces"])
def test_levels_with_fma_give_the_same_bits(any_dtype, name):
    """E8 with every option, in every dtype."""
    pieces = name == "pieces"
    for n_classes in (1, 2, 3, 10, 33, 64, 65, 257, 1025, 2049):
        # As `call`, of arrays that are not kept: there are many.
        z, targets, options = drawn.__wrapped__(
            "temperature 0.7" if pieces else name, n_classes, any_dtype, 300)
        found = []
        for level in WITH_FMA:
            with pytest.MonkeyPatch.context() as patch:
                force(level, patch)
                results = run_pieces(level, z, targets) if pieces else run(
                    level, z, targets, options)
                found.append(digests(results))
        assert all(each == found[0] for each in found), n_classes


def test_inputs_are_not_modified(level, any_dtype):
    """Read-only inputs are accepted and stay as they are, probabilities too."""
    for name in ("everything, classes", "everything, probabilities"):
        z, targets, options = call(name, 33, any_dtype)
        arrays = [z, targets, *(a for a in options.values() if isinstance(a, np.ndarray))]
        before = [array.tobytes() for array in arrays]
        for array in arrays:
            array.setflags(write=False)
        run(level, z, targets, options)
        assert [array.tobytes() for array in arrays] == before


def test_settings_have_every_option():
    """What is measured covers the numeric options of the table."""
    on = {name for setting in SETTINGS.values() for name in setting.names}
    assert on == {"gamma", "hard_weight", "label_smoothing", "temperature", "softcap", "z_loss"}
    assert {setting.loss for setting in POINTS.values()} == set(truth.POINTWISE)
    of_rows = set(LOSSES) - set(truth.POINTWISE)
    assert {setting.loss for setting in SETTINGS.values()} == of_rows
    assert {SETTINGS[name].loss for name in FEW} == of_rows
    assert {setting.kind for setting in SETTINGS.values()} == {"classes", "probabilities", "logits"}
    assert all(isinstance(SETTINGS[name], Setting) for name in FEW)


def test_softmax_at_low_temperature_beyond_the_small_limit(level):
    """Level v2's limit is small: a temperature must not make it smaller still."""
    rng = np.random.default_rng(5)
    for temperature in (0.01, 1.0, 100.0):
        z = (rng.uniform(-7, 0, (50, 40)) + 10.5) * temperature / 0.01
        z[:, 0] = 10.5 * temperature / 0.01
        true = truth.softmax(z, temperature)
        got = sx.softmax(z, temperature=temperature, backend=level.backend)
        normal = true >= truth.F["float64"]
        assert truth.ulp_error(got, true, "float64")[normal].max() <= 6


def test_entropy_close_to_0_at_low_temperature(level):
    z = np.array([[7.12, 0.0], [7.05, 0.0]])
    got = sx.softmax_entropy(z, temperature=0.01, backend=level.backend)
    true = truth.entropy(z, 0.01)
    errors = truth.ulp_error(got, true, "float64", 2 * truth.F["float64"])
    assert errors.max() <= 16
