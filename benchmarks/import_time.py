"""How long `import softxent` takes beyond `import numpy`; medians of fresh interpreters in turn.

    python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def main() -> None:
    modules = {"nothing": "pass", "numpy": "import numpy", "softxent": "import softxent"}
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(21):
        for name, code in modules.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times[name].append(time.perf_counter() - begin)
    beyond = statistics.median(
        a - b for a, b in zip(times["softxent"], times["numpy"], strict=True))
    for name, values in times.items():
        print(f"{name:9} {statistics.median(values) * 1e3:6.1f} ms")
    print(f"softxent beyond numpy: {beyond * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
