"""Where variants cross over: what `_plan` decides by, as shipped or as `tune` has measured it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from softxent import _cache
from softxent._machine import cpu_name, highest_level, usable_levels
from softxent._threads import native

#: Rows of up to so many classes are summed and mapped together, in tiles: a class of shapes.
SHORT_ROWS = 64
_NAME = "tuning"


class _Costs(NamedTuple):
    row_ns: Mapping[str, tuple[float, float]]
    element_ns: Mapping[str, tuple[float, float]]
    parallel_from_ns: float


# Loss and gradient, one thread, November 2026, and work from which a second thread pays where calls
# follow each other closely, so that its workers still spin (`python benchmarks/threads.py`). On an
# EPYC with AVX-512 (Zen 4), float32: 11 ns a row of 2 classes, 16 of 10, 40 of 30, 110 of 100, 560
# of 1,000; workers take 2-3 us to join.
_WITH_AVX512 = _Costs({"float32": (8.0, 60.0), "float64": (16.0, 120.0)},
                      {"float32": (1.0, 0.5), "float64": (2.0, 1.0)}, 15_000.0)
# On one without (Zen 3, v3, two virtual processors): 18-22, 30-35, 65-80, 145-170 and 850-1,000;
# float64 22, 50, 115, 265 and 2,000. Two threads took 1.2 to 1.3 times as long for 20 us of work,
# 0.7 to 1.2 for 40.
_WITHOUT = _Costs({"float32": (14.0, 75.0), "float64": (20.0, 90.0)},
                  {"float32": (1.9, 0.85), "float64": (3.5, 1.9)}, 30_000.0)


def _shipped() -> _Costs:
    # Without the extension LLVM would have to be loaded, to ask it, for a call of NumPy's, too.
    has_avx512 = native() is not None and usable_levels()[:1] == ("v4",)
    return _WITH_AVX512 if has_avx512 else _WITHOUT


@dataclass(frozen=True)
class Tuning:
    """What decides threads, stores and backends on this machine; `print()` it.

    Never what is computed: any tuning gives the same bits.

    Attributes
    ----------
    row_ns, element_ns : dict of str to (float, float)
        By dtype, what a row takes, and each of its logits: ns of one thread, loss and gradient.
        First for rows of up to 64 classes, then for longer ones.
    parallel_from_ns : float
        Work from which a second thread pays where calls follow one another closely.
    wakes_from_ns : float
        Work from which it pays where that thread has to be woken.
    streamed_row : float
        Bytes of a row from which a gradient too large for the caches is stored past them; inf:
        never.
    backend : dict of str to str
        By dtype, the backend that is preferred, among those that can.
    measured : bool
        Whether `tune` has measured it on this machine, or it is as shipped.
    """

    row_ns: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: dict(_shipped().row_ns))
    element_ns: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: dict(_shipped().element_ns))
    parallel_from_ns: float = field(default_factory=lambda: _shipped().parallel_from_ns)
    # Where workers have parked, as in a trainer, a virtual machine takes 20-50 us to wake one.
    wakes_from_ns: float = 150_000.0
    # Time with normal stores over time past the caches, two threads, float32, same machine: rows of
    # 1,028 bytes .84, 4,000 1.0, 16,396 1.07, 128,000 1.13. On an EPYC without AVX-512 (Zen 3): 400
    # bytes .72, 1,024 1.13, 4,000 1.23-1.26, 8,000 1.06, of doubles 1.30. Of short rows too many
    # share a line.
    streamed_row: float = 4_000.0
    backend: Mapping[str, str] = field(default_factory=dict)
    measured: bool = False

    def row(self, dtype: str, n_classes: int) -> float:
        """Return about how long a row takes on one thread, in ns; 16-bit rows as float32's."""
        known = dtype if dtype in self.row_ns else "float32"
        long = n_classes > SHORT_ROWS
        return self.row_ns[known][long] + self.element_ns[known][long] * n_classes

    def __str__(self) -> str:
        """Return the tuning in lines for people."""
        lines = ["measured on this machine" if self.measured else "as shipped"]
        for dtype, (short, long) in self.row_ns.items():
            of_short, of_long = self.element_ns[dtype]
            lines.append(
                f"  {dtype}: {short:.3g} ns a row and {of_short:.2g} ns a logit up to {SHORT_ROWS} "
                f"classes, {long:.3g} and {of_long:.2g} from there"
                + (f"; {self.backend[dtype]}" if dtype in self.backend else ""))
        lines.append(f"  a second thread from {self.parallel_from_ns / 1e3:.0f} us of work, from "
                     f"{self.wakes_from_ns / 1e3:.0f} us if it sleeps")
        rows = f"rows from {self.streamed_row:,.0f} bytes" if self.streamed_row < 1e12 else "never"
        lines.append(f"  gradients past the caches: {rows}")
        return "\n".join(lines)


def _key() -> bytes:
    # What the figures are of: another processor or version has others. The processor's name stands
    # for its levels: to ask for those takes LLVM, where there is no extension.
    return repr((2, cpu_name(), highest_level(), native() is not None, os.cpu_count(),
                 platform.python_version(), np.__version__, _version())).encode()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("softxent")
    except metadata.PackageNotFoundError:
        return ""


def _checked(found: Any) -> Tuning:
    """Return the Tuning that a file describes; raise for one that describes none."""
    def number(value: Any, most: float = 1e12) -> float:
        if not isinstance(value, float | int) or not 0.0 <= value <= most:
            raise ValueError(value)
        return float(value)

    def pairs(value: Any) -> dict[str, tuple[float, float]]:
        short, long = zip(*((number(a), number(b)) for a, b in (
            value["float32"], value["float64"])), strict=True)
        return {"float32": (short[0], long[0]), "float64": (short[1], long[1])}

    backends = found["backend"]
    if not all(isinstance(text, str) for item in backends.items() for text in item):
        raise ValueError(backends)
    return Tuning(pairs(found["row_ns"]), pairs(found["element_ns"]),
                  number(found["parallel_from_ns"]), number(found["wakes_from_ns"]),
                  number(found["streamed_row"], math.inf), dict(backends), measured=True)


_adopted: list[Tuning] = []


def adopt(tuning: Tuning) -> None:
    """Make `tuning` this process's."""
    _adopted[:] = [tuning]


def current() -> Tuning:
    """Return what this process goes by."""
    return _adopted[0] if _adopted else _stored()


@cache
def _stored() -> Tuning:
    """Return this machine's tuning, read once; as shipped where there is none to be trusted."""
    body = _cache.read(_NAME, _key())
    if body is not None:
        try:
            return _checked(json.loads(body))
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
    return Tuning()


def store(tuning: Tuning) -> None:
    """Keep `tuning` for later processes."""
    _cache.write(_NAME, _key(), json.dumps(asdict(tuning)).encode())
