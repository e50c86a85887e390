"""Draws examples for the tests that take random ones, for as long as is wanted; says how many.

    python tests/search.py 60                       # minutes; test_properties.py
    python tests/search.py 60 -k "guards and v4"    # some of it

Not in CI. It ends at the first round with a failure; Hypothesis then prints the smallest example
that fails. A call that touches memory beyond an array's ends is the end of the round's process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
#: Examples a test and round: enough for Hypothesis to get going, few enough to end in time.
EXAMPLES = "300"


def main() -> int:
    """Return pytest's answer in the last round."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    until = time.monotonic() + 60 * float(sys.argv[1])
    passed: Counter[str] = Counter()
    rounds, code = 0, 0
    while code == 0 and time.monotonic() < until:
        rounds += 1
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--timeout=0", "--hypothesis-show-statistics",
             "-p", "no:cacheprovider", HERE / "test_properties.py", *sys.argv[2:]],
            cwd=HERE.parent, env={**os.environ, "SOFTXENT_EXAMPLES": EXAMPLES}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        code = done.returncode
        name = ""
        for line in done.stdout.splitlines():
            if found := re.match(r"\S*::(\w+)\[", line):
                name = found[1]
            elif found := re.search(r"(\d+) passing", line):  # beside failing and invalid ones
                passed[name] += int(found[1])
        left = max(0.0, (until - time.monotonic()) / 60)
        print(f"round {rounds}: {passed.total():,} examples; {left:.0f} minutes left", flush=True)
        if code or not passed:
            print(done.stdout)
    for test, examples in sorted(passed.items()):
        print(f"{examples:>9,}  {test}")
    print("nothing found" if code == 0 else "something was found: see above")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
