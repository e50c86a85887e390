"""A round's gradient and Hessian: ours beside NumPy's, as XGBoost and as LightGBM call for them.

    python benchmarks/boosting.py [SHAPE ...]       e.g. 100000x10 20000x100

NumPy's is there as it is usually written, and written to be fast: few passes, each in place, in
float32 and in float64. What it returns is brought to the float32 that the library reads, as the
library does. Medians of rounds in turn, in fresh memory (as in training), NumPy on one thread and
ours on one and on all; the ratios are medians of round-by-round ratios: the usual NumPy's time to
ours, and the fastest NumPy's. CPU time with `--cpu`, for busy machines: one thread only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import softxent as sx
from softxent.lightgbm import make_objective as for_lightgbm
from softxent.xgboost import make_objective as for_xgboost

SHAPES = ("1797x10", "100000x10", "20000x100", "2000x1000")
ROUNDS = 15
Result = tuple[np.ndarray, np.ndarray]


def usual(library: str) -> Callable[[np.ndarray, np.ndarray], Result]:
    """Return the objective as NumPy users write it."""

    def objective(y: np.ndarray, z: np.ndarray) -> Result:
        n_classes = z.shape[1]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        g = p - np.eye(n_classes)[y.astype(int)]
        if library == "xgboost":
            h = np.maximum(2.0 * p * (1.0 - p), 1e-16)
        else:
            h = n_classes / (n_classes - 1) * p * (1.0 - p)
        return g.astype(np.float32), h.astype(np.float32)

    return objective


def fast(library: str, dtype: str) -> Callable[[np.ndarray, np.ndarray], Result]:
    """Return the objective as NumPy has it, worked in `dtype`."""

    def objective(y: np.ndarray, z: np.ndarray) -> Result:
        n, n_classes = z.shape
        p = z - z.max(axis=1, keepdims=True) if z.dtype == dtype else z.astype(dtype)
        if z.dtype != dtype:
            p -= p.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        h = 1 - p
        h *= p
        h *= 2 if library == "xgboost" else n_classes / (n_classes - 1)
        if library == "xgboost":
            np.maximum(h, 1e-16, out=h)
        p[np.arange(n), y.astype(np.intp)] -= 1
        return p.astype(np.float32, copy=False), h.astype(np.float32, copy=False)

    return objective


def measure(library: str, shape: str, cpu: bool) -> None:
    """Print a line."""
    n, n_classes = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    z = (3 * rng.standard_normal((n, n_classes))).astype(np.float32)
    if library == "lightgbm":
        z = np.asfortranarray(z, np.float64)
    y = rng.integers(0, n_classes, n).astype(np.float32)
    make = for_xgboost if library == "xgboost" else for_lightgbm
    sides = {"NumPy": usual(library), "NumPy float32": fast(library, "float32"),
             "1 thread": make(n_threads=1)}
    if library == "lightgbm":
        sides["NumPy float64"] = fast(library, "float64")
    if not cpu and sx.get_num_threads() > 1:
        sides[f"{sx.get_num_threads()} threads"] = make()
    expected = fast(library, "float64")(y, z)
    for side in sides.values():
        for found, wanted in zip(side(y, z), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)
    clock = time.thread_time if cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            start = clock()
            side(y, z)
            times[name].append(clock() - start)
    fastest = min((name for name in sides if name.startswith("NumPy")),
                  key=lambda name: statistics.median(times[name]))
    cells = []
    for name, taken in times.items():
        cell = f"{name} {statistics.median(taken) * 1e3:.2f} ms"
        if not name.startswith("NumPy"):
            ratios = [statistics.median(a / b for a, b in zip(times[peer], taken, strict=True))
                      for peer in ("NumPy", fastest)]
            cell += " ({:.2f} x, {:.2f} x)".format(*ratios)
        cells.append(cell)
    print(f"{library}, {shape}: " + "; ".join(cells), flush=True)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--cpu", action="store_true", help="time of the processor, on one thread")
    arguments = parser.parse_args()
    for library in ("xgboost", "lightgbm"):
        for shape in arguments.shapes:
            measure(library, shape, arguments.cpu)


if __name__ == "__main__":
    main()
