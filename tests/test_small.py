"""The compiled `normalise`: simple calls, to the bits and errors of the plain one."""

from __future__ import annotations

import dis
import itertools

import numpy as np
import pytest

import softxent as sx
from softxent import _plan, _problem, _run, _small, _threads
from softxent.backends._contract import Op
from softxent.losses import LOSSES

pytestmark = [
    pytest.mark.subset,
    pytest.mark.skipif(_threads.native() is None, reason="there is no compiled normalise"),
]
RNG = np.random.default_rng(11)
NAMES = [name for name, spec in LOSSES.items()
         if spec.op in (Op.CROSS_ENTROPY, Op.FOCAL, Op.SQUARED_ERROR, Op.NLL)]


def arrays(n, c, dtype):
    y = RNG.integers(0, c, n)
    y[1::5] = -100
    return (3 * RNG.standard_normal((n, c))).astype(dtype), y


def extras(name):
    return {"gamma": 1.5} if name == "focal_loss" else {}


def both(monkeypatch, call):
    """Return what `call` returns or raises, the compiled way and the plain one."""
    results = []
    for normalise in (_small.normalise, _problem.normalise):
        monkeypatch.setattr(_small, "normalise", normalise)
        try:
            results.append(call())
        except Exception as error:
            results.append((type(error), str(error)))
    return results


def as_bytes(result):
    return [np.asarray(part).tobytes() for part in (result if isinstance(result, tuple)
                                                    else (result,))]


@pytest.fixture(autouse=True)
def _loaded():
    sx.cross_entropy(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))
    assert _small.normalise is not _problem.normalise


def is_ready(*arguments, **options):
    return isinstance(_small.normalise(LOSSES["cross_entropy"], *arguments, **options),
                      _small.Ready)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", NAMES)
def test_same_bits(name, any_dtype, reduction, order, monkeypatch):
    if any_dtype == "bfloat16":
        any_dtype = pytest.importorskip("ml_dtypes").bfloat16
    for (n, c), out in itertools.product([(1, 1), (1, 2), (7, 3), (33, 64), (40, 65), (5, 1500)],
                                         ["none", "apart", "logits", "turned"]):
        z, y = arrays(n, c, any_dtype)
        z = np.asarray(z, order=order)

        def call(z=z, y=y, out=out):
            scratch = z.copy(order="K")
            grad = {"none": None, "apart": np.full_like(z, 7), "logits": scratch,
                    "turned": np.full_like(z.T, 7).T}[out]
            loss, found = getattr(sx, f"{name}_with_grad")(
                scratch, y, reduction=reduction, grad_out=grad, **extras(name))
            assert grad is None or found is grad
            alone = getattr(sx, name)(z, y, reduction=reduction, **extras(name))
            return loss, found, alone

        compiled, plain = both(monkeypatch, call)
        assert as_bytes(compiled) == as_bytes(plain)
        assert [type(part) for part in compiled] == [type(part) for part in plain]
        assert [getattr(part, "dtype", 0) for part in compiled] == [
            getattr(part, "dtype", 0) for part in plain]
        assert compiled[1].strides == plain[1].strides


def test_the_plan_is_the_plain_one(monkeypatch):
    seen = []
    execute = _run.execute
    monkeypatch.setattr(_run, "execute", lambda plan, problem: (
        seen.append(plan), execute(plan, problem))[1])
    for shape in ((3, 4), (500, 10), (40, 3000)):
        z, y = arrays(*shape, "float32")
        for grad_out in (None, np.empty_like(z), z):
            both(monkeypatch, lambda z=z, y=y, g=grad_out: sx.cross_entropy_with_grad(
                z, y, grad_out=g))
            assert seen[-1] == seen[-2]


def test_what_a_plan_goes_by_is_looked_at_in_every_call(monkeypatch):
    """A call like the one before has its plan, unless something that it goes by has changed."""
    seen = []
    execute = _run.execute
    monkeypatch.setattr(_run, "execute", lambda plan, problem: (
        seen.append(plan), execute(plan, problem))[1])
    z, y = arrays(4, 5, "float32")

    def plan(**options):
        sx.cross_entropy(z, y, **options)
        return seen[-1]

    first = plan()
    assert plan() is first
    assert first.backend != "numpy"
    assert plan(backend="numpy").backend == "numpy"
    assert plan(n_threads=1) == first
    with pytest.raises(TypeError, match="n_threads"):
        plan(n_threads=True)  # which is 1, and the same object in each call
    with sx.set_backend("numpy"):
        assert plan().backend == "numpy"
    assert plan() == first
    monkeypatch.setenv("SOFTXENT_BACKEND", "numpy")
    assert plan().backend == "numpy"
    monkeypatch.setenv("SOFTXENT_BACKEND", first.backend)
    assert plan().backend == first.backend
    monkeypatch.delenv("SOFTXENT_BACKEND")
    if first.isa in ("v3", "v4"):
        monkeypatch.setenv("SOFTXENT_MAX_ISA", "v2")
        assert plan().isa == "v2" or plan().backend != first.backend
        monkeypatch.delenv("SOFTXENT_MAX_ISA")
    assert plan() == first
    before = plan()
    _plan.forget_plans()
    assert plan() is not before
    sx.cross_entropy(*arrays(5, 5, "float32"))
    assert seen[-1].seconds > before.seconds


@pytest.mark.parametrize("name", NAMES)
def test_losses_pass_their_options_without_a_dictionary(name):
    """CPython collects what is passed in one from 16 keywords on, fewer with other arguments.

    That took a tenth of a small call.
    """
    for function in (getattr(sx, name), getattr(sx, f"{name}_with_grad")):
        assert "CALL_FUNCTION_EX" not in {step.opname for step in dis.get_instructions(function)}


def test_what_is_simple():
    z, y = arrays(6, 4, "float32")
    assert is_ready(z, y)
    assert is_ready(z, np.abs(y) % 4, ignore_index=None)
    for options in ({"axis": 0}, {"label_smoothing": 0.1}, {"temperature": 2.0}, {"softcap": 3.0},
                    {"z_loss": 0.1}, {"class_weight": np.ones(4)},
                    {"divisor": 2.0, "reduction": "mean"},
                    {"sample_weight": [1.0] * 6}, {"sample_weight": np.ones(6, np.float16)},
                    {"sample_weight": np.ones(12)[::2]}, {"upstream": 2.0, "wants_map": True}):
        targets = np.abs(y) % 4 if options.get("axis") != 0 else np.zeros(4, np.int64)
        assert not is_ready(z, targets, **options), options
    assert is_ready(np.asfortranarray(z), y)
    assert is_ready(z.astype(np.float16), y)
    for s in (np.ones(6), np.ones(6, np.float32)):
        assert is_ready(z, y, sample_weight=s, reduction="mean")
    for rule in ("diagonal", "xgboost", "lightgbm"):
        assert is_ready(z, y, hessian=(rule, z + 1), sample_weight=s, wants_map=True)
    assert not is_ready(z, y, hessian=("xgboost-residual", None), wants_map=True)
    turned, wide = np.empty_like(z.T).T, np.empty((6, 4))
    assert is_ready(z, y, wants_map=True, out=turned)
    assert is_ready(z, y, wants_map=True, out=wide, out_dtypes=("float32", "float64"))
    assert is_ready(wide, y, wants_map=True, out=turned, out_dtypes=("float32", "float64"),
                    hessian=("diagonal", np.empty((6, 4), np.float32)))
    for out in (np.empty((12, 4), np.float32)[::2], np.empty((6, 4), ">f4"), (z + 1)[:, ::-1]):
        assert not is_ready(z, y, wants_map=True, out=out)
    for other in (z.tolist(), z[:, ::-1], z.astype(">f4"), np.asfortranarray(z.astype(np.float16)),
                  np.ma.masked_array(z), z.view(np.memmap), z.repeat(2, axis=0)[::2]):
        assert not is_ready(other, np.where(y > 2, 0, y))
    for other in (y.tolist(), y.astype(np.int32), y.astype(">i8"), np.repeat(y, 2)[::2],
                  np.full((6, 4), 0.25)):
        assert not is_ready(z, other)


def bad_calls():
    z, y = arrays(6, 4, "float32")
    y = np.abs(y) % 4
    frozen = np.empty_like(z)
    frozen.flags.writeable = False
    room = np.empty(2 * z.size, np.float32)
    room[: z.size] = z.ravel()
    inside = room[: z.size].reshape(z.shape)
    yield "a target too large", (z, y + 3), {}
    yield "a negative target", (z, y - 1), {}
    yield "all ignored", (z, np.full(6, -100)), {}
    yield "no rows", (z[:0], y[:0]), {}
    yield "no classes", (z[:, :0], y), {}
    yield "targets too few", (z, y[:5]), {}
    yield "a reduction", (z, y), {"reduction": "average"}
    yield "ignore_index beyond int64", (z, y), {"ignore_index": 2**80}
    yield "ignore_index no integer", (z, y), {"ignore_index": 1.5}
    yield "grad_out of another shape", (z, y), {"grad_out": np.empty((4, 6), np.float32)}
    yield "grad_out of another dtype", (z, y), {"grad_out": np.empty((6, 4))}
    yield "grad_out read-only", (z, y), {"grad_out": frozen}
    yield "grad_out half over the logits", (inside, y), {
        "grad_out": room[4 : 4 + z.size].reshape(z.shape)}
    yield "grad_out over the targets", (z, y[:3].repeat(2)), {
        "grad_out": None}
    square = np.zeros((4, 4), np.float32)
    yield "grad_out the logits turned", (square, y[:4]), {"grad_out": square.T}
    yield "grad_out a list", (z, y), {"grad_out": z.tolist()}
    yield "a temperature of 0", (z, y), {"temperature": 0.0}
    yield "backend unknown", (z, y), {"backend": "cuda"}
    yield "no threads", (z, y), {"n_threads": 0}


@pytest.mark.parametrize(("arguments", "options"), [
    pytest.param(arguments, options, id=name) for name, arguments, options in bad_calls()])
def test_same_errors(arguments, options, monkeypatch):
    compiled, plain = both(monkeypatch, lambda: sx.cross_entropy_with_grad(*arguments, **options))
    if isinstance(plain[0], type):
        assert compiled == plain
    else:
        assert as_bytes(compiled) == as_bytes(plain)


def test_targets_that_share_memory_with_the_gradient(monkeypatch):
    room = np.zeros(48, np.int64)
    z, y = arrays(6, 4, "float64")
    targets = room[:6]
    targets[:] = np.abs(y) % 4
    grad = room.view(np.float64)[:24].reshape(6, 4)
    compiled, plain = both(monkeypatch, lambda: sx.cross_entropy_with_grad(
        z, targets, grad_out=grad))
    assert compiled == plain
    assert compiled[0] is ValueError


def test_inputs_stay():
    z, y = arrays(50, 7, "float32")
    kept = z.copy(), y.copy()
    sx.cross_entropy_with_grad(z, y)
    sx.cross_entropy(z, y, reduction="none")
    np.testing.assert_array_equal(z, kept[0])
    np.testing.assert_array_equal(y, kept[1])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_with_weights(name, dtype, order, monkeypatch):
    for (n, c), weights, reduction in itertools.product(
            [(1, 2), (7, 3), (40, 64), (90, 65), (5, 1500)], ["float32", "float64"],
            ["none", "sum", "mean"]):
        z, y = arrays(n, c, dtype)
        z = np.asarray(z, order=order)
        s = RNG.random(n).astype(weights)
        s[3::4] = 0.0

        def call(z=z, y=y, s=s, reduction=reduction):
            options = {"sample_weight": s, "reduction": reduction, **extras(name)}
            return (*getattr(sx, f"{name}_with_grad")(z, y, grad_out=z.copy(order="K"), **options),
                    getattr(sx, name)(z, y, **options))

        compiled, plain = both(monkeypatch, call)
        assert as_bytes(compiled) == as_bytes(plain)


def test_a_mean_of_many_weights(monkeypatch):
    """Beyond the rows whose weights are summed at a time."""
    for n in (_problem._CHUNK, _problem._CHUNK + 1):
        z, y = arrays(n, 2, "float32")
        s = RNG.random(n)
        compiled, plain = both(monkeypatch, lambda z=z, y=y, s=s: sx.cross_entropy_with_grad(
            z, y, sample_weight=s))
        assert as_bytes(compiled) == as_bytes(plain)


@pytest.mark.parametrize("weights", [
    [1.0, 2.0], [1.0, -1.0, 1.0], [1.0, np.nan, 1.0], [1.0, np.inf, 1.0], [0.0, 0.0, 0.0],
    [1e308, 1e308, 1e308], [-0.0, 1.0, 1.0]])
def test_odd_weights(weights, monkeypatch):
    z, y = np.eye(3, dtype=np.float32), np.arange(3)
    compiled, plain = both(monkeypatch, lambda: sx.cross_entropy_with_grad(
        z, y, sample_weight=np.array(weights)))
    assert as_bytes(compiled) == as_bytes(plain) if not isinstance(plain[0], type) else (
        compiled == plain)


@pytest.mark.parametrize("outputs", ["none", "given", "in place", "other", "other grad",
                                     "other hess", "turned"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rule", ["diagonal", "xgboost", "lightgbm", "xgboost-residual"])
def test_same_hessian(rule, order, dtype, outputs, monkeypatch):
    for (n, c), weighted in itertools.product(
            [(1, 2), (7, 3), (40, 64), (90, 65), (5, 1500), (1, 300_000)], [False, True]):
        z, y = arrays(n, c, dtype)
        z = np.asarray(z, order=order)
        s = RNG.random(n) if weighted else None

        def call(z=z, y=y, s=s):
            scratch = z.copy(order="K")
            alike, turned = np.full_like(z, 7), np.full_like(z.T, 7).T
            other = np.full_like(z, 7, "float32" if dtype == "float64" else "float64")
            grad = {"none": None, "in place": scratch, "other": other, "other grad": other,
                    "turned": turned}.get(outputs, alike)
            hess = {"none": None, "other": other.copy(order="K"), "other hess": other,
                    "turned": turned.copy(order="K")}.get(outputs, alike.copy(order="K"))
            found = sx.cross_entropy_grad_hess(scratch, y, sample_weight=s, hessian=rule,
                                               grad_out=grad, hess_out=hess)
            assert grad is None or (found[1] is grad and found[2] is hess)
            return found

        compiled, plain = both(monkeypatch, call)
        assert as_bytes(compiled) == as_bytes(plain)
        assert [part.strides for part in compiled] == [part.strides for part in plain]


def bad_hessians():
    z, y = arrays(6, 4, "float32")
    y = np.abs(y) % 4
    room = np.empty(2 * z.size, np.float32)
    out = room[: z.size].reshape(z.shape)
    yield {"hessian": "newton"}
    yield {"hessian": ["diagonal"]}
    yield {"hessian": np.array("diagonal")}
    yield {"hessian": "newton", "sample_weight": -np.ones(6)}
    yield {"grad_out": out, "hess_out": out}
    yield {"grad_out": out, "hess_out": room[4 : 4 + z.size].reshape(z.shape)}
    yield {"hess_out": np.empty((4, 6), np.float32)}
    yield {"hess_out": np.empty((6, 4), np.float16)}
    yield {"hess_out": np.empty((6, 4))}
    yield {"grad_out": np.empty((6, 4))}
    yield {"grad_out": np.empty((6, 4), np.float16)}
    yield {"grad_out": np.empty((6, 4), np.int32), "hess_out": np.empty((6, 4), bool)}
    yield {"sample_weight": room[:6], "hess_out": out}
    yield {"loss_out": np.empty(6)}
    yield {"loss_out": room[:6], "hess_out": out}


@pytest.mark.parametrize("options", list(bad_hessians()), ids=lambda o: "-".join(o))
def test_same_errors_of_a_hessian(options, monkeypatch):
    z, y = arrays(6, 4, "float32")
    if "sample_weight" in options and options["sample_weight"].base is not None:
        options["sample_weight"][:] = 1.0
    compiled, plain = both(monkeypatch, lambda: sx.cross_entropy_grad_hess(
        z, np.abs(y) % 4, **options))
    if isinstance(plain[0], type):
        assert compiled == plain
    else:
        assert as_bytes(compiled) == as_bytes(plain)


@pytest.mark.parametrize("backend", [name for name, state in sx.available_backends().items()
                                     if state == "available"])
def test_any_backend(backend):
    z, y = arrays(20, 5, "float32")
    y = np.abs(y) % 5
    loss, grad = sx.cross_entropy_with_grad(z, y, backend=backend)
    wanted, of = sx.cross_entropy_with_grad(z.tolist(), y, backend="numpy")
    assert loss == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(grad, of, atol=1e-7)


def test_arguments_are_the_same_in_every_language():
    """A `Ready` goes to Numba's walk, too."""
    import ctypes

    from softxent import _ready
    from softxent.backends.numba import _layout

    assert ctypes.sizeof(_layout.Call) == _ready.call_bytes()


def float_labels():
    rng = np.random.default_rng(4)
    good = rng.integers(0, 7, 40).astype(np.float64)
    for bad in (0.5, -1.0, -0.5, 7.0, 1e300, -1e300, 2.0**63, -2.0**63, np.nan, np.inf, -np.inf):
        yield f"{bad}", np.where(np.arange(40) == 21, bad, good)
    yield "minus zero", np.where(good == 0, -0.0, good)
    for dtype in (np.float32, np.float16, np.longdouble, ">f8", ">f4", np.int64, bool):
        yield f"{np.dtype(dtype)}", good.astype(dtype)
    yield "strided", np.repeat(good, 3)[::3]
    yield "backwards", good[::-1]
    yield "misaligned", np.frombuffer(b"x" + good.tobytes(), np.uint8)[1:].view(np.float64)
    yield "of two axes", good.reshape(5, 8)
    yield "none", good[:0]
    yield "largest", good


@pytest.mark.parametrize("labels", [
    pytest.param(labels, id=name) for name, labels in float_labels()])
def test_class_numbers(labels):
    """Float labels become class numbers the compiled way as by the plain one."""
    _small.class_numbers(np.zeros(1), 1)
    for n_classes in (1, 6, 7, 8):
        compiled = _small.class_numbers(labels, n_classes)
        plain = _small._plain_class_numbers(labels, n_classes)
        valid = labels.ndim == 1 and labels.dtype.kind == "f" and all(
            label in range(n_classes) for label in labels.tolist())
        assert (compiled is not None) == (plain is not None) == valid
        if valid:
            assert compiled.dtype == plain.dtype == np.int64
            np.testing.assert_array_equal(compiled, labels)
            np.testing.assert_array_equal(plain, labels)
