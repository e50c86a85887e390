"""Shapes that the library is measured at.

`TARGETS`: those that speed is promised for, with what must hold (floors) against the fastest peer,
into `grad_out=` and in place. `SHAPES`: forty and more for which no peer may be faster; from two
classes to a million, one row to 100,000, odd sizes, both orders.
"""

from __future__ import annotations

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
