"""Fork, exit, Ctrl-C and other people's worker pools: each case in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from pool_kernel import build
from scenarios import ENGINES, PRELUDE, SCENARIOS, WARM

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and signals")

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


# --- import (M3) --------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
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
        sys.modules.pop("softxent._native")  # the calls go on without it, where they do
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


# --- limits (T3) --------------------------------------------------------------------------------


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
