"""The Cython backend: one walk, compiled for each instruction set, in `_walk.pxi`."""

from softxent.backends.cython._backend import BACKEND

__all__ = ["BACKEND"]
