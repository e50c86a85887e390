"""No call changes the caller's floating-point state: rounding, flushing of subnormals, masks.

Cases are made from `softxent.__all__` and `LOSSES`: a new function without one is a failure. Every
call is made in the default state and in states that other code may have set. What `import` does is
test_import.py's, with the state after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
import platform
import signal
import sys
import time

import numpy as np
import pytest

import softxent as sx
from levels import force, usable_levels
from softxent import _plan, _tuning
from softxent.losses import LOSSES
from test_option_pairs import VALUES, Combination, evaluate, example

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or "glibc" not in platform.libc_ver(),
    reason="sets the state by glibc's x86-64 fenv_t",
)

#: MXCSR without the flags that say what has happened: masks, rounding, flush-to-zero, and
#: subnormal operands read as zero.
CONTROL = 0xFFC0
STATES = {"default": 0x1F80, "flushing": 0x9FC0, "downwards": 0x3F80, "upwards": 0x5F80,
          "to zero, flushing": 0xFF80}
#: Where fenv_t has the x87's control word (two bytes) and MXCSR (four).
X87, MXCSR = 0, 28


class Environment:
    """The calling thread's state, as another party sees and sets it."""

    def __init__(self):
        self.libm = ctypes.CDLL("libm.so.6")

    def read(self):
        raw = ctypes.create_string_buffer(32)
        assert self.libm.fegetenv(raw) == 0
        return raw

    def get(self):
        """Return (x87 control word, MXCSR without its flags)."""
        raw = self.read().raw
        return (int.from_bytes(raw[X87 : X87 + 2], "little"),
                int.from_bytes(raw[MXCSR:], "little") & CONTROL)

    @contextlib.contextmanager
    def state(self, mxcsr):
        """Set MXCSR meanwhile."""
        before = self.read()
        changed = ctypes.create_string_buffer(before.raw[:MXCSR] + mxcsr.to_bytes(4, "little"), 32)
        assert self.libm.fesetenv(changed) == 0
        try:
            yield
        finally:
            self.libm.fesetenv(before)


@pytest.fixture
def environment():
    found = Environment()
    assert found.get()[1] == STATES["default"] & CONTROL
    return found


TINY = np.array([2.0**-149] * 64, np.float32), np.array([2.0**-1074] * 64)


def subnormals_count():
    """Do sums of subnormal numbers, in vectors, come out?"""
    return [(tiny + tiny).any() for tiny in TINY]


def keeps(environment, call, what):
    """Make the call in every state, and look at the state after it."""
    for name, mxcsr in STATES.items():
        with environment.state(mxcsr):
            before, counted = environment.get(), subnormals_count()
            assert before[1] == mxcsr & CONTROL
            error = None
            try:
                # NumPy may say that something overflows when it is rounded upwards.
                with np.errstate(all="ignore"):
                    call()
            except Exception as raised:
                error = raised
            after, counted_after = environment.get(), subnormals_count()
        assert after == before, f"{what}, {name}: {before} became {after}"
        assert counted_after == counted == [not mxcsr & 0x8000] * 2, (what, name)
        yield error


# ---- what is called ------------------------------------------------------------------------------


def batches():
    """Logits and targets: subnormal probabilities, inputs and weights; every width of a walk."""
    rng = np.random.default_rng(5)
    for n_classes in (1, 3, 70, 1100):
        for dtype in ("f2", "f4", "f8"):
            z = np.linspace(-300, 5, 12 * n_classes).reshape(12, n_classes).astype(dtype)
            z[1] = np.finfo(dtype).smallest_subnormal
            z[2, 0], z[3, -1], z[4] = np.nan, -np.inf, np.inf
            yield z, rng.integers(0, n_classes, 12)


def each(function):
    """Call of `function(logits, targets, options)` for every batch and number of threads."""
    def call(level):
        for z, targets in batches():
            for n_threads in (1, 2):
                function(z, targets, {"backend": level.backend, "n_threads": n_threads})
    return call


def in_silence(function):
    with contextlib.redirect_stdout(io.StringIO()):
        function()


def threadpoolctl(level):
    pytest.importorskip("threadpoolctl", reason="is what the function is about")
    sx.register_threadpoolctl()


def backends_in_turn(level):
    with sx.set_backend(level.backend):
        sx.softmax([1.0, 2.0])


def threads_in_turn(level):
    with sx.set_num_threads(2):
        sx.softmax([[1.0, 2.0]] * 100, backend=level.backend)


def plans(level):
    for dtype in ("float16", "float32", "float64"):
        sx.explain((1024, 32000), dtype, backend=level.backend)


def tunes(level):
    """Measure a little, and go by what was shipped again.

    On one thread: with more, it measures the same calls at large sizes, for a second and more.
    """
    with sx.set_num_threads(1):
        sx.tune(seconds=0.05, shapes=[(20, 3)], dtypes=["float32"], save=False)
    _tuning.adopt(sx.Tuning())
    _plan.forget_plans()


#: By name, a call that succeeds, and one that raises (None: nothing to raise).
CASES = {
    "accuracy": (each(lambda z, y, options: sx.accuracy(z, y, k=2, **options)),
                 lambda level: sx.accuracy(np.zeros((2, 3)), [0, 3], backend=level.backend)),
    "available_backends": (lambda level: sx.available_backends(), None),
    "cross_entropy_grad_hess": (
        each(lambda z, y, options: [sx.cross_entropy_grad_hess(z, y, hessian=rule, **options)
                                    for rule in ("xgboost", "xgboost-residual")]),
        lambda level: sx.cross_entropy_grad_hess(np.zeros((2, 3)), [0, 3], backend=level.backend)),
    "diagnose": (each(lambda z, y, options: sx.diagnose(z, y)), lambda level: sx.diagnose(1)),
    "explain": (plans, lambda level: sx.explain((2, 3), "float32", backend="none such")),
    "finish_row_stats": (
        each(lambda z, y, options: sx.finish_row_stats(
            sx.row_stats(z, y, **options), y, label_smoothing=0.1, z_loss=1e-3)),
        lambda level: sx.finish_row_stats(1, [0])),
    "get_num_threads": (lambda level: sx.get_num_threads(), None),
    "grad_from_row_stats": (
        each(lambda z, y, options: [sx.grad_from_row_stats(
            z, y, sx.row_stats(z, y, **options), label_smoothing=smoothing, **options)
            for smoothing in (0.0, 0.1)]),
        lambda level: sx.grad_from_row_stats(np.zeros((2, 3)), [0, 1], 1)),
    "log_softmax": (each(lambda z, y, options: sx.log_softmax(z, **options)),
                    lambda level: sx.log_softmax(np.zeros((2, 0)), backend=level.backend)),
    "logsumexp": (each(lambda z, y, options: sx.logsumexp(z, **options)),
                  lambda level: sx.logsumexp(np.zeros((2, 0)), backend=level.backend)),
    "mean_divisor": (
        each(lambda z, y, options: sx.mean_divisor(
            y, class_weight=np.linspace(1e-310, 1, z.shape[1]), sample_weight=y + 1e-310)),
        lambda level: sx.mean_divisor([0, 5], class_weight=[1.0])),
    "merge_row_stats": (
        each(lambda z, y, options: sx.merge_row_stats(
            sx.row_stats(z, y, **options),
            sx.row_stats(z, y, class_offset=z.shape[1], **options))),
        lambda level: sx.merge_row_stats(1, 2)),
    "register_threadpoolctl": (threadpoolctl, None),
    "row_stats": (each(lambda z, y, options: sx.row_stats(z, y, softcap=30.0, **options)),
                  lambda level: sx.row_stats(np.zeros((2, 0)), [0, 1], backend=level.backend)),
    "set_backend": (backends_in_turn, lambda level: sx.set_backend("none such")),
    "set_num_threads": (threads_in_turn, lambda level: sx.set_num_threads(0)),
    "show_versions": (lambda level: in_silence(sx.show_versions), None),
    "softmax": (each(lambda z, y, options: sx.softmax(z, **options)),
                lambda level: sx.softmax(np.zeros((2, 0)), backend=level.backend)),
    "softmax_entropy": (each(lambda z, y, options: sx.softmax_entropy(z, **options)),
                        lambda level: sx.softmax_entropy(np.zeros((2, 0)), backend=level.backend)),
    "softmax_vjp": (
        each(lambda z, y, options: sx.softmax_vjp(sx.softmax(z, **options), z, **options)),
        lambda level: sx.softmax_vjp(np.zeros((2, 3)), np.zeros((3, 2)), backend=level.backend)),
    "target_log_probs": (
        each(lambda z, y, options: sx.target_log_probs(z, y, **options)),
        lambda level: sx.target_log_probs(np.zeros((2, 3)), [0, 3], backend=level.backend)),
    "tune": (tunes, lambda level: sx.tune(seconds=-1.0)),
    "warmup": (lambda level: sx.warmup(backend=level.backend),
               lambda level: sx.warmup(dtypes=["none such"], backend=level.backend)),
}
#: Losses have their cases from their options.
OF_LOSSES = {name + suffix for name in LOSSES for suffix in ("", "_with_grad")}


def test_every_function_has_a_case():
    functions = {name for name in sx.__all__ if not inspect.isclass(getattr(sx, name))}
    assert set(CASES) | OF_LOSSES == functions


def test_a_changed_state_is_seen(environment):
    """What the tests below look for is found, whichever part of the state it is."""
    for mxcsr in (0x1F80 | 0x8000, 0x1F80 | 0x40, 0x3F80, 0x1F00):
        changed = ctypes.create_string_buffer(
            environment.read().raw[:MXCSR] + mxcsr.to_bytes(4, "little"), 32)
        with pytest.raises(AssertionError, match=r"default: .* became"):
            list(keeps(environment, lambda raw=changed: environment.libm.fesetenv(raw), "it"))


@pytest.mark.parametrize("name", CASES)
def test_calls_keep_the_state(level, environment, name):
    succeeds, _ = CASES[name]
    assert not any(keeps(environment, lambda: succeeds(level), name))


@pytest.mark.parametrize("name", [name for name, (_, raises) in CASES.items() if raises])
def test_calls_that_raise_keep_the_state(level, environment, name):
    _, raises = CASES[name]
    assert all(keeps(environment, lambda: raises(level), f"{name}, which raises"))


# ---- losses --------------------------------------------------------------------------------------

KINDS = [(loss, kind) for loss, spec in LOSSES.items() for kind in spec.targets]


@pytest.mark.parametrize(("loss", "kind"), KINDS)
def test_losses_keep_the_state(level, environment, loss, kind):
    """With every value of every option, and nothing else."""
    for option in LOSSES[loss].options[kind]:
        for dtype, value in zip(("float32", "float64", "float16") * 2, VALUES[option],
                                strict=False):
            case = example(Combination(loss, kind, {option: value}, dtype))
            raised = list(keeps(environment, lambda case=case: evaluate(case, level),
                                case.combination))
            assert raised == [None] * len(STATES), case.combination


@pytest.mark.parametrize(("loss", "kind"), KINDS)
def test_losses_that_raise_keep_the_state(level, environment, loss, kind):
    """Refused before the kernel runs (class numbers), and by the kernel (probabilities)."""
    function = getattr(sx, f"{loss}_with_grad")
    for dtype in ("f4", "f8"):
        z = np.zeros((40, 70), dtype)
        targets, options = np.arange(40) + 50, {}
        if kind == "probabilities":
            targets = np.full(z.shape, 1 / 70, dtype)
            targets[20, 3] = -1
        elif kind == "logits":
            options, targets = {"hard_targets": targets}, np.zeros(z.shape)
        for n_threads in (1, 2):
            for name, call in (
                (loss, lambda n=n_threads, z=z, targets=targets, options=options: getattr(sx, loss)(
                    z, targets, backend=level.backend, n_threads=n, **options)),
                (f"{loss}_with_grad", lambda n=n_threads, z=z, targets=targets, options=options: (
                    function(z, targets, backend=level.backend, n_threads=n, **options))),
            ):
                raised = list(keeps(environment, call, f"{name}, which raises"))
                assert all(isinstance(e, IndexError | ValueError) for e in raised), raised


# ---- a call that is interrupted ------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 2])
def test_ctrl_c_finds_and_leaves_the_callers_state(level, environment, n_threads):
    """A handler that runs in the midst of a kernel does so in the caller's state."""
    z = np.broadcast_to(np.linspace(-90, 0, 2**16, dtype=np.float32), (4000, 2**16))
    sx.logsumexp(z[:2], backend=level.backend)  # compiled, where that is needed
    seen = []

    def handler(*_):
        seen.append(environment.get())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for name, mxcsr in STATES.items():
            with environment.state(mxcsr):
                began = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, 0.03)
                try:
                    sx.logsumexp(z, backend=level.backend, n_threads=n_threads)
                    interrupted = False
                except KeyboardInterrupt:
                    interrupted = True
                after = environment.get()
                took = time.monotonic() - began
            assert interrupted, f"the call was over in {took} s"
            assert after[1] == mxcsr & CONTROL, name
            assert seen.pop() == after, name
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the extension agrees ------------------------------------------------------------------------


def test_the_state_that_the_extension_sees(environment):
    native = pytest.importorskip("softxent._native", reason="no compiled extension here")
    for mxcsr in STATES.values():
        with environment.state(mxcsr):
            assert native.float_state() & CONTROL == mxcsr & CONTROL


@pytest.mark.parametrize("level", [each for each in usable_levels() if each.backend != "numpy"],
                         ids=str)
def test_rows_do_not_depend_on_the_callers_state(level, environment, monkeypatch):
    """Workers have a state of their own: what a walk computes is the same in every one."""
    force(level, monkeypatch)
    for z, _ in batches():
        expected = sx.softmax(z, backend=level.backend).tobytes()
        for name, mxcsr in STATES.items():
            for n_threads in (1, 2):
                with environment.state(mxcsr):
                    got = sx.softmax(z, backend=level.backend, n_threads=n_threads).tobytes()
                assert got == expected, (name, z.dtype, z.shape, n_threads)
