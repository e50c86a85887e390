"""The quick subset: cells of the suite that say in five minutes whether something got worse.

    asv run --config benchmarks/asv.conf.json --bench "$(python benchmarks/quick.py)" HEAD^!

A selection, not another suite: parameters keep their values, so the series are the same. asv
matches it against `name(parameter, ...)`.
"""

from __future__ import annotations

import re

from benchmarks.shapes import QUICK


def regex() -> str:
    """Return what `asv run --bench` is to select by."""
    shapes = "|".join(map(re.escape, QUICK))
    large = "|".join(map(re.escape, QUICK[-3:]))
    return "|".join((
        rf"^loss\..*\('cython', '({shapes})', [12]\)$",
        # Whether Numba's walk keeps up is seen on few classes and on many.
        rf"^loss\.LossGrad\.time_loss_grad\('numba', '({QUICK[1]}|{QUICK[3]})', [12]\)$",
        rf"^pieces\..*\('cython', '({QUICK[1]}|{QUICK[3]})', 1\)$",
        rf"^losses\..*, 'cython', '{QUICK[1]}'\)$",
        r"^call\.",
        r"^startup\.Startup\.(timeraw_import|.*\('cython'\))$",
        r"^memory\..*\('cython'\)$",
        r"^accuracy\..*, 'cython'\)$",
        rf"^peers\..*\('({shapes})', '(numpy|torch|sklearn)'\)$",
        rf"^limit\..*\('({large})', ",
        r"^trainer\..*\('1797x64x10'\)$",
    ))


if __name__ == "__main__":
    print(regex())
