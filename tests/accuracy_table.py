"""Worst errors over the hard rows, by backend, level and dtype: `python tests/accuracy_table.py`.

`measure` is what `test_accuracy.py` asserts on; `BOUNDS` holds the contract's figures, nowhere else
repeated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import numpy as np

import rows
import softxent as sx
import truth

#: What is measured, the contract's line and its bound for float32 and float64 logits, in the unit
#: named. A quantity's absolute allowance (C F) is taken off before it is counted.
BOUNDS = {
    "lse": ("A2", "eps max(1, |lse|)", 1.5, 4.0),
    "loss": ("A3", "ulp", 2.0, 6.0),
    "log_softmax": ("A3", "ulp", 4.0, 6.0),
    "softmax": ("A4", "ulp", 4.0, 6.0),
    "softmax below F": ("A4", "ulp, where not 0", 4.0, 6.0),
    "gradient": ("A5", "ulp", 4.0, 6.0),
    "gradient at target": ("A5", "ulp", 4.0, 6.0),
    "gradient below F": ("A6", "eps p", 4.0, 8.0),
    "sum p - 1": ("E1", "eps", 2.0, 8.0),
    "sum g": ("E1", "eps sum |g|", 2.0, 8.0),
}


@dataclass
class Worst:
    """The largest error of one quantity, and the row it was seen on."""

    error: float = 0.0
    where: str = ""

    def see(self, errors: np.ndarray, case: rows.Case, wanted: np.ndarray | bool = True) -> None:
        """Take note of errors, (N,) or (N, C), where `wanted`; NaN counts as infinite."""
        errors = np.where(wanted, np.where(np.isnan(errors), np.inf, errors), 0)
        place = np.unravel_index(np.argmax(errors), errors.shape)
        if errors[place] > self.error:
            self.error = float(errors[place])
            self.where = f"{case.name} {case.families[place[0]]}, row {place[0]}" + (
                f", class {place[1]}" if len(place) > 1 else ""
            )


def bound(quantity: str, dtype: str) -> float:
    """The contract's bound."""
    _, _, single, double = BOUNDS[quantity]
    return single if dtype == "float32" else double


def observe(worst: dict[str, Worst], case: rows.Case, backend: str) -> None:
    """Evaluate a case and take note of its errors."""
    z, targets, dtype = case.logits, case.targets, case.dtype
    f, eps = truth.F[dtype], truth.EPS[dtype]
    flushed = z.shape[1] * truth.LD(f)

    def ulps(got, true, allowance=0.0):
        return truth.ulp_error(got, true, dtype, allowance)

    true_lse = truth.lse(z)
    lse = sx.logsumexp(z, backend=backend)
    scale = eps * np.maximum(1, np.abs(true_lse))
    worst["lse"].see(truth.absolute_error(lse, true_lse, dtype) / scale, case)

    log_p = sx.log_softmax(z, backend=backend)
    worst["log_softmax"].see(ulps(log_p, truth.log_softmax(z), flushed), case)

    true_p = truth.softmax(z)
    normal = true_p >= f
    p = sx.softmax(z, backend=backend)
    errors = ulps(p, true_p)
    worst["softmax"].see(errors, case, normal)
    worst["softmax below F"].see(errors, case, ~normal & (p != 0))
    worst["sum p - 1"].see(np.abs(p.astype(truth.LD).sum(axis=1) - 1) / eps, case)

    loss, g = sx.cross_entropy_with_grad(z, targets, reduction="none", backend=backend)
    worst["loss"].see(ulps(loss, truth.loss(z, targets), flushed), case)

    true_g = truth.gradient(z, targets)
    at_target = np.zeros(z.shape, dtype=bool)
    at_target[np.arange(len(z)), targets] = True
    counts = (np.abs(true_g) >= f) & (normal | at_target)
    worst["gradient"].see(ulps(g, true_g), case, counts & ~at_target)
    worst["gradient at target"].see(ulps(g, true_g, flushed), case, counts & at_target)
    absolute = np.maximum(truth.absolute_error(g, true_g, dtype) - 2 * flushed, 0)
    worst["gradient below F"].see(absolute / (eps * (true_p + at_target + f)), case, ~counts)

    wide = g.astype(truth.LD)
    off = np.maximum(np.abs(wide.sum(axis=1)) - flushed, 0)
    size = np.abs(wide).sum(axis=1)
    worst["sum g"].see(np.where(off > 0, off / (eps * np.where(size > 0, size, 1)), 0), case)


@cache
def measure(backend: str, isa: str, dtype: str) -> dict[str, Worst]:
    """Worst error of every quantity, over every case; `isa` must be in force, and is only a key."""
    worst = {quantity: Worst() for quantity in BOUNDS}
    with np.errstate(invalid="ignore"):
        for case in rows.cases(dtype):
            observe(worst, case, backend)
    return worst


def main() -> None:
    """Print a table for each dtype."""
    from conftest import LEVELS, usable_levels

    levels = usable_levels()
    for dtype in ("float32", "float64"):
        columns = []
        for level in levels:
            os.environ.pop("SOFTXENT_MAX_ISA", None)
            if level.isa in LEVELS:
                os.environ["SOFTXENT_MAX_ISA"] = level.isa
            assert sx.explain((4, 4), "float32", backend=level.backend).isa == level.isa
            columns.append(measure(*level, dtype))
        print(f"{dtype:38}{'bound':>8}" + "".join(f"{level!s:>12}" for level in levels))
        for quantity, (promise, unit, *_) in BOUNDS.items():
            errors = "".join(f"{column[quantity].error:12.3f}" for column in columns)
            label = f"{promise} {quantity}, {unit}"
            print(f"{label:38}{bound(quantity, dtype):8g}{errors}")
        print()


if __name__ == "__main__":
    main()
