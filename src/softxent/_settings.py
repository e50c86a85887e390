"""A setting of the process that a context may override, and values from the environment."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Unset:
    """The context overrides nothing."""


_UNSET = _Unset()


class _Default(Generic[T]):
    """A default that `Setting.set` made. `scope` is dead once it can no longer be entered."""

    def __init__(self, value: T, scope: Callable[[], object | None]) -> None:
        self.value = value
        self.scope = scope


class Scope(Generic[T]):
    """What `Setting.set` returns: enter it to confine the value to a context. Good for once."""

    def __init__(self, setting: Setting[T], value: T) -> None:
        self._setting = setting
        self._default = _Default(value, weakref.ref(self))
        self._token: contextvars.Token[T | _Unset] | None = None
        setting._defaults.append(self._default)

    def __enter__(self) -> None:
        """Take the process's default back and set the context's value instead."""
        if self._token is not None:
            raise RuntimeError("a setting is entered once: call the function again for each `with`")
        self._token = self._setting._override.set(self._default.value)
        self._setting._forget(self._default)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the context back what it had."""
        assert self._token is not None
        self._setting._override.reset(self._token)


class Setting(Generic[T]):
    """A process-wide default, and a context's own value that goes before it.

    Threads may set defaults and enter scopes in any order without leaving one another's value
    behind: every default stands in a list of its own, the last one counts, and entering a scope
    removes its own. There is no lock that a fork could copy while it is held: each step is one
    operation on a list.
    """

    def __init__(self, initial: T) -> None:
        self._defaults = [_Default(initial, lambda: None)]
        self._override: contextvars.ContextVar[T | _Unset] = contextvars.ContextVar(
            "softxent setting", default=_UNSET
        )

    def get(self) -> T:
        """Return the value that holds here."""
        value = self._override.get()
        return self._defaults[-1].value if isinstance(value, _Unset) else value

    def set(self, value: T) -> Scope[T]:
        """Make `value` the process's default; entering the result confines it to a context."""
        # A default whose scope is gone stays, so it hides those before it for good.
        before = self._defaults[:]
        lasting = [i for i, default in enumerate(before) if default.scope() is None]
        for default in before[: lasting[-1]] if lasting else []:
            self._forget(default)
        return Scope(self, value)

    def _forget(self, default: _Default[T]) -> None:
        with contextlib.suppress(ValueError):  # another thread's `set` has
            self._defaults.remove(default)


_warned: set[tuple[str, str]] = set()


def environment(name: str, parse: Callable[[str], T], allowed: str) -> T | None:
    """Return the environment variable `name` as `parse` understands it.

    Unset, empty, or something that `parse` refuses with `ValueError`: None, the latter with one
    `RuntimeWarning` a value, which says that it must be `allowed`. Read anew each time.
    """
    text = _read(name)
    if not text:
        return None
    try:
        return parse(text)
    except ValueError:
        if (name, text) not in _warned:
            _warned.add((name, text))
            warnings.warn(
                f"the environment's {name} must be {allowed}; got {text!r}, which is ignored, as "
                f"if it were not set: correct or unset it",
                RuntimeWarning,
                stacklevel=2,
            )
        return None


def _read(name: str) -> str | None:
    # os.environ.get of a variable that is not set costs 1.2 us, a whole small call; a snapshot
    # 0.4 us (CPython 3.11, Zen 4, November 2026).
    return None if snapshot((name,))[0] is None else os.environ.get(name)


def snapshot(names: tuple[str, ...]) -> tuple[object, ...]:
    """Return what the variables hold now, in any form that tells one value from another."""
    get = lookup()
    return tuple([get(key_of_variable(name)) for name in names])


# CPython's dictionary behind os.environ has bytes, but for Windows.
_RAW = os.name == "posix" and hasattr(os.environ, "_data")


def lookup() -> Callable[[Any], object]:
    """Return what gives a variable's value, in some form, by its `key_of_variable`."""
    if not _RAW:
        return os.environ.get
    try:
        return os.environ._data.get  # type: ignore[attr-defined,no-any-return]
    except AttributeError:  # a plain mapping in os.environ's place, as tests put there
        return lambda name: os.environ.get(os.fsdecode(name))


@functools.cache
def key_of_variable(name: str) -> Any:
    """Return what `lookup` knows a variable by."""
    return os.fsencode(name) if _RAW else name
