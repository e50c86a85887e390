"""Loss and gradient, here and in the peers that are installed: the README's table of speed.

    python benchmarks/against_peers.py [--rounds N] [--threads N] [SHAPE[:f32|f64] ...]

All functions of a shape run in turn in one process, round after round; printed are medians, and
the median of the round-by-round ratios to ours. Peers are at their best: all threads, compiled
where they can be, buffers reused where they take them. Ours writes into `grad_out=`; the second
row of ours overwrites the logits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

Case = Callable[[], object]


def ours(z, y, n_threads) -> dict[str, Case]:
    import softxent as sx

    grad = np.empty_like(z)
    scratch = z.copy()
    return {
        "softxent": lambda: sx.cross_entropy_with_grad(z, y, grad_out=grad, n_threads=n_threads),
        # Overwritten again and again: gradients are ordinary logits, and take as long.
        "softxent, in place": lambda: sx.cross_entropy_with_grad(
            scratch, y, grad_out=scratch, n_threads=n_threads),
    }


def with_numpy(z, y, n_threads) -> dict[str, Case]:
    rows = np.arange(len(y))
    p = np.empty_like(z)

    def run():
        np.subtract(z, z.max(axis=1, keepdims=True), out=p)
        at_target = p[rows, y]
        np.exp(p, out=p)
        total = p.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - at_target))
        np.divide(p, total, out=p)
        p[rows, y] -= 1.0
        np.multiply(p, z.dtype.type(1.0 / len(y)), out=p)
        return loss

    return {"NumPy": run}


def with_torch(z, y, n_threads) -> dict[str, Case]:
    import torch

    torch.set_num_threads(n_threads)
    logits = torch.from_numpy(z.copy()).requires_grad_()
    targets = torch.from_numpy(y)

    def run():
        logits.grad = None
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        return loss.item()

    return {"PyTorch eager": run}


def with_jax(z, y, n_threads) -> dict[str, Case]:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", z.dtype == np.float64)

    def loss(logits, targets):
        at_target = jax.numpy.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - at_target).mean()

    step = jax.jit(jax.value_and_grad(loss))
    logits, targets = jax.device_put(z), jax.device_put(y)
    return {"JAX jit": lambda: jax.block_until_ready(step(logits, targets))}


def with_sklearn(z, y, n_threads) -> dict[str, Case]:
    from sklearn._loss.loss import HalfMultinomialLoss

    half = HalfMultinomialLoss(n_classes=z.shape[1])
    targets = y.astype(z.dtype)
    loss, grad = np.empty(len(y), z.dtype), np.empty_like(z)
    return {"scikit-learn": lambda: half.loss_gradient(
        targets, z, loss_out=loss, gradient_out=grad, n_threads=n_threads)}


PEERS = (with_numpy, with_torch, with_jax, with_sklearn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE",
                        default=["32x10", "1797x10", "65536x10", "8192x1000", "1024x32000"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    print("| rows x classes | implementation | time | ratio to softxent |\n|---|---|---|---|")
    for text in options.shapes:
        shape, _, dtype = text.partition(":")
        n, c = map(int, shape.split("x"))
        rng = np.random.default_rng(0)
        z = rng.standard_normal((n, c), np.float64 if dtype == "f64" else np.float32)
        y = rng.integers(0, c, n)
        cases = ours(z, y, options.threads)
        for peer in PEERS:
            try:
                cases |= peer(z, y, options.threads)
            except ImportError as error:
                print(f"left out: {error}", file=sys.stderr)
        times = measure(cases, options.rounds)
        for name, values in times.items():
            ratio = statistics.median(
                a / b for a, b in zip(values, times["softxent"], strict=True))
            print(f"| {n:,} x {c:,} {z.dtype} | {name} | {unit(statistics.median(values))} | "
                  f"{ratio:.2f} |", flush=True)


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case's calls; short ones repeated to 2 ms a round."""
    repeats = {}
    for name, case in cases.items():
        case(), case()
        begin = time.perf_counter()
        case()
        repeats[name] = max(1, int(2e-3 / (time.perf_counter() - begin)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            # The threads of the one before spin on for some ms (OpenMP), on cores that this one
            # wants; then one call so that its own are awake and its data where it leaves them.
            time.sleep(0.01)
            case()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                case()
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return times


def unit(seconds: float) -> str:
    """Return a time with three digits."""
    for factor, name in ((1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or name == "us":
            return f"{seconds * factor:.3g} {name}"
    raise AssertionError


if __name__ == "__main__":
    main()
