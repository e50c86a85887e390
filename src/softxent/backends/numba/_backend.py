"""Loads the walks, compiling what is not in the cache, and binds calls to them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from softxent import _cache
from softxent._machine import usable_levels
from softxent._threads import native
from softxent.backends._contract import Backend, Call, Key, Native, Op
from softxent.backends.numba._bind import Bound

if TYPE_CHECKING:
    from softxent.backends.numba._build import Loaded

#: Levels this backend has: its arithmetic is FMA's.
_LEVELS = ("v4", "v3", "generic")


class Task:
    """A call bound to a walk."""

    def __init__(self, walk: Loaded, bound: Bound) -> None:
        self._walk = walk
        self._bound = bound
        self.units = 0
        self.has_map = False
        self.native: Native | None = None
        if native() is not None:
            self.native = Native(walk.kernel, bound.address, bound)

    @property
    def refused(self) -> bool:
        """Whether a walk met a probability target that it refuses."""
        return bool(self._bound.c.refused)

    @property
    def out_of_memory(self) -> bool:
        """Whether a walk found no memory for itself."""
        return bool(self._bound.c.no_memory)

    def __call__(self, lo: int, hi: int, stopped: Callable[[], bool]) -> None:
        """Walk in the calling Python thread, without the interpreter's lock."""
        self._walk.run(self._bound.address, lo, hi, stopped)
        if self.out_of_memory:
            raise MemoryError("no memory for a kernel's intermediate results")


# ---- walks ---------------------------------------------------------------------------------------


#: What plain walks compute (`_layout.PlainCall`).
_PLAIN = {Op.CROSS_ENTROPY, Op.LOGSUMEXP, Op.SOFTMAX, Op.LOG_SOFTMAX, Op.BELOW}


def _walk_of(op: Op, is_wide: bool, has_shares: bool, has_options: bool,
             has_temperature: bool) -> str:
    if op is Op.DISTILLATION:
        return f"walk_teacher_{'f64' if is_wide else 'f32'}"
    kind = "scaled_" if has_temperature else ""
    if op in _PLAIN and not has_shares and not has_options and not has_temperature:
        kind = "plain_"
    return f"walk_{kind}{'f64' if is_wide else 'f32'}"


_loaded: dict[tuple[str, str], Loaded] = {}
_broken: list[str] = []  # why, once something did not compile or load
_is_compiler_lost = False  # to this process, for good


def _after_fork() -> None:
    # Here and now: later on, it may be a thread of the child's own that has the locks.
    global _is_compiler_lost
    _is_compiler_lost = not _is_compiler_free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _is_compiler_free() -> bool:
    """Whether nobody holds the compiler's locks, nor imports it, in a child that was just forked.

    A thread that did when the process was forked is not there to let go.
    """
    for name, found in list(sys.modules.items()):
        if (name.split(".")[0] in ("llvmlite", "numba") or name.startswith(__package__)) and (
            getattr(getattr(found, "__spec__", None), "_initializing", False)  # it is half there
        ):
            return False
    for module, path in (("numba.core.compiler_lock", "global_compiler_lock._lock"),
                         ("llvmlite.binding.ffi", "lib._lock._lock")):
        try:
            lock = functools.reduce(getattr, path.split("."), sys.modules[module])
            if not lock.acquire(blocking=False):
                return False
            lock.release()
        except KeyError:  # not imported
            continue
        except AttributeError:  # a release that has it elsewhere
            return False
    return True


def _key(level: str) -> bytes:
    """Return what decides whether machine code in the cache is that of this package."""
    folder = Path(__file__).parent
    parts = [level, sys.version, importlib.metadata.version("numba"),
             importlib.metadata.version("llvmlite")]
    return "\0".join(parts).encode() + b"\0".join(
        path.read_bytes() for path in sorted(folder.glob("*.py")))


def _load(walk: str, level: str) -> Loaded:
    found = _loaded.get((walk, level))
    if found is not None:
        return found
    from softxent.backends.numba import _build

    name = f"{walk}-{level}"
    key = _key(level)
    code = _cache.read(name, key)
    if code is None:
        code = _build.build(walk, level)
        _cache.write(name, key, code)
    # Of two threads that got here, both have the same code.
    return _loaded.setdefault((walk, level), _build.Loaded(code, level))


# ---- the backend ---------------------------------------------------------------------------------


class Numba(Backend):
    """The walk of the Cython backend, compiled by Numba on first use."""

    name = "numba"

    def availability(self) -> str:
        """Return "available", or why not; finds out whether Numba can be imported."""
        if not _loaded and not _broken and self._absence() is None:
            try:
                import numba  # noqa: F401
            except Exception as error:
                self._found_broken(error)
        return self._absence() or "available"

    def _absence(self) -> str | None:
        """Return why not, as far as can be said without importing anything."""
        if _broken:
            return _broken[0]
        if not self.isa():
            return "it needs a processor with FMA (x86-64-v3), and SOFTXENT_MAX_ISA to allow it"
        if importlib.util.find_spec("numba") is None:
            return "Numba is not installed"
        return None

    def _found_broken(self, error: Exception) -> None:
        _broken.append(f"broken: {error!r}")
        warnings.warn(
            f"Numba is there but cannot be used ({error!r}); another backend takes its place: "
            f"reinstall numba",
            RuntimeWarning,
            stacklevel=2,
        )

    def supports(self, key: Key) -> str | None:
        """Return None if the walk for `key` is loaded, which this does, else why it cannot be."""
        reason = self._absence()
        if reason is not None:
            return reason
        walk = _walk_of(key.op, key.dtype == "float64", key.targets == "probabilities",
                        key.options, key.temperature)
        level = self.isa()
        if (walk, level) not in _loaded and _is_compiler_lost:
            return ("its compiler was at work in another thread when this process was forked: call "
                    "warmup() before forking")
        try:
            _load(walk, level)
        except Exception as error:
            self._found_broken(error)
            return _broken[0]
        return None

    def isa(self) -> str:
        """Return the level in use, "" for none."""
        return next((level for level in usable_levels() if level in _LEVELS), "")

    def kernel(self, key: Key, isa: str, units: int) -> tuple[int, int] | None:
        """Return the walk's address: its arguments are `call.h`'s."""
        if units:
            return None
        walk = _walk_of(key.op, key.dtype == "float64", key.targets == "probabilities",
                        key.options, key.temperature)
        return _load(walk, isa).kernel, 0

    def bind(self, call: Call, isa: str, cut: bool = False) -> Task:
        """Return the task that evaluates `call` at level `isa`."""
        walk = _walk_of(call.op, call.is_wide, call.soft_targets is not None,
                        call.has_options, call.temperature != 1.0)
        return Task(_load(walk, isa), Bound(call))


BACKEND = Numba()
