"""Loss and gradient of softmax cross-entropy as others compute it, each at its best.

All threads, compiled where that can be had, buffers used again where the peer takes them. A peer is
imported when it is asked for; each says its version. `benchmarks/` measures against the same.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: One evaluation; what it returns is of no interest.
Case = Callable[[], object]
Logits = NDArray[np.floating]
Targets = NDArray[np.int64]


class Unsupported(Exception):
    """The peer has nothing for this dtype or these options; the message says what."""


def with_numpy(z: Logits, y: Targets, n_threads: int, fresh: bool) -> Case:
    """As one writes it by hand: stable, whole arrays, in memory of its own that is used again."""
    _only_wide(z)
    rows = np.arange(len(y))
    scratch = None if fresh else np.empty_like(z)

    def run() -> float:
        p = np.subtract(z, z.max(axis=1, keepdims=True), out=scratch)
        at_target = p[rows, y]
        np.exp(p, out=p)
        total = p.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - at_target))
        np.divide(p, total, out=p)
        p[rows, y] -= 1.0
        np.multiply(p, z.dtype.type(1.0 / len(y)), out=p)
        return loss

    return run


def with_scipy(z: Logits, y: Targets, n_threads: int, fresh: bool) -> Case:
    """`scipy.special.log_softmax`, and its exp for the gradient."""
    from scipy.special import log_softmax

    _only_wide(z)
    rows = np.arange(len(y))

    def run() -> float:
        p = log_softmax(z, axis=1)
        loss = -float(np.mean(p[rows, y]))
        np.exp(p, out=p)
        p[rows, y] -= 1.0
        np.multiply(p, z.dtype.type(1.0 / len(y)), out=p)
        return loss

    return run


def _tensors(z: Logits, y: Targets, n_threads: int) -> tuple[Any, Any, Any]:
    import torch

    torch.set_num_threads(n_threads)
    # Class-major logits stay so: PyTorch takes strides.
    if z.dtype.name == "bfloat16":
        logits = torch.from_numpy(z.astype(np.float32)).to(torch.bfloat16)
    else:
        logits = torch.from_numpy(z.copy(order="K"))
    return torch, logits.requires_grad_(), torch.from_numpy(y)


def with_torch(z: Logits, y: Targets, n_threads: int, fresh: bool) -> Case:
    """`torch.nn.functional.cross_entropy` and `backward`; autograd allocates."""
    torch, logits, targets = _tensors(z, y, n_threads)

    def run() -> object:
        logits.grad = None
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        return loss

    return run


def with_torch_compile(z: Logits, y: Targets, n_threads: int, fresh: bool) -> Case:
    """Do the same through `torch.compile`; needs a C++ compiler."""
    torch, logits, targets = _tensors(z, y, n_threads)
    # One shape at a time: past a few it would give up, and run as PyTorch does.
    torch.compiler.reset()
    compiled = torch.compile(torch.nn.functional.cross_entropy, dynamic=False)

    def run() -> object:
        logits.grad = None
        loss = compiled(logits, targets)
        loss.backward()
        return loss

    return run


def with_jax(z: Logits, y: Targets, n_threads: int, fresh: bool) -> Case:
    """`jax.jit(jax.value_and_grad(...))`; of class-major logits along their own order."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", z.dtype == np.float64)
    axis = 0 if z.flags.f_contiguous and not z.flags.c_contiguous else 1

    def loss(logits: Any, targets: Any) -> Any:
        picked = jax.numpy.expand_dims(targets, axis)
        at_target = jax.numpy.take_along_axis(logits, picked, axis=axis)
        lse = jax.nn.logsumexp(logits, axis=axis, keepdims=True)
        return (lse - at_target).mean()

    step = jax.jit(jax.value_and_grad(loss))
    logits, targets = jax.device_put(z if axis else z.T), jax.device_put(y)
    return lambda: jax.block_until_ready(step(logits, targets))


def with_sklearn(z: Logits, y: Targets, n_threads: int, fresh: bool) -> Case:
    """scikit-learn's loss object, on all threads (its `LogisticRegression` gives it one)."""
    from sklearn._loss.loss import HalfMultinomialLoss

    _only_wide(z)
    half = HalfMultinomialLoss(n_classes=z.shape[1])
    targets = y.astype(z.dtype)
    if fresh:
        return lambda: half.loss_gradient(targets, z, n_threads=n_threads)
    loss, grad = np.empty(len(y), z.dtype), np.empty_like(z)
    return lambda: half.loss_gradient(targets, z, loss_out=loss, gradient_out=grad,
                                      n_threads=n_threads)


def _only_wide(z: Logits) -> None:
    if z.itemsize < 4:
        raise Unsupported(f"has no {z.dtype}")


#: Name on the command line: the package, how it is named in tables, and what makes its case.
PEERS: dict[str, tuple[str, str, Callable[[Logits, Targets, int, bool], Case]]] = {
    "numpy": ("numpy", "NumPy", with_numpy),
    "scipy": ("scipy", "SciPy", with_scipy),
    "torch": ("torch", "PyTorch", with_torch),
    "torch.compile": ("torch", "torch.compile", with_torch_compile),
    "jax": ("jax", "JAX jit", with_jax),
    "sklearn": ("scikit-learn", "scikit-learn", with_sklearn),
}


def case_of(name: str, z: Logits, y: Targets, n_threads: int, fresh: bool = False) -> Case:
    """Return the peer's evaluation, run once: compiled, and known to work.

    Raises
    ------
    ImportError
        The peer is not installed.
    Unsupported
        It cannot do this, or failed at it.
    """
    case = PEERS[name][2](z, y, n_threads, fresh)
    try:
        case()
    except ImportError:
        raise
    except Exception as error:  # a compiler that is missing, a dtype without a kernel
        line = str(error).strip().splitlines()
        raise Unsupported(f"failed: {type(error).__name__}: {line[0] if line else ''}") from error
    return case


def version_of(name: str) -> str:
    """Return the peer's installed version."""
    return version(PEERS[name][0])
