"""The backends, in order of preference: the one place that lists them.

To add one: a folder with a `BACKEND` object (`_contract.Backend`), and a row here.
"""

from __future__ import annotations

import functools
import importlib

from softxent.backends._contract import Backend

#: Public name: module. Imported on first use, so that one that is missing costs nothing.
BACKENDS = {
    "cython": "softxent.backends.cython",
    "numba": "softxent.backends.numba",
    "numpy": "softxent.backends.reference",
}


@functools.cache
def backend(name: str) -> Backend:
    """Return the backend of that name (a key of `BACKENDS`)."""
    found: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    return found
