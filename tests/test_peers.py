"""Against other people's libraries: PyTorch, scikit-learn, SciPy, in float64.

They take `lse - z_target` and `p - 1`, so they are compared where these lose nothing that matters:
moderate logits, an absolute 1e-12. What we do otherwise on purpose is tested as a difference.
"""

from __future__ import annotations

import numpy as np
import pytest

import softxent as sx

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
#: Logits' shapes as PyTorch wants them: (C,) or (N, C, d1, ...).
SHAPES = [(7,), (40, 7), (1, 2), (5, 70), (6, 3, 4), (3, 11, 2, 5), (2, 4, 3, 1, 5), (0, 3)]
ids = {"ids": lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None}


def problem(shape):
    """(logits, targets, class weights), classes on axis 1 (0 of a single row)."""
    rng = np.random.default_rng(len(shape) + sum(shape))
    axis = min(1, len(shape) - 1)
    z = rng.normal(0, 4, shape)
    targets = rng.integers(0, shape[axis], np.delete(shape, axis))
    return z, targets, rng.uniform(0.1, 3, shape[axis]), axis


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the peer: pip install torch")


def by_torch(torch, z, targets, upstream=None, **options):
    """PyTorch's loss and gradient of float64 logits."""
    leaf = torch.tensor(np.asarray(z), requires_grad=True)
    if (weight := options.get("weight")) is not None:
        options["weight"] = torch.tensor(weight)
    loss = torch.nn.functional.cross_entropy(leaf, torch.tensor(np.asarray(targets)), **options)
    loss.backward(torch.ones_like(loss) if upstream is None else torch.tensor(upstream))
    return loss.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_cross_entropy(level, torch, shape, weighted, ignore_index, reduction):
    z, targets, weight, axis = problem(shape)
    if ignore_index == -100:
        targets = np.where(np.random.default_rng(0).random(targets.shape) < 0.2, -100, targets)
    else:
        targets = np.asarray(targets)
    weight = weight if weighted else None
    loss, grad = by_torch(
        torch, z, targets, weight=weight, ignore_index=ignore_index, reduction=reduction)
    got, g = sx.cross_entropy_with_grad(
        z, targets, axis=axis, class_weight=weight, ignore_index=ignore_index,
        reduction=reduction, backend=level.backend)
    assert np.shape(got) == loss.shape
    if reduction == "mean" and (targets == ignore_index).all():
        # Nothing counts: a documented difference in the loss, none in the gradient.
        assert np.isnan(loss)
        assert got == 0.0
    else:
        np.testing.assert_allclose(got, loss, **TOLERANCE)
    np.testing.assert_allclose(g, grad, **TOLERANCE)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_grad_output(level, torch, reduction):
    """`upstream` is PyTorch's grad_output."""
    z, targets, weight, _ = problem((40, 7))
    upstream = np.random.default_rng(1).normal(size=40) if reduction == "none" else np.float64(-2.5)
    _, grad = by_torch(torch, z, targets, upstream, weight=weight, reduction=reduction)
    _, g = sx.cross_entropy_with_grad(z, targets, class_weight=weight, reduction=reduction,
                                      upstream=upstream, backend=level.backend)
    np.testing.assert_allclose(g, grad, **TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
def test_torch_pieces(level, torch, shape):
    z, _, _, axis = problem(shape)
    tensor = torch.tensor(z)
    for ours, theirs in ((sx.softmax, torch.softmax), (sx.log_softmax, torch.log_softmax),
                         (sx.logsumexp, torch.logsumexp)):
        np.testing.assert_allclose(ours(z, axis=axis, backend=level.backend),
                                   theirs(tensor, axis).numpy(), **TOLERANCE)


def test_torch_differs_when_nothing_counts(level, torch):
    """Ours 0.0 with gradient 0; PyTorch's 0/0 is NaN."""
    z, targets = problem((40, 7))[0], np.full(40, -100)
    loss, _ = by_torch(torch, z, targets)
    assert np.isnan(loss)
    loss, g = sx.cross_entropy_with_grad(z, targets, backend=level.backend)
    assert (loss, abs(g).max()) == (0.0, 0.0)


def test_torch_differs_on_nan_in_an_ignored_row(level, torch):
    """Ours never looks at it. PyTorch's loss does not either, but the gradient's 0 * NaN is NaN."""
    z, targets, _, _ = problem((4, 7))
    z[2, 3], targets[2] = np.nan, -100
    loss, grad = by_torch(torch, z, targets)
    got, g = sx.cross_entropy_with_grad(z, targets, backend=level.backend)
    np.testing.assert_allclose(got, loss, **TOLERANCE)
    assert np.isnan(grad[2]).any()
    assert g[2].tolist() == [0.0] * 7
    rest = [0, 1, 3]
    np.testing.assert_allclose(g[rest], grad[rest], **TOLERANCE)


def test_torch_differs_in_the_sign_of_zero(level, torch):
    """C = 1 and certain rows: ours +0.0, PyTorch's -0.0."""
    z, targets = np.array([[-3.0], [2.0]]), np.zeros(2, int)
    loss, _ = by_torch(torch, z, targets, reduction="none")
    assert (loss == 0).all()
    assert np.signbit(loss).all()
    got, g = sx.cross_entropy_with_grad(z, targets, reduction="none", backend=level.backend)
    for array in (got, g):
        assert (array == 0).all()
        assert not np.signbit(array).any()


def test_torch_differs_on_confident_rows(level, torch):
    """exp(-40) = 4.2e-18 of loss and gradient, where PyTorch has 0: the reason for this library."""
    z, targets = np.array([[40.0, 0.0]]), np.zeros(1, int)
    loss, grad = by_torch(torch, z, targets)
    assert (loss, grad[0, 0]) == (0, 0)
    got, g = sx.cross_entropy_with_grad(z, targets, backend=level.backend)
    np.testing.assert_allclose([got, *g[0]], np.array([1, -1, 1]) * np.exp(-40.0), rtol=1e-15)


# ---- scikit-learn --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sklearn_half_multinomial_loss(level, n_classes, order, weighted):
    """The loss of LogisticRegression and of gradient boosting; rows' weights as given."""
    module = pytest.importorskip("sklearn._loss", reason="the peer: pip install scikit-learn")
    z, targets, _, _ = problem((60, n_classes))
    z = np.asarray(z, order=order)
    weight = np.random.default_rng(0).uniform(0, 2, 60) if weighted else None
    peer = module.HalfMultinomialLoss(n_classes=n_classes)
    loss, grad = peer.loss_gradient(targets.astype(float), z, sample_weight=weight)
    got, g = sx.cross_entropy_with_grad(
        z, targets, sample_weight=weight, reduction="none", backend=level.backend)
    np.testing.assert_allclose(got, loss, **TOLERANCE)
    np.testing.assert_allclose(g, grad, **TOLERANCE)
    assert g.flags[f"{order}_CONTIGUOUS"]
    # Its mean is np.average: divided by the weights' sum, as ours.
    mean = sx.cross_entropy(z, targets, sample_weight=weight, backend=level.backend)
    np.testing.assert_allclose(mean, peer(targets.astype(float), z, weight), **TOLERANCE)


@pytest.mark.parametrize("weighted", [False, True])
def test_sklearn_log_loss(level, weighted):
    metrics = pytest.importorskip("sklearn.metrics", reason="the peer: pip install scikit-learn")
    z, targets, _, _ = problem((60, 10))
    weight = np.random.default_rng(0).uniform(0, 2, 60) if weighted else None
    p = sx.softmax(z, backend=level.backend)
    expected = metrics.log_loss(targets, p, sample_weight=weight, labels=np.arange(10))
    got = sx.cross_entropy(z, targets, sample_weight=weight, backend=level.backend)
    np.testing.assert_allclose(got, expected, **TOLERANCE)


# ---- SciPy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_scipy_pieces(level, shape, offset):
    special = pytest.importorskip("scipy.special", reason="the peer: pip install scipy")
    z, _, _, axis = problem(shape)
    z = np.round(z, 3) + offset
    z.flat[0] = -np.inf
    for name in ("logsumexp", "softmax", "log_softmax"):
        ours, theirs = getattr(sx, name), getattr(special, name)
        np.testing.assert_allclose(ours(z, axis=axis, backend=level.backend), theirs(z, axis=axis),
                                   rtol=1e-12, atol=1e-11 if offset else 1e-12)
    np.testing.assert_allclose(sx.logsumexp(z, axis=axis, keepdims=True, backend=level.backend),
                               special.logsumexp(z, axis=axis, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("row", [[np.inf, 0.0], [-np.inf, -np.inf], [np.nan, 0.0],
                                 [np.inf, np.inf], [np.inf, -np.inf]], ids=str)
def test_scipy_logsumexp_of_special_values(level, row):
    special = pytest.importorskip("scipy.special", reason="the peer: pip install scipy")
    np.testing.assert_array_equal(sx.logsumexp(np.array(row), backend=level.backend),
                                  special.logsumexp(row))
