"""Every loss, with its gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._cells import BACKENDS, Timed, arrays, function, once, require

#: The package has a file for each: the table itself is the installed commit's, whose losses may be
#: others than those that series are kept of.
LOSSES = tuple(sorted(path.stem for path in Path(__file__).parents[1].glob("losses/[a-z]*.py")))
SHAPES = ("65536x10", "8192x1000")


class Losses(Timed):
    """Defaults but for targets, on one thread."""

    params = (LOSSES, BACKENDS, SHAPES)
    param_names = ("loss", "backend", "shape")

    def setup(self, loss: str, backend: str, shape: str) -> None:
        """Make the targets, and the first call."""
        require(backend)
        with_grad = loss if loss.endswith("_hess") else f"{loss}_with_grad"
        self.loss = function(with_grad)
        self.z, classes = arrays(shape)
        from softxent.losses import LOSSES as table

        kind = table[loss].targets[0] if loss in table else "classes"
        # Other rows' logits are a teacher's; equal numbers are probabilities, of single logits too.
        self.targets = {
            "classes": classes,
            "probabilities": np.broadcast_to(
                self.z.dtype.type(1 / self.z.shape[1]), self.z.shape),
            "logits": self.z[::-1],
        }[kind]
        once((loss, backend, shape), lambda: self.time_with_grad(loss, backend, shape))

    def time_with_grad(self, loss: str, backend: str, shape: str) -> None:
        """Take the gradient, of one the Hessian too, in memory that each call allocates."""
        self.loss(self.z, self.targets, backend=backend, n_threads=1)
