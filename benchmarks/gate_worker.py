"""One side of `gate.py`: measures cells of the suite as it is told, a line of JSON at a time.

The suite is this checkout's on both sides; the package is what PYTHONPATH names.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asv_runner.benchmarks.time import TimeBenchmark
from asv_runner.benchmarks.timeraw import TimerawBenchmark
from asv_runner.discovery import disc_benchmarks

SUITE = Path(__file__).resolve().parent / "benchmarks"


class Worker:
    """The cells of a selection; one of them at a time is set up."""

    def __init__(self, regex: str) -> None:
        self.cells: dict[str, tuple[Any, int]] = {}
        shapes: dict[str, str] = {}
        for benchmark in disc_benchmarks(str(SUITE)):
            # A fresh interpreter a sample is more noise than can be judged.
            if not isinstance(benchmark, TimeBenchmark) or isinstance(benchmark, TimerawBenchmark):
                continue
            for index, params in enumerate(itertools.product(*benchmark.params)):
                name = f"{benchmark.name}({', '.join(params)})"
                if re.search(regex, name):
                    self.cells[name] = benchmark, index
                    shapes[name] = dict(zip(benchmark.param_names, params, strict=True)).get(
                        "shape", "")
        # Arrays are kept for as long as the shape is the same.
        self.names = sorted(self.cells, key=lambda name: (shapes[name], name))
        self.call: Callable[[], object] = lambda: None

    def list(self) -> list[str]:
        """Return the selected cells' names, those of a shape together."""
        return self.names

    def where(self) -> str:
        """Return the package that is measured."""
        import softxent

        return str(softxent.__file__)

    def setup(self, cell: str) -> bool:
        """Make a cell ready; False: it is skipped here."""
        benchmark, index = self.cells[cell]
        benchmark.set_param_idx(index)
        if benchmark.do_setup():
            return False
        self.call = functools.partial(benchmark.func, *benchmark._build_params())
        return True

    def time(self, number: int) -> float:
        """Return the seconds of a call: of `number` in a row, after half as many."""
        call = self.call
        gc.disable()
        for _ in range((number + 1) // 2):
            call()
        begin = time.perf_counter()
        for _ in range(number):
            call()
        seconds = time.perf_counter() - begin
        gc.enable()
        return seconds / number


def main() -> None:
    """Answer until there are no more questions."""
    # Answers alone go to where they are read; what else is printed must not.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.redirect_stdout(open(os.devnull, "w")):  # asv's "skipped"
        worker = Worker(sys.argv[1])
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            print(json.dumps(getattr(worker, method)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
