"""How long a first call takes: nothing compiled yet, out of the cache, and once it is warm.

    python benchmarks/first_call.py

A fresh interpreter each; 32 x 10 float32, loss and gradient; seconds without the import of softxent
and NumPy.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

import softxent as sx

SCRIPT = """
import sys, time
import numpy as np
import softxent as sx
z, y = np.zeros((32, 10), "f4"), np.zeros(32, int)
for _ in range(2 + 200):
    start = time.perf_counter()
    sx.cross_entropy_with_grad(z, y, backend=sys.argv[1])
    print(time.perf_counter() - start)
"""
PROCESSES = 7


def times(backend: str, cache: str) -> tuple[float, float]:
    """Return the seconds of a process's first call, and of its later ones (their median)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, backend], capture_output=True, text=True,
                          check=True, env={**os.environ, "SOFTXENT_CACHE_DIR": cache})
    first, *later = map(float, done.stdout.split())
    return first, statistics.median(later)


def main() -> None:
    """Print a line a backend."""
    for backend, state in sx.available_backends().items():
        if state != "available":
            continue
        with tempfile.TemporaryDirectory() as cache:
            cold, _ = times(backend, cache)
            cached, warm = zip(*(times(backend, cache) for _ in range(PROCESSES)), strict=True)
        print(f"{backend}: cold {cold:.3f} s, cached {statistics.median(cached) * 1e3:.1f} ms, "
              f"warm {statistics.median(warm) * 1e6:.1f} us")


if __name__ == "__main__":
    main()
