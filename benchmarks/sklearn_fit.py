"""scikit-learn's estimators as they are, and under `softxent.sklearn.patch`: times of whole fits.

    python benchmarks/sklearn_fit.py [--rounds N] [--only ESTIMATOR] [DATA ...]

ESTIMATOR: lbfgs, newton-cg, boosting, as they are and patched; or estimator, which is
`LogisticRegression` as it is, and `SoftmaxRegression` in the place of a patched one.

DATA: digits, or ROWSxFEATURESxCLASSES (seeded: centres of classes in a few dimensions, seen through
a linear map, and noise). One line an estimator and data: both times (medians of rounds in turn),
the median of round-by-round ratios, the loss's share of either fit (its calls, timed within the
same fits), and how far the objectives reached are apart: times are of the same work if iterations
are equal and that is rounding. By default everything, some minutes a round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn._loss.loss import HalfMultinomialLoss
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import softxent as sx
from softxent.cli import bench
from softxent.sklearn import SoftmaxRegression, patch

DATA = ("digits", "200000x50x10", "50000x100x100", "20000x300x1000")
#: Iterations of boosting: each grows a tree a class, so many classes take few of them.
TREES = 300

LOGISTIC = "sklearn.linear_model._logistic"
BOOSTING = "sklearn.ensemble._hist_gradient_boosting.gradient_boosting"


def prepare(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return X and y."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        return x / 16, y
    rows, features, classes = map(int, name.split("x"))
    rng = np.random.default_rng(0)
    latent = min(features, 16)
    centres = rng.standard_normal((classes, latent))
    y = rng.integers(0, classes, rows)
    y[:classes] = np.arange(classes)  # each occurs
    x = (centres[y] + 0.5 * rng.standard_normal((rows, latent))) @ rng.standard_normal(
        (latent, features)) / latent**0.5
    return x + 0.5 * rng.standard_normal(x.shape), y


def lbfgs(x: np.ndarray, y: np.ndarray) -> Any:
    return LogisticRegression(max_iter=100 if x.shape[1] < 200 else 30)


def newton_cg(x: np.ndarray, y: np.ndarray) -> Any:
    return LogisticRegression(solver="newton-cg", max_iter=5)


def boosting(x: np.ndarray, y: np.ndarray) -> Any:
    n_iter = max(1, min(30, TREES // (y.max() + 1)))
    return HistGradientBoostingClassifier(max_iter=n_iter, early_stopping=False, random_state=0)


#: Name: (makes the estimator, the module whose loss it takes, the most classes it is measured at).
ESTIMATORS: dict[str, tuple[Callable[..., Any], str, int]] = {
    "lbfgs": (lbfgs, LOGISTIC, 1000),
    "newton-cg": (newton_cg, LOGISTIC, 100),
    "boosting": (boosting, BOOSTING, 100),
    "estimator": (lbfgs, LOGISTIC, 1000),
}


@dataclass
class Timed:
    """A `closs` whose calls are timed."""

    closs: Any
    spent: list[float]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.closs, name)

        def call(**arguments: Any) -> None:
            start = time.perf_counter()
            method(**arguments)
            self.spent.append(time.perf_counter() - start)

        return call


@contextlib.contextmanager
def timed_loss(place: str) -> Iterator[list[float]]:
    """Time what computes in the losses that `place` makes, whoever has put it there."""
    module = importlib.import_module(place)
    make, spent = module.HalfMultinomialLoss, []

    def timed(**options: Any) -> Any:
        loss = make(**options)
        loss.closs = Timed(loss.closs, spent)
        return loss

    module.HalfMultinomialLoss = timed
    try:
        yield spent
    finally:
        module.HalfMultinomialLoss = make


@dataclass
class Side:
    """What one of the two needed, a round each, and what it reached."""

    fits: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    iterations: int = 0
    objective: float = 0.0

    @property
    def share(self) -> float:
        return statistics.median(a / b for a, b in zip(self.losses, self.fits, strict=True))


def fit(name: str, x: np.ndarray, y: np.ndarray, patched: bool, side: Side) -> None:
    make, place, _ = ESTIMATORS[name]
    model = make(x, y)
    ours = patched and name == "estimator"
    if ours:
        model = SoftmaxRegression(max_iter=model.max_iter)
    with patch() if patched else contextlib.nullcontext(), timed_loss(place) as spent:
        start = time.perf_counter()
        model.fit(x, y)
        side.fits.append(time.perf_counter() - start)
    assert ours or spent, f"{name} has not called the loss of {place}"
    side.losses.append(np.nan if ours else sum(spent))  # nan: it has no such object
    if len(side.fits) == 1:
        side.iterations = int(np.max(model.n_iter_))
        side.objective = objective(model, x, y)


def objective(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean loss in training, by scikit-learn, with the penalty where there is one."""
    loss = HalfMultinomialLoss(n_classes=int(y.max()) + 1)
    raw = model._raw_predict(x) if hasattr(model, "_raw_predict") else model.decision_function(x)
    total = float(loss(y.astype(raw.dtype), raw))
    if isinstance(model, LogisticRegression | SoftmaxRegression):
        total += 0.5 * float((model.coef_**2).sum()) / (model.C * len(y))
    return total


def measure(name: str, data: str, rounds: int) -> str:
    """Return a line of the table."""
    x, y = prepare(data)
    before, after = Side(), Side()
    for i in range(rounds):
        for patched, side in ((False, before), (True, after))[:: 1 if i % 2 == 0 else -1]:
            fit(name, x, y, patched, side)
    ratios = [a / b for a, b in zip(before.fits, after.fits, strict=True)]
    faster = [a / b for a, b in zip(before.losses, after.losses, strict=True)]
    apart = abs(before.objective - after.objective) / abs(before.objective)
    cells = [
        name, data, bench.unit(statistics.median(before.fits)),
        bench.unit(statistics.median(after.fits)),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{before.share:.0%}", f"{after.share:.0%}", f"{statistics.median(faster):.2f}",
        f"{before.iterations}, {after.iterations}", f"{apart:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="*", default=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=ESTIMATORS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # iterations are limited, and said
    head = ["estimator", "rows x features x classes", "scikit-learn", "patched", "ratio (range)",
            "loss's share", "patched", "loss's ratio", "iterations", "objectives apart"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, (_, _, most) in ESTIMATORS.items():
        for data in options.data:
            classes = 10 if data == "digits" else int(data.split("x")[2])
            if options.only in (None, name) and classes <= most:
                print(measure(name, data, options.rounds), flush=True)
    facts = bench.machine(sx.get_num_threads(), ["sklearn"])
    print(f"\n{facts['cpu']}, {facts['level']}, {facts['threads']} threads; {facts['versions']}",
          file=sys.stderr)


if __name__ == "__main__":
    main()
