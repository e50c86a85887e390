"""How fast `softxent eval` is beside merely reading the same file, and how much memory it takes.

    python benchmarks/eval_speed.py [--size 4] [--classes 1000] [--rounds 5] [--blocks 4 ...]

Makes a float32 file of SIZE GB (random numbers, repeated) and its class numbers in a folder of its
own, reads it once so that it is in the page cache, and then takes turns: reading it in pieces of
8 MiB into one buffer; `softxent eval`; `softxent eval --grad`; each in a process of its own, which
times its own work, without the interpreter's start. `--blocks`: sizes of a block to try, in MiB.
Prints medians, the median ratio to reading in the same round, and the highest peak of memory. With
--grad as much again must fit on the disk; what it costs is mostly the disk's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PIECE = 8 << 20
PATTERN_ROWS_BYTES = 64 << 20


def make_files(folder: Path, n_bytes: int, classes: int) -> int:
    """Write logits.npy and targets.npy; return the bytes of the logits."""
    rng = np.random.default_rng(0)
    n = n_bytes // (4 * classes)
    pattern = rng.normal(0, 3, (max(1, PATTERN_ROWS_BYTES // (4 * classes)), classes))
    pattern = pattern.astype("f4")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (n, classes)})
    with open(folder / "logits.npy", "wb") as file:
        file.write(header.getvalue())
        for first in range(0, n, len(pattern)):
            file.write(pattern[: n - first].data)
        file.flush()
        os.fsync(file.fileno())  # writing it must not go on while others are timed
    np.save(folder / "targets.npy", rng.integers(0, classes, n))
    return n * classes * 4


def peak_memory() -> int:
    """Return this process's peak resident memory, in bytes; 0 where /proc does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def child(what: str, block: int) -> None:
    """Do one thing, and print its seconds and peak memory."""
    result = {}
    if what == "read":
        buffer = bytearray(PIECE)
        begin = time.perf_counter()
        with open("logits.npy", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    else:
        from softxent.cli import eval as command
        from softxent.cli import main

        command.BLOCK_BYTES = block << 20
        more = ["--grad", "grad.npy"] if what == "eval --grad" else []
        sys.stdout = io.StringIO()
        begin = time.perf_counter()
        status = main(["eval", "logits.npy", "targets.npy", "--json", *more])
    result["seconds"] = time.perf_counter() - begin
    if what != "read":
        result |= {"loss": json.loads(sys.stdout.getvalue())["loss"], "status": status}
        sys.stdout = sys.__stdout__
    print(json.dumps({**result, "peak": peak_memory()}))


def turn(folder: Path, what: str, block: int) -> dict[str, float]:
    """Run one process and return what it printed."""
    done = subprocess.run(
        [sys.executable, Path(__file__).resolve(), "--child", what, "--blocks", str(block)],
        cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    (folder / "grad.npy").unlink(missing_ok=True)
    return json.loads(done.stdout)


def compare(folder: Path, n_bytes: int, rounds: int, blocks: list[int], grad: bool) -> None:
    """Take turns, and print the table."""
    kinds = [("read", 0)] + [("eval", block) for block in blocks]
    if grad:
        kinds += [("eval --grad", block) for block in blocks]
    turn(folder, "read", 0)  # into the page cache
    seen: dict[tuple[str, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            seen[kind].append(turn(folder, *kind))
    print(f"{'':22} {'median s':>9} {'GB/s':>7} {'speed / reading':>16} {'(least, most)':>14} "
          f"{'peak MB':>8}")
    for (what, block), turns in seen.items():
        seconds = statistics.median(t["seconds"] for t in turns)
        ratios = [r["seconds"] / t["seconds"]
                  for r, t in zip(seen["read", 0], turns, strict=True)]
        name = what + (f", {block} MiB" if block else "")
        print(f"{name:22} {seconds:9.3f} {n_bytes / seconds / 1e9:7.2f} "
              f"{statistics.median(ratios):16.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
              f" {max(t['peak'] for t in turns) / 1e6:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=4.0, help="GB of logits")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4], help="MiB")
    parser.add_argument("--no-grad", action="store_true")
    parser.add_argument("--folder", help="where the files are made; default: the temporary one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.blocks[0])
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        n_bytes = make_files(folder, round(options.size * 1e9), options.classes)
        print(f"{n_bytes / 1e9:.2f} GB, {options.classes} classes, {options.rounds} rounds")
        compare(folder, n_bytes, options.rounds, options.blocks, not options.no_grad)


if __name__ == "__main__":
    main()
