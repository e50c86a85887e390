"""docs/maths.md: its table holds, line by line; docs/gallery.md: its pictures can be drawn.

Formulas are written here again, in extended precision, from the page and not from the package.
Where the library has no second derivative, its gradient is differentiated.
"""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import softxent as sx

DOCS = Path(__file__).parents[1] / "docs"
MATHS = (DOCS / "maths.md").read_text(encoding="utf-8")
GALLERY = (DOCS / "gallery.md").read_text(encoding="utf-8")
#: First cells of the table of losses, as they stand there.
TABLE = re.findall(r"^\| (`.*?) \|",
                   MATHS.partition("## Each loss's row of the algebra")[2], re.M)
LD = np.longdouble
N, C = 40, 5
RTOL = 1e-10


# ---- the page ------------------------------------------------------------------------------------


def test_functions_of_the_page_exist():
    assert len(TABLE) == len(set(TABLE)) > 8
    assert {re.match(r"`(\w+)`", cell)[1] for cell in TABLE} <= set(sx.__all__)
    called = set(re.findall(r"`(\w+)\(", MATHS)) | set(re.findall(r"\bsx\.(\w+)", MATHS))
    assert called <= set(sx.__all__)


def test_every_line_of_the_table_is_tested():
    assert set(TABLE) == set(CASES)


def test_examples_run():
    """All in one namespace, one after the other."""
    test = doctest.DocTestParser().get_doctest(
        "\n".join(re.findall(r"```python\n(.*?)```", MATHS, re.S)), {}, "maths.md", "maths.md", 0)
    assert len(test.examples) > 8
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("page", ["maths.md", "gallery.md"])
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", text, re.M)}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        else:
            assert (DOCS / link).exists(), link


def test_formulas_survive_markdown():
    r"""Between dollars GitHub reads Markdown first: "\," becomes ",", and "}_k" opens emphasis."""
    text = re.sub(r"^```.*?^```", "", MATHS, flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for paragraph in re.split(r"\n\n|\n(?=[|-])", text):
        formulas = paragraph.split("$")[1::2]
        assert paragraph.count("$") % 2 == 0, paragraph
        for formula in formulas:
            assert formula == formula.strip(), formula
            assert not re.search(r"\\[^A-Za-z]|[^0-9A-Za-z]_|[*|<>\n]", formula), formula
            assert formula.count("{") == formula.count("}"), formula
            assert formula.count("(") == formula.count(")"), formula


# ---- the table -----------------------------------------------------------------------------------


def inputs():
    """Moderate logits, classes, probabilities, of which every third row does not sum to 1."""
    rng = np.random.default_rng(5)
    z = rng.normal(0, 2, (N, C))
    t = rng.dirichlet(np.ones(C), N)
    t[::3] *= rng.uniform(0.5, 2, (len(t[::3]), 1))
    t[1::7, 0] = 0
    return z, rng.integers(0, C, N), t


def algebra(z):
    """Log-sum-exp as a column, and softmax, in extended precision."""
    z = np.asarray(z, LD)
    lse = np.log(np.exp(z).sum(axis=1, keepdims=True))
    return lse, np.exp(z - lse)


def one_hot(y):
    return np.eye(C, dtype=LD)[y]


def owed(z, t):
    """Value, gradient and Hessian of sum t (lse - z), of any t."""
    lse, p = algebra(z)
    total = t.sum(axis=1, keepdims=True)
    return (t * (lse - z)).sum(axis=1), total * p - t, total * p * (1 - p)


def classes(z, y, t):
    lse, p = algebra(z)
    return (lse - z)[np.arange(N), y], p - one_hot(y), p * (1 - p)


def probabilities(z, y, t):
    return owed(z, t.astype(LD))


def smoothing(z, y, t):
    eps = LD(0.1)
    lse, p = algebra(z)
    value = (1 - eps) * (lse - z)[np.arange(N), y] + eps / C * (lse - z).sum(axis=1)
    return value, p - ((1 - eps) * one_hot(y) + eps / C), p * (1 - p)


def focal(z, y, t):
    gamma = LD(1.75)
    lse, p = algebra(z)
    p_y, loss = p[np.arange(N), y], (lse - z)[np.arange(N), y]
    q = 1 - p_y
    first = q**gamma + gamma * p_y * q ** (gamma - 1) * loss
    second = gamma * p_y * q ** (gamma - 2) * (2 * q - loss * (1 - gamma * p_y))
    away = p - one_hot(y)
    return (q**gamma * loss, first[:, None] * away,
            first[:, None] * p * (1 - p) + second[:, None] * away**2)


def kl(z, y, t):
    t = t.astype(LD)
    value, gradient, hessian = owed(z, t)
    own = np.where(t > 0, t * np.log(np.where(t > 0, t, 1)), 0)
    return value + own.sum(axis=1), gradient, hessian


def distillation(z, y, t):
    """Of a temperature of 3 and a teacher, here the probabilities' logarithms."""
    tau = LD(3)
    log_p, log_q = (x / tau - algebra(x / tau)[0] for x in (z, t))
    p, q = np.exp(log_p), np.exp(log_q)
    return tau**2 * (q * (log_q - log_p)).sum(axis=1), tau * (p - q), p * (1 - p)


def nll(z, y, t):
    return -z[np.arange(N), y].astype(LD), -one_hot(y), np.zeros((N, C))


def sigmoid(z, y, t):
    up, down = both_sides(z)
    return -t * np.log(up) - (1 - t) * np.log(down), up - t, up * down


def weighted_sigmoid(z, y, t):
    up, down = both_sides(z)
    v = LD(2.5)
    value = -v * t * np.log(up) - (1 - t) * np.log(down)
    return value, (1 - t) * up - v * t * down, (1 - t + v * t) * up * down


def both_sides(z):
    z = z.astype(LD)
    return 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))


def squared(z, y, t):
    _, p = algebra(z)
    r = p - t
    c = (p * r).sum(axis=1, keepdims=True)
    squares = (p * p).sum(axis=1, keepdims=True)
    return ((r * r).sum(axis=1) / 2, p * (r - c),
            p * ((1 - 2 * p) * (r - c) + p * (1 - 2 * p + squares)))


def squared_of_classes(z, y, t):
    return squared(z, y, one_hot(y))


#: A cell of the table: its formulas, by kind of target, and the options that go with them.
CASES = {
    "`cross_entropy`, classes": ({"classes": classes}, {}),
    "`cross_entropy`, probabilities": ({"probabilities": probabilities}, {}),
    "`cross_entropy`, smoothing": ({"classes": smoothing}, {"label_smoothing": 0.1}),
    "`focal_loss`": ({"classes": focal}, {"gamma": 1.75}),
    "`kl_divergence`": ({"probabilities": kl}, {}),
    "`distillation_loss`": ({"logits": distillation}, {"temperature": 3.0}),
    "`nll_loss`": ({"classes": nll}, {}),
    "`sigmoid_binary_cross_entropy`": ({"shares": sigmoid}, {}),
    "`sigmoid_binary_cross_entropy`, `pos_weight`": ({"shares": weighted_sigmoid},
                                                     {"pos_weight": 2.5}),
    "`softmax_squared_error`": ({"classes": squared_of_classes, "probabilities": squared}, {}),
}


def derivative(function, z, k):
    """Of each row's function by its entry k: central differences of order 8, error below 1e-11."""
    step = np.where(np.arange(z.shape[1]) == k, 0.02, 0)
    return sum(weight * (function(z + i * step) - function(z - i * step))
               for i, weight in enumerate((4 / 5, -1 / 5, 4 / 105, -1 / 280), 1)) / 0.02


def agree(found, wanted, atol=0.0):
    np.testing.assert_allclose(found, np.asarray(wanted, float), rtol=RTOL, atol=atol)


@pytest.mark.parametrize(("cell", "kind"), [(cell, kind) for cell in CASES
                                            for kind in CASES[cell][0]])
def test_line_of_the_table(cell, kind):
    """Against the library's numbers, and against their derivatives."""
    formulas, options = CASES[cell][0][kind], CASES[cell][1]
    name = re.match(r"`(\w+)`", cell)[1]
    z, y, t = inputs()
    if kind == "shares":
        t = np.minimum(t, 1)
    if kind == "logits":
        t = np.random.default_rng(6).normal(0, 2, t.shape)
    targets = y if kind == "classes" else t

    def loss(logits):
        rows = getattr(sx, name)(logits, targets, reduction="none", **options)
        return rows if rows.ndim == 1 else rows.sum(axis=1)  # of single logits

    def gradient(logits):
        return getattr(sx, f"{name}_with_grad")(logits, targets, reduction="none", **options)[1]

    value, slope, curvature = formulas(z, y, t)
    agree(loss(z), value if value.ndim == 1 else value.sum(axis=1))
    agree(gradient(z), slope)
    for k in range(C):
        agree(derivative(loss, z, k), slope[:, k], 1e-11)
        agree(derivative(lambda at, k=k: gradient(at)[:, k], z, k), curvature[:, k], 1e-11)
    if name == "cross_entropy":
        agree(sx.cross_entropy_grad_hess(z, targets, **options)[2], curvature)


def test_which_losses_are_not_convex():
    """The notes below the table: F' of focal loss, and squared error, can be negative."""
    improbable = np.tile([0.0, 4.0, 0.0, 0.0, 0.0], (N, 1))
    y = np.zeros(N, np.intp)
    for formulas in (focal, squared_of_classes):
        assert (formulas(improbable, y, None)[2][:, 0] < -1e-3).all()


# ---- what the text says --------------------------------------------------------------------------


def test_jacobian_collapses():
    """J by differences, its product with -t/p entry by entry; J is lse's Hessian too."""
    z, _, t = inputs()
    p = algebra(z)[1]
    jacobian = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    for k in range(C):
        agree(derivative(sx.logsumexp, z, k), p[:, k], 1e-11)
        for j in range(C):
            agree(derivative(lambda at, j=j: sx.softmax(at)[:, j], z, k), jacobian[:, j, k], 1e-11)
    u = -t / p
    collapsed = np.einsum("nkj,nk->nj", jacobian, u)
    agree(collapsed.astype(float), t.sum(axis=1, keepdims=True) * p - t, 1e-15)
    agree(sx.softmax_vjp(sx.softmax(z), u.astype(float)), collapsed, 1e-15)


def test_canonical_links():
    """X^T (mu - y) is the derivative by the weights; squared error on a sigmoid has mu' too."""
    rng = np.random.default_rng(1)
    x, beta = rng.normal(size=(30, 3)), rng.normal(0, 0.5, (3, C))
    y = rng.integers(0, 2, (30, C)).astype(float)
    best = rng.integers(0, C, 30)
    eta = x @ beta
    s, p = 1 / (1 + np.exp(-eta)), sx.softmax(eta)
    for loss, slope in (
        (lambda eta: ((eta - y) ** 2).sum() / 2, eta - y),
        (lambda eta: sx.sigmoid_binary_cross_entropy(eta, y, reduction="sum"), s - y),
        (lambda eta: sx.cross_entropy(eta, best, reduction="sum"), p - np.eye(C)[best]),
        (lambda eta: ((1 / (1 + np.exp(-eta)) - y) ** 2).sum() / 2, (s - y) * s * (1 - s)),
    ):
        def of_weights(flat, loss=loss):
            return np.array([loss(x @ row.reshape(beta.shape)) for row in flat])

        found = [derivative(of_weights, beta.reshape(1, -1), k)[0] for k in range(beta.size)]
        agree(found, (x.T @ slope).ravel(), 1e-8)

    def gradient(flat):
        grads = (sx.cross_entropy_with_grad(x @ row.reshape(beta.shape), best, reduction="sum")[1]
                 for row in flat)
        return np.stack([(x.T @ grad).ravel() for grad in grads])

    variance = p[:, :, None] * (np.eye(C) - p[:, None])
    second = np.einsum("ia,ib,ikl->akbl", x, x, variance).reshape(beta.size, -1)
    for k in range(beta.size):
        agree(derivative(gradient, beta.reshape(1, -1), k)[0], second[k], 1e-8)


def test_two_classes_are_one_sigmoid():
    """Cross-entropy the same; squared error twice the sigmoid's, its gradient 2 (s-t) s (1-s)."""
    z = np.linspace(-6, 6, 25)
    rows = np.stack([z, 0 * z], axis=1)
    s = 1 / (1 + np.exp(-z.astype(LD)))
    for t in (0.0, 0.3, 1.0):
        targets = np.array([[t, 1 - t]]).repeat(len(z), axis=0)
        value, grad = sx.softmax_squared_error_with_grad(rows, targets, reduction="none")
        agree(value, (s - t) ** 2, 1e-15)
        agree(grad[:, 0], 2 * (s - t) * s * (1 - s), 1e-15)
        agree(sx.cross_entropy(rows, targets, reduction="none"),
              sx.sigmoid_binary_cross_entropy(z, np.full_like(z, t), reduction="none"))


@pytest.mark.parametrize(("dtype", "overflow", "nothing", "lost"),
                         [(np.float32, 88.7, 104, 16.64), (np.float64, 709.8, 746, 36.74)])
def test_where_exponentials_fail(dtype, overflow, nothing, lost):
    with np.errstate(all="ignore"):
        assert np.isinf(np.exp(dtype(overflow + 0.1)))
        assert np.isfinite(np.exp(dtype(overflow - 0.1)))
        assert np.exp(dtype(-nothing)) == 0 < np.exp(dtype(2 - nothing))
    assert 1 + np.exp(dtype(-lost)) == 1 < 1 + np.exp(dtype(0.02 - lost))
    loss, grad = sx.cross_entropy_with_grad(np.array([lost, 0], dtype), 0)
    assert loss == pytest.approx(np.exp(-lost), rel=1e-6)
    assert grad[0] == pytest.approx(-np.exp(-lost), rel=1e-6)


def test_temperature_of_distillation():
    """The limit of Hinton et al.; and that `upstream` puts tau^2 back."""
    rng = np.random.default_rng(2)
    x, v = (a - a.mean(axis=1, keepdims=True) for a in rng.normal(size=(2, N, C)))
    tau = 1e4
    targets = sx.softmax(v, temperature=tau)
    _, grad = sx.cross_entropy_with_grad(x, targets, temperature=tau, reduction="none",
                                         upstream=tau**2)
    np.testing.assert_allclose(grad, (x - v) / C, atol=2e-3)


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.3])
def test_minimum_of_label_smoothing(eps):
    z = np.zeros((1, C))
    z[0, 0] = np.log(1 + C * (1 - eps) / eps)
    loss, grad = sx.cross_entropy_with_grad(z, [0], label_smoothing=eps)
    np.testing.assert_allclose(grad, 0, atol=1e-15)
    t = np.full(C, eps / C)
    t[0] += 1 - eps
    agree(sx.softmax(z)[0], t)
    assert loss == pytest.approx(-(t * np.log(t)).sum(), rel=RTOL)
    assert sx.cross_entropy(z + np.array([1.0, 0, 0, 0, 0]), [0], label_smoothing=eps) > loss


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_all_options_at_once(kind):
    rng = np.random.default_rng(3)
    x, y, t = inputs()
    s, u, v = rng.uniform(0.5, 2, N), rng.normal(size=N), rng.uniform(0.5, 2, C)
    tau, kappa, lam, eps = LD(0.7), LD(4.0), LD(0.03), LD(0.1)
    targets = y if kind == "classes" else t
    options = {"class_weight": v, "sample_weight": s, "temperature": 0.7, "softcap": 4.0,
               "z_loss": 0.03, "label_smoothing": 0.1}
    t = (1 - eps) * (one_hot(y) if kind == "classes" else t) + eps / C
    z = kappa / tau * np.tanh(x / kappa)
    lse, p = algebra(z)
    value = s * ((v * t * (lse - z)).sum(axis=1) + lam * lse[:, 0] ** 2)
    total = (v * t).sum(axis=1, keepdims=True) + 2 * lam * lse
    wanted = (s * u / tau)[:, None] / np.cosh(x / kappa) ** 2 * (total * p - v * t)
    found = sx.cross_entropy_with_grad(x, targets, reduction="none", upstream=u, **options)
    agree(found[0], value)
    agree(found[1], wanted, 1e-15)
    divisor = (s * v[y]).sum() if kind == "classes" else s.sum()
    _, mean = sx.cross_entropy_with_grad(x, targets, upstream=2.0, **options)
    agree(mean, wanted / u[:, None] * 2 / divisor, 1e-15)


def test_what_z_loss_pulls():
    """Without it a gradient sums to 0 over its row, with it to 2 lambda lse."""
    z, y, _ = inputs()
    for lam in (0.0, 0.1):
        _, grad = sx.cross_entropy_with_grad(z, y, reduction="none", z_loss=lam)
        np.testing.assert_allclose(grad.sum(axis=1), 2 * lam * sx.logsumexp(z), atol=1e-14)


# ---- the gallery ---------------------------------------------------------------------------------

SHOWN = re.findall(r"!\[[^\]]+\]\(gallery/(\w+\.png)\)", GALLERY)


def is_a_picture(file):
    """Whether it is a PNG that has no time and no program's name in it."""
    data = file.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and not any(
        chunk in data for chunk in (b"tIME", b"tEXt", b"iTXt"))


def test_pictures_are_there_and_small():
    assert len(SHOWN) == len(set(SHOWN)) > 5
    assert set(SHOWN) == {file.name for file in (DOCS / "gallery").iterdir()}
    for name in SHOWN:
        file = DOCS / "gallery" / name
        assert is_a_picture(file)
        assert file.stat().st_size < 60_000


def test_gallery_command(tmp_path):
    """As the page has it; every picture that the page shows, and no other."""
    pytest.importorskip("matplotlib", reason="the gallery: the extra `plot`")
    command = re.search(r"^python docs/(make_gallery\.py)$", GALLERY, re.M)[1]
    # Where this process imports from: installed, or a source tree on the path.
    code = (f"import runpy, sys; sys.path[:0] = {sys.path!r}; "
            f"sys.argv[1:] = ['--out', {str(tmp_path / 'new')!r}]; "
            f"runpy.run_path({str(DOCS / command)!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True,
                          text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(SHOWN)
    assert all(is_a_picture(file) for file in (tmp_path / "new").iterdir())
