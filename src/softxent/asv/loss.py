"""Cross-entropy, and its gradient: over backend, shape with dtype and order, and threads."""

from __future__ import annotations

from ._cells import BACKENDS, THREADS, Timed, arrays, function, once, require, room, scratch
from .shapes import TARGETS


class _Cells(Timed):
    params = (BACKENDS, tuple(TARGETS), THREADS)
    param_names = ("backend", "shape", "n_threads")


class Loss(_Cells):
    """The loss alone: logits are read once."""

    def setup(self, backend: str, shape: str, n_threads: int) -> None:
        """Make the arrays, and the first call."""
        require(backend, n_threads)
        self.loss = function("cross_entropy")
        self.z, self.y = arrays(shape)
        once(("loss", backend, shape), lambda: self.time_loss(backend, shape, n_threads))

    def time_loss(self, backend: str, shape: str, n_threads: int) -> None:
        """Take the mean over rows."""
        self.loss(self.z, self.y, backend=backend, n_threads=n_threads)


class LossGrad(_Cells):
    """Loss and gradient, by where the gradient goes."""

    def setup(self, backend: str, shape: str, n_threads: int) -> None:
        """Make the arrays, and the first call."""
        require(backend, n_threads)
        self.loss = function("cross_entropy_with_grad")
        self.z, self.y = arrays(shape)
        self.grad, self.scratch = room(shape), scratch(shape)
        once(("grad", backend, shape), lambda: self.time_loss_grad(backend, shape, n_threads))

    def time_loss_grad(self, backend: str, shape: str, n_threads: int) -> None:
        """Write into memory that is used again."""
        self.loss(self.z, self.y, grad_out=self.grad, backend=backend, n_threads=n_threads)

    def time_in_place(self, backend: str, shape: str, n_threads: int) -> None:
        """Write over the logits."""
        self.loss(self.scratch, self.y, grad_out=self.scratch, backend=backend,
                  n_threads=n_threads)

    def time_fresh(self, backend: str, shape: str, n_threads: int) -> None:
        """Write into memory that each call allocates: page faults count."""
        self.loss(self.z, self.y, backend=backend, n_threads=n_threads)
