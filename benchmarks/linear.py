"""A linear layer with cross-entropy, and its gradients, beside its matrix products and others.

    python benchmarks/linear.py [NxDxC ...]        default: 8192x512x32000

float32; medians of rounds in turn, and the median ratio to the three products alone: of chunks of
512 rows, as a layer of bounded memory needs them. NumPy and PyTorch make all logits; PyTorch's
`linear_cross_entropy` (since 2.13) as it comes. PyTorch is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from softxent.linear import linear_cross_entropy_with_grad

CHUNK = 512


def contenders(n: int, d: int, c: int) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    weight = rng.standard_normal((c, d), np.float32) / np.float32(d**0.5)
    y = rng.integers(0, c, n)

    def products() -> None:
        logits, of_x = np.empty((min(CHUNK, n), c), np.float32), np.empty_like(x)
        of_weight = np.empty_like(weight)
        for start in range(0, n, CHUNK):
            rows = x[start : start + CHUNK]
            part = logits[: len(rows)]
            np.matmul(rows, weight.T, out=part)
            np.matmul(part, weight, out=of_x[start : start + CHUNK])
            np.matmul(part.T, rows, out=of_weight)

    def numpy() -> object:
        z = x @ weight.T
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        z[np.arange(n), y] -= 1
        z /= n
        return z @ weight, z.T @ x

    found = {"products": products, "softxent": lambda: linear_cross_entropy_with_grad(x, weight, y),
             "NumPy": numpy}
    try:
        import torch
    except ImportError:
        return found
    tx, tw = (torch.from_numpy(a).requires_grad_() for a in (x, weight))
    ty = torch.from_numpy(y)

    def backward(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            tx.grad = tw.grad = None
            loss().backward()

        return run

    functional = torch.nn.functional
    found["PyTorch"] = backward(lambda: functional.cross_entropy(functional.linear(tx, tw), ty))
    if hasattr(functional, "linear_cross_entropy"):
        found["PyTorch, linear_cross_entropy"] = backward(
            lambda: functional.linear_cross_entropy(tx, tw, ty))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", default=["8192x512x32000"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for shape in options.shapes:
        functions = contenders(*map(int, shape.split("x")))
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(options.rounds):
            for name, function in functions.items():
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
        for name, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken, times["products"], strict=True))
            print(f"{shape}  {name:<30} {statistics.median(taken):8.3f} s  {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
