"""The tables of test_processes.py: what calls run on, and what befalls the process they run in."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

from softxent import available_backends
from softxent.backends import BACKENDS


class Engine(NamedTuple):
    """A backend, and whether a script may import the extension (the pool)."""

    backend: str
    extension: bool = True

    def __str__(self) -> str:
        return self.backend if self.extension else f"{self.backend} on Python threads"


def _engines() -> list[Engine]:
    states = available_backends()
    engines = [Engine(name) for name in BACKENDS if states[name] == "available"]
    if Engine("numba") in engines and importlib.util.find_spec("softxent._native"):
        engines.append(Engine("numba", extension=False))
    return engines


ENGINES = _engines()

#: Every script's beginning. `right()`: do two threads give the bits of one?
PRELUDE = """\
import os, random, signal, sys, threading, time
BACKEND, EXTENSION = sys.argv[1:3]
if EXTENSION == "False":
    sys.modules["softxent._native"] = None
import numpy as np
import softxent as sx

if threading.current_thread() is threading.main_thread():
    # See conftest.heeds_ctrl_c.
    signal.signal(signal.SIGINT, signal.default_int_handler)

rng = np.random.default_rng(7)
# Enough for two threads; for NumPy's backend, which has one, for two blocks of rows.
n_rows = 160 if BACKEND == "numpy" else 512
logits = rng.normal(scale=5, size=(n_rows, 512)).astype(np.float32)
targets = rng.integers(0, 512, n_rows)

def call(n_threads, backend=BACKEND):
    loss, grad = sx.cross_entropy_with_grad(
        logits, targets, reduction="none", n_threads=n_threads, backend=backend
    )
    return b"".join((loss, grad))  # a forked child pays for every page that is new to it

def right(_=None):
    return call(2) == SERIAL

def fork_and(check, seconds=30):
    '''Fork; the child exits with 0 if `check()` holds. Returns whether it did, in time.'''
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(seconds)  # a hang is a death by signal
            os._exit(0 if check() else 1)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
#: What follows it, unless a script's first call is to be elsewhere. It compiles, too.
WARM = "SERIAL = call(1)\n"


class Scenario(NamedTuple):
    """A script after `PRELUDE`; its further arguments are sys.argv[3:]."""

    body: str
    arguments: tuple[object, ...] = ()
    needs: str = ""  # a module
    warm: bool = True


POOL = """
import multiprocessing
if __name__ == "__main__":
    assert right()
    with multiprocessing.get_context(sys.argv[3]).Pool(2) as pool:
        assert all(pool.map_async(right, range(8)).get(60))
    assert right()
"""

JOBLIB = """
import joblib

def worker_is_right(argv, data):
    # A worker of loky does not import this file.
    import sys
    if argv[2] == "False":
        sys.modules["softxent._native"] = None
    import softxent as sx
    loss, grad = sx.cross_entropy_with_grad(
        *data, reduction="none", n_threads=2, backend=argv[1])
    return loss.tobytes() + grad.tobytes()

if __name__ == "__main__":
    assert right()
    parallel = joblib.Parallel(n_jobs=2, backend=sys.argv[3], timeout=60)
    job = joblib.delayed(worker_is_right)
    results = parallel(job(sys.argv, (logits, targets)) for _ in range(8))
    assert all(result == SERIAL for result in results)
    assert right()
"""

#: Minutes of work in 512 KiB: every row is the same memory.
ENDLESS = """
wide = np.broadcast_to(logits[:1, :256].repeat(512, axis=1), (2**22, 2**17))
labels = np.broadcast_to(targets[:1] % 256, 2**22)
"""

CTRL_C = ENDLESS + """
sent = []

def interrupt():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

timer = threading.Timer(0.3, interrupt)
timer.start()
try:
    sx.cross_entropy(wide, labels, n_threads=int(sys.argv[3]), backend=BACKEND)
except KeyboardInterrupt:
    # 2**22 elements take 1 ms, in NumPy 50; the rest is for a busy machine.
    assert time.monotonic() - sent[0] < 5
else:
    raise AssertionError("the call ended by itself")
timer.join()
assert threading.active_count() == 1
assert right()
"""

EXIT = """
big = np.tile(logits, (64, 1))
labels = np.tile(targets, 64)

def keep_calling():
    while True:
        sx.cross_entropy_with_grad(big, labels, n_threads=2, backend=BACKEND)

threading.Thread(target=keep_calling, daemon=True).start()
time.sleep(float(sys.argv[3]))
"""

FIRST_CALLS = """
def all_agree():
    results = []
    barrier = threading.Barrier(8)

    def first():
        barrier.wait()
        results.append(call(2))

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results == [call(1)] * 8
"""

SCENARIOS = {
    # ---- fork (T2) -------------------------------------------------------------------------------
    "fork": Scenario("""
assert right()
assert fork_and(right)
assert right()
"""),
    "fork before any call with threads": Scenario("assert fork_and(right)"),
    "fork before any call": Scenario("""
def both_agree():
    global SERIAL
    SERIAL = call(1)
    with open("child", "wb") as file:
        file.write(SERIAL)
    return right()

assert fork_and(both_agree, 120)
with open("child", "rb") as file:
    SERIAL = file.read()
assert right()
""", warm=False),
    "grandchild": Scenario("""
assert right()
assert fork_and(lambda: right() and fork_and(right) and right())
# a grandchild whose parent never called
assert fork_and(lambda: fork_and(right))
"""),
    "200 forks during calls of another thread": Scenario("""
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
"""),
    # The forking thread becomes the child's main thread: signals are its business there.
    "Ctrl-C in the child of a thread's fork": Scenario(ENDLESS + """
def interrupted():
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
"""),
    "Pool, fork": Scenario(POOL, ("fork",)),
    "Pool, forkserver": Scenario(POOL, ("forkserver",)),
    "Pool, spawn": Scenario(POOL, ("spawn",)),
    "ProcessPoolExecutor, fork": Scenario("""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
assert right()
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    assert all(pool.map(right, range(8), timeout=60))
assert right()
"""),
    # ---- joblib (T3) -----------------------------------------------------------------------------
    "joblib, loky": Scenario(JOBLIB, ("loky",), needs="joblib"),
    "joblib, threading": Scenario(JOBLIB, ("threading",), needs="joblib"),
    "joblib, multiprocessing": Scenario(JOBLIB, ("multiprocessing",), needs="joblib"),
    # ---- threads (T1) ----------------------------------------------------------------------------
    "8 threads, 2,000 calls each": Scenario("""
n_rows = 16 if BACKEND == "numpy" else 2048  # enough for two threads, where there can be two
logits = rng.normal(scale=5, size=(8, n_rows, 33)).astype(np.float32)
targets = rng.integers(0, 33, (8, n_rows))
wrong = []

def call(i, n_threads):
    loss, grad = sx.cross_entropy_with_grad(
        logits[i], targets[i], n_threads=n_threads, backend=BACKEND)
    return loss, grad.tobytes()

def keep_calling(i):
    wrong.extend(i for _ in range(2000) if call(i, 2) != serial[i])

serial = [call(i, 1) for i in range(8)]
threads = [threading.Thread(target=keep_calling, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong
"""),
    "8 threads, the first calls of all": Scenario(FIRST_CALLS + """
assert all_agree()
""", warm=False),
    # Forking takes locks of threads that are gone; those of threads that are there matter not.
    "8 threads, the first calls of a child": Scenario(FIRST_CALLS + """
sx.explain(logits.shape, "float64", backend=BACKEND)
for _ in range(10):
    assert fork_and(all_agree)
""", warm=False),
    # ---- the interpreter's end (T4) --------------------------------------------------------------
    "exit during a call, after 0 ms": Scenario(EXIT, (0.0,)),
    "exit during a call, after 3 ms": Scenario(EXIT, (0.003,)),
    "exit during a call, after 50 ms": Scenario(EXIT, (0.05,)),
    "exit during a call, after 100 ms": Scenario(EXIT, (0.1,)),
    "call at exit": Scenario("""
import atexit
atexit.register(lambda: os._exit(not right()))
assert right()
sys.exit(3)
"""),
    # ---- Ctrl-C ----------------------------------------------------------------------------------
    "Ctrl-C, 1 thread": Scenario(CTRL_C, (1,)),
    "Ctrl-C, 2 threads": Scenario(CTRL_C, (2,)),
    "Ctrl-C leaves the calls of other threads": Scenario("""
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
"""),
}

# ---- other people's threads (T3) -----------------------------------------------------------------

#: What imports a peer, starts its threads, and defines how to use them again.
PEERS = {
    "torch": """
import torch

def use_torch():
    torch.nn.functional.cross_entropy(torch.ones(1024, 1024), torch.arange(1024))

use_torch()
""",
    "sklearn": """
import numpy
from sklearn.metrics import pairwise_distances_argmin

def use_sklearn():
    pairwise_distances_argmin(numpy.ones((2000, 8)), numpy.ones((2000, 8)))

use_sklearn()
""",
    "numba": """
from peer_numba import use as use_numba
use_numba()
""",
    "softxent": PRELUDE + """
SERIAL = {name: call(1, name) for name in BACKEND.split(",")}

def all_right():
    return all(call(2, name) == serial for name, serial in SERIAL.items())
""",
}

#: Orders in which each peer is first once, and follows each other once.
SOME_ORDERS = [
    ("torch", "sklearn", "softxent", "numba"),
    ("sklearn", "numba", "torch", "softxent"),
    ("numba", "softxent", "sklearn", "torch"),
    ("softxent", "torch", "numba", "sklearn"),
]


def beside_peers(order: tuple[str, ...]) -> str:
    """Return a script that uses all of `PEERS`, first in this order, forking after each."""
    parts = []
    for i, name in enumerate(order):
        parts.append(PEERS[name])
        if "softxent" in order[: i + 1]:
            # The child uses ours alone: it is for the peers to survive a fork, or not.
            parts.append("assert all_right()\nassert fork_and(all_right)\n")
    parts += [f"use_{name}()\nassert all_right()\n" for name in order if name != "softxent"]
    parts.append("assert fork_and(all_right)\n")
    return "".join(parts)


# ---- limits (T3) ---------------------------------------------------------------------------------


class Limit(NamedTuple):
    """What limits calls to one thread: environment variables, or a statement before them."""

    environment: dict[str, str]
    statement: str = ""
    needs: str = ""


NUMBERS = ("SOFTXENT_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
LIMITS = {
    **{name: Limit({name: "1"}) for name in NUMBERS},
    "set_num_threads": Limit({}, "sx.set_num_threads(1)"),
    "affinity": Limit({}, "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"),
    "threadpoolctl": Limit({}, """
import threadpoolctl
sx.register_threadpoolctl()
limits = threadpoolctl.threadpool_limits(1)
""", needs="threadpoolctl"),
}

#: `workers()`: how many threads the pool has, by the system's count.
WORKERS = """
def workers():
    count = 0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as comm:
                count += comm.read().startswith("softxent-")
        except OSError:  # a thread that has ended; ours do not
            pass
    return count
"""

#: `threads()`: how many threads the largest of some calls has used.
COUNT = WORKERS + """
def threads():
    return 1 + max(workers(), max(helpers))

helpers = [0]
start = threading.Thread.start

def counted_start(thread):
    helpers[-1] += 1  # those of one call
    start(thread)

threading.Thread.start = counted_start
for _ in range(5):
    assert call(None) == SERIAL
    helpers.append(0)
"""


# ---- inside other people's threads (T3) ----------------------------------------------------------


class Inside(NamedTuple):
    """A script after `PRELUDE`, `WARM` and `WORKERS`."""

    body: str
    needs: tuple[str, ...]


INSIDE = {
    # OpenMP's threads, which Python first hears of when they call it.
    "Numba's parallel code": Inside("""
import ctypes
import numba

seen = set()

@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def ours(i):
    seen.add(threading.get_native_id())
    return right()

@numba.njit(parallel=True, nogil=True)
def count_right(n):
    count = 0
    for i in numba.prange(n):
        count += ours(i)
    return count

numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
for _ in range(3):
    assert count_right(40) == 40
assert len(seen) == numba.get_num_threads(), seen
assert workers() <= 1, workers()
assert fork_and(right)
""", ("numba",)),
    "joblib's threads, beside Numba's": Inside("""
import joblib
from peer_numba import use

def job(i):
    use()
    return right()

assert all(joblib.Parallel(2, backend="threading")(joblib.delayed(job)(i) for i in range(20)))
assert workers() <= 1, workers()
assert fork_and(right)
""", ("joblib", "numba")),
    "joblib's processes, beside Numba's and OpenMP's threads": Inside("""
import joblib

def job(argv, data):
    # A worker of loky does not import this file.
    import os, sys
    if argv[2] == "False":
        sys.modules["softxent._native"] = None
    from sklearn.metrics import pairwise_distances_argmin
    from peer_numba import use
    import softxent as sx

    use()
    pairwise_distances_argmin(data[0], data[0])
    loss, grad = sx.cross_entropy_with_grad(
        *data, reduction="none", n_threads=2, backend=argv[1])
    return loss.tobytes() + grad.tobytes()

if __name__ == "__main__":
    parallel = joblib.Parallel(n_jobs=2, backend="loky", timeout=60)
    results = parallel(joblib.delayed(job)(sys.argv, (logits, targets)) for _ in range(8))
    assert all(result == SERIAL for result in results)
    assert fork_and(right)
""", ("joblib", "numba", "sklearn")),
}
