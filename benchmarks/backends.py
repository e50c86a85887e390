"""Loss and gradient on every backend and level that is available, side by side.

    python benchmarks/backends.py [SHAPE ...]       e.g. 65536x10 1024x32000

Medians of rounds in turn, into `grad_out=`, on one thread and on two; the ratio is the median of
round-by-round ratios to the first, the best level of Cython.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np

import softxent as sx

SHAPES = ("32x10", "1797x10", "65536x10", "100000x2", "65536x10 float64 F", "65536x100", "256x1000",
          "8192x1000", "4096x1000 float64", "1024x32000", "256x128256", "1x262144")
ROUNDS = 15
SECONDS = 0.02  # a case and round takes about this long at least


def variants() -> list[tuple[str, str]]:
    """Return (backend, level) of everything that can run here."""
    found = []
    for backend, state in sx.available_backends().items():
        if state == "available":
            best = sx.explain((4, 4), backend=backend).isa
            found.append((backend, best))
            if best == "v4":
                found.append((backend, "v3"))
    return found


def prepare(shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, targets, a gradient's room."""
    size, *rest = shape.split()
    n, c = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    z = (3 * rng.standard_normal((n, c))).astype(rest[0] if rest else "float32")
    if "F" in rest:
        z = np.asfortranarray(z)
    return z, rng.integers(0, c, n), np.empty_like(z)


def measure(shape: str, n_threads: int) -> None:
    """Print a line."""
    z, y, g = prepare(shape)
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants()}

    def call(variant: tuple[str, str]) -> float:
        os.environ["SOFTXENT_MAX_ISA"] = variant[1] or "v4"
        start = time.perf_counter()
        sx.cross_entropy_with_grad(z, y, grad_out=g, backend=variant[0], n_threads=n_threads)
        return time.perf_counter() - start

    for _ in range(ROUNDS):
        for variant, taken in times.items():
            once = call(variant)  # not counted
            taken.append(statistics.median(
                call(variant) for _ in range(max(1, min(300, int(SECONDS / once))))))
    first = next(iter(times.values()))
    cells = [
        f"{backend} {level} {statistics.median(taken) * 1e6:,.0f} us "
        f"({statistics.median(a / b for a, b in zip(taken, first, strict=True)):.2f})"
        for (backend, level), taken in times.items()
    ]
    print(f"{shape}, {n_threads} thread{'s' * (n_threads > 1)}: " + "; ".join(cells), flush=True)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    for shape in parser.parse_args().shapes:
        for n_threads in (1, 2):
            measure(shape, n_threads)


if __name__ == "__main__":
    main()
