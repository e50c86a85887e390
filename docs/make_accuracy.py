"""Measures the worst errors here and in peers, and writes the page: `python docs/make_accuracy.py`.

On the adversarial rows of `tests/rows.py`, against the truth of `tests/truth.py`. Peers that are
not installed have no column. A few minutes for each dtype.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import accuracy_table as table  # noqa: E402
import rows  # noqa: E402
import truth  # noqa: E402
from levels import LEVELS, usable_levels  # noqa: E402

#: Lines of the page: what it is called, where `accuracy_table` has it (setting and quantities).
LINES: list[tuple[str, str, tuple[str, ...]]] = [
    ("`logsumexp`, eps·max(1, \\|lse\\|)", "", ("lse",)),
    ("`log_softmax`, ulp", "", ("log_softmax",)),
    ("`softmax`, ulp", "", ("softmax",)),
    ("`softmax_entropy`, eps·Σ\\|terms\\|", "pieces, temperature 1", ("entropy",)),
    ("`cross_entropy`, classes: loss, ulp", "", ("loss",)),
    ("… gradient, ulp", "", ("gradient", "gradient at target")),
    ("`cross_entropy`, probabilities: loss, ulp of the sum", "probabilities", ("soft loss",)),
    ("… gradient, eps·(\\|A\\|p + \\|B\\|)", "probabilities", ("other gradient",)),
    ("`cross_entropy`, smoothing 0.1: loss, ulp of the sum", "smoothing 0.1", ("soft loss",)),
    ("… gradient, eps·(\\|A\\|p + \\|B\\|)", "smoothing 0.1", ("other gradient",)),
    ("`focal_loss`, γ = 2: loss, (1 + γ) ulp", "focal", ("loss",)),
    ("… gradient, (1 + γ) ulp", "focal", ("gradient",)),
    ("`kl_divergence`: loss, eps·Σ\\|terms\\|", "KL", ("divergence",)),
    ("… gradient, eps·(\\|A\\|p + \\|B\\|)", "KL", ("other gradient",)),
    ("`distillation_loss`, τ = 2: loss, eps·Σ\\|terms\\|", "distillation", ("distillation",)),
    ("… gradient, eps·Σ\\|terms\\|", "distillation", ("gradient of distillation",)),
    ("`softmax_squared_error`: loss, eps·Σ\\|terms\\|", "squared error", ("squared error",)),
    ("… gradient, eps·Σ\\|terms\\|", "squared error", ("gradient of squared error",)),
    ("`sigmoid_binary_cross_entropy`: loss, eps·Σ\\|terms\\|", "sigmoid",
     ("binary cross-entropy",)),
    ("… gradient, eps·Σ\\|terms\\|", "sigmoid", ("gradient of binary cross-entropy",)),
]
SETTINGS = {**table.SETTINGS, **table.POINTS}
#: A loss of rows and its gradient: logits, targets, options of the setting.
Function = Callable[..., tuple[np.ndarray, np.ndarray]]


# ---- peers ---------------------------------------------------------------------------------------


class Peer:
    """A library, as people use it."""

    name = ""

    def piece(self, what: str, z: np.ndarray) -> np.ndarray | None:
        """Return lse, log_softmax, softmax or entropy of rows; None: it has none."""
        return None

    def loss(self, name: str, z: np.ndarray, targets: np.ndarray,
             options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a loss of rows and its gradient; None: it has none."""
        return None


class Torch(Peer):
    """Autograd through `torch.nn.functional`."""

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        self.name = f"PyTorch {self.torch.__version__.split('+')[0]}"

    def piece(self, what: str, z: np.ndarray) -> np.ndarray:
        """Return a piece."""
        torch, x = self.torch, self.torch.from_numpy(z)
        if what == "entropy":
            found = torch.distributions.Categorical(logits=x, validate_args=False).entropy()
        elif what == "lse":
            found = torch.logsumexp(x, 1)
        else:
            found = getattr(torch, what)(x, 1)
        return found.numpy()

    def loss(self, name: str, z: np.ndarray, targets: np.ndarray,
             options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return a loss and its gradient."""
        torch, f = self.torch, self.torch.nn.functional
        x = torch.from_numpy(z.copy()).requires_grad_()
        y = torch.from_numpy(targets if targets.dtype.kind == "i" else targets.astype(z.dtype))
        if name == "cross_entropy":
            loss = f.cross_entropy(x, y, reduction="none", **options)
        elif name == "focal_loss":
            log_p = f.log_softmax(x, 1).gather(1, y[:, None])[:, 0]
            loss = -((1 - log_p.exp()) ** options["gamma"]) * log_p
        elif name == "kl_divergence":
            loss = f.kl_div(f.log_softmax(x, 1), y, reduction="none").sum(1)
        elif name == "distillation_loss":
            tau = options["temperature"]
            log_p, log_q = f.log_softmax(x / tau, 1), f.log_softmax(y / tau, 1)
            loss = tau**2 * f.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
        elif name == "softmax_squared_error":
            loss = 0.5 * ((f.softmax(x, 1) - f.one_hot(y, z.shape[1])) ** 2).sum(1)
        else:
            loss = f.binary_cross_entropy_with_logits(x, y, reduction="none")
        loss.backward(torch.ones_like(loss))
        return loss.detach().numpy(), x.grad.numpy()


class Jax(Peer):
    """`jax.nn`, compiled, and its gradients."""

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_platforms", "cpu")
        self.jax.config.update("jax_enable_x64", True)
        self.name = f"JAX {self.jax.__version__}"

    def piece(self, what: str, z: np.ndarray) -> np.ndarray | None:
        """Return a piece."""
        nn = self.jax.nn
        function = {"lse": nn.logsumexp, "log_softmax": nn.log_softmax, "softmax": nn.softmax}
        if what not in function:
            return None
        return np.asarray(self.jax.jit(lambda x: function[what](x, 1))(z))

    def loss(self, name: str, z: np.ndarray, targets: np.ndarray,
             options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a loss and its gradient."""
        nn, numpy = self.jax.nn, self.jax.numpy
        y = targets if targets.dtype.kind == "i" else targets.astype(z.dtype)

        def at(log_p: Any) -> Any:
            return numpy.take_along_axis(log_p, y[:, None], 1)[:, 0]

        def focal(x: Any) -> Any:
            log_p = at(nn.log_softmax(x, 1))
            return -((1 - numpy.exp(log_p)) ** options["gamma"]) * log_p

        def smoothed(x: Any) -> Any:
            share = options.get("label_smoothing", 0.0)
            log_p = nn.log_softmax(x, 1)
            return -(1 - share) * at(log_p) - share * log_p.mean(1)

        def distilled(x: Any) -> Any:
            tau = options["temperature"]
            log_p, log_q = (nn.log_softmax(logits / tau, 1) for logits in (x, y))
            return tau**2 * (numpy.exp(log_q) * (log_q - log_p)).sum(1)

        functions: dict[str, Callable[[Any], Any]] = {
            "distillation_loss": distilled,
            "focal_loss": focal,
            "softmax_squared_error": lambda x: 0.5 * (
                (nn.softmax(x, 1) - nn.one_hot(y, z.shape[1], dtype=x.dtype)) ** 2).sum(1),
            "sigmoid_binary_cross_entropy": lambda x: (
                -y * nn.log_sigmoid(x) - (1 - y) * nn.log_sigmoid(-x)),
            "cross_entropy": smoothed if options else (
                (lambda x: -at(nn.log_softmax(x, 1))) if y.ndim == 1 else
                (lambda x: -(y * nn.log_softmax(x, 1)).sum(1))),
        }
        if name not in functions:
            return None
        function = functions[name]
        loss = self.jax.jit(function)(z)
        grad = self.jax.jit(self.jax.grad(lambda x: function(x).sum()))(z)
        return np.asarray(loss), np.asarray(grad)


class Scipy(Peer):
    """`scipy.special`, and gradients by hand."""

    def __init__(self) -> None:
        self.special = importlib.import_module("scipy.special")
        self.name = f"SciPy {importlib.import_module('scipy').__version__}"

    def piece(self, what: str, z: np.ndarray) -> np.ndarray | None:
        """Return a piece."""
        name = {"lse": "logsumexp"}.get(what, what)
        return getattr(self.special, name)(z, axis=1) if hasattr(self.special, name) and (
            what != "entropy") else None

    def loss(self, name: str, z: np.ndarray, targets: np.ndarray,
             options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return -log_softmax at the target, and softmax less one there."""
        if name != "cross_entropy" or options or targets.ndim != 1:
            return None
        at = np.arange(len(z)), targets
        g = self.special.softmax(z, axis=1)
        g[at] -= 1
        return -self.special.log_softmax(z, axis=1)[at], g


class Sklearn(Peer):
    """The loss objects of `sklearn._loss`."""

    def __init__(self) -> None:
        self.loss_module = importlib.import_module("sklearn._loss.loss")
        self.name = f"scikit-learn {importlib.import_module('sklearn').__version__}"

    def loss(self, name: str, z: np.ndarray, targets: np.ndarray,
             options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a loss and its gradient."""
        y = np.ascontiguousarray(targets, z.dtype)
        if name == "sigmoid_binary_cross_entropy":
            return self.loss_module.HalfBinomialLoss().loss_gradient(y, np.ascontiguousarray(z))
        if name != "cross_entropy" or options or targets.ndim != 1 or z.shape[1] < 3:
            return None  # it wants three classes
        loss = self.loss_module.HalfMultinomialLoss(n_classes=z.shape[1])
        return loss.loss_gradient(y, np.ascontiguousarray(z))


def peers() -> Iterator[Peer]:
    """Yield those that are installed."""
    for kind in (Torch, Jax, Scipy, Sklearn):
        try:
            yield kind()
        except ImportError:
            continue


# ---- measuring -----------------------------------------------------------------------------------


def of_peer(peer: Peer, dtype: str) -> dict[tuple[str, str], float]:
    """Return a peer's worst errors, by setting and quantity."""
    found: dict[tuple[str, str], float] = {}

    def see(key: tuple[str, str], errors: np.ndarray, wanted: np.ndarray | bool = True) -> None:
        errors = np.where(wanted, np.where(np.isnan(errors), np.inf, errors), 0)
        found[key] = max(found.get(key, 0.0), float(errors.max(initial=0)))

    for case in rows.cases(dtype):
        plain(peer, case, see)
    for case in table.option_cases(dtype):
        entropy = peer.piece("entropy", case.logits)
        if entropy is not None:
            true = truth.entropy(case.logits)
            see(("pieces, temperature 1", "entropy"), table.beyond(
                entropy, true, dtype, case.logits.shape[1] * truth.LD(truth.F[dtype]),
                truth.EPS[dtype] * true))
        for setting in {line[1] for line in LINES} & SETTINGS.keys():
            of_setting(peer, case, setting, found)
    return found


def plain(peer: Peer, case: rows.Case, see: Callable[..., None]) -> None:
    """Measure pieces and cross-entropy with classes, as `accuracy_table.look_at` does ours."""
    z, y, dtype = case.logits, case.targets, case.dtype
    f, flushed = truth.F[dtype], z.shape[1] * truth.LD(truth.F[dtype])
    lse, log_p, p = (peer.piece(what, z) for what in ("lse", "log_softmax", "softmax"))
    true_p = truth.softmax(z)
    if lse is not None:
        true = truth.lse(z)
        see(("", "lse"), truth.absolute_error(lse, true, dtype)
            / (truth.EPS[dtype] * np.maximum(1, np.abs(true))))
    if log_p is not None:
        see(("", "log_softmax"), truth.ulp_error(log_p, truth.log_softmax(z), dtype, flushed))
    if p is not None:
        see(("", "softmax"), truth.ulp_error(p, true_p, dtype), true_p >= f)
    both = peer.loss("cross_entropy", z, y, {})
    if both is not None:
        loss, g = both
        see(("", "loss"), truth.ulp_error(loss, truth.loss(z, y), dtype, flushed))
        true_g = truth.gradient(z, y)
        at_target = np.arange(z.shape[1]) == y[:, None]
        counts = (np.abs(true_g) >= f) & ((true_p >= f) | at_target)
        see(("", "gradient"), truth.ulp_error(g, true_g, dtype, np.where(at_target, flushed, 0)),
            counts)


def of_setting(peer: Peer, case: rows.Case, name: str,
               found: dict[tuple[str, str], float]) -> None:
    """Measure a loss with a setting's options."""
    setting = SETTINGS[name]
    z = case.logits
    if setting.loss in truth.POINTWISE:
        case = table.as_points(case)
        z = case.logits[:, 0]
    both = peer.loss(setting.loss, z, setting.targets(case), dict(setting.options))
    if both is None:
        return
    worst = {quantity: table.Worst() for quantity in table.OPTION_BOUNDS}
    with np.errstate(all="ignore"):
        loss, g = both
        table.look_at_setting(worst, case, setting, loss, g.reshape(case.logits.shape))
    for quantity, seen in worst.items():
        key = name, quantity
        found[key] = max(found.get(key, 0.0), seen.error)


def ours(dtype: str) -> dict[str, dict[tuple[str, str], float]]:
    """Return our worst errors, by column."""
    columns: dict[str, dict[tuple[str, str], float]] = {}
    for level in usable_levels():
        os.environ.pop("SOFTXENT_MAX_ISA", None)
        if level.isa in LEVELS:
            os.environ["SOFTXENT_MAX_ISA"] = level.isa
        title = {"v2": "v2", "v3": "v3, v4, Numba", "v4": "v3, v4, Numba"}.get(level.isa, "NumPy")
        into = columns.setdefault(title, {})
        for setting in dict.fromkeys(line[1] for line in LINES):
            worst = (table.measure_options(*level, dtype, setting) if setting
                     else table.measure(*level, dtype))
            for quantity, seen in worst.items():
                key = setting, quantity
                into[key] = max(into.get(key, 0.0), seen.error)
    os.environ.pop("SOFTXENT_MAX_ISA", None)
    return columns


# ---- the page ------------------------------------------------------------------------------------

HEAD = """<!-- written by docs/make_accuracy.py -->
# Accuracy

The worst error of each function over adversarial rows, beside the contract's bound and what others
make of the same rows, in one run of

```sh
python docs/make_accuracy.py
```

which takes some minutes and measures whatever of PyTorch, JAX, SciPy and scikit-learn is installed.
The rows (`tests/rows.py`, seeded): ties and near ties, gaps up to where exp underflows, confident
and wrong targets, sums that cross the smallest normal number, logits around 10⁶ and 10¹²,
log-sum-exp near 0, excluded classes up to whole blocks of them, the largest and smallest numbers,
at every tail of the vectors' width. The truth is extended precision's, checked against mpmath
(`tests/truth.py`). Every bound is a test on every backend and instruction set, and so is what was
measured: it may only fall (`tests/worst.json`).

Where a peer says 0 and the truth is not 0, no digit is right: 1.7e7 ulp in float32, 9e15 in
float64. A figure of ∞: NaN, or infinite where the truth is finite. –: it has no such function;
losses that a library lacks are written out with its own `log_softmax`, as its users do.
"""


def figure(value: float | None) -> str:
    """Return an error for a table."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if value < 100 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def page(dtypes: tuple[str, ...] = ("float32", "float64")) -> str:
    """Return the page's text."""
    parts = [HEAD]
    for dtype in dtypes:
        columns: dict[str, dict[tuple[str, str], float]] = ours(dtype)
        for peer in peers():
            with np.errstate(all="ignore"):
                columns[peer.name] = of_peer(peer, dtype)
        cases = list(rows.cases(dtype))
        parts.append(f"\n## {dtype}\n\n{sum(len(case.logits) for case in cases):,} rows, "
                     f"{sum(case.logits.size for case in cases):,} logits; fewer of them for what "
                     "follows cross-entropy with classes.\n")
        parts.append("| worst error | bound | " + " | ".join(columns) + " |")
        parts.append("|---" * (2 + len(columns)) + "|")
        for title, setting, quantities in LINES:
            cells = []
            for column in columns.values():
                some = [column[setting, quantity] for quantity in quantities
                        if (setting, quantity) in column]
                cells.append(figure(max(some) if some else None))
            bound = table.bound(quantities[0], dtype)
            parts.append(f"| {title} | ≤ {bound:g} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy.md")
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
