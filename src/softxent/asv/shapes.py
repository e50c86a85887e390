"""Shapes that the library is measured at.

`TARGETS`: those that speed is promised for, with what must hold (floors) against the fastest peer,
into `grad_out=` and in place. `SHAPES`: forty and more for which no peer may be faster; from two
classes to a million, one row to 100,000, odd sizes, both orders. `QUICK`: of the quick subset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Shape as `softxent bench` takes it: (floor with `grad_out=`, floor in place), None: no promise.
TARGETS: dict[str, tuple[float, float | None]] = {
    "32x10": (1.0, None),
    "1797x10": (3.0, None),
    "65536x10": (3.0, 3.0),
    "100000x2": (3.0, None),
    "65536x10:f64:F": (2.5, None),
    "65536x100": (1.1, 2.2),
    "256x1000": (2.0, 3.5),
    "8192x1000": (1.1, 2.5),
    "4096x1000:f64": (1.5, 2.0),
    "1024x32000": (5.5, 8.0),
    "1024x32000:bf16": (6.0, 6.0),
    "256x128256": (6.0, 9.0),
    "1x262144": (3.0, 3.0),
}

SHAPES: tuple[str, ...] = (
    "1x2", "2x2", "7x2", "640x2", "100000x2", "100000x2:f64", "640x2:F",
    "1x3", "7x3", "640x3", "100000x3", "100000x3:f64:F", "640x3:bf16",
    "1x17", "7x17", "640x17", "100000x17", "100000x17:f64", "100000x17:F", "640x17:f64:F",
    "1x33", "7x33", "640x33", "100000x33", "640x33:f64", "100000x33:bf16",
    "1x257", "7x257", "640x257", "20000x257", "640x257:f64", "640x257:F", "640x257:bf16",
    "1x4099", "7x4099", "640x4099", "640x4099:f64", "640x4099:F", "640x4099:bf16",
    "1x50257", "7x50257", "640x50257", "64x50257:f64", "64x50257:F", "640x50257:bf16",
    "1x151936", "7x151936", "128x151936", "128x151936:bf16",
    "1x999983", "7x999983", "7x999983:f64",
)

#: Of TARGETS: a call's own cost, few classes in both orders, the caches, memory, 16 bits.
QUICK = ("32x10", "65536x10", "65536x10:f64:F", "8192x1000", "1024x32000", "1024x32000:bf16")


@dataclass(frozen=True)
class Shape:
    """Logits of a benchmark; as text `ROWSxCLASSES[:DTYPE][:F]`."""

    rows: int
    classes: int
    dtype: str = "float32"
    order: str = "C"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Return the shape that `text` names, or raise ValueError."""
        size, *more = text.split(":")
        rows, classes = map(int, size.split("x"))
        order = "F" if "F" in more else "C"
        rest = [word for word in more if word not in ("F", "C")]
        names = {"f32": "float32", "f64": "float64", "bf16": "bfloat16", "f16": "float16"}
        dtype = names.get(rest[0], rest[0]) if rest else "float32"
        if len(rest) > 1 or rows < 1 or classes < 1 or dtype not in names.values():
            raise ValueError(text)
        return cls(rows, classes, dtype, order)

    def __str__(self) -> str:
        """Return the shape as tables show it."""
        order = ", class-major" if self.order == "F" else ""
        return f"{self.rows:,} x {self.classes:,} {self.dtype}{order}"

    def arrays(self) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Return logits of deviation 3, and targets; always the same. bfloat16 is ml_dtypes'."""
        dtype: DTypeLike = self.dtype
        if self.dtype == "bfloat16":
            import ml_dtypes

            dtype = ml_dtypes.bfloat16
        rng = np.random.default_rng(0)
        z = rng.standard_normal((self.rows, self.classes), np.float32)
        z *= 3
        return (np.asarray(z, dtype=dtype, order="F" if self.order == "F" else "C"),
                rng.integers(0, self.classes, self.rows))
