"""Settings, limits, and the pool by itself. Whole processes, many callers: test_processes.py."""

from __future__ import annotations

import contextvars
import functools
import importlib
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import softxent as sx
from pool_kernel import Watched, build
from softxent import _settings, _threads
from softxent._settings import Setting, environment

# --- settings -----------------------------------------------------------------------------------


def test_setting_call_sets_the_default_of_every_thread():
    setting = Setting(1)
    setting.set(2)
    assert setting.get() == 2
    assert contextvars.Context().run(setting.get) == 2


def test_setting_with_confines_and_restores():
    setting = Setting(1)
    setting.set(2)
    with setting.set(3):
        assert setting.get() == 3
        assert contextvars.Context().run(setting.get) == 2
        with setting.set(4):
            assert setting.get() == 4
        setting.set(5)
        assert setting.get() == 3  # the context's own goes before the default
    assert setting.get() == 5


def test_setting_restores_after_an_exception():
    setting = Setting(1)
    with pytest.raises(ZeroDivisionError), setting.set(2):
        1 / 0  # noqa: B018
    assert setting.get() == 1


def test_setting_none_overrides_too():
    setting: Setting[int | None] = Setting(None)
    setting.set(2)
    with setting.set(None):
        assert setting.get() is None


def test_setting_scope_is_entered_once():
    scope = Setting(1).set(2)
    with scope:
        pass
    with pytest.raises(RuntimeError, match="entered once"), scope:
        pass


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_setting_scopes_made_side_by_side_leave_nothing_behind(order):
    # Threads that each write `with set(n):` may be switched between the call and the entry.
    setting = Setting(0)
    scopes = [setting.set(n) for n in (1, 2, 3)]
    for i in order:
        contextvars.Context().run(scopes[i].__enter__)
    assert setting.get() == 0


def test_setting_defaults_do_not_pile_up():
    setting = Setting(0)
    kept = setting.set(1)
    for n in range(100):
        setting.set(n)
    assert len(setting._defaults) <= 3
    with kept:  # its default has been replaced for good
        assert setting.get() == 1
    assert setting.get() == 99


def test_environment_is_read_each_time(monkeypatch):
    assert environment("SOFTXENT_TEST", int, "an integer") is None
    monkeypatch.setenv("SOFTXENT_TEST", "3")
    assert environment("SOFTXENT_TEST", int, "an integer") == 3
    monkeypatch.setenv("SOFTXENT_TEST", "")
    assert environment("SOFTXENT_TEST", int, "an integer") is None


def test_environment_value_without_meaning_warns_once_each(monkeypatch):
    monkeypatch.setattr(_settings, "_warned", set())
    for value in ("many", "more"):
        monkeypatch.setenv("SOFTXENT_TEST", value)
        with pytest.warns(RuntimeWarning, match=f"SOFTXENT_TEST must be an int; got '{value}'"):
            assert environment("SOFTXENT_TEST", int, "an int") is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert environment("SOFTXENT_TEST", int, "an int") is None


# --- how many threads ---------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Eight CPUs, no quota, a clean environment; returns a function that changes them."""

    def become(cpus: int = 8, quota: int | None = None, **variables: str) -> None:
        monkeypatch.setattr(_threads, "_affinity", lambda: cpus)
        monkeypatch.setattr(_threads, "_quota", lambda: quota)
        for name in ("SOFTXENT_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(_threads, "_setting", Setting(None))
    monkeypatch.setattr(_settings, "_warned", set())
    _threads._from_environment.cache_clear()
    become()
    return become


def test_all_cpus_by_default(machine):
    assert sx.get_num_threads() == 8


@pytest.mark.parametrize(
    ("variables", "n"),
    [
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"NUMBA_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4", "NUMBA_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "3"}, 2),
        ({"OMP_NUM_THREADS": "2", "SOFTXENT_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "99"}, 8),
        ({"SOFTXENT_NUM_THREADS": "99"}, 8),
    ],
)
def test_environment_limits(machine, variables, n):
    machine(**variables)
    assert sx.get_num_threads() == n


@pytest.mark.parametrize("name", ["SOFTXENT_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "all", "2.5"])
def test_environment_number_without_meaning(machine, name, value):
    machine(**{name: value})
    with pytest.warns(RuntimeWarning, match=name):
        assert sx.get_num_threads() == 8


def test_precedence(machine):
    machine(SOFTXENT_NUM_THREADS="5")
    assert sx.get_num_threads() == 5
    sx.set_num_threads(6)
    assert sx.get_num_threads() == 6
    with sx.set_num_threads(7):
        assert sx.get_num_threads() == 7
        assert _threads.effective_threads(3) == 3
    assert sx.get_num_threads() == 6
    sx.set_num_threads(None)
    assert sx.get_num_threads() == 5


@pytest.mark.parametrize(("cpus", "quota", "n"), [(2, None, 2), (8, 3, 3), (2, 3, 2)])
def test_affinity_and_quota_always_bind(machine, cpus, quota, n):
    machine(cpus, quota, SOFTXENT_NUM_THREADS="7")
    assert sx.get_num_threads() == n
    assert _threads.effective_threads(6) == n
    with sx.set_num_threads(6):
        assert sx.get_num_threads() == n


@pytest.mark.parametrize("n", [0, -1, np.int64(-3)])
def test_number_too_small(machine, n):
    with pytest.raises(ValueError, match="n must be at least 1"):
        sx.set_num_threads(n)


@pytest.mark.parametrize("n", [True, False, np.True_, 2.0, "2", [2]])
def test_number_of_the_wrong_type(machine, n):
    with pytest.raises(TypeError, match="n must be an integer"):
        sx.set_num_threads(n)


def test_number_may_be_numpys(machine):
    with sx.set_num_threads(np.uint8(2)):
        assert sx.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_affinity_is_the_threads_own_and_soon_noticed():
    before = os.sched_getaffinity(0)
    seen = []

    def pinned() -> None:
        os.sched_setaffinity(0, {min(before)})
        seen.append(_threads._affinity())

    thread = threading.Thread(target=pinned)
    thread.start()
    thread.join()
    assert seen == [1]
    assert _threads._affinity() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        time.sleep(_threads.AFFINITY_SECONDS * 1.5)
        assert _threads._affinity() == 1
    finally:
        os.sched_setaffinity(0, before)
        time.sleep(_threads.AFFINITY_SECONDS * 1.5)


# --- cgroups ------------------------------------------------------------------------------------


class FakeSystem:
    """A /proc/self and cgroup hierarchies below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "proc").mkdir()
        self.groups: list[str] = []
        self.mounts = ["23 1 0:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]

    def mount(self, point: str, kind: str, options: str, root: str = "/") -> None:
        self.mounts.append(
            f"31 23 0:28 {root} {self.folder / point} rw,nosuid shared:9 - {kind} {kind} {options}"
        )

    def write(self, path: str, **files: str) -> None:
        (self.folder / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / path / name.replace("__", ".")).write_text(text + "\n")

    def cpus(self) -> int | None:
        (self.folder / "proc" / "cgroup").write_text("\n".join(self.groups) + "\n")
        (self.folder / "proc" / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        return _threads.cgroup_cpus(self.folder / "proc")


@pytest.fixture
def system(tmp_path):
    return FakeSystem(tmp_path)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("150000 100000", 2),  # rounded up: the second thread has work half of the time
        ("10000 100000", 1),
        ("what 100000", None),
        ("100000 0", None),
        ("", None),
    ],
)
def test_cgroup_2(system, quota, cpus):
    system.groups = ["0::/user/job"]
    system.mount("cg", "cgroup2", "rw,nsdelegate")
    system.write("cg/user/job", cpu__max=quota)
    assert system.cpus() == cpus


def test_cgroup_2_parent_binds(system):
    system.groups = ["0::/user/job"]
    system.mount("cg", "cgroup2", "rw")
    system.write("cg/user/job", cpu__max="800000 100000")
    system.write("cg/user", cpu__max="300000 100000")
    assert system.cpus() == 3


@pytest.mark.parametrize(("quota", "cpus"), [("-1", None), ("250000", 3)])
def test_cgroup_1(system, quota, cpus):
    system.groups = ["5:memory:/other", "4:cpu,cpuacct:/job", "0::/"]
    system.mount("memory", "cgroup", "rw,memory")
    system.mount("cpu", "cgroup", "rw,cpu,cpuacct")
    system.write("cpu/job", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    system.write("memory/job", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert system.cpus() == cpus


def test_cgroup_1_seen_from_a_container(system):
    # The path is the host's, and that very group is what is mounted.
    system.groups = ["4:cpu,cpuacct:/docker/abc"]
    system.mount("cpu", "cgroup", "rw,cpu,cpuacct", root="/docker/abc")
    system.write("cpu", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    assert system.cpus() == 4


def test_cgroup_path_outside_of_what_is_mounted(system):
    system.groups = ["0::/../elsewhere"]
    system.mount("cg", "cgroup2", "rw", root="/mine")
    system.write("cg", cpu__max="200000 100000")
    assert system.cpus() == 2


def test_no_cgroups(tmp_path, system):
    assert _threads.cgroup_cpus(tmp_path / "nothing") is None
    system.groups = ["0::/"]
    assert system.cpus() is None


# --- running on Python threads ------------------------------------------------------------------


class PythonTask:
    """Counts visits; `act(lo)` may misbehave."""

    native = None

    def __init__(self, n_rows: int, act=lambda lo: None) -> None:
        self.visits = np.zeros(n_rows, int)
        self.threads: set[str] = set()
        self.stopped_seen = False
        self._act = act

    def __call__(self, lo, hi, stopped):
        self.threads.add(threading.current_thread().name)
        self._act(lo)
        if stopped():
            self.stopped_seen = True
            return
        self.visits[lo:hi] += 1


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize(("n_rows", "grain"), [(1, 1), (10, 3), (1000, 7), (5, 100)])
def test_python_threads_do_every_row_once(n_rows, grain, n_threads):
    task = PythonTask(n_rows)
    _threads.run(task, n_rows, grain, n_threads)
    assert (task.visits == 1).all()


def test_python_threads_help():
    barrier = threading.Barrier(3)
    task = PythonTask(3, lambda lo: barrier.wait(10))
    _threads.run(task, 3, 1, 3)
    assert len(task.threads) == 3
    assert not task.threads & {thread.name for thread in threading.enumerate()[1:]}


def test_python_threads_help_one_call_at_a_time():
    barrier = threading.Barrier(3)  # two threads of the owner's, and the test

    def begin_and_end(lo):
        barrier.wait(10)
        barrier.wait(10)

    owner = PythonTask(2, begin_and_end)

    def own():
        _threads.run(owner, 2, 1, 2)

    for _ in range(2):  # the helpers are given back
        thread = threading.Thread(target=own)
        thread.start()
        barrier.wait(10)
        second = PythonTask(100)
        _threads.run(second, 100, 1, 4)
        assert second.threads == {threading.current_thread().name}
        assert (second.visits == 1).all()
        barrier.wait(10)
        thread.join()
    assert (owner.visits == 2).all()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_python_threads_pass_errors_on(n_threads):
    def fail(lo):
        raise IndexError("targets[0]")

    before = threading.active_count()
    with pytest.raises(IndexError, match=r"targets\[0\]"):
        _threads.run(PythonTask(100, fail), 100, 1, n_threads)
    assert threading.active_count() == before


def test_python_threads_ctrl_c_in_the_caller_stops_the_helpers():
    def act(lo):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.001)

    before = threading.active_count()
    task = PythonTask(100_000, act)
    with pytest.raises(KeyboardInterrupt):
        _threads.run(task, 100_000, 1, 2)
    assert threading.active_count() == before
    assert task.visits.sum() < 100_000


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_python_threads_ctrl_c_while_waiting_stops_the_helpers():
    helper_has_one = threading.Event()

    class Task(PythonTask):
        def __call__(self, lo, hi, stopped):
            if threading.current_thread() is threading.main_thread():
                assert helper_has_one.wait(10)
                self.visits[lo] += 1
                return
            helper_has_one.set()
            until = time.monotonic() + 10
            while self.visits.sum() < 63 and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.1)  # the caller has nothing left but to wait
            os.kill(os.getpid(), signal.SIGINT)
            while not self.stopped_seen and time.monotonic() < until:
                time.sleep(0.01)
                self.stopped_seen = stopped()

    task = Task(64)
    with pytest.raises(KeyboardInterrupt):
        _threads.run(task, 64, 1, 2)
    assert task.stopped_seen


def test_python_threads_that_cannot_be_had_are_done_without(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    task = PythonTask(100)
    _threads.run(task, 100, 3, 4)
    assert (task.visits == 1).all()


def test_python_threads_share_the_callers_errstate():
    states = []
    barrier = threading.Barrier(2)

    def act(lo):
        barrier.wait(10)
        states.append(np.geterr()["over"])

    with np.errstate(over="raise"):
        _threads.run(PythonTask(2, act), 2, 1, 2)
    assert states == ["raise", "raise"]


# --- the extension ------------------------------------------------------------------------------


@pytest.fixture
def import_fails(monkeypatch):
    """A function that makes the extension's import raise its argument."""

    def with_(error: BaseException) -> None:
        def fail(name):
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)
        monkeypatch.setattr(_threads, "native", functools.cache(_threads.native.__wrapped__))

    return with_


def test_extension_missing_is_silent(import_fails):
    import_fails(ModuleNotFoundError("No module", name="softxent._native"))
    assert _threads.native() is None


@pytest.mark.parametrize(
    "error",
    [ImportError("undefined symbol: x"), ModuleNotFoundError("No module", name="threading")],
)
def test_extension_broken_warns_once(import_fails, error):
    import_fails(error)
    with pytest.warns(RuntimeWarning, match="there but cannot be imported") as caught:
        assert [_threads.native() for _ in range(2)] == [None, None]
    assert len(caught) == 1


# --- the pool -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    return pytest.importorskip("softxent._native")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = build(tmp_path_factory.mktemp("pool_kernel"))
    if path is None:
        pytest.skip("needs a C compiler and the source tree")
    return path


@pytest.fixture
def several(pool):
    if not pool.has_pool():
        pytest.skip("no pthreads")


@pytest.fixture
def on_signal():
    """Install a handler of SIGUSR1, and send one after some seconds, from another thread."""
    before = signal.getsignal(signal.SIGUSR1)
    timers = []

    def install(handler, *delays: float) -> None:
        signal.signal(signal.SIGUSR1, lambda number, frame: handler())
        for delay in delays:
            timers.append(threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1)))
            timers[-1].start()

    yield install
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR1, before)


#: MXCSR without its status flags, which record what happened.
FLOAT_MODE = 0xFFC0


class Interrupted(Exception):
    """What a signal handler raises."""


def interrupt():
    raise Interrupted


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("n_units", "grain"), [(1, 1), (2, 1), (1000, 7), (999, 1), (5, 100)])
def test_pool_does_every_unit_once(pool, library, n_units, grain, n_threads):
    for _ in range(50):
        run = Watched(library, n_units).run(pool, grain, n_threads)
        assert run.complete
        assert len(run.threads) <= n_threads


@pytest.mark.usefixtures("several")
def test_pool_uses_its_workers_and_keeps_them(pool, library):
    run = Watched(library, 200, seconds=1e-3).run(pool, 1, 3)
    assert run.complete
    assert len(run.threads) == 3
    size = pool.pool_size()
    assert size >= 2
    assert Watched(library, 200, seconds=1e-3).run(pool, 1, 3).threads & run.threads
    time.sleep(0.05)  # parked by now
    assert len(Watched(library, 200, seconds=1e-3).run(pool, 1, 2).threads) == 2
    assert pool.pool_size() == size


def test_pool_serial_run_needs_no_worker(pool, library):
    run = Watched(library, 100).run(pool, 1, 1)
    assert run.complete
    assert run.threads == {threading.get_native_id()}


@pytest.mark.usefixtures("several")
def test_pool_second_caller_runs_alone_meanwhile(pool, library):
    long = Watched(library, 400, seconds=1e-3)
    owner = threading.Thread(target=long.run, args=(pool, 1, 2))
    owner.start()
    while not long.units["visits"].any():
        time.sleep(1e-3)
    second = Watched(library, 10, seconds=1e-3).run(pool, 1, 2)
    assert not long.complete, "the second caller waited"
    assert second.complete
    assert second.threads == {threading.get_native_id()}
    owner.join()
    assert long.complete


def test_pool_8_threads_2000_calls(pool, library):
    wrong = []

    def call(n_units: int) -> None:
        for _ in range(2000):
            run = Watched(library, n_units)
            if not run.run(pool, 1, 2).complete:
                wrong.append(n_units)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("n_threads", [1, 2])
def test_pool_signal_ends_the_run(pool, library, on_signal, n_threads):
    on_signal(interrupt, 0.1)
    run = Watched(library, 2, seconds=30.0)
    start = time.monotonic()
    with pytest.raises(Interrupted):
        run.run(pool, 1, n_threads)
    assert time.monotonic() - start < 5
    assert Watched(library, 100).run(pool, 1, n_threads).complete


@pytest.mark.usefixtures("several")
def test_pool_signal_while_the_caller_waits_for_a_worker(pool, library, on_signal):
    on_signal(interrupt, 0.3)
    run = Watched(library, 8, seconds=30.0, quick_thread=threading.get_native_id())
    start = time.monotonic()
    with pytest.raises(Interrupted):
        run.run(pool, 1, 2)
    assert time.monotonic() - start < 5
    assert run.complete, "the caller did not come to wait"
    assert Watched(library, 100).run(pool, 1, 2).complete


@pytest.mark.usefixtures("several")
def test_pool_handler_that_returns_does_not_end_the_run(pool, library, on_signal):
    nested = []
    on_signal(lambda: nested.append(Watched(library, 50).run(pool, 1, 2)), 0.05, 0.1)
    assert Watched(library, 300, seconds=1e-3).run(pool, 1, 2).complete
    assert nested
    assert all(run.complete for run in nested)


def test_pool_signals_are_the_main_threads_alone(pool, library, on_signal):
    handled = []
    on_signal(lambda: handled.append(threading.current_thread()), 0.05)
    run = Watched(library, 200, seconds=1e-3)
    thread = threading.Thread(target=run.run, args=(pool, 1, 2))
    thread.start()
    thread.join()
    assert run.complete
    assert handled == [threading.main_thread()]


def test_pool_handler_runs_in_the_callers_float_state(pool, library, on_signal):
    states = []
    on_signal(lambda: states.append(pool.float_state()), 0.05)
    before = pool.float_state()
    Watched(library, 200, seconds=1e-3, flush=True).run(pool, 1, 2)
    assert [state & FLOAT_MODE for state in states] == [before & FLOAT_MODE]
    assert pool.float_state() & FLOAT_MODE == before & FLOAT_MODE


@pytest.mark.usefixtures("several")
def test_pool_workers_start_in_the_default_float_state(pool, library):
    before = pool.float_state()
    if before == 0:
        pytest.skip("no MXCSR")
    n_threads = pool.pool_size() + 3  # two new ones, made by a thread that flushes
    run = Watched(library, 60 * n_threads, seconds=1e-3)
    run.set_float_state(before | 0x8040)
    try:
        run.run(pool, 1, n_threads)
    finally:
        run.set_float_state(before)
    own = run.units["thread"] == threading.get_native_id()
    assert (run.units["float_state"][own] & 0x8040 == 0x8040).all()
    assert len(run.threads) == n_threads
    assert (run.units["float_state"][~own] & FLOAT_MODE == 0x1F80).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.usefixtures("several")
def test_pool_workers_are_named_and_take_no_signals(pool, library):
    Watched(library, 10).run(pool, 1, 3)
    workers = [
        task
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text().startswith("softxent-")
    ]
    assert len(workers) == pool.pool_size() >= 2
    for worker in workers:
        status = dict(line.split(":\t") for line in (worker / "status").read_text().splitlines())
        blocked = int(status["SigBlk"], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
            assert blocked >> (number - 1) & 1
        assert not blocked >> (signal.SIGSEGV - 1) & 1  # faulthandler's


@pytest.mark.parametrize("n_threads", [1, 2])
def test_pool_kernel_that_gives_up_is_an_error(pool, library, n_threads):
    with pytest.raises(RuntimeError, match="gave up"):
        Watched(library, 100, broken=37).run(pool, 1, n_threads)


@pytest.mark.parametrize("bad", [(0, 0, 1, 1, 1), (1, 0, 0, 1, 1), (1, 0, 1, 0, 1)])
def test_pool_refuses_nothing_to_do(pool, bad):
    with pytest.raises(ValueError, match="nothing to do"):
        pool.run(*bad)


def test_pool_knows_the_processor(pool):
    assert pool.cpu_level() in ("v4", "v3", "v2", "baseline", "generic")


# --- threadpoolctl ------------------------------------------------------------------------------


@pytest.mark.usefixtures("several")
def test_threadpoolctl_sees_and_limits(machine):
    threadpoolctl = pytest.importorskip("threadpoolctl", minversion="3.1")
    sx.register_threadpoolctl()

    def ours() -> list[int]:
        info = threadpoolctl.threadpool_info()
        return [library["num_threads"] for library in info if library["user_api"] == "softxent"]

    assert ours() == [8]
    with threadpoolctl.threadpool_limits(3, user_api="softxent"):
        assert ours() == [3]
        assert sx.get_num_threads() == 3
    assert sx.get_num_threads() == 8
    assert _threads._setting.get() is None, "the limit left a default behind"
