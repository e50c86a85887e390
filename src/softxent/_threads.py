"""How many threads a call may use, and running a task on them. Importing this starts none."""

from __future__ import annotations

import contextvars
import functools
import importlib
import itertools
import operator
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from softxent._settings import Setting, environment, snapshot

if TYPE_CHECKING:
    from softxent.backends._contract import Task

_setting: Setting[int | None] = Setting(None)


def set_num_threads(n: SupportsIndex | None) -> object:
    """Set how many threads calls may use that do not say so themselves.

    A call sets the process's default; as a context manager it holds for the current context
    (thread, task) and is undone at its end. CPU affinity and the cgroup's quota bind nevertheless.

    Parameters
    ----------
    n : int or None
        At least 1. None: `SOFTXENT_NUM_THREADS`, or, where that is not set, all that
        `OMP_NUM_THREADS`, `NUMBA_NUM_THREADS`, the affinity and the quota allow.

    Returns
    -------
    context manager
        Need not be entered; can be entered once.

    Raises
    ------
    TypeError, ValueError
        If `n` is no integer, or less than 1.

    See Also
    --------
    get_num_threads : what holds.

    Examples
    --------
    >>> import softxent as sx
    >>> with sx.set_num_threads(1):
    ...     sx.get_num_threads()
    1
    """
    return _setting.set(None if n is None else check(n, "n"))


def get_num_threads() -> int:
    """Return how many threads a call may use that does not say so itself.

    Returns
    -------
    int
        `set_num_threads`, else `SOFTXENT_NUM_THREADS`, else the lesser of `OMP_NUM_THREADS` (its
        first level) and `NUMBA_NUM_THREADS`; never more than the CPUs in the calling thread's
        affinity or those that the cgroup's quota pays for.

    See Also
    --------
    set_num_threads : change it.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.get_num_threads() >= 1
    True
    """
    return effective_threads(None)


def check(n: SupportsIndex, name: str = "n_threads") -> int:
    """Return `n` as an int; raise if it is not a number of threads. `name` is the argument's."""
    try:
        number = operator.index(n)
    except TypeError:
        number = None
    if number is None or isinstance(n, bool):
        raise TypeError(
            f"{name} must be an integer of at least 1, or None for the default; "
            f"got {type(n).__name__}"
        )
    if number < 1:
        raise ValueError(
            f"{name} must be at least 1, or None for the default; got {number} "
            f"(all CPUs? leave it None)"
        )
    return number


def effective_threads(requested: int | None) -> int:
    """Return how many threads a call may use that was given `n_threads=requested`."""
    wanted = requested or _setting.get() or _from_environment(snapshot(_VARIABLES))
    allowed = _affinity()
    quota = _quota()
    if quota is not None and quota < allowed:
        allowed = quota
    return allowed if wanted is None or wanted > allowed else wanted


# --- limits -------------------------------------------------------------------------------------


def _parse(text: str) -> int:
    n = int(text)
    if n < 1:
        raise ValueError(text)
    return n


def _parse_levels(text: str) -> int:
    # OpenMP takes a number for each level of nesting; ours is the first.
    return _parse(text.split(",")[0])


_VARIABLES = ("SOFTXENT_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


@functools.lru_cache(maxsize=16)
def _from_environment(environment_now: tuple[object, ...]) -> int | None:
    # environment_now: what `environment` reads below, for the cache to tell values apart.
    own = environment("SOFTXENT_NUM_THREADS", _parse, "an integer of at least 1")
    if own is not None:
        return own
    openmp = environment(
        "OMP_NUM_THREADS", _parse_levels, "an integer of at least 1, or several with commas"
    )
    numba = environment("NUMBA_NUM_THREADS", _parse, "an integer of at least 1")
    if openmp is None or numba is None:
        return openmp or numba
    return min(openmp, numba)


#: A thread's own last answer: asking costs 0.4 us on 2 CPUs and more on many, and on Linux the
#: affinity is the thread's, not the process's.
_last_affinity = threading.local()
AFFINITY_SECONDS = 0.1


def _affinity() -> int:
    """Return the CPUs the calling thread may run on, at most AFFINITY_SECONDS old."""
    now = time.monotonic()
    if now < getattr(_last_affinity, "until", 0.0):
        return int(_last_affinity.n)
    _last_affinity.n = _affinity_now()
    _last_affinity.until = now + AFFINITY_SECONDS
    return int(_last_affinity.n)


def _affinity_now() -> int:
    limits = [os.cpu_count()]
    if hasattr(os, "process_cpu_count"):  # Python 3.13; heeds -X cpu_count
        limits.append(os.process_cpu_count())
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    return min((n for n in limits if n), default=1)


@functools.cache
def _quota() -> int | None:
    """Return `cgroup_cpus()`, read once per process: quotas are set before it starts."""
    return cgroup_cpus()


if hasattr(os, "register_at_fork"):
    # A child may be moved to a group of its own.
    os.register_at_fork(after_in_child=_quota.cache_clear)


def cgroup_cpus(process: Path = Path("/proc/self")) -> int | None:
    """Return the CPUs that the tightest quota of `process`'s cgroups pays for, rounded up.

    The process's own group and every parent that is mounted count, in versions 1 and 2. None: no
    quota, or no cgroups.
    """
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    limits = []
    for line in groups:
        # "0::/path" in version 2, "4:cpu,cpuacct:/path" in version 1
        _, controllers, group = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            for folder in _folders(mounts, controllers, group):
                limits += _cpus(folder)
    return min(limits, default=None)


def _folders(mounts: list[str], controllers: str, group: str) -> Iterator[Path]:
    """Yield the folders of `group` and its parents, wherever its hierarchy is mounted."""
    for line in mounts:
        # "35 31 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu": root and mount point, then,
        # behind the dash, kind, source and options
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if controllers == "":
            mounted = kind == "cgroup2"
        else:
            mounted = kind == "cgroup" and "cpu" in options.split(",")
        if not mounted:
            continue
        root, point = left.split(" ")[3:5]
        # A container may see its group's path as the host does, yet have only that mounted.
        inside = Path(group).relative_to(root) if Path(group).is_relative_to(root) else Path()
        folder = Path(point) / inside
        while True:
            yield folder
            if folder == Path(point):
                break
            folder = folder.parent


def _cpus(folder: Path) -> list[int]:
    """Return [CPUs that the quota in `folder` pays for], [] if there is none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if quota == "max" or int(quota) <= 0:  # -1 in version 1
            return []
        return [max(1, -(-int(quota) // int(period)))]
    except (OSError, ValueError, ZeroDivisionError):
        return []


# --- running ------------------------------------------------------------------------------------


@functools.cache
def native() -> Any:
    """Return the extension with the pool, or None; one `RuntimeWarning` if it is there but broken.

    Imported on first use: a call that needs no kernel needs no extension.
    """
    try:
        return importlib.import_module("softxent._native")
    except Exception as error:
        if getattr(error, "name", None) != "softxent._native" or not isinstance(
            error, ModuleNotFoundError
        ):
            warnings.warn(
                f"softxent's extension is there but cannot be imported ({error!r}); Python "
                f"threads take the place of its pool: reinstall softxent",
                RuntimeWarning,
                stacklevel=2,
            )
        return None


def run(task: Task, n_rows: int, grain: int, n_threads: int, wakes: bool = True) -> None:
    """Evaluate all rows of `task`, `grain` at a time, on at most `n_threads` threads.

    The calling thread is one of them. A run that does not wake others has them only if it follows
    another one closely. Ctrl-C ends the run early; no thread is at it any more when
    this returns or raises.
    """
    pool = native() if task.native is not None else None
    if pool is not None and task.native is not None:
        try:
            function, args, _ = task.native
            if task.units:
                pool.run_cut(function, args, task.units, grain, n_threads, task.has_map, wakes)
            else:
                pool.run(function, args, n_rows, grain, n_threads, wakes)
        except RuntimeError:
            if task.out_of_memory:
                raise MemoryError("no memory for a kernel's intermediate results") from None
            raise
    elif n_threads == 1 or n_rows <= grain or not wakes:
        task(0, n_rows, _go_on)
    else:
        _run_on_python_threads(task, n_rows, grain, min(n_threads, -(-n_rows // grain)))


def _go_on() -> bool:
    # A call of a Python function is where the interpreter runs signal handlers: Ctrl-C raises here.
    return False


#: "run": what tells the one call that has helpers, as of the pool one call has the workers; those
#: of other threads run alone meanwhile, or their number would multiply.
_owner: dict[str, threading.Event] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_owner.clear)


def _run_on_python_threads(task: Task, n_rows: int, grain: int, n_threads: int) -> None:
    stop = threading.Event()
    process = os.getpid()
    starts = itertools.count(0, grain)  # next() is one step under the interpreter's lock
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set() and (lo := next(starts)) < n_rows:
                task(lo, min(lo + grain, n_rows), stop.is_set)
        except BaseException as error:  # also Ctrl-C in the calling thread: raised again below
            errors.append(error)
            stop.set()

    def help_out(context: contextvars.Context, done: threading.Event) -> None:
        context.run(work)
        done.set()

    helpers: list[tuple[threading.Thread, threading.Event]] = []
    try:
        is_owner = _owner.setdefault("run", stop) is stop  # one step, as next() above
        for _ in range(n_threads - 1 if is_owner else 0):
            done = threading.Event()
            # np.errstate lives in the context: rows must not depend on the thread they run in.
            context = contextvars.copy_context()
            helper = threading.Thread(target=help_out, args=(context, done))
            try:
                helper.start()  # interrupted here, it finds `stop` set
            except RuntimeError:  # no more threads to be had
                break
            helpers.append((helper, done))
        work()
    except BaseException:
        stop.set()
        raise
    finally:
        try:
            _wait_for(helpers, stop, process)
        finally:
            if _owner.get("run") is stop:
                _owner.clear()
    if errors:
        raise errors[0]


#: How long a child that has no helpers may wait for them before it looks whether it is one.
LOOK_SECONDS = 0.1


def _wait_for(
    helpers: list[tuple[threading.Thread, threading.Event]], stop: threading.Event, process: int
) -> None:
    """Wait until `helpers` are done, however often Ctrl-C is pressed meanwhile; then raise it.

    They are threads of `process`: a signal handler may fork, and the child has not got them.
    """
    interrupt = None
    while helpers:
        if os.getpid() != process:
            raise RuntimeError("a signal handler forked during this call; the child has no result")
        helper, done = helpers[-1]
        try:
            # join() alone takes a running thread for ended if interrupted (bpo-46726)
            if done.wait(LOOK_SECONDS):
                helper.join()
                helpers.pop()
        except BaseException as error:
            stop.set()
            interrupt = error
    if interrupt is not None:
        raise interrupt


# --- threadpoolctl ------------------------------------------------------------------------------


def register_threadpoolctl() -> None:
    """Make threadpoolctl see our pool and limit it.

    `threadpoolctl.threadpool_info()` then lists it (`user_api="softxent"`), and
    `threadpool_limits(n)` does what `set_num_threads(n)` does to the process's default. Without the
    compiled extension there is no pool, and nothing to see.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed.

    See Also
    --------
    set_num_threads : the same without threadpoolctl.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.register_threadpoolctl()  # doctest: +SKIP
    """
    import threadpoolctl

    if native() is not None:  # it sees loaded libraries only
        threadpoolctl.register(_controller_class())


@functools.cache
def _controller_class() -> type:
    import threadpoolctl

    class SoftxentController(threadpoolctl.LibController):  # type: ignore[misc]
        """Our pool, as threadpoolctl wants it described."""

        user_api = "softxent"
        internal_api = "softxent"
        filename_prefixes = ("_native",)
        check_symbols = ("sx_pool_size",)

        def get_num_threads(self) -> int:
            return get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            # What holds anyway is what it restores after a limit: not worth a default of our own.
            _setting.set(None)
            if num_threads != effective_threads(None):
                _setting.set(num_threads)

        def get_version(self) -> str | None:
            return None

        def set_additional_attributes(self) -> None:
            self.threading_layer = "pthreads"

    return SoftxentController
