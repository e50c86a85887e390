"""What scikit-learn's loss objects keep as `closs` and leave all computing to, on softxent.

A `BaseLoss` allocates the outputs that it was not given and calls the method of its own name here,
by keywords. scikit-learn itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import softxent as sx
from softxent import _small

Floats = NDArray[np.floating]

#: Elements at a time where an output has another dtype than the logits: 512 KiB of float64.
PIECE = 65_536


class HalfMultinomialCLoss:
    """scikit-learn's `CyHalfMultinomialLoss`, its methods and their arguments.

    Labels are floats, as there: whole numbers from 0 to C - 1, else `ValueError`. `raw_prediction`
    and the outputs may have any strides, and each of them float32 or float64 as it likes. Per row
    and undivided: loss and gradient are w·(-log p_y) and w·(p - one_hot(y)), the Hessian is the
    diagonal w·p·(1 - p). Weights may be negative, as those of simulated particle collisions are.
    """

    def loss(self, y_true: Floats, raw_prediction: Floats, sample_weight: Floats | None,
             loss_out: Floats, n_threads: int | None = 1) -> None:
        """Write the rows' losses."""
        targets = _classes(y_true, raw_prediction)
        weight, negative = _magnitudes(sample_weight, targets)
        _check_rows(loss_out, targets)
        loss_out[...] = sx.cross_entropy(
            raw_prediction, targets, sample_weight=weight, reduction="none", ignore_index=None,
            n_threads=self._threads(n_threads, raw_prediction))
        _negate(negative, loss_out)

    def loss_gradient(self, y_true: Floats, raw_prediction: Floats, sample_weight: Floats | None,
                      loss_out: Floats, gradient_out: Floats, n_threads: int | None = 1) -> None:
        """Write the rows' losses and their gradient."""
        targets = _classes(y_true, raw_prediction)
        weight, negative = _magnitudes(sample_weight, targets)
        _check_rows(loss_out, targets)
        threads = self._threads(n_threads, raw_prediction)

        def write(rows: slice, out: Floats) -> None:
            loss_out[rows] = sx.cross_entropy_with_grad(
                raw_prediction[rows], targets[rows],
                sample_weight=None if weight is None else weight[rows], reduction="none",
                ignore_index=None, n_threads=threads, grad_out=out)[0]

        _in_pieces(write, raw_prediction, gradient_out)
        _negate(negative, loss_out, gradient_out)

    def gradient(self, y_true: Floats, raw_prediction: Floats, sample_weight: Floats | None,
                 gradient_out: Floats, n_threads: int | None = 1) -> None:
        """Write the gradient."""
        loss = np.empty(len(y_true), raw_prediction.dtype)
        self.loss_gradient(y_true, raw_prediction, sample_weight, loss, gradient_out, n_threads)

    def gradient_hessian(self, y_true: Floats, raw_prediction: Floats,
                         sample_weight: Floats | None, gradient_out: Floats, hessian_out: Floats,
                         n_threads: int | None = 1) -> None:
        """Write the gradient and the Hessian's diagonal."""
        targets = _classes(y_true, raw_prediction)
        weight, negative = _magnitudes(sample_weight, targets)
        sx.cross_entropy_grad_hess(
            raw_prediction, targets, sample_weight=weight, ignore_index=None,
            grad_out=gradient_out, hess_out=hessian_out,
            n_threads=self._threads(n_threads, raw_prediction))
        _negate(negative, gradient_out, hessian_out)

    def gradient_proba(self, y_true: Floats, raw_prediction: Floats, sample_weight: Floats | None,
                       gradient_out: Floats, proba_out: Floats, n_threads: int | None = 1) -> None:
        """Write the gradient and the probabilities."""
        self.gradient(y_true, raw_prediction, sample_weight, gradient_out, n_threads)
        threads = self._threads(n_threads, raw_prediction)

        def write(rows: slice, out: Floats) -> None:
            sx.softmax(raw_prediction[rows], out=out, n_threads=threads)

        _in_pieces(write, raw_prediction, proba_out)

    def _threads(self, n_threads: int | None, raw_prediction: Floats) -> int | None:
        """Return how many threads a call takes that scikit-learn gives `n_threads`."""
        return n_threads


def _classes(y_true: Floats, raw_prediction: Floats) -> NDArray[np.int64]:
    """Return scikit-learn's float labels as class numbers."""
    if y_true.dtype.kind != "f":
        raise TypeError("y_true must hold class numbers as floats, as scikit-learn's losses take "
                        f"them; got {y_true.dtype}: y_true.astype(raw_prediction.dtype)")
    if raw_prediction.ndim != 2 or y_true.shape != raw_prediction.shape[:1]:
        raise ValueError("raw_prediction must have the shape (n_samples, n_classes) and y_true "
                         f"(n_samples,); got {raw_prediction.shape} and {y_true.shape}")
    n_classes = raw_prediction.shape[1]
    classes = _small.class_numbers(y_true, n_classes)
    if classes is None:
        bad = ~np.isin(y_true, np.arange(n_classes))
        raise ValueError(
            "Some value(s) of y_true are out of the valid range of the loss 'HalfMultinomialLoss': "
            f"whole numbers from 0 to {n_classes - 1}, of the {n_classes} columns of "
            f"raw_prediction; got {y_true[bad][0]} in row {bad.argmax()}")
    return classes


def _magnitudes(sample_weight: Floats | None, targets: NDArray[np.int64]
                ) -> tuple[Floats | None, NDArray[np.bool_] | None]:
    """Return weights >= 0, and where the given ones are negative, if any is."""
    if sample_weight is None:
        return None, None
    if sample_weight.shape != targets.shape:
        raise ValueError(f"sample_weight must have y_true's shape, {targets.shape}; "
                         f"got {sample_weight.shape}")
    # The methods of the same names do this through more of Python.
    least = np.minimum.reduce(sample_weight, initial=0)
    if not -np.inf < least <= np.maximum.reduce(sample_weight, initial=0) < np.inf:
        raise ValueError("sample_weight must be finite; it has NaN or inf")
    return (np.abs(sample_weight), sample_weight < 0) if least < 0 else (sample_weight, None)


def _negate(negative: NDArray[np.bool_] | None, *outputs: Floats) -> None:
    """Change the sign of the rows whose weight is negative."""
    if negative is not None:
        for out in outputs:
            np.negative(out, out=out, where=negative if out.ndim == 1 else negative[:, None])


def _check_rows(loss_out: Floats, targets: NDArray[np.int64]) -> None:
    if loss_out.shape != targets.shape:
        raise ValueError(f"loss_out must have y_true's shape, {targets.shape}; "
                         f"got {loss_out.shape}")


def _in_pieces(write: Callable[[slice, Any], None], logits: Floats, out: Floats) -> None:
    """Have `write` fill `out`, some rows at a time where that has not the logits' dtype."""
    if out.dtype == logits.dtype:
        write(slice(None), out)
        return
    if out.shape != logits.shape:
        raise ValueError(f"outputs must have raw_prediction's shape, {logits.shape}; "
                         f"got {out.shape}")
    step = max(1, PIECE // max(1, logits.shape[1]))
    room = np.empty((step, logits.shape[1]), logits.dtype)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        piece = room[: len(logits) - start]
        write(rows, piece)
        out[rows] = piece
