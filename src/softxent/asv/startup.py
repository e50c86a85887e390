"""From nothing to a result: each sample is a fresh interpreter."""

from __future__ import annotations

from ._cells import BACKENDS, arrays, function, once, require

CALL = "sx.cross_entropy_with_grad(z, y, backend={!r})"
READY = """
import numpy as np
import softxent as sx
z, y = np.zeros((32, 10), "f4"), np.zeros(32, int)
"""
#: Goes with its interpreter.
EMPTY_CACHE = """
import os, tempfile
cache = tempfile.TemporaryDirectory()
os.environ["SOFTXENT_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"] = cache.name
"""


class Startup:
    """One call a sample; few samples, for each costs an interpreter, and cold ones a compiler."""

    version = "1"
    rounds = 1
    number = 1
    repeat = (2, 5, 10.0)
    warmup_time = 0
    timeout = 300

    def setup(self, backend: str = "") -> None:
        """Skip where there is no such backend, else fill the cache."""
        if backend:
            require(backend)
            z, y = arrays("32x10")
            once(backend, lambda: function("cross_entropy_with_grad")(z, y, backend=backend))

    def timeraw_import(self) -> tuple[str, str]:
        """Import softxent, once NumPy is."""
        return "import softxent", "import numpy"

    def timeraw_first_call_cold(self, backend: str) -> tuple[str, str]:
        """Make the first call with nothing in the cache; imports of ours and NumPy do not count."""
        return CALL.format(backend), EMPTY_CACHE + READY

    def timeraw_first_call_warm(self, backend: str) -> tuple[str, str]:
        """Do the same once another process, `setup`'s, has filled the cache."""
        return CALL.format(backend), READY


for _method in (Startup.timeraw_first_call_cold, Startup.timeraw_first_call_warm):
    _method.params = (BACKENDS,)  # type: ignore[attr-defined]
    _method.param_names = ("backend",)  # type: ignore[attr-defined]
