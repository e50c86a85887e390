"""Softmax cross-entropy to call from your own ``@njit`` code, a row or many rows at a time.

Every function has the bits of the public function of its name with default options, in float32
and float64. It runs in the calling thread, without the interpreter's lock where its caller has none
(``nogil=True``, ``prange``), and allocates nothing: parallelise over rows, each thread its own.

Arrays may have any strides, but those that receive one number a row are contiguous. An output may
be the logits themselves, and is then written in place; else it must share no memory with another
argument, which is not checked. Ctrl-C waits until a call returns. Numba loses what is raised in a
``prange`` but on the thread that began it (there it is a `SystemError`, with the error as its
``__cause__``): look at targets before such a loop.

What is compiled into your function is a call and its checks, not the arithmetic: a second or so for
each function and dtype, which ``@njit(cache=True)`` saves the next process. The kernels are the
Cython backend's, or the Numba backend's where that is not built, found when this module is
imported: for the processor that it then runs on, not the one that your cache was filled on. A call
costs some 0.4 microseconds beside its arithmetic (AMD EPYC): of few classes, give it many rows.

>>> import numpy as np
>>> from numba import njit, prange
>>> from softxent.numba import cross_entropy_row_with_grad
>>> @njit(parallel=True)
... def train_step(x, weight, targets, grad):
...     losses = np.empty(len(x))
...     for i in prange(len(x)):
...         logits = weight @ x[i]
...         losses[i] = cross_entropy_row_with_grad(logits, targets[i], grad[i], 1.0 / len(x))
...     return losses.mean()
>>> x, weight = np.eye(2), np.zeros((3, 2))
>>> grad = np.empty((2, 3))
>>> print(round(train_step(x, weight, np.array([0, 2]), grad), 12))
1.098612288668
>>> print(grad.sum())
0.0
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload

from softxent._plan import BackendUnavailableError
from softxent.backends._contract import Op
from softxent.backends.numba._jit import address_of, as_type, stack
from softxent.backends.numba._layout import TYPE_UNSIGNED

__all__ = [
    "cross_entropy",
    "cross_entropy_row",
    "cross_entropy_row_with_grad",
    "cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_row",
    "logsumexp",
    "logsumexp_row",
    "softmax",
    "softmax_row",
]

_CROSS_ENTROPY, _LOGSUMEXP = int(Op.CROSS_ENTROPY), int(Op.LOGSUMEXP)
_SOFTMAX, _LOG_SOFTMAX = int(Op.SOFTMAX), int(Op.LOG_SOFTMAX)
_IGNORED = -100  # the public functions' default
_WORD = np.int64(0)

# ---- the entry to the kernels --------------------------------------------------------------------

# `rows` of kernels.pyx. Machine code of users, in files that Numba keeps, asks for it by this name:
# should its arguments change, it is another name, and the old one must go on meaning what it meant,
# for an unknown name ends the process.
_NAME = "softxent_rows_1"
_int = types.int64
_SIGNATURE = _int(_int, _int, _int, _int, _int, _int, _int, _int, _int, _int, types.float64, _int,
                  _int, _int, _int, _int)
_rows = types.ExternalFunction(_NAME, _SIGNATURE)


def _find() -> Any:
    # What keeps the entry alive.
    try:
        kernels = importlib.import_module("softxent.kernels")
    except (ImportError, BackendUnavailableError):  # no extension, or none for this processor
        embed = importlib.import_module("softxent.backends.numba._embed")
        compiled = embed.compile_rows(_SIGNATURE)
        if isinstance(compiled, str):
            raise BackendUnavailableError(
                f"softxent.numba has no kernel: the extension was not built, and for Numba's own, "
                f"{compiled}") from None
        llvm.add_symbol(_NAME, compiled.address)
        return compiled
    llvm.add_symbol(_NAME, kernels.address())
    return kernels


_owner = _find()


# ---- types: checked when a caller is compiled ----------------------------------------------------


def _is_array(kind, ndim, dtypes):
    return (isinstance(kind, types.Array) and kind.ndim == ndim and kind.dtype in dtypes
            and kind.aligned)


def _check_output(kind, ndim, dtypes, name):
    if not (_is_array(kind, ndim, dtypes) and kind.mutable):
        wanted = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
        raise TypingError(f"{name} must be a writeable {ndim}-D array of {wanted}, got {kind}")


def _check_types(logits, targets, values, out):
    """Refuse arguments of other types; return the kernels' number of the targets'."""


@overload(_check_types)
def _types(logits, targets, values, out):
    ndim = getattr(logits, "ndim", 0)
    if ndim not in (1, 2) or not _is_array(logits, ndim, (types.float32, types.float64)):
        raise TypingError(f"logits must be a float32 or float64 array of rows, got {logits}")
    code = 8
    if isinstance(targets, types.Array):
        if not _is_array(targets, 1, types.integer_domain):
            raise TypingError(f"targets must be a 1-D array of integers, got {targets}")
        code = targets.dtype.bitwidth // 8 | (0 if targets.dtype.signed else TYPE_UNSIGNED)
    elif not isinstance(targets, (types.Integer, types.NoneType)):
        raise TypingError(f"a row's target must be an integer, got {targets}")
    if not isinstance(values, types.NoneType):
        _check_output(values, 1, (logits.dtype, types.float64), "the output of one number a row")
    if not isinstance(out, types.NoneType):
        _check_output(out, ndim, (logits.dtype,), "the output of the logits' shape")
    return lambda logits, targets, values, out: code


# ---- what types do not say -----------------------------------------------------------------------


@njit
def _check_class(row, target, n_classes):
    if not 0 <= target < n_classes and target != _IGNORED:
        raise IndexError("a target is not in [0, n_classes): row, target, n_classes",
                         row, target, n_classes)


@njit
def _check_targets(logits, targets):
    if len(targets) != len(logits):
        raise ValueError("targets must have one class for each row of the logits")
    for i in range(len(targets)):
        _check_class(i, np.int64(targets[i]), logits.shape[1])


@njit
def _check_values(logits, values):
    if len(values) != len(logits):
        raise ValueError("the output of one number a row must have the length of the logits")
    if values.strides[0] != values.itemsize and len(values) > 1:
        raise ValueError("the output of one number a row must be contiguous")


@njit
def _check_out(logits, out):
    if out.shape != logits.shape:
        raise ValueError("the output must have the logits' shape")


@njit
def _check_logits(logits):
    if logits.shape[-1] < 1:
        raise ValueError("logits must have at least one class")


@njit
def _value_of(op, logits, target, upstream, out, out_stride):
    # Of one row, in float64.
    value = stack(1, 0.0)
    class_ = stack(1, _WORD)
    class_[0] = target
    at = address_of(class_) if op == _CROSS_ENTROPY else 0
    _rows(op, logits.itemsize, 1, len(logits), logits.ctypes.data, 0, logits.strides[0], at, 8, 8,
          upstream, address_of(value), 8, out, 0, out_stride)
    return value[0]


@njit
def _fill(op, logits, out):
    # A piece of the logits' shape, of rows.
    _check_types(logits, None, None, out)
    _check_logits(logits)
    _check_out(logits, out)
    _rows(op, logits.itemsize, logits.shape[0], logits.shape[1], logits.ctypes.data,
          logits.strides[0], logits.strides[1], 0, 0, 0, 1.0, 0, 0, out.ctypes.data, out.strides[0],
          out.strides[1])


@njit
def _fill_row(op, logits, out):
    _check_types(logits, None, None, out)
    _check_logits(logits)
    _check_out(logits, out)
    _rows(op, logits.itemsize, 1, len(logits), logits.ctypes.data, 0, logits.strides[0], 0, 0, 0,
          1.0, 0, 0, out.ctypes.data, 0, out.strides[0])


# ---- many rows -----------------------------------------------------------------------------------


@njit
def cross_entropy(logits, targets, loss_out):
    """Cross-entropy of rows with integer targets, as `softxent.cross_entropy`.

    Parameters
    ----------
    logits : array of shape (N, C), float32 or float64
        Any range and strides.
    targets : array of shape (N,), integer
        In [0, C), or -100: that row costs nothing.
    loss_out : array of shape (N,), the logits' dtype or float64
        Receives the rows' losses: what ``reduction="none"`` gives, or, in float64, what ``"sum"``
        and ``"mean"`` sum.

    Raises
    ------
    IndexError
        A target out of range, with its row; nothing is written then.
    ValueError
        Shapes that do not fit.
    numba.core.errors.TypingError
        Other types, when your function is compiled.

    Examples
    --------
    >>> import numpy as np
    >>> from numba import njit
    >>> from softxent.numba import cross_entropy
    >>> @njit
    ... def mean_loss(logits, targets):
    ...     losses = np.empty(len(logits))
    ...     cross_entropy(logits, targets, losses)
    ...     return losses.mean()
    >>> print(round(mean_loss(np.zeros((4, 10)), np.arange(4)), 12))
    2.302585092994
    """
    code = _check_types(logits, targets, loss_out, None)
    _check_logits(logits)
    _check_values(logits, loss_out)
    _check_targets(logits, targets)
    _rows(_CROSS_ENTROPY, logits.itemsize, logits.shape[0], logits.shape[1], logits.ctypes.data,
          logits.strides[0], logits.strides[1], targets.ctypes.data, code, targets.strides[0], 1.0,
          loss_out.ctypes.data, loss_out.itemsize, 0, 0, 0)


@njit
def cross_entropy_with_grad(logits, targets, loss_out, grad_out, upstream=1.0):
    """Cross-entropy of rows and its gradient, as `softxent.cross_entropy_with_grad`.

    Parameters
    ----------
    logits, targets, loss_out
        As `cross_entropy`.
    grad_out : array of shape (N, C), the logits' dtype
        Receives the gradient; the logits themselves are overwritten in place.
    upstream : float, default 1.0
        Multiplies the gradient, before its one rounding: 1 / (number of rows that count) for that
        of the mean.

    Raises
    ------
    IndexError, ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from numba import njit
    >>> from softxent.numba import cross_entropy_with_grad
    >>> @njit
    ... def descend(logits, targets, rate, steps):
    ...     losses, grad = np.empty(len(logits)), np.empty_like(logits)
    ...     for _ in range(steps):
    ...         cross_entropy_with_grad(logits, targets, losses, grad, rate)
    ...         logits -= grad
    ...     return losses.sum()
    >>> bool(descend(np.zeros((4, 10)), np.arange(4), 1.0, 100) < 0.1)
    True
    """
    code = _check_types(logits, targets, loss_out, grad_out)
    _check_logits(logits)
    _check_values(logits, loss_out)
    _check_out(logits, grad_out)
    _check_targets(logits, targets)
    _rows(_CROSS_ENTROPY, logits.itemsize, logits.shape[0], logits.shape[1], logits.ctypes.data,
          logits.strides[0], logits.strides[1], targets.ctypes.data, code, targets.strides[0],
          upstream, loss_out.ctypes.data, loss_out.itemsize, grad_out.ctypes.data,
          grad_out.strides[0], grad_out.strides[1])


@njit
def logsumexp(logits, out):
    """Logarithm of the sum of exponentials of each row, as `softxent.logsumexp`.

    Parameters
    ----------
    logits : array of shape (N, C), float32 or float64
        Any range and strides.
    out : array of shape (N,), the logits' dtype or float64
        Receives the result.

    Raises
    ------
    ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import logsumexp
    >>> out = np.empty(2)
    >>> logsumexp(np.array([[1000.0, 1000.0], [0.0, -np.inf]]), out)
    >>> out
    array([1000.69314718,    0.        ])
    """
    _check_types(logits, None, out, None)
    _check_logits(logits)
    _check_values(logits, out)
    _rows(_LOGSUMEXP, logits.itemsize, logits.shape[0], logits.shape[1], logits.ctypes.data,
          logits.strides[0], logits.strides[1], 0, 0, 0, 1.0, out.ctypes.data, out.itemsize, 0, 0,
          0)


@njit
def softmax(logits, out):
    """Softmax of each row, as `softxent.softmax`.

    Parameters
    ----------
    logits : array of shape (N, C), float32 or float64
        Any range and strides.
    out : array of shape (N, C), the logits' dtype
        Receives the probabilities; the logits themselves are overwritten in place.

    Raises
    ------
    ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import softmax
    >>> z = np.zeros((1, 4))
    >>> softmax(z, z)
    >>> z
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    _fill(_SOFTMAX, logits, out)


@njit
def log_softmax(logits, out):
    """Logarithm of the softmax of each row, as `softxent.log_softmax`.

    Parameters
    ----------
    logits, out
        As `softmax`.

    Raises
    ------
    ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import log_softmax
    >>> z = np.zeros((1, 2))
    >>> log_softmax(z, z)
    >>> z
    array([[-0.69314718, -0.69314718]])
    """
    _fill(_LOG_SOFTMAX, logits, out)


# ---- one row -------------------------------------------------------------------------------------


@njit
def cross_entropy_row(logits, target):
    """Cross-entropy of one row, as `softxent.cross_entropy` of it.

    Parameters
    ----------
    logits : array of shape (C,), float32 or float64
        Any range and stride.
    target : int
        In [0, C), or -100: the row costs nothing.

    Returns
    -------
    float
        The loss, in float64 whatever the logits' dtype.

    Raises
    ------
    IndexError, ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import cross_entropy_row
    >>> print(round(cross_entropy_row(np.zeros(10), 3), 12))
    2.302585092994
    """
    _check_types(logits, target, None, None)
    _check_logits(logits)
    _check_class(0, target, len(logits))
    return _value_of(_CROSS_ENTROPY, logits, target, 1.0, 0, 0)


@njit
def cross_entropy_row_with_grad(logits, target, grad_out, upstream=1.0):
    """Cross-entropy of one row and its gradient, as `softxent.cross_entropy_with_grad` of it.

    Parameters
    ----------
    logits, target
        As `cross_entropy_row`.
    grad_out : array of shape (C,), the logits' dtype
        Receives the gradient; the logits themselves are overwritten in place.
    upstream : float, default 1.0
        Multiplies the gradient, before its one rounding.

    Returns
    -------
    float
        The loss, in float64 whatever the logits' dtype.

    Raises
    ------
    IndexError, ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import cross_entropy_row_with_grad
    >>> z = np.zeros(4)
    >>> print(round(cross_entropy_row_with_grad(z, 1, z), 12))
    1.38629436112
    >>> z
    array([ 0.25, -0.75,  0.25,  0.25])
    """
    _check_types(logits, target, None, grad_out)
    _check_logits(logits)
    _check_out(logits, grad_out)
    _check_class(0, target, len(logits))
    return _value_of(_CROSS_ENTROPY, logits, target, upstream, grad_out.ctypes.data,
                     grad_out.strides[0])


@njit
def logsumexp_row(logits):
    """Logarithm of the sum of exponentials of one row, as `softxent.logsumexp` of it.

    Parameters
    ----------
    logits : array of shape (C,), float32 or float64
        Any range and stride.

    Returns
    -------
    float
        Of the logits' dtype.

    Raises
    ------
    ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import logsumexp_row
    >>> print(round(logsumexp_row(np.array([1000.0, 1000.0])), 9))
    1000.693147181
    """
    _check_types(logits, None, None, None)
    _check_logits(logits)
    return as_type(logits[0], _value_of(_LOGSUMEXP, logits, 0, 1.0, 0, 0))


@njit
def softmax_row(logits, out):
    """Softmax of one row, as `softxent.softmax` of it.

    Parameters
    ----------
    logits : array of shape (C,), float32 or float64
        Any range and stride.
    out : array of shape (C,), the logits' dtype
        Receives the probabilities; the logits themselves are overwritten in place.

    Raises
    ------
    ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import softmax_row
    >>> z = np.zeros(4)
    >>> softmax_row(z, z)
    >>> z
    array([0.25, 0.25, 0.25, 0.25])
    """
    _fill_row(_SOFTMAX, logits, out)


@njit
def log_softmax_row(logits, out):
    """Logarithm of the softmax of one row, as `softxent.log_softmax` of it.

    Parameters
    ----------
    logits, out
        As `softmax_row`.

    Raises
    ------
    ValueError, numba.core.errors.TypingError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.numba import log_softmax_row
    >>> z = np.zeros(2)
    >>> log_softmax_row(z, z)
    >>> z
    array([-0.69314718, -0.69314718])
    """
    _fill_row(_LOG_SOFTMAX, logits, out)
