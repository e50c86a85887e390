"""`softxent bench`: this machine's table of speed, beside other libraries and the memory's limit.

All functions of a shape run in turn in one process, round after round; reported are medians, and
medians of round-by-round ratios, for a machine's speed drifts from one minute to the next.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent import _machine, _threads
from softxent._explain import explain
from softxent.asv.shapes import Shape
from softxent.cli import CommandError, _plot
from softxent.cli.peers import PEERS, Case, Unsupported, case_of, version_of
from softxent.losses.cross_entropy import cross_entropy, cross_entropy_with_grad

SHAPES = ("32x10", "1797x10", "65536x10", "65536x100", "256x1000", "8192x1000", "1024x32000",
          "1x262144")
#: Classes of the plot, and its rows times classes.
PLOT_CLASSES = tuple(4**k for k in range(1, 11))
PLOT_ELEMENTS = 4**11
ROUNDS = 9
#: Short calls are repeated to this long a round, after half as long that does not count: threads,
#: clocks and caches are as calls that follow each other find them.
ROUND_SECONDS = 8e-3
#: Threads of the function before spin on for some ms (OpenMP), on cores that the next one wants.
PAUSE_SECONDS = 0.02
#: Arrays from here on are measured against memory; smaller ones stay in some cache.
MEMORY_BYTES = 1 << 22

OURS = "softxent"
OURS_IN_PLACE = "softxent, in place"
OURS_FRESH = "softxent, fresh"
OURS_LOSS = "softxent, loss alone"
LIMITS = ("read", "update", "copy", "stream")


def ours(z: NDArray[np.floating], y: NDArray[np.int64], n_threads: int,
         fresh: bool = False) -> dict[str, Case]:
    """Return our own evaluations, by name."""
    if fresh:
        return {OURS_FRESH: lambda: cross_entropy_with_grad(z, y, n_threads=n_threads)}
    grad = np.empty_like(z)
    # Overwritten again and again: gradients are ordinary logits, and take as long.
    scratch = z.copy(order="K")
    return {
        OURS: lambda: cross_entropy_with_grad(z, y, grad_out=grad, n_threads=n_threads),
        OURS_IN_PLACE: lambda: cross_entropy_with_grad(
            scratch, y, grad_out=scratch, n_threads=n_threads),
        OURS_LOSS: lambda: cross_entropy(z, y, n_threads=n_threads),
    }


def limits(n_bytes: int, n_threads: int) -> dict[str, Case]:
    """Return loops that move memory of that size and do nothing else, by name; {} without them."""
    native = _threads.native()
    if native is None or not hasattr(native, "move_memory"):
        return {}
    lines = n_bytes // 64
    buffers = [np.zeros(n_bytes + 64, np.uint8) for _ in range(2)]
    source, target = (buffer.ctypes.data + -buffer.ctypes.data % 64 for buffer in buffers)
    grain = max(1, lines // (8 * n_threads))

    def case(loop: str) -> Case:
        # `buffers` as a default: the memory stays as long as the case.
        return lambda kept=buffers: native.move_memory(  # type: ignore[misc]
            loop, source, target, lines, grain, n_threads)

    return {f"limit: {loop}": case(loop) for loop in LIMITS}


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case's calls, a value a round."""
    repeats = {}
    for name, case in cases.items():
        case()
        begin = time.perf_counter()
        case()
        repeats[name] = max(1, int(ROUND_SECONDS / (time.perf_counter() - begin)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            time.sleep(PAUSE_SECONDS)
            for _ in range((repeats[name] + 1) // 2):
                case()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                case()
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median of round-by-round quotients of two cases."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def bench(shape: Shape, against: Iterable[str], rounds: int, n_threads: int, fresh: bool = False,
          say: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Measure one shape; return the figures, times by case among them."""
    try:
        z, y = shape.arrays()
    except ImportError as error:
        raise CommandError(
            f"bfloat16 needs ml_dtypes ({error}); pip install 'softxent[bfloat16]'") from error
    cases = ours(z, y, n_threads, fresh)
    for peer in against:
        label = PEERS[peer][1]
        try:
            cases[label] = case_of(peer, z, y, n_threads, fresh)
        except ImportError as error:
            say(f"left out: {error}")
        except Unsupported as error:
            say(f"left out for {shape}: {label} {error}")
    peers = [PEERS[peer][1] for peer in against if PEERS[peer][1] in cases]
    if z.nbytes >= MEMORY_BYTES and not fresh:
        cases |= limits(z.nbytes, n_threads)
    times = measure(cases, rounds)
    read_and_written = {OURS_LOSS: z.nbytes, "limit: read": z.nbytes}
    results: dict[str, Any] = {}
    first = next(iter(cases))
    for name, values in times.items():
        seconds = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [seconds] * 3
        results[name] = {
            "seconds": seconds,
            "spread": (high - low) / seconds,
            "gb_per_second": read_and_written.get(name, 2 * z.nbytes) / seconds * 1e-9,
            "ratio": ratio(times, name, first),
            "share_of_limit": _share(times, name),
        }
    fastest = min(peers, key=lambda name: statistics.median(times[name]), default=None)
    return {
        "shape": str(shape), "rows": shape.rows, "classes": shape.classes, "dtype": shape.dtype,
        "order": shape.order, "results": results, "fastest_peer": fastest,
        "speedups": {name: ratio(times, fastest, name) for name in times
                     if name.startswith(OURS) and name != OURS_LOSS and fastest},
    }


#: What a case moves, as the loops move it: the share is of the fastest of them.
_LOOPS = {OURS: ("copy", "stream"), OURS_IN_PLACE: ("update",), OURS_LOSS: ("read",)}


def _share(times: dict[str, list[float]], name: str) -> float | None:
    loops = [f"limit: {loop}" for loop in _LOOPS.get(name, ())]
    if not loops or loops[0] not in times:
        return None
    return min(ratio(times, loop, name) for loop in loops)


def machine(n_threads: int, against: Iterable[str]) -> dict[str, Any]:
    """Return what the figures are of."""
    versions = {"numpy": np.__version__}
    for peer in against:
        try:
            versions[PEERS[peer][0]] = version_of(peer)
        except Exception:  # not installed
            continue
    return {"cpu": _machine.cpu_name(), "level": explain((1024, 32000)).isa, "threads": n_threads,
            "python": platform.python_version(), "versions": versions}


def unit(seconds: float) -> str:
    """Return a time with three digits."""
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def table(figures: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of a table in Markdown."""
    lines = ["| rows x classes | implementation | time | spread | GB/s | share of the limit | "
             "time over ours |", "|---|---|---|---|---|---|---|"]
    for of_shape in figures:
        for name, result in of_shape["results"].items():
            share = result["share_of_limit"]
            lines.append(
                f"| {of_shape['shape']} | {name} | {unit(result['seconds'])} | "
                f"{result['spread']:.0%} | {result['gb_per_second']:.3g} | "
                f"{'' if share is None else f'{share:.2f}'} | {result['ratio']:.2f} |")
    return lines


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench", help="speed here, beside other libraries and the limit of memory"
    )
    parser.add_argument("--shapes", nargs="+", metavar="ROWSxCLASSES[:DTYPE][:F]",
                        help=f"default: {' '.join(SHAPES)}")
    parser.add_argument("--against", default=",".join(PEERS), metavar="PEER,...",
                        help=f"of {', '.join(PEERS)}; those that are not installed are left out")
    parser.add_argument("--fresh", action="store_true",
                        help="gradients in memory that each allocates anew")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--threads", type=int, help="default: all there are")
    parser.add_argument("--plot", metavar="FILE",
                        help="draw speed against the number of classes into FILE")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measure, and return the figures and the same as text."""
    against = [name for name in options.against.split(",") if name]
    unknown = [name for name in against if name not in PEERS]
    if unknown:
        raise CommandError(f"--against: {unknown[0]!r} is none of {', '.join(PEERS)}")
    if options.rounds < 1:
        raise CommandError(f"--rounds must be at least 1, got {options.rounds}")
    try:
        n_threads = _threads.check(options.threads) if options.threads is not None else None
    except ValueError as error:
        raise CommandError(f"--threads: {error}") from error
    n_threads = _threads.effective_threads(n_threads)
    texts = options.shapes or (SHAPES if not options.plot else [
        f"{PLOT_ELEMENTS // classes}x{classes}" for classes in PLOT_CLASSES])
    shapes = []
    for text in texts:
        try:
            shapes.append(Shape.parse(text))
        except ValueError:
            raise CommandError(f"--shapes: {text!r} is not ROWSxCLASSES[:DTYPE][:F]") from None
    if options.plot:
        plt = _plot.pyplot(options.plot)
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            print(line, file=sys.stderr)

    figures = []
    for shape in shapes:
        print(f"{shape} ...", file=sys.stderr)
        figures.append(bench(shape, against, options.rounds, n_threads, options.fresh, say))
    facts = machine(n_threads, against)
    if options.plot:
        _draw(plt, figures, facts, options.plot)
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    lines = [*table(figures), "",
             f"{facts['cpu']}, level {facts['level']}, {n_threads} "
             f"thread{'s' * (n_threads > 1)}; Python {facts['python']}, {versions}"]
    return {"machine": facts, "shapes": figures}, "\n".join(lines)


def _draw(plt: Any, figures: list[dict[str, Any]], facts: dict[str, Any], file: str) -> None:
    axes_figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names: dict[str, None] = {}
    for of_shape in figures:
        names |= dict.fromkeys(of_shape["results"])
    for name in names:
        if name.startswith("limit") or name == OURS_LOSS:
            continue
        points = [(f["classes"], f["rows"] * f["classes"] / f["results"][name]["seconds"] * 1e-9)
                  for f in figures if name in f["results"]]
        of_ours = name.startswith(OURS)
        axes.loglog(*zip(*points, strict=True), marker="o", markersize=4 if of_ours else 3,
                    linewidth=2.2 if of_ours else 1.1,
                    linestyle="--" if name == OURS_IN_PLACE else "-", label=name)
    sizes = {f["rows"] * f["classes"] for f in figures}
    size = f"{sizes.pop():,} logits" if len(sizes) == 1 else "loss and gradient"
    axes.set(xlabel="classes", ylabel="G logits / s",
             title=f"Loss and gradient, {size}, {facts['threads']} threads, {facts['level']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    try:
        _plot.save(axes_figure, file, dpi=120)
    finally:
        plt.close(axes_figure)
