"""The gate: is a branch slower than main in any cell of the quick subset?

    python benchmarks/gate.py [BRANCH] [--base main]

Exit code 0: no; 1: yes, the table says where; 2: it could not be measured. Committed work only.
Needs `pip install '.[benchmark]'`; builds both commits with what is installed beside it, once.

How it decides (the figures are below, the reasons in docs/benchmarks.md): a group is three
processes side by side, of base, of base again, and of the branch. They take turns at each cell, a
few ms at a time, there and back. A group's ratio is the branch's time over base's two, each the
lower quartile of its turns; its noise is one base's over the other's, which is known to be 1.
Groups differ by where their pages lie, so there are several, and the median counts. A cell that
looks slower is measured again by fresh groups, until what is left of noise cannot turn the verdict.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import quick

HERE = Path(__file__).resolve().parent
BUILDS = HERE / ".asv" / "gate"
#: Builds that are kept, the last used.
KEPT = 8
#: What decides about a build beside the commit.
TOOLS = ("numpy", "cython", "setuptools", "numba", "llvmlite")

#: Slower than this fails.
THRESHOLD = 0.10
#: A turn takes about this long, and half as long before it that does not count.
TURN_SECONDS = 4e-3
#: Turns of each process of a group.
ROUNDS = 8
#: Groups that look at every cell. What they find slower by half the threshold is looked at again: a
#: second look costs seconds, a slow cell that is passed by costs the gate's word.
GROUPS = 4
#: Then by so many fresh groups at a time, at most so often.
AGAIN = 8
TIMES = 4
#: A verdict is final when it is this many standard errors away from the threshold.
SURE = 4.0


class CannotRun(Exception):
    """Nothing was measured, or not to the end; the message says why."""


# ---- the decision: pure functions of what was measured -------------------------------------------


@dataclass
class Cell:
    """What groups have found of a cell: logarithms of ratios, one a group, and seconds."""

    ratios: list[float] = field(default_factory=list)
    twins: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)

    def add(self, base: Sequence[float], twin: Sequence[float], head: Sequence[float]) -> None:
        """Take the seconds of a group's rounds."""
        b, t, h = map(undisturbed, (base, twin, head))
        self.ratios.append(math.log(h) - (math.log(b) + math.log(t)) / 2)
        self.twins.append(math.log(t) - math.log(b))
        self.base.append(math.sqrt(b * t))
        self.head.append(h)

    @property
    def ratio(self) -> float:
        """The branch's time over base's, the median of groups, as a logarithm."""
        return statistics.median(self.ratios)

    @property
    def noise(self) -> float:
        """The standard error of `ratio`, as the twins have it, whose true value is 0.

        Of the median of as many normal numbers. A twin's ratio is of two processes, as spread as
        any; the branch's is of one and the mean of two, so this is on the safe side.
        """
        spread = 1.2533 * statistics.fmean(map(abs, self.twins))
        return 1.2533 * spread / math.sqrt(len(self.twins))


def undisturbed(times: Sequence[float]) -> float:
    """Return the lower quartile: what disturbs a turn makes it longer, never shorter."""
    return sorted(times)[len(times) // 4]


def is_suspect(cell: Cell, threshold: float) -> bool:
    """Whether a first look is reason enough for a second."""
    return cell.ratio > math.log1p(threshold / 2)


def is_sure(cell: Cell, threshold: float) -> bool:
    """Whether noise could not have moved a cell across the threshold."""
    return abs(cell.ratio - math.log1p(threshold)) > SURE * cell.noise


def is_slower(cell: Cell, threshold: float) -> bool:
    """Whether a cell that was looked at again fails."""
    return cell.ratio > math.log1p(threshold)


#: Adds so many groups to cells.
Measure = Callable[[dict[str, Cell], int], object]


def look_again(cells: dict[str, Cell], measure: Measure, threshold: float) -> dict[str, Cell]:
    """Return what fresh groups find of those that the first ones suspect; nothing old counts."""
    again = {name: Cell() for name, cell in cells.items() if is_suspect(cell, threshold)}
    for _ in range(TIMES):
        unsure = {name: cell for name, cell in again.items()
                  if not cell.ratios or not is_sure(cell, threshold)}
        if unsure:
            measure(unsure, AGAIN)
    return again


def noise_of(cells: Iterable[Cell]) -> tuple[float, float]:
    """Return how far a group's two bases were from each other: the median, and 19 of 20 cells."""
    apart = sorted(abs(twin) for cell in cells for twin in cell.twins)
    return statistics.median(apart), apart[math.ceil(0.95 * len(apart)) - 1]


# ---- builds --------------------------------------------------------------------------------------


def commit_of(name: str) -> str:
    """Return a commit's hash."""
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--verify", "--quiet",
                           f"{name}^{{commit}}"], capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"there is no commit {name!r} here; git fetch it, or name another "
                        f"(--base origin/main)")
    return done.stdout.strip()


def build(commit: str) -> Path:
    """Return a directory with the package as of a commit, for PYTHONPATH; make it if need be."""
    try:
        tools = [f"{name} {metadata.version(name)}" for name in TOOLS]
        metadata.version("asv_runner")  # the workers'
    except metadata.PackageNotFoundError as error:
        raise CannotRun(f"needs {error.name}: pip install '.[benchmark]'") from error
    flags = [os.environ.get(name, "") for name in ("CC", "CFLAGS", "LDFLAGS", "SOFTXENT_LEVELS")]
    key = hashlib.sha256("\n".join([platform.python_version(), *tools, *flags]).encode())
    place = BUILDS / f"{commit[:12]}-{key.hexdigest()[:8]}"
    if place.exists():
        place.touch()
        return place
    print(f"building {commit[:12]}", file=sys.stderr)
    BUILDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILDS) as scratch:
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(HERE.parent),
                        f"{scratch}/source"], check=True)
        subprocess.run(["git", "-C", f"{scratch}/source", "checkout", "-q", "--detach", commit],
                       check=True)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
             "--target", f"{scratch}/package", f"{scratch}/source"], capture_output=True, text=True,
            env={**os.environ, "SOFTXENT_REQUIRE_EXTENSIONS": "1"})
        if done.returncode:
            raise CannotRun(f"{commit[:12]} does not build:\n{done.stderr[-2000:]}")
        os.replace(f"{scratch}/package", place)
    used = sorted(BUILDS.glob("*-*"), key=lambda path: path.stat().st_mtime)
    for path in used[:-KEPT]:
        shutil.rmtree(path)
    return place


# ---- processes -----------------------------------------------------------------------------------


class Process:
    """A worker on one of the builds."""

    def __init__(self, package: Path, regex: str) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # until close()
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("ASV_")}
        # What Numba compiles goes with the build; what `softxent tune` has found does not count.
        environment |= {"PYTHONPATH": str(package), "SOFTXENT_CACHE_DIR": str(package / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "gate_worker.py"), regex], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.package = package

    def check(self) -> None:
        """Wait until the worker is there, and raise unless it measures what it is to."""
        where = self.ask("where")
        if not where.startswith(str(self.package)):
            raise CannotRun(f"{where} is measured in place of {self.package}: uninstall what puts "
                            f"it before PYTHONPATH")

    def ask(self, method: str, *arguments: object) -> Any:
        """Return a worker's answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise CannotRun(f"{method} {arguments}: a worker ended:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def group(cells: dict[str, Cell], packages: tuple[Path, Path], regex: str, turn: int
          ) -> dict[str, str]:
    """Measure cells once more in three fresh processes; return which are skipped, and where."""
    base, head = packages
    # Who is started first, and so gets memory first, takes turns.
    order = [(0, base), (1, base), (2, head)]
    order = order[turn % 3:] + order[:turn % 3]
    processes: dict[int, Process] = {}
    missing: dict[str, str] = {}
    try:
        for side, package in order:
            processes[side] = Process(package, regex)
        for process in processes.values():  # they start side by side
            process.check()
        for name, cell in cells.items():
            ready = {side: processes[side].ask("setup", name) for side in range(3)}
            if not all(ready.values()):
                missing[name] = ("both" if not any(ready.values())
                                 else "base" if ready[2] else "head")
                continue
            once = min(processes[side].ask("time", 1) for side in range(3))
            number = math.ceil(TURN_SECONDS / once)
            # A first call alone is slow.
            number = math.ceil(TURN_SECONDS / processes[0].ask("time", number))
            times: tuple[list[float], ...] = ([], [], [])
            for k in range(ROUNDS):
                # There and back: what drifts, drifts for all. The branch is between the bases.
                for side in ((0, 2, 1), (1, 2, 0))[k % 2]:
                    times[side].append(processes[side].ask("time", number))
            cell.add(*times)
    finally:
        for process in processes.values():
            process.close()
    return missing


# ---- the command ---------------------------------------------------------------------------------


def unit(seconds: float) -> str:
    """Return a time with three digits."""
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def row(name: str, cell: Cell, verdict: str) -> str:
    """Return a line of the table."""
    return (f"| {name} | {unit(statistics.median(cell.base))} | "
            f"{unit(statistics.median(cell.head))} | {math.exp(cell.ratio):.3f} | "
            f"{math.expm1(cell.noise):.1%} | {verdict} |")


def compare(base: Path, head: Path, regex: str, threshold: float) -> int:
    """Measure, print the table, and return the exit code."""
    lister = Process(head, regex)
    try:
        lister.check()
        names = lister.ask("list")
    finally:
        lister.close()
    if not names:
        raise CannotRun(f"no time of the suite matches {regex!r}")
    cells = {name: Cell() for name in names}
    missing: dict[str, str] = {}

    def measure(cells: dict[str, Cell], groups: int) -> None:
        for turn in range(groups):
            print(f"{len(cells)} cells, group {turn + 1} of {groups}", file=sys.stderr)
            missing.update(group({name: cell for name, cell in cells.items()
                                  if name not in missing}, (base, head), regex, turn))

    measure(cells, GROUPS)
    measured = {name: cell for name, cell in cells.items() if name not in missing}
    if not measured:
        raise CannotRun("every cell that was selected is skipped here")
    again = look_again(measured, measure, threshold)
    slower = [name for name, cell in again.items() if is_slower(cell, threshold)]
    print("| cell | base | branch | branch/base | noise | verdict |\n|---|---|---|---|---|---|")
    for name, cell in measured.items():
        shown = again.get(name, cell)
        verdict = ("SLOWER" if name in slower else "again: as fast" if name in again
                   else "faster" if shown.ratio < -math.log1p(threshold) else "as fast")
        print(row(name, shown, verdict))
    gone = [name for name, where in missing.items() if where == "head"]
    for name, where in missing.items():
        if where != "both":
            print(f"| {name} | | | | | {'GONE' if where == 'head' else 'new'} |")
    usual, most = noise_of(measured.values())
    print(f"\n{len(measured)} cells ({len(missing)} left out), {len(again)} measured again, "
          f"{len(slower)} slower by more than {threshold:.0%}: {'; '.join(slower) or 'none'}\n"
          f"noise of the run: two processes of base differ by {math.expm1(usual):.1%} in the "
          f"median, in 19 of 20 cases by less than {math.expm1(most):.1%}")
    if gone:
        raise CannotRun(f"what base has, the branch refuses: {'; '.join(gone)}")
    return 1 if slower else 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("branch", nargs="?", default="HEAD", help="default: HEAD")
    parser.add_argument("--base", default="main", help="what it is compared with; default: main")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, metavar="SHARE",
                        help=f"slower than this fails; default: {THRESHOLD}")
    parser.add_argument("--bench", metavar="REGEX", default=quick.regex(),
                        help="cells, name(parameter, ...); default: the quick subset")
    options = parser.parse_args()
    if not 0 < options.threshold < 10:
        parser.error(f"--threshold must be a positive share, got {options.threshold}")
    try:
        re.compile(options.bench)
    except re.error as error:
        parser.error(f"--bench must be a regular expression, got {options.bench!r}: {error}")
    try:
        commits = [commit_of(name) for name in (options.base, options.branch)]
        print(f"base {commits[0][:12]} ({options.base}), branch {commits[1][:12]} "
              f"({options.branch})", flush=True)
        base, head = map(build, commits)
        return compare(base, head, options.bench, options.threshold)
    except CannotRun as error:
        print(f"gate: {error}", file=sys.stderr)
    except Exception:  # 1 is a verdict, and nothing else may look like one
        traceback.print_exc()
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
