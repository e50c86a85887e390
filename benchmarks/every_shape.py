"""Every shape of `shapes.py` beside the fastest peer: where is the promise kept, where is it not?

    python benchmarks/every_shape.py [--targets] [--fresh] [--rounds N] [--against PEER,...]
                                     [SHAPE ...]

One line a shape: ours, the fastest peer, its time over ours (the median of round-by-round ratios),
and the floor. The last line counts the shapes below it. `--targets`: those with floors of their
own; else any peer that is faster counts.
"""

from __future__ import annotations

import argparse
import sys

from shapes import SHAPES, TARGETS
from softxent._threads import effective_threads
from softxent.cli import bench
from softxent.cli.peers import PEERS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--targets", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", default=",".join(PEERS))
    options = parser.parse_args()
    against = [name for name in options.against.split(",") if name]
    threads = effective_threads(None)
    below = []
    print("| rows x classes | case | ours | fastest peer | its time | its time over ours | floor |")
    print("|---|---|---|---|---|---|---|")
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            print(line, file=sys.stderr)

    shapes = options.shapes or (TARGETS if options.targets else SHAPES)
    for text in shapes:
        shape = bench.Shape.parse(text)
        figures = bench.bench(shape, against, options.rounds, threads, options.fresh, say)
        peer = figures["fastest_peer"]
        floors = TARGETS.get(text, (1.0, 1.0)) if options.targets else (1.0, 1.0)
        if options.fresh:
            floors = (1.0, 1.0)
        for name, ratio in figures["speedups"].items():
            floor = floors[name == bench.OURS_IN_PLACE]
            results = figures["results"]
            print(f"| {shape} | {name} | {bench.unit(results[name]['seconds'])} | {peer} | "
                  f"{bench.unit(results[peer]['seconds'])} | {ratio:.2f} | {floor or ''} |",
                  flush=True)
            if floor is not None and ratio < floor:
                below.append(f"{shape} {name}")
    facts = bench.machine(threads, against)
    print(f"\n{len(below)} below: {'; '.join(below) or 'none'}\n{facts['cpu']}, {facts['level']}, "
          f"{threads} threads; {facts['versions']}")


if __name__ == "__main__":
    main()
