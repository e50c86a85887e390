"""What results of this machine are filed under: its processor and level, not its host's name.

    python benchmarks/machine.py

Machines of a kind share a name, and a series. The level is the one in use: under
`SOFTXENT_MAX_ISA=v3` a v4 machine measures, and is filed, as v3.
"""

from __future__ import annotations

import os
import platform
import re

from softxent import _machine


def name() -> str:
    """Return for example `amd-epyc-v4`."""
    levels = _machine.usable_levels()
    # Trademarks, and the clock rate that Intel's names end in.
    cpu = re.sub(r"\((R|TM)\)|\bCPU\b|@.*|\b\d+-Core\b|\bProcessor\b", " ", _machine.cpu_name())
    words = re.findall(r"[a-z0-9]+", f"{cpu} {levels[0] if levels else 'unknown'}".lower())
    return "-".join(words)


def facts() -> dict[str, str]:
    """Return what asv keeps of a machine; all of it is part of each series' identity.

    So there is nothing in it that an update or a reboot would change.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(
        os, "sysconf") else 0
    return {"machine": name(), "os": platform.system(), "arch": platform.machine(),
            "cpu": _machine.cpu_name(), "num_cpu": str(os.cpu_count()),
            "ram": f"{round(pages / 2**30)} GB"}


if __name__ == "__main__":
    print(name())
