"""The project's tables of shapes, for the scripts beside this: the suite's, in the checkout."""

from benchmarks.shapes import QUICK, SHAPES, TARGETS

__all__ = ["QUICK", "SHAPES", "TARGETS"]
