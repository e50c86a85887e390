"""The history of speed, errors and memory: asv's runs over commits, filed in benchmarks/results.

    python benchmarks/history.py run [--quick] [COMMIT ...] [-- OPTION OF ASV ...]
    python benchmarks/history.py prune [--dry-run]

`run` measures those of `history.txt`, or the commits that are named, one after the other on this
machine: asv makes an environment of its own, builds each commit once, and writes a file for each.
It needs `pip install '.[benchmark]'`. `prune` bounds what is kept, by docs/benchmarks.md's rule.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import quick

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
#: Results of so many commits are kept, the newest, and of older ones the first of each month.
NEWEST = 20
#: And no more than this of a machine: the oldest go first.
MACHINE_BYTES = 2_000_000


def git(*arguments: str) -> str:
    """Return what git says about this repository."""
    done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def listed() -> list[str]:
    """Return the commits of `history.txt`, oldest first."""
    lines = (HERE / "history.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def asv(*arguments: str, text: str = "") -> int:
    """Run a command of asv on our configuration; return its exit code."""
    # asv looks for python3.11, say, on PATH: it shall find the one that runs this.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return subprocess.run(
        [sys.executable, "-m", "asv", *arguments, "--config", str(HERE / "asv.conf.json")],
        input=text, text=True, env={**os.environ, "PATH": path}).returncode


def run(options: argparse.Namespace) -> int:
    """Measure commits."""
    try:
        from asv.machine import MachineCollection

        import machine
    except ImportError as error:
        raise SystemExit(f"needs asv and softxent itself ({error}): pip install '.[benchmark]'"
                         ) from error
    commits = [git("rev-parse", "--verify", f"{commit}^{{commit}}")
               for commit in options.commits or listed()]
    # `asv machine --machine NAME` stores only what differs from its guesses, and asks for the rest.
    facts = machine.facts()
    MachineCollection.save(facts["machine"], facts)
    selected = ["--bench", options.bench or quick.regex()] if (
        options.bench or options.quick) else []
    return asv("run", "HASHFILE:-", "--machine", facts["machine"], "--show-stderr", *selected,
               *options.asv, text="\n".join(commits))


@dataclass(frozen=True)
class Result:
    """A file that asv has written of a commit."""

    path: Path
    commit: str
    date: int  # in milliseconds
    size: int

    @property
    def month(self) -> str:
        """The commit's month."""
        return datetime.fromtimestamp(self.date / 1000, UTC).strftime("%Y-%m")


def superfluous(results: list[Result], kept: set[str]) -> list[Result]:
    """Return which of a machine's results the rule has no place for; `kept` it keeps.

    Its answer does not depend on what was removed before, so that pruning twice is pruning once.
    """
    dates = sorted({(result.date, result.commit) for result in results}, reverse=True)
    keep = kept | {commit for _, commit in dates[:NEWEST]}
    firsts: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: (result.date, result.commit)):
        firsts.setdefault(result.month, result)
    keep |= {result.commit for result in firsts.values()}
    remaining = [result for result in results if result.commit in keep]
    total = sum(result.size for result in remaining)
    for result in sorted(remaining, key=lambda result: (result.date, result.commit)):
        if total > MACHINE_BYTES and result.commit not in kept:
            remaining.remove(result)
            total -= result.size
    return [result for result in results if result not in remaining]


def prune(options: argparse.Namespace) -> int:
    """Remove results that the rule has no place for."""
    kept = {git("rev-parse", commit) for commit in listed()}
    for folder in sorted(path.parent for path in RESULTS.glob("*/machine.json")):
        results = []
        for path in sorted(folder.glob("*-*.json")):
            found = json.loads(path.read_text())
            results.append(Result(path, found["commit_hash"], found["date"],
                                  path.stat().st_size))
        gone = superfluous(results, kept)
        for result in gone:
            print(f"{result.path.relative_to(RESULTS)}: "
                  f"{'would go' if options.dry_run else 'removed'}")
            if not options.dry_run:
                result.path.unlink()
        size = sum(result.size for result in results if result not in gone)
        print(f"{folder.name}: {len(results) - len(gone)} results, {size / 1000:.0f} kB")
        if size > MACHINE_BYTES:
            print(f"more than the {MACHINE_BYTES / 1000:.0f} kB of a machine: history.txt lists "
                  f"too many commits", file=sys.stderr)
            return 1
    return 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="measure commits on this machine")
    command.add_argument("commits", nargs="*", metavar="COMMIT",
                         help="anything that names a commit; default: those of history.txt")
    command.add_argument("--quick", action="store_true", help="the quick subset")
    command.add_argument("--bench", metavar="REGEX", help="what it selects of name(parameter, ...)")
    command.set_defaults(do=run, asv=[])
    command = commands.add_parser("prune", help="remove results that the rule does not keep")
    command.add_argument("--dry-run", action="store_true", help="only say which")
    command.set_defaults(do=prune)
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    if arguments[cut + 1:]:
        options.asv = arguments[cut + 1:]
    result: int = options.do(options)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
