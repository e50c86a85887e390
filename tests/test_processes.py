"""Fork, exit, Ctrl-C and other people's worker pools: each case in an interpreter of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pool_kernel import build
from scenarios import (
    COUNT,
    ENGINES,
    INSIDE,
    LIMITS,
    NUMBERS,
    PEERS,
    PRELUDE,
    SCENARIOS,
    SOME_ORDERS,
    WARM,
    WORKERS,
    Engine,
    beside_peers,
)
from softxent import _cache
from softxent._threads import cgroup_cpus

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and signals")

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

#: RuntimeWarnings are ours. Python 3.12 warns of what is tested here: forks beside threads.
WARNINGS = ("-W", "error::RuntimeWarning", "-W", "ignore:This process:DeprecationWarning")


@pytest.fixture
def script(tmp_path):
    """A function that runs a script after the prelude, and fails unless it ends well, in silence.

    The script is a file, because spawned children import it.
    """

    def run(body: str, *args: object, prelude: str = PRELUDE + WARM, timeout: float = 150,
            **environment: str) -> str:
        path = tmp_path / "case.py"
        path.write_text(prelude + textwrap.dedent(body))
        done = subprocess.run(
            [sys.executable, *WARNINGS, path, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path
                                                             if p), **environment},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(params=ENGINES, ids=str)
def engine(request):
    return request.param


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(script, name, engine):
    body, arguments, needs, warm = SCENARIOS[name]
    if needs:
        pytest.importorskip(needs)
    script(body, *engine, *arguments, prelude=PRELUDE + WARM * warm)


def test_without_the_extension_another_backend_serves(script):
    script(
        """
        assert sx.available_backends()["cython"] != "available"
        assert right()
        """,
        next(engine.backend for engine in ENGINES if engine.backend != "cython"),
        False,
        prelude=PRELUDE + "SERIAL = call(1)\nBACKEND = None\n",
    )


# --- import (M3) --------------------------------------------------------------------------------


@linux
def test_import_starts_no_thread_and_loads_no_openmp(script):
    script(
        """
        import os, sys
        import numpy  # its BLAS may start threads
        import threading

        def threads():
            return len(os.listdir("/proc/self/task"))

        def openmp():
            with open("/proc/self/maps") as maps:
                return {line.split()[-1] for line in maps
                        if any(name in line for name in ("libgomp", "libomp", "libiomp"))}

        before = threads(), openmp(), sys.float_info.min / 2
        import softxent
        assert (threads(), openmp(), sys.float_info.min / 2) == before
        assert threading.active_count() == 1
        heavy = {"numba", "torch", "sklearn", "scipy", "concurrent.futures.thread"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """,
        prelude="",
    )


@linux
def test_calls_load_no_openmp(script, engine):
    script(
        """
        assert right()
        with open("/proc/self/maps") as maps:
            text = maps.read()
        assert not any(name in text for name in ("libgomp", "libomp", "libiomp"))
        """,
        *engine,
    )


def test_calls_leave_the_float_state(script, engine):
    pytest.importorskip("softxent._native")
    script(
        """
        if EXTENSION == "False":
            del sys.modules["softxent._native"]  # calls go on without it
        from softxent._native import float_state
        mode = 0xFFC0  # without the flags that record what happened
        before = float_state() & mode
        for n_threads in (1, 2):
            for scale in (1, 1e4, np.inf, np.nan):
                with np.errstate(all="ignore"):
                    sx.cross_entropy_with_grad(logits * np.float32(scale), targets,
                                               n_threads=n_threads, backend=BACKEND)
                assert float_state() & mode == before
        assert sys.float_info.min / 2 > 0
        """,
        *engine,
    )


# --- forks beside Numba's compiler (T2) ---------------------------------------------------------

needs_numba = pytest.mark.skipif(Engine("numba") not in ENGINES, reason="Numba cannot be used")


@needs_numba
def test_first_call_of_all_compiles_a_damaged_file_anew_in_a_child(script, tmp_path):
    """The same bits, no word about it, and the walk that was called for alone; it is mended."""
    from softxent.backends.numba import _backend

    level = _backend.BACKEND.isa()
    whole = _cache._path(_cache.directory(), f"walk_plain_f32-{level}", _backend._key(level))
    script("""
        with open("reference", "wb") as file:
            file.write(call(1))
        """, "numba", True, prelude=PRELUDE)
    folder = tmp_path / "cold"
    folder.mkdir()
    cut = folder / whole.name
    cut.write_bytes(whole.read_bytes()[:50_000])
    body, arguments, _, _ = SCENARIOS["fork before any call"]
    script(body, "numba", True, *arguments, prelude=PRELUDE, SOFTXENT_CACHE_DIR="cold")
    assert (tmp_path / "child").read_bytes() == (tmp_path / "reference").read_bytes()
    assert cut.stat().st_size > 50_000
    assert os.listdir(folder) == [cut.name]


@pytest.mark.slow  # fails at times: CONTRIBUTING, "Open"
@needs_numba
def test_fork_while_another_thread_compiles(script):
    """The child's calls get a backend's bits; one that asks for Numba may be told that it cannot.

    While Numba is imported, too.
    """
    script(
        """
        from softxent import backends
        backends.backend("numba")  # or it would be us that are being imported

        def ask(backend):
            loss = call(2, backend)
            with open(f"child{n}", "wb") as file:
                file.write(loss)
            return True

        def by_default():
            return ask(None)

        def by_default_without_cython():
            sys.modules["softxent.backends.cython._bind"] = None
            return ask(None)

        def numba():
            try:
                return ask("numba")
            except sx.BackendUnavailableError as error:
                return "at work" in str(error)

        compiler = threading.Thread(target=sx.explain, args=(logits.shape,),
                                    kwargs={"backend": "numba"})
        compiler.start()
        while "numba" not in sys.modules:  # before, it reads metadata: the import system's locks
            time.sleep(0.01)
        n = 0
        while compiler.is_alive() and n < 30:
            time.sleep(random.Random(n).uniform(0, 0.4))
            check = (by_default, by_default_without_cython, numba)[n % 3]
            assert fork_and(check, 60), (n, check)
            n += 1
        compiler.join()
        answers = set()
        for name in os.listdir():
            if name.startswith("child"):
                with open(name, "rb") as file:
                    answers.add(file.read())
        assert n >= 6 and answers
        assert answers <= {call(1, name) for name, state in sx.available_backends().items()
                           if state == "available"}
        """,
        None,
        True,
        prelude=PRELUDE,
        SOFTXENT_CACHE_DIR="cold",
    )


# --- other people's threads (T3) ----------------------------------------------------------------


@pytest.fixture(scope="session")
def numba_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("numba_cache"))


def every_order():
    for order in itertools.permutations(PEERS):
        for extension in (True, False):
            often = order in SOME_ORDERS if extension else order == SOME_ORDERS[-1]
            yield pytest.param(order, extension, marks=() if often else pytest.mark.slow,
                               id="-".join(order) + ("" if extension else " on Python threads"))


@pytest.mark.parametrize(("order", "extension"), list(every_order()))
def test_beside_peers(script, numba_cache, order, extension):
    """In every order of first use, if the slow ones are run too."""
    for peer in set(PEERS) - {"softxent"}:
        pytest.importorskip(peer)
    ours = [engine.backend for engine in ENGINES if engine.extension or not extension]
    if not extension:
        pytest.importorskip("softxent._native", reason="is there nowhere else")
        ours.remove("cython")
    script(beside_peers(order), ",".join(dict.fromkeys(ours)), extension, prelude="",
           NUMBA_CACHE_DIR=numba_cache)


def every_inside():
    for name, engine in itertools.product(INSIDE, ENGINES):
        # Its workers import for seconds.
        often = "processes" not in name or engine == ENGINES[0]
        yield pytest.param(name, engine, marks=() if often else pytest.mark.slow,
                           id=f"{engine}-{name}")


@linux
@pytest.mark.parametrize(("name", "engine"), list(every_inside()))
def test_inside(script, numba_cache, name, engine):
    body, needs = INSIDE[name]
    for module in needs:
        pytest.importorskip(module)
    script(body, *engine, prelude=PRELUDE + WARM + WORKERS, NUMBA_CACHE_DIR=numba_cache)


# --- limits (T3) --------------------------------------------------------------------------------


@linux
def test_as_many_threads_as_there_are_cpus(script, engine):
    # Else the tests of limits would pass whatever they did.
    n = 1 if engine.backend == "numpy" else min(len(os.sched_getaffinity(0)), cgroup_cpus() or 99)
    script(COUNT + "assert threads() == int(sys.argv[3]), threads()", *engine, n,
           **dict.fromkeys(NUMBERS, ""))


@linux
@pytest.mark.parametrize(("engine", "name"), [
    (engine, name) for engine in ENGINES for name in LIMITS
    if engine.extension or name != "threadpoolctl"  # which sees loaded libraries only
], ids=str)
def test_limit_is_obeyed(script, engine, name):
    environment, statement, needs = LIMITS[name]
    if needs:
        pytest.importorskip(needs)
    script(COUNT + "assert threads() == 1, threads()", *engine,
           prelude=f"import os\nimport softxent as sx\n{statement}\n{PRELUDE}{WARM}",
           **{**dict.fromkeys(NUMBERS, ""), **environment})


@pytest.fixture
def group_with_one_cpu():
    """A control group below ours, whose quota pays for one CPU; what a process enters it by."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own = Path("/sys/fs/cgroup", controllers) / path.lstrip("/")
        group = own / f"softxent-test-{os.getpid()}"
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text("100000 100000")
            elif (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text("100000")
            else:
                continue
            yield group / "cgroup.procs"
            return
        finally:
            group.rmdir()
    pytest.skip("no control group can be made here")


@linux
def test_quota_is_obeyed(script, engine, group_with_one_cpu):
    script(COUNT + "assert threads() == 1, threads()", *engine,
           prelude=f"""
import os
with open({str(group_with_one_cpu)!r}, "w") as procs:
    procs.write(str(os.getpid()))
{PRELUDE}{WARM}""", **dict.fromkeys(NUMBERS, ""))


def test_joblib_inner_limit_is_obeyed(script):
    pytest.importorskip("joblib")
    script(
        """
        import joblib, softxent
        with joblib.parallel_config(backend="loky", n_jobs=2, inner_max_num_threads=1):
            job = joblib.delayed(softxent.get_num_threads)
            results = joblib.Parallel()(job() for _ in range(4))
        assert results == [1] * 4, results
        """,
        prelude="",
    )


# --- Python threads by themselves ---------------------------------------------------------------


@pytest.mark.parametrize("moment", ["at work", "waiting"])
def test_python_threads_child_of_a_fork_in_a_handler_is_told(script, moment):
    # As the pool's child below: the helpers' pieces are lost to it.
    script(
        """
        from softxent import _threads
        children = []

        def fork(number, frame):
            children.append(os.fork())
            if children[-1] == 0:
                signal.alarm(20)

        class Task:
            native = None
            started = threading.Barrier(2)
            answered = threading.Event()  # the parent's signal

            def __call__(self, lo, hi, stopped):
                if lo < 2:
                    self.started.wait(20)
                if threading.current_thread() is not threading.main_thread():
                    self.answered.wait(20)
                elif lo < 2 and sys.argv[1] == "at work":
                    while not children:
                        stopped()

        def send():
            os.kill(os.getpid(), signal.SIGUSR1)
            while not children:
                time.sleep(0.001)
            Task.answered.set()

        signal.signal(signal.SIGUSR1, fork)
        threading.Timer(0.3, send).start()
        try:
            _threads.run(Task(), 2, 1, 2)
        except RuntimeError as error:
            os._exit(not (children == [0] and "forked" in str(error)))
        assert children[0] > 0, "the child does not know that it has no result"
        assert os.waitpid(children[0], 0)[1] == 0
        """,
        moment,
        prelude="import os, signal, sys, threading, time\n",
    )


def test_python_threads_help_the_child_of_a_fork_during_a_call(script):
    # The call that has them in the parent is not the child's.
    script(
        """
        from softxent import _threads

        class Task:
            native = None

            def __init__(self, meet):
                self.meet = meet

            def __call__(self, lo, hi, stopped):
                self.meet()

        def is_helped():
            both = threading.Barrier(2)
            _threads.run(Task(lambda: both.wait(10)), 2, 1, 2)
            return True

        at_work = threading.Barrier(3)
        end = threading.Event()
        long = Task(lambda: (at_work.wait(20), end.wait(20)))
        thread = threading.Thread(target=_threads.run, args=(long, 2, 1, 2))
        thread.start()
        at_work.wait(20)
        assert fork_and(is_helped)
        end.set()
        thread.join()
        """,
        None,
        True,
        prelude=PRELUDE,
    )


# --- the pool by itself -------------------------------------------------------------------------

POOL = """\
import os, resource, signal, sys, threading, time
from pool_kernel import Watched
from softxent import _native as pool

LIBRARY = sys.argv[1]
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    pool = pytest.importorskip("softxent._native")
    path = build(tmp_path_factory.mktemp("pool_kernel"))
    if path is None or not pool.has_pool():
        pytest.skip("needs a C compiler, the source tree and pthreads")
    return path


def test_pool_child_starts_without_workers(script, library):
    script(
        """
        assert Watched(LIBRARY, 100, seconds=1e-4).run(pool, 1, 3).complete
        assert pool.pool_size() == 2
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            before = pool.pool_size()
            run = Watched(LIBRARY, 100, seconds=1e-3).run(pool, 1, 2)
            os._exit(not (before == 0 and run.complete and len(run.threads) == 2
                          and pool.pool_size() == 1))
        assert os.waitpid(pid, 0)[1] == 0
        assert Watched(LIBRARY, 100).run(pool, 1, 3).complete
        assert pool.pool_size() == 2
        """,
        library,
        prelude=POOL,
    )


def test_pool_child_of_a_fork_in_a_handler_is_told(script, library):
    # The workers' pieces are lost to the child; it must neither hang nor pass for complete.
    script(
        """
        children = []

        def fork(number, frame):
            children.append(os.fork())
            if children[-1] == 0:
                signal.alarm(20)

        signal.signal(signal.SIGUSR1, fork)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        run = Watched(LIBRARY, 600, seconds=1e-3)
        try:
            run.run(pool, 1, 2)
        except RuntimeError as error:
            assert "forked" in str(error)
            os._exit(not (children == [0] and Watched(LIBRARY, 9).run(pool, 1, 2).complete))
        assert run.complete
        assert children[0] > 0
        assert os.waitpid(children[0], 0)[1] == 0
        """,
        library,
        prelude=POOL,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS, /proc")
def test_pool_runs_with_the_threads_there_are(script, library):
    script(
        """
        run = Watched(LIBRARY, 100)
        with open("/proc/self/statm") as statm:
            now = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now, resource.RLIM_INFINITY))
        run.run(pool, 1, 4)
        assert pool.pool_size() == 0
        assert run.complete
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        assert Watched(LIBRARY, 100).run(pool, 1, 4).complete
        assert pool.pool_size() == 3
        """,
        library,
        prelude=POOL,
    )


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_pool_exit_while_a_daemon_thread_owns_it(script, library, delay):
    script(
        """
        def keep_running():
            while True:
                Watched(LIBRARY, 20, seconds=1e-3).run(pool, 1, 2)

        threading.Thread(target=keep_running, daemon=True).start()
        time.sleep(float(sys.argv[2]))
        """,
        library,
        delay,
        prelude=POOL,
    )
