"""The Numba backend: the Cython backend's walk, compiled on first use and kept in a cache."""

from softxent.backends.numba._backend import BACKEND

__all__ = ["BACKEND"]
