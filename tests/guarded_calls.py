"""Every function's every array beside a guard page: `python tests/guarded_calls.py BACKEND DTYPE`.

At both ends, at lengths of C around every vector width, block and buffer. Run by
test_guard_pages.py in an interpreter of its own: a fault is the end of the process.
"""

from __future__ import annotations

import faulthandler
import itertools
import sys
from collections import Counter

import numpy as np

import softxent as sx
from guard import Places
from softxent.losses import LOSSES

AROUND = (8, 16, 32, 64, 128, 192, 256, 512, 1024, 2048)
CLASSES = sorted({*range(1, 10), *(n + d for n in AROUND for d in (-1, 0, 1)),
                  66, 100, 319, 321, 1000, 1087, 1281, 2500})
DTYPES = ("float32", "float64", "float16", "bfloat16")
#: NumPy's own loops need fewer.
FEW = (1, 2, 7, 9, 64, 65, 1025)
#: Rows: one, a few, and more than walks take together.
ROWS = (1, 5, 33)
LAYOUTS = {
    "": lambda a: a,
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "backwards": lambda z: z[::-1, ::-1].copy()[::-1, ::-1],
    "swapped": lambda z: z.astype(z.dtype.newbyteorder()),
    "F, backwards": lambda z: z[::-1].copy(order="F")[::-1],
}
#: Numbers that make a loss take its longest way, by the option's name; those it has are passed.
NUMBERS = {"gamma": 1.5, "hard_weight": 0.3, "label_smoothing": 0.1, "temperature": 0.7,
           "softcap": 30.0, "z_loss": 1e-3}
#: Arrays, by the option's name.
ARRAYS = ("sample_weight", "class_weight", "upstream", "pos_weight")

places = Places()


def dtype_of(name: str) -> np.dtype:
    """Return NumPy's dtype of that name, or ml_dtypes'."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Case:
    """Arguments of one shape and type, and what the functions make of them in ordinary memory."""

    def __init__(self, n: int, n_classes: int, dtype: np.dtype, backend: str) -> None:
        rng = np.random.default_rng([n, n_classes])
        self.run = {"backend": backend, "n_threads": 1}
        self.z = rng.normal(0, 3, (n, n_classes)).astype(dtype)
        # Of another width and byte order than the logits', so that loads of all kinds take part.
        narrow = dtype.itemsize == 4
        weights = np.dtype("f4" if narrow else ">f8")
        self.targets = rng.integers(0, min(n_classes, 100), n).astype("i1" if narrow else ">i8")
        self.targets[-1] = min(n_classes, 100) - 1
        self.arrays = {
            "sample_weight": rng.uniform(1, 2, n).astype(weights),
            "class_weight": rng.uniform(1, 2, n_classes),
            "upstream": rng.uniform(1, 2, n).astype(weights),
        }
        # Where every logit is a row: one number each, and of a column.
        self.arrays_of_points = {
            "sample_weight": rng.uniform(1, 2, (n, 1)).astype(weights),
            "pos_weight": rng.uniform(1, 2, n_classes).astype(weights),
            "upstream": rng.uniform(1, 2, (n, n_classes)).astype(weights),
        }
        self.probabilities = rng.uniform(0, 1, (n, n_classes)).astype(
            "f2" if dtype.itemsize == 2 else dtype)
        self.wide = np.dtype("f4") if dtype.itemsize == 2 else dtype

    def calls(self, turn: int):
        """Yield name, function, arrays with the logits' layout, other arrays, and the outputs.

        An output is its argument's name, whose type is the logits' or wider, and the name of the
        argument that it may lie over. Losses beside cross-entropy, whose walk they take, come every
        third turn.
        """
        rows = {"targets": self.targets}
        for i, (loss, spec) in enumerate(LOSSES.items()):
            if i > 0 and (i + turn) % 3:
                continue
            z = {spec.argument: self.z}
            for kind, options in spec.options.items():
                arrays = self.arrays_of_points if "pos_weight" in options else self.arrays
                some = {name: arrays[name] for name in ARRAYS if name in options}
                numbers = {name: value for name, value in NUMBERS.items() if name in options}
                shaped = z if kind == "classes" else {**z, spec.second: self.probabilities}
                flat = rows if kind == "classes" else {}
                if kind == "logits":
                    flat = {"hard_targets": self.targets}
                function = getattr(sx, f"{loss}_with_grad")
                for more in ({}, numbers):
                    call = self.partial(function, reduction="none", **more)
                    yield (f"{loss}_with_grad, {kind}, {more}", call, shaped, {**flat, **some},
                           "grad_out", spec.argument)
        z = {"logits": self.z}
        for kind, targets in (("classes", self.targets), ("probabilities", self.probabilities)):
            shaped = z if kind == "classes" else {**z, "targets": targets}
            flat = rows if kind == "classes" else {}
            some = {name: self.arrays[name] for name in ("sample_weight", "class_weight")}
            yield (f"cross_entropy_grad_hess, {kind}",
                   self.partial(sx.cross_entropy_grad_hess, hessian="xgboost", temperature=0.7),
                   shaped, {**flat, **some}, "hess_out", "logits")
        for name in ("softmax", "log_softmax"):
            yield name, self.partial(getattr(sx, name)), z, {}, "out", "logits"
        yield ("softmax_vjp", self.partial(sx.softmax_vjp),
               {"probs": self.z, "upstream": self.z[::-1].copy()}, {}, "out", "")
        for name in ("logsumexp", "softmax_entropy"):
            yield name, self.partial(getattr(sx, name)), z, {}, "", ""
        stats = sx.row_stats(self.z, self.targets, **self.run)
        yield ("grad_from_row_stats", self.partial(sx.grad_from_row_stats, stats=stats), z, rows,
               "grad_out", "logits")
        yield ("row_stats", lambda **arrays: sx.row_stats(**arrays, **self.run).below_sumexp, z,
               rows, "", "")
        for name in ("accuracy", "target_log_probs"):
            yield name, self.partial(getattr(sx, name)), z, rows, "", ""

    def partial(self, function, **options):
        """Return a call of `function` that takes arrays."""
        return lambda **arrays: function(**arrays, **options, **self.run)


def raw(result) -> list[bytes]:
    """The result's bits, in one byte order and memory order."""
    results = result if isinstance(result, tuple) else (result,)
    return [np.asarray(a).astype(np.asarray(a).dtype.newbyteorder("="), copy=False).tobytes()
            for a in results]


class Placed:
    """A case's arrays beside guards: in each layout, at each end, placed once and kept there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: dict[tuple[int, str, bool], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, array: np.ndarray, layout: str, at_end: bool) -> np.ndarray:
        key = id(array), layout, at_end
        if key not in self.found:
            # With the array itself: its id must not become another's.
            self.found[key] = array, places.place(
                f"{self.name} {len(self.found)}", LAYOUTS[layout](array), at_end)
        return self.found[key][1]


def check(case: Case, turn: int, layouts: list[str], seen: Counter) -> None:
    """Make a turn's calls of a case with all its arrays at the front, and at the back."""
    inputs, outputs = Placed("in"), Placed("out")
    same, wider = np.zeros_like(case.z), np.zeros(case.z.shape, case.wide)
    for name, call, shaped, flat, output, over in case.calls(turn):
        expected = raw(call(**shaped, **flat))
        ways = [("", None)] if not output else [(output, same), (output, over)]
        if output and case.wide != case.z.dtype:
            ways.append((output, wider))
        for layout, at_end, (argument, out) in itertools.product(layouts, (False, True), ways):
            if argument and isinstance(out, str) and not out:
                continue
            given = {key: inputs(a, layout, at_end) for key, a in shaped.items()}
            given |= {key: inputs(a, "", at_end) for key, a in flat.items()}
            if isinstance(out, str):
                laid = LAYOUTS[layout](shaped[out])
                given[out] = given[argument] = places.place("over", laid, at_end)
            elif argument:
                given[argument] = outputs(out, layout, at_end)
                given[argument][...] = 0
            got = raw(call(**given))
            agree = got[:-1] == expected[:-1] if out is wider else got == expected
            assert agree, (name, case.z.shape, case.z.dtype, layout, at_end, argument)
            seen[name.split(",")[0]] += 1
    for array, placed in inputs.found.values():
        assert raw(placed) == raw(array), "an input has been written over"


def main(backend: str, dtype: str) -> None:
    """Print how many calls each function had."""
    faulthandler.enable()
    seen: Counter = Counter()
    others = list(LAYOUTS)[2:]
    # Formats of 16 bits differ in a conversion alone: every other length each.
    halves = {"float16": CLASSES[::2], "bfloat16": CLASSES[1::2]}
    for i, n_classes in enumerate(FEW if backend == "numpy" else halves.get(dtype, CLASSES)):
        for n in ROWS:
            # Every length in order, and in two of the other four layouts.
            one, two = others[i % len(others)], others[(i + 2) % len(others)]
            layouts = {1: ["C"], 5: ["C", one, two], 33: ["C", one]}[n]
            if n == 5 and dtype in ("float16", "bfloat16"):
                layouts = [one]
            turn = i + DTYPES.index(dtype)  # between them, the dtypes have every length
            check(Case(n, n_classes, dtype_of(dtype), backend), turn, layouts, seen)
    for name, times in sorted(seen.items()):
        print(name, times)


if __name__ == "__main__":
    main(*sys.argv[1:])
