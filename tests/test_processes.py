"""Fork, exit, Ctrl-C and other people's worker pools: each case in an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import softxent as sx
from pool_kernel import build

BACKENDS = [name for name, state in sx.available_backends().items() if state == "available"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and signals")

#: RuntimeWarnings are ours. Python 3.12 warns of what is tested here: forks beside threads.
WARNINGS = ("-W", "error::RuntimeWarning", "-W", "ignore:This process:DeprecationWarning")

#: Every script's beginning. `right()`: do two threads give the bits of one?
PRELUDE = """\
import os, random, signal, sys, threading, time
import numpy as np
import softxent as sx

BACKEND = sys.argv[1]
rng = np.random.default_rng(7)
logits = rng.normal(scale=5, size=(512, 257)).astype(np.float32)
targets = rng.integers(0, 257, 512)

def call(n_threads):
    loss, grad = sx.cross_entropy_with_grad(
        logits, targets, reduction="none", n_threads=n_threads, backend=BACKEND
    )
    return loss.tobytes() + grad.tobytes()

SERIAL = call(1)

def right(_=None):
    return call(2) == SERIAL

def fork_and(check):
    '''Fork; the child exits with 0 if `check()` holds. Returns whether it did, in time.'''
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)  # a hang is a death by signal
            os._exit(0 if check() else 1)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@pytest.fixture
def script(tmp_path):
    """A function that runs a script after the prelude, and fails unless it ends well, in silence.

    The script is a file, because spawned children import it.
    """

    def run(body: str, *args: object, prelude: str = PRELUDE, timeout: float = 100) -> str:
        path = tmp_path / "case.py"
        path.write_text(prelude + textwrap.dedent(body))
        done = subprocess.run(
            [sys.executable, *WARNINGS, path, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


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
def test_calls_load_no_openmp(script, backend):
    script(
        """
        assert right()
        with open("/proc/self/maps") as maps:
            text = maps.read()
        assert not any(name in text for name in ("libgomp", "libomp", "libiomp"))
        """,
        backend,
    )


def test_calls_leave_the_float_state(script, backend):
    pytest.importorskip("softxent._native")
    script(
        """
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
        backend,
    )


# --- fork (T2) ----------------------------------------------------------------------------------


def test_fork_after_a_call(script, backend):
    script(
        """
        assert right()
        assert fork_and(right)
        assert right()
        """,
        backend,
    )


def test_fork_before_any_call_with_threads(script, backend):
    script("assert fork_and(right)", backend)


def test_grandchild(script, backend):
    script(
        """
        assert right()
        assert fork_and(lambda: right() and fork_and(right) and right())
        # a grandchild whose parent never called
        assert fork_and(lambda: fork_and(right))
        """,
        backend,
    )


def test_200_forks_during_calls_of_another_thread(script, backend):
    script(
        """
        stop = threading.Event()
        wrong = []

        def keep_calling():
            while not stop.is_set():
                if not right():
                    wrong.append("parent")

        caller = threading.Thread(target=keep_calling)
        caller.start()
        random.seed(1)
        for i in range(200):
            time.sleep(random.uniform(0, 2e-3))
            if not fork_and(right):
                wrong.append(i)
        stop.set()
        caller.join()
        assert not wrong, wrong
        """,
        backend,
    )


def test_child_of_a_fork_in_a_thread_can_be_interrupted(script, backend):
    # The forking thread becomes the child's main thread: signals are its business there.
    script(
        """
        def interrupted():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            wide = np.broadcast_to(logits[:1, :256].repeat(512, axis=1), (2**22, 2**17))
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                sx.logsumexp(wide, n_threads=2, backend=BACKEND)
            except KeyboardInterrupt:
                return time.monotonic() - start < 5 and right()

        assert right()
        results = []
        thread = threading.Thread(target=lambda: results.append(fork_and(interrupted)))
        thread.start()
        thread.join()
        assert results == [True]
        """,
        backend,
    )


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(script, backend, method):
    script(
        """
        import multiprocessing
        if __name__ == "__main__":
            assert right()
            with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
                assert all(pool.map_async(right, range(8)).get(60))
            assert right()
        """,
        backend,
        method,
    )


# --- the interpreter's end (T4) -----------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05, 0.1])
def test_exit_during_a_call_of_a_daemon_thread(script, backend, delay):
    script(
        """
        big = np.tile(logits, (64, 1))
        labels = np.tile(targets, 64)

        def keep_calling():
            while True:
                sx.cross_entropy_with_grad(big, labels, n_threads=2, backend=BACKEND)

        threading.Thread(target=keep_calling, daemon=True).start()
        time.sleep(float(sys.argv[2]))
        """,
        backend,
        delay,
    )


def test_call_at_exit(script, backend):
    output = script(
        """
        import atexit
        atexit.register(lambda: print(right()))
        assert right()
        """,
        backend,
    )
    assert output == "True\n"


# --- Ctrl-C -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 2])
def test_ctrl_c_ends_a_long_call(script, backend, n_threads):
    script(
        """
        # Minutes of work in 512 KiB: every row is the same memory.
        wide = np.broadcast_to(logits[:1, :256].repeat(512, axis=1), (2**22, 2**17))
        labels = np.broadcast_to(targets[:1], 2**22)
        sent = []

        def interrupt():
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.3, interrupt)
        timer.start()
        try:
            sx.cross_entropy(wide, labels, n_threads=int(sys.argv[2]), backend=BACKEND)
        except KeyboardInterrupt:
            # 2**22 elements take 1 ms, in NumPy 50; the rest is for a busy machine.
            assert time.monotonic() - sent[0] < 5
        else:
            raise AssertionError("the call ended by itself")
        timer.join()
        assert threading.active_count() == 1
        assert right()
        """,
        backend,
        n_threads,
    )


def test_ctrl_c_in_the_main_thread_leaves_other_threads_calls(script, backend):
    script(
        """
        results = []
        thread = threading.Thread(target=lambda: results.extend(right() for _ in range(50)))
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            thread.start()
            time.sleep(10)
        except KeyboardInterrupt:
            pass
        thread.join()
        assert results == [True] * 50
        """,
        backend,
    )


# --- other people's pools (T3) ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loky", "threading", "multiprocessing"])
def test_joblib(script, backend, kind):
    pytest.importorskip("joblib")
    script(
        """
        import joblib

        def worker_is_right(argv, data):
            # A worker of loky does not import this file.
            import softxent as sx
            loss, grad = sx.cross_entropy_with_grad(
                *data, reduction="none", n_threads=2, backend=argv[1])
            return loss.tobytes() + grad.tobytes()

        if __name__ == "__main__":
            assert right()
            parallel = joblib.Parallel(n_jobs=2, backend=sys.argv[2], timeout=60)
            job = joblib.delayed(worker_is_right)
            results = parallel(job(sys.argv, (logits, targets)) for _ in range(8))
            assert all(result == SERIAL for result in results)
            assert right()
        """,
        backend,
        kind,
    )


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
