"""A million fixed rows, and the hashes of what the compiled backends make of them (E9).

    python tests/bits.py            prints what has changed against bits.json
    python tests/bits.py --write    writes bits.json anew: a commit of its own, which states the
                                    worst errors before and after (tests/accuracy_table.py)

The rows are made of raw bits by integer arithmetic that is written out here, so that they are the
same for every version of NumPy and every platform. Levels with fused multiply-add share their
hashes, whatever the backend; level v2 has its own; the NumPy backend, which uses other people's exp
and log, has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np

import softxent as sx

FILE = Path(__file__).with_name("bits.json")
#: Rows by number of classes, a million in all: every path of the walk, and its edges.
ROWS = {1: 1_000, 2: 300_000, 3: 300_000, 10: 300_000, 33: 60_000, 64: 20_000, 65: 10_000,
        100: 5_000, 257: 2_000, 1000: 1_500, 1025: 400, 2049: 90, 32000: 10}
#: What is done with them: options of `cross_entropy_with_grad`, or of another loss's, by name.
CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "weights": {"class_weight": True, "sample_weight": True, "upstream": True},
    "smoothing": {"label_smoothing": 0.1},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 30.0},
    "z-loss": {"z_loss": 1e-3},
    "probabilities": {"probabilities": True},
    "everything": {"probabilities": True, "class_weight": True, "sample_weight": True,
                   "label_smoothing": 0.2, "temperature": 1.5, "softcap": 20.0, "z_loss": 1e-2},
    "everything, classes": {"class_weight": True, "label_smoothing": 0.2, "temperature": 1.5,
                            "softcap": 20.0, "z_loss": 1e-2},
    "focal": {"loss": "focal_loss", "class_weight": True, "upstream": True},
    "focal, everything": {"loss": "focal_loss", "gamma": 1.5, "class_weight": True,
                          "temperature": 1.5, "softcap": 20.0, "z_loss": 1e-2},
    "KL": {"loss": "kl_divergence", "probabilities": True, "sample_weight": True,
           "temperature": 1.5, "softcap": 20.0},
    "squared error": {"loss": "softmax_squared_error", "upstream": True},
    "squared error, probabilities": {"loss": "softmax_squared_error", "probabilities": True,
                                     "temperature": 1.5},
    "distillation": {"loss": "distillation_loss", "teacher": True, "sample_weight": True},
    "distillation, everything": {"loss": "distillation_loss", "teacher": True, "hard_weight": 0.3,
                                 "class_weight": True, "label_smoothing": 0.2, "temperature": 1.5},
    "NLL": {"loss": "nll_loss", "class_weight": True, "upstream": True},
    "sigmoid": {"loss": "sigmoid_binary_cross_entropy", "probabilities": True},
}
PIECES = ("logsumexp", "softmax", "log_softmax", "softmax_entropy", "softmax_vjp", "accuracy")


def raw(seed: int, n: int) -> np.ndarray:
    """Return n 64-bit words: splitmix64 (Steele, Lea, Flood 2014) from `seed` on."""
    start = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cache
def logits(n_classes: int, dtype: str) -> np.ndarray:
    """Return rows of many sizes: of integers times powers of two, exact in every dtype's range.

    One word an element. Most rows lie within +-32; every 16th is shifted by 4,096, every 64th is a
    thousand times as large; one element in 256 is -inf, one row in 1,024 holds a NaN.
    """
    n = ROWS[n_classes]
    word = raw(n_classes, n * n_classes).reshape(n, n_classes)
    mantissa = (word >> np.uint64(40)).astype(np.int64) - (1 << 23)
    z = mantissa.astype(np.float64) * 2.0**-18
    row = np.arange(n)[:, None]
    z = np.where(row % 4 == 1, z * 2.0**-6, z)
    z = np.where(row % 16 == 5, z + 4096.0, z)
    z = np.where(row % 64 == 7, z * 1024.0, z)
    if dtype == "float64":
        z += (word & np.uint64(0xFFFFFF)).astype(np.float64) * 2.0**-42
    low = (word & np.uint64(0xFF)).astype(np.int64)
    z[low == 3] = -np.inf
    z[(row[:, 0] % 1024) == 9, 0] = np.nan
    z = z.astype(dtype)
    z.flags.writeable = False
    return z


@cache
def probabilities(n_classes: int, dtype: str) -> np.ndarray:
    """Return rows of multiples of 2**-20 / C, a fifth of them 0."""
    share = raw(11 + n_classes, ROWS[n_classes] * n_classes).reshape(-1, n_classes) >> np.uint64(44)
    t = (share.astype(np.float64) * 2.0**-20 / n_classes).astype(dtype)
    t[share % np.uint64(5) == 0] = 0
    t.flags.writeable = False
    return t


def call(n_classes: int, dtype: str, options: dict[str, object]) -> tuple[tuple, dict]:
    """Return the arguments of a case."""
    n = ROWS[n_classes]
    word = raw(7 + n_classes, n)
    options = dict(options)
    z = logits(n_classes, dtype)
    targets: np.ndarray = (word % np.uint64(n_classes)).astype(np.int64)
    if options.pop("probabilities", False):
        targets = probabilities(n_classes, "float64" if dtype == "float64" else "float32")
    if options.pop("teacher", False):
        options["hard_targets"], targets = targets, z[::-1]
    for name, count in (("class_weight", n_classes), ("sample_weight", n), ("upstream", n)):
        if options.get(name):
            options[name] = (raw(13 + count, count) >> np.uint64(50)).astype(np.float64) * 2.0**-12
    return (z, targets), options


def digest(*arrays: np.ndarray) -> str:
    """Return a hash of values: little-endian, every NaN the same."""
    found = hashlib.sha256()
    for array in arrays:
        a = np.array(array, array.dtype.newbyteorder("<"), order="C")
        a[np.isnan(a)] = np.nan
        found.update(a.tobytes())
    return found.hexdigest()[:16]


def hashes(backend: str, dtype: str, name: str) -> dict[str, str]:
    """Return the hash of one case, or of a piece, by number of classes."""
    found = {}
    for n_classes in ROWS:
        arguments, options = call(n_classes, dtype, CASES.get(name, {}))
        if name in CASES:
            function = getattr(sx, f"{options.pop('loss', 'cross_entropy')}_with_grad")
            results = function(*arguments, reduction="none", backend=backend, **options)
        elif name == "softmax_vjp":
            p = np.abs(np.nan_to_num(arguments[0], neginf=0.0)) / 64
            results = (sx.softmax_vjp(p, arguments[0][::-1], backend=backend),)
        elif name == "accuracy":
            results = (np.array([sx.accuracy(*arguments, k=k, backend=backend) for k in (1, 3)]),)
        else:
            results = (getattr(sx, name)(arguments[0], backend=backend),)
        found[str(n_classes)] = digest(*results)
    return found


def cases() -> list[tuple[str, str]]:
    """Return every (dtype, case or piece)."""
    found = [(dtype, name) for dtype in ("float32", "float64") for name in (*CASES, *PIECES)]
    return found + [("float16", name) for name in ("plain", "everything", "softmax")]


def main() -> None:
    """Compare with the file, or write it."""
    from levels import LEVELS, usable_levels

    now: dict[str, dict[str, dict[str, str]]] = {}
    for level in usable_levels():
        if level.isa not in LEVELS:
            continue
        os.environ["SOFTXENT_MAX_ISA"] = level.isa
        group = "v2" if level.isa == "v2" else "fma"
        for dtype, name in cases():
            found = hashes(level.backend, dtype, name)
            kept = now.setdefault(f"{dtype} {name}", {}).setdefault(group, found)
            assert found == kept, f"{level}: {dtype} {name} differs from another level's"
    if "--write" in sys.argv[1:]:
        FILE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        return
    before = json.loads(FILE.read_text())
    for key in sorted({*now, *before}):
        if now.get(key) != before.get(key):
            print(f"changed: {key}")


if __name__ == "__main__":
    main()
