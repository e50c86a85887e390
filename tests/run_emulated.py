"""Runs the tests' quick part as a processor without AVX2, or without AVX-512, under qemu-user.

    python tests/run_emulated.py Nehalem      # x86-64-v2: no AVX
    python tests/run_emulated.py Haswell      # x86-64-v3: AVX2 and FMA, no AVX-512
    python tests/run_emulated.py Haswell tests/test_exp.py -k float32      # other tests

An instruction that the processor lacks is the end of the process that meets it; that it would be is
tried first, with a walk of a level too high. Every interpreter that a test starts is emulated too:
the environment's `python` is a script that calls qemu, and Python takes its own name from there.
Programs that a test starts (compilers, objdump) run as they are.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Name: qemu's processor (what it names and cannot emulate switched off, or it says so on stderr),
#: the level that must be chosen, and one that must not run.
PROCESSORS = {
    "Nehalem": ("Nehalem", "v2", "v3"),
    "Haswell": ("Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm", "v3", "v4"),
}
#: Tests that emulation, 10 to 50 times slower, keeps from ending in their time; or that ask the
#: system for the peak of memory, which is then the emulator's.
LEFT_OUT = ("test_demo_json", "test_peak_memory", "2000_calls", "more_than_2_to_the_31",
            "cost_no_more")

LEVEL = """
import softxent as sx
plan = sx.explain((1024, 32000), "float32")
assert (plan.backend, plan.isa) == ("cython", {level!r}), plan
assert sx._machine.cpu_level() == {level!r}
"""
COMPILE = """
import softxent as sx
if sx.available_backends()["numba"] == "available":
    sx.warmup(backend="numba")
"""
TOO_HIGH = """
import importlib
import numpy as np
from softxent import _threads
from softxent.backends import backend
from softxent.backends._contract import Call, Op
rows = np.zeros(4)
call = Call(Op.LOGSUMEXP, np.zeros((4, 100), np.float32), out_rows=rows)
_threads.run(backend("cython").bind(call, {level!r}), 4, 4, 1)
"""


def environment(folder: Path, qemu: str, processor: str) -> Path:
    """Make `folder` the running environment's twin, but for its `python`; return that."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    prefix = Path(sys.prefix)
    for name in ("pyvenv.cfg", "lib", "lib64", "include"):
        if (prefix / name).exists():
            (folder / name).symlink_to(prefix / name)
    real = Path(sys.executable).resolve()
    python.write_text(f"#!/bin/sh\nexec {shlex.quote(qemu)} -cpu {processor} -0 \"$0\" "
                      f"{shlex.quote(str(real))} \"$@\"\n")
    python.chmod(0o755)
    return python


def main() -> int:
    """Return pytest's answer."""
    name, *arguments = sys.argv[1:] or [""]
    qemu = shutil.which("qemu-x86_64")
    if name not in PROCESSORS or qemu is None or sys.prefix == sys.base_prefix:
        print(__doc__, file=sys.stderr)
        print("qemu-x86_64 is missing (Debian: qemu-user)" if qemu is None else
              f"processors: {', '.join(PROCESSORS)}; Python must be a virtual environment's",
              file=sys.stderr)
        return 2
    processor, level, too_high = PROCESSORS[name]
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder), qemu, processor)

        def run(*command: str) -> int:
            return subprocess.run([python, *command], cwd=ROOT, check=False).returncode

        found = subprocess.check_output([python, "-c", "import sys; print(sys.executable)"],
                                        text=True).strip()
        assert found == str(python), f"children would not be emulated: {found}"
        if run("-m", "softxent", "info") or run("-c", LEVEL.format(level=level)):
            return 1
        died = run("-c", TOO_HIGH.format(level=too_high))
        if died not in (-signal.SIGILL, 128 + signal.SIGILL):
            print(f"a walk of {too_high} should have died of its instructions; it returned {died}")
            return 1
        if level != "v2":
            # Emulated, Numba's compiler takes half an hour; what it makes is for the level alone.
            subprocess.run([sys.executable, "-c", COMPILE], check=True,
                           env={**os.environ, "SOFTXENT_MAX_ISA": level})
        quick = ["-m", "subset", "-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
        return run("-m", "pytest", "-q", "--timeout=1200", *(arguments or quick))


if __name__ == "__main__":
    raise SystemExit(main())
