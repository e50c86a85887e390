"""`softxent demo`: a classifier of handwritten digits, trained through the library's kernels."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent._explain import explain
from softxent.cli import CommandError, _plot
from softxent.losses.cross_entropy import cross_entropy_with_grad

#: Weight decay: held-out accuracy is flat (0.96-0.97) from 1e-4 to 1e-2.
L2 = 1e-3
ITERATIONS = 100
#: Trainings of each kind that are timed, in turn.
ROUNDS = 25

Floats = NDArray[np.float64]
#: From (logits, targets), the logits free to be overwritten: the mean loss, and its gradient.
Loss = Callable[[Floats, NDArray[np.integer]], tuple[float, Floats]]


def ours(logits: Floats, targets: NDArray[np.integer]) -> tuple[float, Floats]:
    """Loss and gradient by this library, the gradient written over the logits."""
    loss, grad = cross_entropy_with_grad(logits, targets, grad_out=logits)
    return loss, grad.astype(np.float64, copy=False)


def plain_numpy(logits: Floats, targets: NDArray[np.integer]) -> tuple[float, Floats]:
    """Loss and gradient as one writes them by hand: stable, whole-array NumPy, in place."""
    rows = np.arange(len(targets))
    logits -= logits.max(axis=1, keepdims=True)
    at_target = logits[rows, targets]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - at_target))
    logits /= total
    logits[rows, targets] -= 1.0
    logits /= len(targets)
    return loss, logits


def fit(
    x: Floats, y: NDArray[np.integer], n_classes: int, loss_with_grad: Loss,
    callback: Callable[[float], None] = lambda value: None,
) -> Floats:
    """Fit softmax regression by L-BFGS; return the weights, (features + 1) x classes."""
    from scipy.optimize import minimize

    x = np.column_stack([x, np.ones(len(x))])
    logits = np.empty((len(x), n_classes))

    def objective(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(x.shape[1], n_classes)
        np.matmul(x, weights, out=logits)
        loss, grad = loss_with_grad(logits, y)
        decay = L2 / 2 * float(flat @ flat)
        return loss + decay, (x.T @ grad + L2 * weights).ravel()

    start = np.zeros(x.shape[1] * n_classes)
    result = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS},
        callback=lambda intermediate_result: callback(float(intermediate_result.fun)),
    )
    weights: Floats = result.x.reshape(x.shape[1], n_classes)
    return weights


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo", help="train a classifier of handwritten digits"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the falling loss into FILE")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Train, time both losses in turn, and return the figures and the same as text."""
    plt = _plot.pyplot(options.plot) if options.plot else None
    data = _digits()
    from threadpoolctl import threadpool_limits  # scikit-learn has it

    # Products this small are done before a BLAS's threads have met: 36 s on two shared cores, 5 s
    # so (OpenBLAS, November 2026), and of what is timed nine tenths would be their waiting.
    with threadpool_limits(1, "blas"):
        figures, text = _train(*data)
    if plt is not None:
        _draw(plt, figures["losses"], options.plot)
    return figures, text


def _train(x_train: Floats, x_test: Floats,
           y_train: NDArray[np.integer], y_test: NDArray[np.integer]) -> tuple[dict[str, Any], str]:
    losses: list[float] = []
    weights = fit(x_train, y_train, 10, ours, losses.append)
    reference = fit(x_train, y_train, 10, plain_numpy)
    accuracy, accuracy_numpy = (
        float(np.mean((x_test @ w[:-1] + w[-1]).argmax(axis=1) == y_test))
        for w in (weights, reference)
    )
    logits = x_train @ weights[:-1] + weights[-1]
    training, ratio = _in_turn(lambda loss: fit(x_train, y_train, 10, loss), ROUNDS)
    alone, ratio_alone = _in_turn(lambda loss: loss(logits.copy(), y_train), 20 * ROUNDS)
    plan = explain((len(x_train), 10), "float64")
    figures = {
        "train_rows": len(x_train), "test_rows": len(x_test), "losses": losses,
        "held_out_accuracy": accuracy, "held_out_accuracy_numpy": accuracy_numpy,
        "backend": plan.backend, "isa": plan.isa, "n_threads": plan.n_threads,
        "seconds": training[0], "seconds_numpy": training[1], "speedup": ratio,
        "loss_seconds": alone[0], "loss_seconds_numpy": alone[1], "loss_speedup": ratio_alone,
    }
    shown = sorted({*range(0, len(losses), max(1, len(losses) // 8)), len(losses) - 1})
    lines = [
        f"softmax regression on handwritten digits: {len(x_train)} to learn from, "
        f"{len(x_test)} held out, 64 pixels, 10 classes",
        *(f"  iteration {i + 1:4}   loss {losses[i]:.6f}" for i in shown),
        f"held-out accuracy  {accuracy:.4f}   (plain NumPy: {accuracy_numpy:.4f})",
        f"backend            {plan.backend} {plan.isa}".rstrip()
        + f", {plan.n_threads} thread{'s' if plan.n_threads > 1 else ''}",
        f"training time      {training[0] * 1e3:.1f} ms (plain NumPy: {training[1] * 1e3:.1f} ms, "
        f"{ratio:.1f} times as long; medians of {ROUNDS} in turn)",
        f"of that the loss   {alone[0] * 1e6:.0f} us a step (plain NumPy: {alone[1] * 1e6:.0f} us, "
        f"{ratio_alone:.1f} times as long); the rest is matrix products and SciPy",
    ]
    return figures, "\n".join(lines)


def _in_turn(run: Callable[[Loss], object], rounds: int) -> tuple[tuple[float, float], float]:
    """Time `run` with both losses in turn: median seconds, and the median of NumPy's over ours."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for values, loss in zip(times, (ours, plain_numpy), strict=True):
            begin = time.perf_counter()
            run(loss)
            values.append(time.perf_counter() - begin)
    seconds = (statistics.median(times[0]), statistics.median(times[1]))
    return seconds, statistics.median(b / a for a, b in zip(*times, strict=True))


def _digits() -> tuple[Floats, Floats, NDArray[np.integer], NDArray[np.integer]]:
    try:
        import scipy.optimize  # noqa: F401
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise CommandError(
            f"needs scikit-learn and SciPy ({error}); pip install 'softxent[demo]'"
        ) from error
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16.0, y, test_size=0.25, random_state=0, stratify=y)
    return tuple(parts)


def _draw(plt: Any, losses: list[float], file: str) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.semilogy(range(1, len(losses) + 1), losses)
    axes.set(xlabel="iteration", ylabel="loss + weight decay",
             title="Handwritten digits, softmax regression by L-BFGS")
    _plot.save(figure, file)
