"""Against other people's libraries: PyTorch, scikit-learn, SciPy, in float64.

They take `lse - z_target` and `p - 1`, so they are compared where these lose nothing that matters:
moderate logits, an absolute 1e-12. What we do otherwise on purpose is tested as a difference, and
listed in docs/coming_from_pytorch.md.
"""

from __future__ import annotations

import numpy as np
import pytest

import softxent as sx
from levels import force, usable_levels

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


def compared():
    """Return the backend and level that calls get here, and NumPy's.

    That the others compute the same is test_accuracy's, test_options' and test_bits' matter.
    """
    plan = sx.explain((4, 4))
    return [one for one in usable_levels()
            if one == (plan.backend, plan.isa) or one.backend == "numpy"]


@pytest.fixture(params=compared(), ids=str)
def level(request, monkeypatch):
    force(request.param, monkeypatch)
    return request.param


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


def agree(got, g, loss, grad, reduction, counting):
    """Value and gradient are PyTorch's, but for a mean in which nothing counts."""
    assert np.shape(got) == loss.shape
    if reduction == "mean" and not counting:
        # A documented difference in the loss, none in the gradient.
        assert np.isnan(loss)
        assert got == 0.0
    else:
        np.testing.assert_allclose(got, loss, **TOLERANCE)
    np.testing.assert_allclose(g, grad, **TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_cross_entropy(level, torch, shape, weighted, smoothing, ignore_index, reduction):
    z, targets, weight, axis = problem(shape)
    if ignore_index == -100:
        targets = np.where(np.random.default_rng(0).random(targets.shape) < 0.2, -100, targets)
    else:
        targets = np.asarray(targets)
    weight = weight if weighted else None
    loss, grad = by_torch(torch, z, targets, weight=weight, ignore_index=ignore_index,
                          label_smoothing=smoothing, reduction=reduction)
    got, g = sx.cross_entropy_with_grad(
        z, targets, axis=axis, class_weight=weight, ignore_index=ignore_index,
        label_smoothing=smoothing, reduction=reduction, backend=level.backend)
    agree(got, g, loss, grad, reduction, counting=(targets != ignore_index).any())


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("total", ["one", "any"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_cross_entropy_of_probabilities(
        level, torch, shape, weighted, smoothing, total, reduction):
    """Its mean is over rows, whatever the class weights: ours is too, without sample weights."""
    z, _, weight, axis = problem(shape)
    t = np.random.default_rng(1).gamma(0.3, size=shape)  # some nearly one-hot
    if total == "one":
        t /= t.sum(axis=axis, keepdims=True)
    weight = weight if weighted else None
    loss, grad = by_torch(
        torch, z, t, weight=weight, label_smoothing=smoothing, reduction=reduction)
    got, g = sx.cross_entropy_with_grad(
        z, t, axis=axis, class_weight=weight, label_smoothing=smoothing, reduction=reduction,
        backend=level.backend)
    agree(got, g, loss, grad, reduction, counting=z.size > 0)


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("extra", [
    {"temperature": 2.5}, {"temperature": 0.3}, {"softcap": 3.0}, {"z_loss": 0.01},
    {"temperature": 1.7, "softcap": 5.0, "z_loss": 0.1},
], ids=lambda options: "-".join(options) + f"-{min(options.values())}")
def test_torch_with_what_it_has_not(level, torch, shape, kind, smoothing, extra):
    """Temperature, softcap and z-loss, put together from PyTorch's operations."""
    z, targets, weight, axis = problem(shape)
    if kind == "classes":
        targets = np.where(np.random.default_rng(0).random(targets.shape) < 0.2, -100, targets)
    else:
        targets = np.random.default_rng(1).dirichlet(np.ones(7), 1)[0] if shape == (7,) else (
            np.random.default_rng(1).gamma(0.3, size=shape))
    s = np.asarray(np.random.default_rng(2).uniform(0, 2, np.delete(shape, axis)))
    leaf = torch.tensor(z, requires_grad=True)
    x = leaf
    if "softcap" in extra:
        x = extra["softcap"] * torch.tanh(x / extra["softcap"])
    x = x / extra.get("temperature", 1.0)
    y = torch.tensor(np.asarray(targets))
    rows = torch.nn.functional.cross_entropy(
        x, y, weight=torch.tensor(weight), label_smoothing=smoothing, reduction="none")
    rows = rows + extra.get("z_loss", 0.0) * torch.logsumexp(x, axis) ** 2
    divisor = torch.tensor(s)
    if kind == "classes":
        rows = torch.where(y == -100, 0.0, rows)
        divisor = torch.where(y == -100, 0.0, divisor * torch.tensor(weight)[y.clamp(min=0)])
    mean = (torch.tensor(s) * rows).sum() / divisor.sum()
    mean.backward()
    got, g = sx.cross_entropy_with_grad(
        z, targets, axis=axis, class_weight=weight, sample_weight=s, label_smoothing=smoothing,
        **extra, backend=level.backend)
    if kind == "classes" and (np.asarray(targets) == -100).all():
        assert got == 0.0
    else:
        np.testing.assert_allclose(got, mean.item(), **TOLERANCE)
        np.testing.assert_allclose(g, leaf.grad.numpy(), **TOLERANCE)


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


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_torch_entropy_and_target_log_probs(level, torch, shape, temperature):
    z, targets, _, axis = problem(shape)
    tensor = torch.tensor(np.moveaxis(z, axis, -1)) / temperature
    spread = torch.distributions.Categorical(logits=tensor)
    options = {"axis": axis, "temperature": temperature, "backend": level.backend}
    np.testing.assert_allclose(sx.softmax_entropy(z, **options), spread.entropy().numpy(),
                               **TOLERANCE)
    np.testing.assert_allclose(
        sx.target_log_probs(z, targets, **options),
        spread.log_prob(torch.tensor(np.asarray(targets))).numpy(), **TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_torch_softmax_vjp(level, torch, shape, temperature):
    """Autograd through the softmax, and through one with a temperature."""
    z, _, _, axis = problem(shape)
    u = np.random.default_rng(1).normal(size=shape)
    leaf = torch.tensor(z, requires_grad=True)
    p = torch.softmax(leaf / temperature, axis)
    p.backward(torch.tensor(u))
    ours = sx.softmax(z, axis=axis, temperature=temperature, backend=level.backend)
    np.testing.assert_allclose(ours, p.detach().numpy(), **TOLERANCE)
    g = sx.softmax_vjp(ours, u, axis=axis, backend=level.backend)
    np.testing.assert_allclose(g / temperature, leaf.grad.numpy(), **TOLERANCE)


# ---- PyTorch's other losses ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_nll_loss(level, torch, shape, weighted, reduction):
    z, targets, weight, axis = problem(shape)
    targets = np.where(np.random.default_rng(0).random(targets.shape) < 0.2, -100, targets)
    weight = weight if weighted else None
    log_p = sx.log_softmax(z, axis=axis)
    leaf = torch.tensor(log_p, requires_grad=True)
    loss = torch.nn.functional.nll_loss(
        leaf, torch.tensor(targets), reduction=reduction,
        weight=torch.tensor(weight) if weighted else None)
    loss.backward(torch.ones_like(loss))
    got, g = sx.nll_loss_with_grad(log_p, targets, axis=axis, class_weight=weight,
                                   reduction=reduction, backend=level.backend)
    agree(got, g, loss.detach().numpy(), leaf.grad.numpy(), reduction,
          counting=(targets != -100).any())


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_kl_div(level, torch, shape, temperature, reduction):
    """Our mean is its "batchmean": over the rows."""
    z, _, _, axis = problem(shape)
    t = np.random.default_rng(1).exponential(1, shape)
    t[np.random.default_rng(2).random(shape) < 0.2] = 0
    leaf = torch.tensor(z, requires_grad=True)
    elements = torch.nn.functional.kl_div(
        torch.log_softmax(leaf / temperature, axis), torch.tensor(t), reduction="none")
    loss = elements.sum(axis)
    if reduction != "none":
        loss = loss.sum() / (1 if reduction == "sum" else max(loss.numel(), 1))
    loss.backward(torch.ones_like(loss))
    got, g = sx.kl_divergence_with_grad(z, t, axis=axis, temperature=temperature,
                                        reduction=reduction, backend=level.backend)
    agree(got, g, loss.detach().numpy(), leaf.grad.numpy(), reduction, counting=True)


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("hard_weight", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_distillation(level, torch, shape, hard_weight, reduction):
    """PyTorch's tutorial's sum of `kl_div` times tau^2 and cross-entropy, row by row."""
    z, targets, _, axis = problem(shape)
    targets = np.where(targets < 0, 0, targets)
    teacher = np.random.default_rng(1).normal(0, 3, shape)
    tau, f = 2.5, torch.nn.functional
    leaf = torch.tensor(z, requires_grad=True)
    soft = f.kl_div(torch.log_softmax(leaf / tau, axis), torch.log_softmax(
        torch.tensor(teacher) / tau, axis), reduction="none", log_target=True).sum(axis)
    log_p = torch.log_softmax(leaf, axis).gather(axis, torch.tensor(targets).unsqueeze(axis))
    loss = (1 - hard_weight) * tau**2 * soft - hard_weight * log_p.squeeze(axis)
    if reduction != "none":
        loss = loss.sum() / (1 if reduction == "sum" else max(loss.numel(), 1))
    loss.backward(torch.ones_like(loss))
    got, g = sx.distillation_loss_with_grad(
        z, teacher, axis=axis, temperature=tau, hard_targets=targets, hard_weight=hard_weight,
        reduction=reduction, backend=level.backend)
    agree(got, g, loss.detach().numpy(), leaf.grad.numpy(), reduction, counting=True)


@pytest.mark.parametrize("shape", [(), (5,), (40, 7), (3, 11, 2, 5), (0, 3)], **ids)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pos_weight", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torch_binary_cross_entropy_with_logits(
        level, torch, shape, weighted, pos_weight, reduction):
    """But for the mean's divisor where there are weights: their sum, not the number of logits."""
    rng = np.random.default_rng(len(shape))
    z, t, s = rng.normal(0, 4, shape), rng.random(shape), rng.uniform(0.1, 3, shape)
    v = rng.uniform(0.1, 3, shape[-1:])
    leaf = torch.tensor(z, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        leaf, torch.tensor(t), weight=torch.tensor(s) if weighted else None,
        pos_weight=torch.tensor(v) if pos_weight else None, reduction=reduction)
    loss.backward(torch.ones_like(loss))
    options = {"divisor": float(np.size(z))} if weighted and reduction == "mean" else {}
    got, g = sx.sigmoid_binary_cross_entropy_with_grad(
        z, t, sample_weight=s if weighted else None, pos_weight=v if pos_weight else None,
        reduction=reduction, backend=level.backend, **options)
    agree(got, g, loss.detach().numpy(), leaf.grad.numpy(), reduction, counting=np.size(z) > 0)


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_torch_focal_loss(level, torch, shape, gamma):
    """It has none: written out."""
    z, targets, weight, axis = problem(shape)
    leaf = torch.tensor(z, requires_grad=True)
    at = torch.tensor(targets).unsqueeze(axis)
    log_p = torch.log_softmax(leaf, axis).gather(axis, at).squeeze(axis)
    loss = -torch.tensor(weight)[torch.tensor(targets)] * (1 - log_p.exp()) ** gamma * log_p
    loss.sum().backward()
    got, g = sx.focal_loss_with_grad(z, targets, axis=axis, gamma=gamma, class_weight=weight,
                                     reduction="none", backend=level.backend)
    agree(got, g, loss.detach().numpy(), leaf.grad.numpy(), "none", counting=True)


@pytest.mark.parametrize("shape", SHAPES[:-1], **ids)
def test_torch_squared_error(level, torch, shape):
    z, _, _, axis = problem(shape)
    t = sx.softmax(np.random.default_rng(1).normal(0, 2, shape), axis=axis)
    leaf = torch.tensor(z, requires_grad=True)
    loss = 0.5 * ((torch.softmax(leaf, axis) - torch.tensor(t)) ** 2).sum(axis)
    loss.sum().backward()
    got, g = sx.softmax_squared_error_with_grad(z, t, axis=axis, reduction="none",
                                                backend=level.backend)
    agree(got, g, loss.detach().numpy(), leaf.grad.numpy(), "none", counting=True)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_torch_top_k(level, torch, k):
    z, targets, _, _ = problem((40, 7))
    top = torch.topk(torch.tensor(z), k, dim=1).indices.numpy()
    share = (top == targets[:, None]).any(axis=1).mean()
    assert sx.accuracy(z, targets, k=k, backend=level.backend) == share


# ---- PyTorch: what differs on purpose (docs/coming_from_pytorch.md names these tests) ------------


@pytest.mark.parametrize("targets", ["ignored", "of weight 0", "none"])
def test_torch_differs_when_nothing_counts(level, torch, targets):
    """Ours 0.0 with gradient 0; PyTorch's 0/0 is NaN, with weights of 0 its gradient too."""
    z, y = problem((40, 7))[0], np.full(40, -100)
    weight = None
    if targets == "of weight 0":
        y, weight = np.full(40, 3), np.arange(7) - 3.0
        weight = np.maximum(weight, 0.0)
    elif targets == "none":
        z, y = z[:0], y[:0]
    loss, grad = by_torch(torch, z, y, weight=weight)
    assert np.isnan(loss)
    assert np.isnan(grad).all() == (targets != "ignored")
    loss, g = sx.cross_entropy_with_grad(z, y, class_weight=weight, backend=level.backend)
    assert (loss, np.count_nonzero(g)) == (0.0, 0)


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


def test_torch_differs_in_the_kind_of_targets(level, torch):
    """By dtype here, by shape there; each refuses what the other would take them for."""
    z, y, _, _ = problem((40, 7))
    hot = np.eye(7)[y]
    np.testing.assert_allclose(sx.cross_entropy(z, hot, backend=level.backend),
                               sx.cross_entropy(z, y, backend=level.backend), **TOLERANCE)
    for targets, ours, theirs in ((hot.astype(int), ValueError, "Expected floating point"),
                                  (y.astype(float), TypeError, "Long")):
        with pytest.raises(RuntimeError, match=theirs):
            by_torch(torch, z, targets)
        with pytest.raises(ours):
            sx.cross_entropy(z, targets, backend=level.backend)


def test_torch_differs_in_the_axis(level, torch):
    """The classes' axis is the last one unless said otherwise; there it is always the second."""
    z, targets, _, _ = problem((6, 3, 4))
    loss, grad = by_torch(torch, z, targets)
    last = np.moveaxis(z, 1, -1)
    got, g = sx.cross_entropy_with_grad(last, targets, backend=level.backend)
    np.testing.assert_allclose(got, loss, **TOLERANCE)
    np.testing.assert_allclose(np.moveaxis(g, -1, 1), grad, **TOLERANCE)
    with pytest.raises(ValueError, match="pass axis=1"):
        sx.cross_entropy(z, targets, backend=level.backend)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint16", "uint32", "uint64"])
def test_torch_differs_in_integer_types(level, torch, dtype):
    """Every width here; int64 and uint8 there."""
    z, targets, _, _ = problem((40, 7))
    with pytest.raises(RuntimeError):
        by_torch(torch, z, targets.astype(dtype))
    assert sx.cross_entropy(z, targets.astype(dtype), backend=level.backend) == sx.cross_entropy(
        z, targets, backend=level.backend)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_torch_differs_in_what_is_returned(level, torch, dtype):
    """A float, summed in float64, and the gradient beside it; there a tensor like the logits."""
    z = np.random.default_rng(0).normal(0, 4, (3000, 7)).astype(dtype)
    targets = np.random.default_rng(1).integers(0, 7, 3000)
    theirs, grad = by_torch(torch, z, targets)
    assert theirs.dtype == dtype
    loss, g = sx.cross_entropy_with_grad(z, targets, backend=level.backend)
    assert type(loss) is float
    assert (g.dtype, g.shape) == (grad.dtype, grad.shape)
    exact, _ = by_torch(torch, z.astype(np.float64), targets)
    assert abs(loss - exact) <= (1e-12 if dtype == "float64" else 3e-7) * exact
    assert abs(loss - exact) <= abs(theirs - exact) + 1e-14
    if dtype == "float16":
        assert abs(theirs - exact) > 1e-5


def test_torch_differs_on_excluded_classes(level, torch):
    """Probability 0 times a logit of -inf is 0 here, NaN there; weight 0 times its loss as well."""
    z, t = np.array([[1.0, -np.inf, 0.5]]), np.array([[0.25, 0.0, 0.75]])
    loss, _ = by_torch(torch, z, t)
    assert np.isnan(loss)
    got, g = sx.cross_entropy_with_grad(z, t, backend=level.backend)
    keep = [0, 2]
    loss, grad = by_torch(torch, z[:, keep], t[:, keep])
    np.testing.assert_allclose(got, loss, **TOLERANCE)
    np.testing.assert_allclose(g[:, keep], grad, **TOLERANCE)
    assert g[0, 1] == 0.0

    weight, y = np.array([1.0, 0.0, 1.0]), np.array([1])
    loss, _ = by_torch(torch, z, y, weight=weight, reduction="sum")
    assert np.isnan(loss)
    got, g = sx.cross_entropy_with_grad(
        z, y, class_weight=weight, reduction="sum", backend=level.backend)
    assert (got, np.count_nonzero(g)) == (0.0, 0)


def test_torch_differs_on_ignore_index_with_probabilities(level, torch):
    """Refused here unless it is left out; there only if it could be a class."""
    z, targets, _, _ = problem((40, 7))
    t = np.eye(7)[targets]
    by_torch(torch, z, t, ignore_index=-1)
    with pytest.raises(RuntimeError, match="ignore_index is not supported"):
        by_torch(torch, z, t, ignore_index=1)
    for ignore_index in (-1, 1, None):
        with pytest.raises(TypeError, match="no ignore_index"):
            sx.cross_entropy(z, t, ignore_index=ignore_index, backend=level.backend)


def test_torch_differs_on_values_that_make_no_sense(level, torch):
    """Negative or NaN probabilities and weights, refused here, make some number there."""
    z, targets, weight, _ = problem((40, 7))
    bad = weight.copy()
    bad[2] = -1.0
    by_torch(torch, z, targets, weight=bad)
    with pytest.raises(ValueError, match=r"class_weight\[2\] = -1"):
        sx.cross_entropy(z, targets, class_weight=bad, backend=level.backend)
    t = np.eye(7)[targets]
    for value in (-0.5, np.nan):
        t[5, 3] = value
        by_torch(torch, z, t)
        with pytest.raises(ValueError, match=r"targets\[5, 3\]"):
            sx.cross_entropy(z, t, backend=level.backend)


def test_torch_differs_in_the_dtype_of_weights(level, torch):
    """Any real dtype here; there the logits'."""
    z, targets, weight, _ = problem((40, 7))
    weight = np.ceil(weight)
    with pytest.raises(RuntimeError):
        by_torch(torch, z, targets, weight=weight.astype(np.float32))
    assert sx.cross_entropy(z, targets, class_weight=weight.astype(np.uint8),
                            backend=level.backend) == sx.cross_entropy(
        z, targets, class_weight=weight, backend=level.backend)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_torch_has_no_sample_weight(level, torch, kind):
    """The "none" losses times s: their sum over that of s v (classes), or s (probabilities)."""
    z, targets, weight, _ = problem((40, 7))
    s = np.random.default_rng(3).uniform(0, 2, 40)
    divisor = (s * weight[targets]).sum() if kind == "classes" else s.sum()
    targets = targets if kind == "classes" else np.random.default_rng(1).dirichlet(np.ones(7), 40)
    rows, grad = by_torch(torch, z, targets, s / divisor, weight=weight, reduction="none")
    got, g = sx.cross_entropy_with_grad(
        z, targets, class_weight=weight, sample_weight=s, backend=level.backend)
    np.testing.assert_allclose(got, rows @ s / divisor, **TOLERANCE)
    np.testing.assert_allclose(g, grad, **TOLERANCE)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_torch_does_not_divide_by_the_weights_of_probabilities(level, torch, kind):
    """A one-hot row is a class number but for the weighted mean, there as here."""
    z, targets, weight, _ = problem((40, 7))
    of_rows = sx.cross_entropy(z, targets, class_weight=weight, reduction="sum",
                               backend=level.backend)
    divisor = weight[targets].sum() if kind == "classes" else 40
    targets = targets if kind == "classes" else np.eye(7)[targets]
    loss, _ = by_torch(torch, z, targets, weight=weight)
    got = sx.cross_entropy(z, targets, class_weight=weight, backend=level.backend)
    np.testing.assert_allclose([got, loss], of_rows / divisor, **TOLERANCE)


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
