"""Ours beside loops that move the same memory and do nothing else."""

from __future__ import annotations

from .shapes import QUICK, Shape

ROUNDS = 5
#: Name here: `softxent bench`'s.
CASES = {"out of place": "OURS", "in place": "OURS_IN_PLACE", "loss": "OURS_LOSS"}


class Limit:
    """On all threads, of logits that no cache holds."""

    version = "1"
    timeout = 300
    unit = "ours/limit"
    params = (QUICK[-3:], tuple(CASES))
    param_names = ("shape", "case")

    def setup(self, shape: str, case: str) -> None:
        """Skip where there are no such loops."""
        try:
            from softxent.cli import bench
        except ImportError as error:
            raise NotImplementedError(f"this commit has no loops: {error}") from error
        if not bench.limits(1 << 12, 1):
            raise NotImplementedError("the loops are the extension's, which is not there")
        try:
            Shape.parse(shape).arrays()
        except ImportError as error:
            raise NotImplementedError(str(error)) from error

    def track_time_over_limit(self, shape: str, case: str) -> float:
        """Return our time over the fastest loop's: less is better, 1 is the limit."""
        import softxent as sx
        from softxent.cli import bench

        found = bench.bench(Shape.parse(shape), [], ROUNDS, sx.get_num_threads())
        share: float = found["results"][getattr(bench, CASES[case])]["share_of_limit"]
        return 1 / share
