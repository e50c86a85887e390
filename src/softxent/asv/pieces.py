"""The pieces of a softmax, each by itself."""

from __future__ import annotations

from ._cells import BACKENDS, THREADS, Timed, arrays, function, once, require, room
from .shapes import QUICK


class Pieces(Timed):
    """Functions of the logits; those of the logits' size go into memory that is used again."""

    params = (BACKENDS, QUICK, THREADS)
    param_names = ("backend", "shape", "n_threads")

    def setup(self, backend: str, shape: str, n_threads: int) -> None:
        """Make the arrays, and the first calls."""
        require(backend, n_threads)
        self.logsumexp, self.softmax = function("logsumexp"), function("softmax")
        self.log_softmax = function("log_softmax")
        self.z, self.y = arrays(shape)
        self.out = room(shape)
        once(("pieces", backend, shape), lambda: [time(backend, shape, n_threads) for time in (
            self.time_logsumexp, self.time_softmax, self.time_log_softmax)])

    def time_logsumexp(self, backend: str, shape: str, n_threads: int) -> None:
        """Take one number a row."""
        self.logsumexp(self.z, backend=backend, n_threads=n_threads)

    def time_softmax(self, backend: str, shape: str, n_threads: int) -> None:
        """Take probabilities."""
        self.softmax(self.z, out=self.out, backend=backend, n_threads=n_threads)

    def time_log_softmax(self, backend: str, shape: str, n_threads: int) -> None:
        """Take their logarithms."""
        self.log_softmax(self.z, out=self.out, backend=backend, n_threads=n_threads)
