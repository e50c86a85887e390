"""From how much work on a second thread pays: the figures behind `_tuning.Tuning`'s defaults.

    python benchmarks/threads.py

Two ways of calling: back to back, when workers still spin; and 0.3 ms apart, when they have
parked and must be woken. Medians of interleaved calls, in microseconds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np

import softxent as sx
from softxent import _plan, _tuning


def call_times(n: int, c: int, pause: float) -> dict[int, float]:
    """Return the median time of a call by its number of threads."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((n, c), np.float32)
    targets = rng.integers(0, c, n)
    grad = np.empty_like(logits)
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(60):
        for n_threads, values in times.items():
            for _ in range(5):
                if pause:
                    time.sleep(pause)
                begin = time.perf_counter()
                sx.cross_entropy_with_grad(logits, targets, grad_out=grad, n_threads=n_threads)
                values.append(time.perf_counter() - begin)
    return {k: statistics.median(v) * 1e6 for k, v in times.items()}


def main() -> None:
    # Or small shapes would never be given two.
    _tuning.adopt(replace(_tuning.current(), parallel_from_ns=0.0, wakes_from_ns=0.0))
    print("rows x classes   elements   | back to back: 1, 2 threads | parked: 1, 2 threads")
    for n, c in ((256, 10), (819, 10), (1638, 10), (3277, 10), (6554, 10), (13107, 10),
                 (16, 1000), (33, 1000), (66, 1000), (131, 1000), (262, 1000), (1049, 1000)):
        _plan.forget_plans()
        near, apart = call_times(n, c, 0.0), call_times(n, c, 3e-4)
        print(f"{n:>6} x {c:<6} {n * c:>10}   | {near[1]:8.1f} {near[2]:8.1f} "
              f"          | {apart[1]:8.1f} {apart[2]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
