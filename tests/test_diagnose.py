"""`diagnose`: silent on ordinary input, a sentence for each classic mistake, made and real.

Real: the logits that softmax regression on scikit-learn's digits has, epoch by epoch.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import softxent as sx

SIGMAS = [0.1, 1.0, 10.0]
CLASSES = [2, 10, 1000]
ROWS = [1, 2, 3, 7, 10, 64, 500, 2000]
#: What logits are handed over in; "a as b": rounded to a, as bfloat16 usually reaches NumPy.
DTYPES = ["float64", "float32", "float16", "bfloat16", "bfloat16 as float32"]


def cast(z, dtype):
    rounded, _, handed = dtype.partition(" as ")
    if rounded == "bfloat16":
        bfloat16 = pytest.importorskip("ml_dtypes", reason="bfloat16 is its type").bfloat16
        z = z.astype(bfloat16)
    else:
        z = z.astype(rounded)
    return z.astype(handed) if handed else z


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def correlated(rng, z):
    """Targets drawn from the logits' own softmax: a model that is right about itself."""
    return (z + rng.gumbel(size=z.shape)).argmax(axis=-1)


def ordinary(seed, sigma=1.0, n=64, c=10):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, sigma, (n, c))
    return z, correlated(rng, z)


def only(sentences, *parts):
    """Check that there is one sentence, and that it says these things."""
    assert len(sentences) == 1, sentences
    for part in parts:
        assert part in sentences[0]
    assert "  " not in sentences[0]


# ---- the digits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits")
    x, y = datasets.load_digits(return_X_y=True)
    return np.column_stack([x / 16, np.ones(len(x))]), y


def loss_and_slope(x, y, w):
    z = x @ w
    p = softmax(z)
    loss = -np.mean(log_softmax(z)[np.arange(len(y)), y])
    p[np.arange(len(y)), y] -= 1
    return loss, x.T @ p / len(y)


@pytest.fixture(scope="module")
def epochs(digits):
    """Logits at every epoch, from zero weights: gradient descent, then L-BFGS."""
    optimize = pytest.importorskip("scipy.optimize", reason="L-BFGS")
    x, y = digits
    w = np.zeros((x.shape[1], 10))
    kept = [x @ w]
    for _ in range(60):
        w -= 0.5 * loss_and_slope(x, y, w)[1]
        kept.append(x @ w)
    start = np.zeros(w.size)

    def objective(flat):
        loss, slope = loss_and_slope(x, y, flat.reshape(w.shape))
        return loss + 5e-4 * flat @ flat, (slope + 1e-3 * flat.reshape(w.shape)).ravel()

    optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 40},
                      callback=lambda flat: kept.append(x @ flat.reshape(w.shape)))
    assert (kept[0] == 0).all()
    assert (kept[-1].argmax(axis=1) == y).mean() > 0.97
    assert len(kept) > 90
    return kept


# ---- no alarm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("c", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silent_on_normal_logits(sigma, c, dtype):
    for n in ROWS:
        seeds = max(1, min(30, 40_000 // (n * c)))
        for seed in range(seeds):
            rng = np.random.default_rng([seed, n])
            z = rng.normal(0, sigma, (n, c))
            logits = cast(z, dtype)
            for targets in (rng.integers(0, c, n), correlated(rng, z), z.argmax(axis=1)):
                assert sx.diagnose(logits, targets) == []


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 10, 30, 100])
def test_silent_on_square_logits(sigma, n):
    """As many rows as classes: each axis fits by its shape."""
    for seed in range(40):
        rng = np.random.default_rng([seed, n])
        for shape, axis in (((n, n), 1), ((n, n), 0), ((3, n, n), 1), ((3, n, n), 2)):
            z = rng.normal(0, sigma, shape)
            rows = z.shape[:axis] + z.shape[axis + 1 :]
            for targets in (rng.integers(0, n, rows), z.argmax(axis=axis)):
                assert sx.diagnose(z, targets, axis=axis) == []


def test_silent_on_contrastive_logits():
    """N × N similarities with the diagonal as targets are right along either axis."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(100, 16))
        z = a @ (a + 0.3 * rng.normal(size=a.shape)).T
        assert sx.diagnose(z, np.arange(100)) == []
        assert sx.diagnose(z.T, np.arange(100)) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_silent_on_digits_at_every_epoch(digits, epochs, dtype):
    _, y = digits
    for z in epochs:
        assert sx.diagnose(cast(z, dtype), y) == []
        assert sx.diagnose(cast(z.T, dtype), y, axis=0) == []


def test_silent_on_small_batches_of_digits(digits, epochs):
    """Ten of ten classes, and other batches in the data's order."""
    _, y = digits
    for z in epochs[::9]:
        for start in range(0, 300, 10):
            for n in (1, 2, 10):
                part = slice(start, start + n)
                assert sx.diagnose(z[part], y[part]) == []


def test_silent_on_masks_and_ignored_rows():
    z, y = ordinary(0)
    for mask in (-np.inf, -1e9, np.finfo(np.float32).min, -65504.0):
        masked = z.copy()
        masked[:, :4] = np.where(np.arange(4) == y[:, None], z[:, :4], mask)
        assert sx.diagnose(masked, y) == []
    hole = z.copy()
    hole[::3] = np.nan
    y[::3] = -100
    assert sx.diagnose(hole, y) == []
    assert sx.diagnose(hole, np.where(y == -100, 3, y), ignore_index=3) == []


def test_silent_on_padding_that_is_ignored():
    z, y, inside = padded(0)
    assert sx.diagnose(z, np.where(inside, y, -100)) == []
    assert sx.diagnose(z, np.where(inside, y, 0), ignore_index=0) == []


@pytest.mark.parametrize("c", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_silent_on_probability_targets(c, dtype):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        z, teacher = rng.normal(0, 3, (2, 50, c))
        assert sx.diagnose(z, cast(softmax(teacher), dtype)) == []
        assert sx.diagnose(z.T, cast(softmax(teacher).T, dtype), axis=0) == []


@pytest.mark.parametrize(
    "targets", ["independent", "sticky", "one sticky", "background", "full stop", "sorted"])
def test_silent_on_sequences_without_padding(targets):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, t, c = 40, 30, 5
        y = rng.integers(0, c, (n, t))
        if targets == "sticky":  # states that last: sleep stages, phonemes
            for i in range(1, t):
                y[:, i] = np.where(rng.random(n) < 0.9, y[:, i - 1], y[:, i])
        elif targets == "one sticky":  # class 0 lasts, and never comes first
            y = rng.integers(1, c, (200, t))
            for i in range(1, t):
                y[rng.random(200) < np.where(y[:, i - 1] == 0, 0.8, 0.2), i] = 0
        elif targets == "background":  # images: class 0 around a disc
            row, column = np.mgrid[-1:1:30j, -1:1:30j]
            y = np.where(row**2 + column**2 < 0.6, y[:30], 0)
        elif targets == "full stop":
            y[:, -1] = 4
        elif targets == "sorted":
            y.sort(axis=1)
        assert sx.diagnose(rng.normal(size=(*y.shape, c)), y) == []


def test_silent_when_a_model_knows_only_how_frequent_classes_are():
    """The bias of a new model: rows all alike, log-probabilities as it happens."""
    prior = np.log(softmax(np.random.default_rng(0).normal(size=10)))
    z = np.broadcast_to(prior, (200, 10))
    y = correlated(np.random.default_rng(1), z)
    assert sx.diagnose(z, y) == []


def test_silent_on_a_model_that_predicts_one_class():
    """The class before the target is the largest in half of the rows, and means nothing."""
    z, _ = ordinary(0, n=1000)
    z[:, 0] += 10
    y = np.random.default_rng(1).choice([1, 1, 1, 1, 2], 1000)
    assert sx.diagnose(z, y) == []


def test_silent_where_one_place_is_loud_for_every_class():
    """New models have such places. Of either sign: many hits on the other axis, no lower loss."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 12, 12))
    loud = rng.integers(0, 12, 50)
    z[np.arange(50), loud] *= 20
    assert sx.diagnose(z, np.repeat(loud[:, None], 12, axis=1)) == []


def test_silent_on_small_logits_that_are_not_negative():
    """The output of a ReLU: half of it is 0, which no sigmoid gives."""
    z, y = ordinary(0, 0.1)
    assert sx.diagnose(np.maximum(z, 0), y) == []


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_silent_without_rows(shape):
    assert sx.diagnose(np.zeros(shape), np.zeros(shape[:-1], int)) == []
    assert sx.diagnose(np.zeros((0, 5)), []) == []


# ---- (a) probabilities, (b) log-probabilities ----------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("c", CLASSES)
def test_probabilities(dtype, sigma, c):
    for n in (20, 300):
        z, y = ordinary(n, sigma, n, c)
        only(sx.diagnose(cast(softmax(z), dtype), y), "look like probabilities", "pass the logits")
        only(sx.diagnose(cast(softmax(z), dtype).T, y, axis=0), "look like probabilities")


@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_of_digits(digits, epochs, dtype):
    for z in epochs[::5]:
        only(sx.diagnose(cast(softmax(z), dtype), digits[1]), "look like probabilities")


def test_probabilities_that_were_clipped():
    """The 1e-7 of old recipes against log 0."""
    for c in CLASSES:
        z, y = ordinary(0, 10.0, 64, c)
        p = np.clip(softmax(z), 1e-7, 1 - 1e-7).astype(np.float32)
        only(sx.diagnose(p, y), "look like probabilities")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_single_row_of_probabilities(dtype):
    """Enough to be sure with few classes, and not in 16 bits, where a sum of 1 is no accident."""
    for c in (2, 10):
        z, y = ordinary(1, 1.0, 1, c)
        only(sx.diagnose(cast(softmax(z), dtype), y), "look like probabilities")
        only(sx.diagnose(cast(softmax(z), dtype)[0], int(y[0])), "look like probabilities")
        only(sx.diagnose(cast(log_softmax(z), dtype), y), "look like log-probabilities")
        assert sx.diagnose(cast(softmax(z), "float16"), y) == []
        assert sx.diagnose(cast(log_softmax(z), "float16"), y) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("c", CLASSES)
def test_log_probabilities(dtype, sigma, c):
    for n in (20, 300):
        z, y = ordinary(n, sigma, n, c)
        sentences = sx.diagnose(cast(log_softmax(z), dtype), y)
        only(sentences, "look like log-probabilities", "gradient are right", "pass the logits")


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probabilities_of_digits(digits, epochs, dtype):
    """Not at epoch 0, whose rows are all alike: a bias looks the same."""
    for z in epochs[5::5]:
        only(sx.diagnose(cast(log_softmax(z), dtype), digits[1]), "look like log-probabilities")


def test_log_probabilities_with_excluded_classes():
    z, y = ordinary(0)
    z[:, 0] = -np.inf
    only(sx.diagnose(log_softmax(z), np.maximum(y, 1)), "look like log-probabilities")


def test_sigmoid_outputs(digits, epochs):
    z, y = ordinary(0)
    only(sx.diagnose(1 / (1 + np.exp(-z)), y), "sigmoid outputs", "before the sigmoid")
    only(sx.diagnose(1 / (1 + np.exp(-epochs[-1])), digits[1]), "sigmoid outputs")


# ---- (c) the wrong axis --------------------------------------------------------------------------


def test_wrong_axis_where_the_shapes_allow_it(digits, epochs):
    """Ten digits, ten classes: the transpose fits."""
    _, y = digits
    first = [int(np.flatnonzero(y == k)[3]) for k in range(10)]
    rows = np.random.default_rng(1).permutation(first)
    z = epochs[-1][rows]
    assert sx.diagnose(z, y[rows]) == []
    only(sx.diagnose(z.T, y[rows]), "fit classes on axis 0 better than on axis 1", "pass axis=0")
    only(sx.diagnose(z, y[rows], axis=0), "fit classes on axis 1 better", "pass axis=1")


@pytest.mark.parametrize("shape", [(64, 64), (8, 12, 12), (4, 6, 6, 5), (3, 7, 5, 7)])
def test_wrong_axis_of_made_logits(shape):
    """PyTorch's (N, C, d1, ...) with the last axis, or another, as long as the classes'."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        z = rng.normal(0, 3, shape)
        axis = min(1, z.ndim - 2)
        other = max(k for k in range(z.ndim) if shape[k] == shape[axis] and k != axis)
        y = (z + rng.gumbel(size=shape)).argmax(axis=axis)
        assert sx.diagnose(z, y, axis=axis) == []
        if y.shape == shape[:other] + shape[other + 1 :]:
            only(sx.diagnose(z, y, axis=other), f"pass axis={axis}")
        else:
            assert any(f"pass axis={axis}" in s for s in sx.diagnose(z, y, axis=other))


def test_wrong_axis_that_the_shapes_give_away():
    z, y = ordinary(0)
    only(sx.diagnose(z.T, y), "cross_entropy would raise ValueError", "pass axis=0")
    # What else is wrong is told as well.
    sentences = sx.diagnose(softmax(z).T, np.where(y == 0, -1, y))
    assert len(sentences) == 3
    for sentence, part in zip(sentences, ("axis=0", "ignore_index=-1", "probabilities"),
                              strict=True):
        assert part in sentence


def test_wrong_axis_of_probability_targets():
    z = np.random.default_rng(0).normal(size=(12, 9))
    only(sx.diagnose(z, softmax(z, axis=0)), "sum to 1 along axis 0", "pass axis=0")


# ---- (d) padding, (e) labels from 1 --------------------------------------------------------------


def padded(seed, c=20):
    """(logits, targets, which of them are inside their sequence) of 32 sequences of 5 … 40."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(32, 40, c))
    inside = np.arange(40) < rng.integers(5, 41, 32)[:, None]
    return z, correlated(rng, z), inside


@pytest.mark.parametrize("pad", [0, 7, 19])
def test_padding_with_a_class_number(pad):
    for seed in range(20):
        z, y, inside = padded(seed)
        only(sx.diagnose(z, np.where(inside, y, pad)), f"end in runs of {pad}",
             f"ignore_index={pad}")
        # The same where the padding is no class.
        y = np.where(y == pad, (pad + 1) % 20, y)
        only(sx.diagnose(np.moveaxis(z, 2, 1), np.where(inside, y, pad), axis=1),
             f"ignore_index={pad}")


@pytest.mark.parametrize(("dtype", "pad"), [("int64", -1), ("int8", -100), ("uint8", 255),
                                            ("int32", 20)])
def test_padding_that_is_out_of_range(dtype, pad):
    z, y, inside = padded(0)
    y = np.where(inside, y, pad).astype(dtype)
    ignored = None if pad == -100 else -100
    only(sx.diagnose(z, y, ignore_index=ignored), f"are {pad}, outside 0…19",
         f"ignore_index={pad}", f"{np.count_nonzero(~inside)} of 1,280 targets")
    with pytest.raises(IndexError):
        sx.cross_entropy(z, y, ignore_index=ignored)
    assert sx.diagnose(z, y, ignore_index=pad) == []


def test_two_kinds_of_padding():
    z, y = ordinary(0)
    y[:4], y[4:9] = -100, -1
    only(sx.diagnose(z, y, ignore_index=None), "9 of 64 targets are -100 and -1", "one number")
    only(sx.diagnose(z, y), "5 of 64 targets are -1,")


def test_labels_from_1(digits, epochs):
    _, y = digits
    only(sx.diagnose(epochs[-1], y + 1), "run from 1 to 10", "pass targets - 1")
    y = y.copy()
    y[::50] = -101
    only(sx.diagnose(epochs[-1], y + 1), "run from 1 to 10", "pass targets - 1")


def test_labels_from_1_with_a_logit_too_many(digits, epochs):
    """Nothing is out of range; class 0 never comes, and the model cannot know."""
    _, y = digits
    rng = np.random.default_rng(0)
    z = rng.normal(size=(len(y), 11))
    only(sx.diagnose(z, y + 1), "class 0 is never a target", "pass targets - 1")
    # The model of labels from 0, evaluated on labels from 1.
    z = np.column_stack([epochs[-1], np.full(len(y), -5.0)])
    only(sx.diagnose(z, y + 1), "the class before the target", "pass targets - 1")


def test_a_missing_class_is_no_finding_in_a_small_batch(digits):
    _, y = digits
    z = np.random.default_rng(0).normal(size=(len(y), 10))
    few = np.flatnonzero(y != 0)[:100]
    assert sx.diagnose(z[few], y[few]) == []


def test_classes_that_the_logits_have_not():
    z, _ = ordinary(0)
    y = np.random.default_rng(0).integers(0, 57, 64)
    only(sx.diagnose(z, y), "outside 0…9", "fewer classes", f"to {y.max()}")


# ---- (f) what targets are ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
@pytest.mark.parametrize("axis", [0, 1])
def test_integer_one_hot(dtype, axis):
    z, y = ordinary(0)
    hot = np.eye(10).astype(dtype)[y]
    if axis == 0:
        z, hot = z.T, hot.T
    only(sx.diagnose(z, hot, axis=axis), "one-hot rows", "targets.argmax(axis)", dtype)
    sentences = sx.diagnose(softmax(z, axis), hot, axis=axis)  # and what else is wrong
    assert len(sentences) == 2


def test_multi_hot():
    z, _ = ordinary(0)
    hot = np.random.default_rng(0).random(z.shape) < 0.4
    only(sx.diagnose(z, hot.astype(int)), "several ones", "sigmoid's binary cross-entropy")
    only(sx.diagnose(z, hot.astype(float)), "several ones", "sigmoid's binary cross-entropy")
    only(sx.diagnose(z, 3 * hot.astype(int)), "not one-hot")


def test_float_targets():
    z, y = ordinary(0)
    only(sx.diagnose(z, y.astype(float)), "would raise TypeError", "astype(numpy.intp)")
    only(sx.diagnose(z, y + 0.25), "would raise TypeError", "a squared error's targets?")
    only(sx.diagnose(z, np.full(64, np.nan)), "not whole numbers")
    only(sx.diagnose(z[:, :2], y > 4), "would raise TypeError", "bool")
    sentences = sx.diagnose(z, np.where(y == 2, -1.0, y))
    assert len(sentences) == 2
    assert "ignore_index=-1" in sentences[1]


def test_targets_of_other_shapes():
    z, y = ordinary(0)
    only(sx.diagnose(z, y[:, None]), "would raise ValueError", "targets.reshape((64,))")
    only(sx.diagnose(z, y[:20]), "would raise ValueError", "(20,)")


def test_probability_targets_that_are_none():
    z, _ = ordinary(0)
    p = softmax(z)
    only(sx.diagnose(z, z), "negative, NaN or infinite", "pass their softmax")
    only(sx.diagnose(z, np.log(p)), "negative, NaN or infinite")
    only(sx.diagnose(z, p * 7), "sum to 7 … 7", "sample_weight")
    p[:6] = 0
    only(sx.diagnose(z, p), "6 of 64 rows", "0 throughout", "sample_weight=0")
    only(sx.diagnose(z, softmax(z), ignore_index=3), "has no ignore_index")


# ---- (g) values, (h) order, (j) nothing left -----------------------------------------------------


def test_values_that_no_logit_has():
    z, y = ordinary(0, n=60)
    z, y = z.reshape(6, 10, 10), y.reshape(6, 10)
    z[0, 3, 2] = np.nan
    z[1, 4, 5], z[1, 5, 5] = np.inf, np.inf
    z[2, 7] = -np.inf
    z[3, 8, y[3, 8]] = -np.inf
    z[4, 9, y[4, 9]] = -1e9
    sentences = sx.diagnose(z, y)
    for sentence, parts in zip(sentences, [
        ("1 of 60 rows", "holds NaN", "[0, 3]"),
        ("2 of 60 rows", "hold +inf", "[1, 4]"),
        ("1 of 60 rows", "is -inf throughout", "[2, 7]"),
        ("1 of 60 rows", "-inf at the target", "[3, 8]"),
        ("1 of 60 rows", "10,000 below", "[4, 9]"),
    ], strict=True):
        for part in parts:
            assert part in sentence
    only(sx.diagnose(np.full(5, np.nan), 1), "the only row of the logits holds NaN")
    only(sx.diagnose(np.full((5, 5), np.nan), [1] * 5), "every row of the logits holds NaN")


def test_swapped_arguments():
    z, y = ordinary(0)
    for a, b in ((y, z), (y.astype(float), z), (y.astype(np.uint8), z.astype(np.float16)),
                 (3, z[0]), (y.reshape(8, 8), np.moveaxis(z.reshape(8, 8, 10), 2, 1))):
        only(sx.diagnose(a, b), "look swapped", "logits come first")


def test_logits_that_are_integers():
    z, y = ordinary(0)
    only(sx.diagnose(np.round(9 * z).astype(int), y), "logits are int64", "astype(numpy.float32)")
    only(sx.diagnose([[2, 0, -1]], [0]), "logits are int64")


def test_every_row_ignored():
    z, _ = ordinary(0)
    only(sx.diagnose(z, np.full(64, -100)), "every target is ignore_index (-100)")
    only(sx.diagnose(z, np.full(64, 3), ignore_index=3), "every target is ignore_index (3)")
    only(sx.diagnose(np.full((64, 10), np.nan), np.full(64, -100)), "every target is ignore_index")


def test_a_single_class():
    only(sx.diagnose(np.zeros((5, 1)), np.zeros(5, int)), "a single class", "two logits")


# ---- what cannot be read; what is not touched ----------------------------------------------------


@pytest.mark.parametrize(("logits", "targets"), [
    ([["a", "b"]], [0]), ([[1.0], [1.0, 2.0]], [0, 1]), ([[1.0, 2.0]], ["cat"]),
    ([[1.0, 2.0]], None), (np.zeros((1, 2), complex), [0]), (np.zeros((1, 2), object), [0]),
    (np.ma.masked_less([[1.0, 2.0]], 1.5), [0]),
])
def test_what_cannot_be_read(logits, targets):
    with pytest.raises(TypeError) as ours:
        sx.diagnose(logits, targets)
    with pytest.raises(TypeError) as road:
        sx.cross_entropy(logits, targets)
    assert str(ours.value) == str(road.value)


def test_options_that_make_no_sense():
    z, y = ordinary(0)
    for error, options in ((ValueError, {"axis": 2}), (TypeError, {"axis": "C"}),
                           (TypeError, {"ignore_index": 1.5})):
        with pytest.raises(error, match=next(iter(options))):
            sx.diagnose(z, y, **options)
    with pytest.raises(ValueError, match="scalar"):
        sx.diagnose(1.0, 0)
    with pytest.raises(ValueError, match="at least one class"):
        sx.diagnose(np.zeros((3, 0)), [0, 1, 2])


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f2"])
def test_layouts(dtype):
    """Byte order, strides, read-only memory and one row are as good as any."""
    z, y = ordinary(0, n=128)
    p = np.repeat(softmax(z), 2, axis=1).astype(dtype)[::-1, ::2]
    p.flags.writeable = False
    before = p.copy()
    only(sx.diagnose(p, np.repeat(y, 3)[::3].astype(">i2")), "look like probabilities")
    assert (p == before).all()
    assert sx.diagnose(z[0], y[0]) == []
    assert sx.diagnose(z.tolist(), y.tolist()) == []


def test_reads_evenly_spaced_rows():
    """Four million elements, the first and the last row among them."""
    z = np.zeros((32, 1 << 18), np.float16)
    z[::31, 5] = np.nan
    only(sx.diagnose(z, np.zeros(32, int)), "2 of 16 rows of the logits hold NaN (first: row [0])")


def test_memory():
    """64 MiB at most, for sixty million logits."""
    z, y = ordinary(0, n=8)
    logits = np.broadcast_to(z, (750_000, 8, 10))
    targets = np.broadcast_to(y, (750_000, 8))
    sx.diagnose(z, y)
    tracemalloc.start()
    try:
        assert sx.diagnose(logits, targets) == []
        long = np.broadcast_to(np.float32(0), (2, 1 << 20))
        assert sx.diagnose(long, [0, 5]) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 64 << 20
