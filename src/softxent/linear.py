"""Softmax cross-entropy of a linear layer's output, whose logits never exist as a whole.

Rows are taken some at a time: their logits by matrix products into one buffer, the loss by
`cross_entropy`, which writes the gradient over the buffer, and the layer's gradients by products
with that. Products are NumPy's, in float32 (float64 for float64); 16-bit arrays become float32 a
part at a time. NaN and infinities spread as products spread them, but for rows that do not count:
those are left out before anything is multiplied.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent.losses.cross_entropy import cross_entropy, cross_entropy_with_grad
from softxent.metrics import mean_divisor

_DTYPES = ("float32", "float64", "float16", "bfloat16")
#: Bytes of a chunk's logits and rows, and of each of two blocks of classes: 56 MB in all.
_MOST = 48_000_000
_BLOCK = 4_000_000
#: A chunk has so many rows where `_MOST` allows it: each chunk reads the weight and adds to its
#: gradient once, which must be little beside the products. And at least so many bytes: what a
#: chunk's dozen NumPy calls cost must be, too. (Zen 4, November 2026: of D = 512, C = 32,000, 128
#: rows take 1.05 to 1.1 times what 512 do; of D = 50, C = 10, 2 MB 1.2 times what 8 do.)
_ROWS = 512
_LEAST = 8_000_000


class LinearGrads(NamedTuple):
    """Gradients of a loss with respect to what a linear layer is made of.

    Attributes
    ----------
    x
        Of the input, in its shape and dtype.
    weight
        Of the weight, in its shape and dtype.
    bias
        Of the bias, in its shape and dtype; None where there was no bias.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.linear import linear_cross_entropy_with_grad
    >>> loss, grads = linear_cross_entropy_with_grad(np.ones((2, 3)), np.eye(4, 3), [0, 3])
    >>> grads.x.shape, grads.weight.shape, grads.bias
    ((2, 3), (4, 3), None)
    """

    x: NDArray[np.floating]
    weight: NDArray[np.floating]
    bias: NDArray[np.floating] | None


def linear_cross_entropy(
    x: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Softmax cross-entropy of a linear layer's output, without an array of the logits.

    .. math:: L = \mathrm{cross\_entropy}(x W^\top + b, \; y)

    Parameters
    ----------
    x : array of shape (..., D), float32, float64, float16 or bfloat16
        The layer's input, a row for each target; any strides and byte order.
    weight : array of shape (C, D), the dtype of x
        W, as PyTorch's Linear has it.
    targets : array of integers of shape (...)
        Class numbers 0 ... C-1, or `ignore_index`.
    bias : array of shape (C,), the dtype of x, optional
        b; -inf excludes a class.
    class_weight, ignore_index, label_smoothing, temperature, softcap, z_loss
        As `cross_entropy`.
    sample_weight, reduction, divisor
        As `cross_entropy`; rows are those of x, of shape (...).
    backend, n_threads
        As `cross_entropy`. The products have the threads of NumPy's BLAS.

    Returns
    -------
    float, or array of shape (...)
        As `cross_entropy`.

    Raises
    ------
    IndexError
        A target outside [0, C) that is not `ignore_index`.
    TypeError, ValueError
        A dtype, shape, weight or option that does not fit; the message says what would.
    BackendUnavailableError
        `backend` cannot be used here.

    See Also
    --------
    linear_cross_entropy_with_grad : the same, with the gradients.
    softxent.cross_entropy : of logits that exist; what each option means.

    Notes
    -----
    Logits are as accurate as NumPy's products, and the loss as `cross_entropy` of them; of 16-bit
    arrays they are float32, never rounded to 16 bits. How many rows are multiplied at a time is a
    matter of the last digits of products, which a BLAS may round otherwise for other shapes.

    Rows that do not count (ignored, of weight 0) are not multiplied: NaN in them stays there, and
    padding costs no time.

    Memory: up to 64 MB and some numbers a row, or one row of logits where that is more; a row is
    not shared out.

    References
    ----------
    .. [1] E. Wijmans et al., "Cut your losses in large-vocabulary language models", ICLR (2025),
       arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.linear import linear_cross_entropy
    >>> x = np.array([[1.0, 0.0], [0.5, 2.0]])
    >>> weight = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> print(f"{linear_cross_entropy(x, weight, [0, 1]):.6f}")
    0.317107
    """
    loss: float | NDArray[np.floating]
    loss, _ = _evaluate(x, weight, targets, bias, sample_weight, 1.0, dict(
        class_weight=class_weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
        temperature=temperature, softcap=softcap, z_loss=z_loss, reduction=reduction,
        divisor=divisor, backend=backend, n_threads=n_threads), with_grad=False)
    return loss


def linear_cross_entropy_with_grad(
    x: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, LinearGrads]:
    r"""Softmax cross-entropy of a linear layer's output, and its gradients, in one call.

    .. math::

        \frac{\partial L}{\partial x} = G W, \qquad
        \frac{\partial L}{\partial W} = G^\top x, \qquad
        \frac{\partial L}{\partial b} = \sum_i G_i

    with G the gradient with respect to the logits, as `cross_entropy_with_grad` has it.

    Parameters
    ----------
    x, weight, targets, bias
        As `linear_cross_entropy`.
    class_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, sample_weight
        As `linear_cross_entropy`.
    reduction, divisor, backend, n_threads
        As `linear_cross_entropy`.
    upstream : float, or with reduction="none" an array of shape (...)
        The derivative with respect to the loss (PyTorch's grad_output, JAX's cotangent; a loss
        scale). Any sign.

    Returns
    -------
    loss : float, or array of shape (...)
        As `linear_cross_entropy`.
    grads : LinearGrads
        Of x, weight and bias (None without a bias): new arrays in C order, of their shapes and
        dtypes. Rows of x that do not count have gradient 0.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `linear_cross_entropy`, and for an `upstream` that does not fit.

    See Also
    --------
    linear_cross_entropy : the loss alone.

    Notes
    -----
    The gradients of weight and bias are summed over the rows in float32 (float64 for float64), the
    bias' over chunks of rows in float64; 16-bit gradients are rounded once, at the end.

    Memory beside the gradients: as `linear_cross_entropy`, and for 16-bit arrays one float32 array
    of the weight's shape.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.linear import linear_cross_entropy_with_grad
    >>> x = np.array([[1.0, 0.0], [0.5, 2.0]])
    >>> weight = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> loss, grads = linear_cross_entropy_with_grad(x, weight, [0, 1], bias=np.zeros(3))
    >>> print(grads.weight.round(6))
    [[-0.020297  0.231224]
     [-0.035769 -0.371468]
     [ 0.056066  0.140244]]
    """
    return _evaluate(x, weight, targets, bias, sample_weight, upstream, dict(
        class_weight=class_weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
        temperature=temperature, softcap=softcap, z_loss=z_loss, reduction=reduction,
        divisor=divisor, backend=backend, n_threads=n_threads))


def _weight_gradient(
    x: ArrayLike, weight: ArrayLike, targets: ArrayLike, *, bias: ArrayLike | None,
    sample_weight: ArrayLike | None, divisor: float, label_smoothing: float, n_threads: int | None,
) -> tuple[float, NDArray[np.floating], NDArray[np.floating] | None]:
    """Return the mean loss and the gradients of weight and bias: for whoever trains these alone.

    All rows count. A third of the products of `linear_cross_entropy_with_grad` is left out.
    """
    loss, grads = _evaluate(x, weight, targets, bias, sample_weight, 1.0, dict(
        class_weight=None, ignore_index=None, label_smoothing=label_smoothing, temperature=1.0,
        softcap=None, z_loss=0.0, reduction="mean", divisor=divisor, backend=None,
        n_threads=n_threads), of_x=False)
    return loss, grads.weight, grads.bias


def _evaluate(
    x: ArrayLike, weight: ArrayLike, targets: ArrayLike, bias: ArrayLike | None,
    sample_weight: ArrayLike | None, upstream: ArrayLike, options: dict[str, Any],
    *, with_grad: bool = True, of_x: bool = True,
) -> tuple[Any, Any]:
    """Return the loss and `with_grad` the gradients, that of x only if `of_x`.

    `options`: what `cross_entropy` is given as it is.
    """
    x, weight, b, y = _arrays(x, weight, targets, bias)
    work = np.dtype(np.float64 if x.dtype.itemsize == 8 else np.float32)
    s, up, options, counts = _options(y, len(weight), targets, sample_weight, upstream, options)
    rows_shape, y = y.shape, y.reshape(-1)
    (n_classes, n_features), n_counting = weight.shape, int(np.count_nonzero(counts))

    row_bytes = (n_classes + 3 * n_features) * work.itemsize
    most = max(1, min(max(_ROWS, _LEAST // row_bytes), _MOST // row_bytes))
    step = max(1, _BLOCK // max(1, n_features * work.itemsize))
    blocks = [slice(first, min(first + step, n_classes)) for first in range(0, n_classes, step)]
    buffer = np.empty((min(most, n_counting), n_classes), work)
    losses, total = np.zeros(y.shape, work), 0.0
    if with_grad:
        grad_x = np.zeros((y.size, n_features) if of_x else 0, x.dtype)
        grad_weight, grad_bias = np.zeros(weight.shape, work), np.zeros(n_classes)
        part = np.empty((min(step, n_classes), n_features), work)
        ones = np.ones(len(buffer), work)

    with np.errstate(all="ignore"):
        for i, rows in enumerate(_chunks(counts, n_counting, most)):
            inputs = np.asarray(_rows(x, rows), work)
            logits = buffer[: len(inputs)]
            for block in blocks:
                np.matmul(inputs, np.asarray(weight[block], work).T, out=logits[:, block])
            if b is not None:
                logits += b
            own = {**options, "sample_weight": None if s is None else s[rows]}
            if not with_grad:
                loss = cross_entropy(logits, y[rows], **own)
            else:
                loss, _ = cross_entropy_with_grad(
                    logits, y[rows], **own, grad_out=logits, upstream=up[rows] if up.ndim else up)
            if options["reduction"] == "none":
                losses[rows] = loss
            else:
                total += float(loss)
            if not with_grad:
                continue
            if of_x:
                grad_x[rows] = functools.reduce(operator.iadd, (
                    logits[:, block] @ np.asarray(weight[block], work) for block in blocks))
            for block in blocks:
                # The first chunk's is written, others' are added: NumPy's products add nothing.
                into = part[: block.stop - block.start] if i else grad_weight[block]
                np.matmul(logits[:, block].T, inputs, out=into)
                if i:
                    grad_weight[block] += into
            if b is not None:
                grad_bias += ones[: len(inputs)] @ logits

        loss = losses.reshape(rows_shape) if options["reduction"] == "none" else total
        if not with_grad:
            return loss, None
        return loss, LinearGrads(
            grad_x.reshape(x.shape) if of_x else grad_x,
            grad_weight.astype(weight.dtype, copy=False),
            None if b is None else grad_bias.astype(b.dtype))


def _arrays(
    x: ArrayLike, weight: ArrayLike, targets: ArrayLike, bias: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[np.integer]]:
    """Check dtypes and shapes, and return arrays: x, weight, bias, targets."""
    x, weight = _floats(x, "x"), _floats(weight, "weight")
    b = None if bias is None else _floats(bias, "bias")
    if weight.ndim != 2 or not len(weight):
        raise ValueError(f"weight must have shape (C, D) with C >= 1, got {weight.shape}")
    n_classes, n_features = weight.shape
    if not x.ndim or x.shape[-1] != n_features:
        message = (f"x must have shape (..., {n_features}), weight's features last; got x "
                   f"{x.shape} and weight {weight.shape}")
        if x.ndim and x.shape[-1] == n_classes:
            message += "; weight has a row a class, as PyTorch's Linear: pass weight.T"
        raise ValueError(message)
    if b is not None and b.shape != (n_classes,):
        raise ValueError(f"bias must have shape ({n_classes},), one a class; got {b.shape}")
    for name, array in (("weight", weight), ("bias", b)):
        if array is not None and array.dtype.name != x.dtype.name:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype.name}, got "
                            f"{array.dtype.name}; convert one of them")
    y = np.asarray(targets)
    if y.size == 0 and not isinstance(targets, np.ndarray):
        y = y.astype(np.intp)  # an empty list has no dtype of its own
    if y.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers, got dtype {y.dtype} of shape {y.shape}; pass "
                        "class numbers 0 … C-1, or probabilities to cross_entropy with the logits")
    if y.shape != x.shape[:-1]:
        raise ValueError(f"targets must have the shape of x without its last axis: x {x.shape} "
                         f"needs targets of shape {x.shape[:-1]}, got {y.shape}")
    return x, weight, b, y


def _floats(array: ArrayLike, name: str) -> NDArray[Any]:
    if np.ma.is_masked(array):
        raise TypeError(f"{name} must not be a masked array with a mask set: masks would be lost; "
                        "mark rows with ignore_index or sample_weight=0")
    a = np.asarray(array)
    if a.dtype.name not in _DTYPES:
        raise TypeError(f"{name} must be {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, got "
                        f"{a.dtype}; convert it with {name}.astype(numpy.float32)")
    return a


def _options(
    y: NDArray[np.integer], n_classes: int, targets: ArrayLike, sample_weight: ArrayLike | None,
    upstream: ArrayLike, options: dict[str, Any],
) -> tuple[NDArray[Any] | None, NDArray[Any], dict[str, Any], NDArray[np.bool_]]:
    """Check all options and the values of all rows, before anything is computed.

    Returns
    -------
    sample_weight, upstream
        As arrays; the upstream of no or one dimension.
    options
        Those of a chunk, the mean's divisor being that of all rows.
    counts
        Which rows do: the others are not even multiplied.
    """
    reduction, v = options["reduction"], options["class_weight"]
    up = np.asarray(upstream)
    if up.ndim and (reduction != "none" or up.shape != y.shape):
        wanted = f"a scalar or of shape {y.shape}" if reduction == "none" else "a scalar"
        raise ValueError(
            f"upstream must be {wanted} with reduction={reduction!r}, got shape {up.shape}")
    up = up.reshape(-1) if up.ndim else up
    # A call of no rows looks at every option; what looks at the values of all rows is their sum
    # (at the targets' only beside class weights).
    cross_entropy_with_grad(np.empty((0, n_classes)), np.empty(0, y.dtype), **options,
                            upstream=up[:0] if up.ndim else up)
    d = mean_divisor(targets if y.size else y, sample_weight=sample_weight,
                     class_weight=np.ones(n_classes, bool) if v is None else v,
                     ignore_index=options["ignore_index"])
    if reduction == "mean" and options["divisor"] is None:
        if d == math.inf:
            raise ValueError(
                "the mean's divisor, the sum of the weights of the rows that count, overflows "
                "float64; scale sample_weight or class_weight down, or pass a divisor")
        options = {**options, "divisor": d}
    s = None if sample_weight is None else np.asarray(sample_weight).reshape(-1)
    y = y.reshape(-1)
    counts = np.full(y.shape, options["divisor"] != 0.0)
    if options["ignore_index"] is not None:
        counts &= y != operator.index(options["ignore_index"])
    if s is not None:
        counts &= s != 0
    if v is not None and not options["label_smoothing"] and not options["z_loss"]:
        counts &= np.asarray(v)[np.where(counts, y, 0).astype(np.intp)] != 0
    return s, up, options, counts


def _chunks(counts: NDArray[np.bool_], n: int, most: int) -> Iterator[slice | NDArray[np.intp]]:
    """Yield the n rows that count in chunks of about one size, as slices where all count."""
    which = None if n == counts.size else np.flatnonzero(counts)
    n_chunks = -(-n // most)
    for i in range(n_chunks):
        rows = slice(i * n // n_chunks, (i + 1) * n // n_chunks)
        yield rows if which is None else which[rows]


def _rows(x: NDArray[Any], rows: slice | NDArray[np.intp]) -> NDArray[Any]:
    """Return rows of x, of any number of dimensions, without a copy of all."""
    if x.ndim == 2:
        return x[rows]
    if x.flags.c_contiguous or x.ndim == 1:
        return x.reshape(-1, x.shape[-1])[rows]
    n = math.prod(x.shape[:-1])
    return x[np.unravel_index(np.arange(n)[rows], x.shape[:-1])]
