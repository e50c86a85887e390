"""All pairs of options and 500 random combinations, drawn from the project's own table.

`LOSSES` says which options a loss has with which kind of target; `VALUES` says what to try for
each. Every combination is a small call in odd memory, whose loss and gradient are held against the
truth within the contract's bounds. An option without values here, or a loss without a truth, is a
failure.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest

import softxent as sx
import truth
from accuracy_table import (
    FORMATS,
    SIXTEEN,
    beyond,
    bound,
    forgiven,
    gradient_allowance,
    loss_allowance,
    loss_unit,
    quantities,
    storage,
)
from levels import force, usable_levels
from softxent._problem import DEFAULTS
from softxent.losses import LOSSES

try:
    import ml_dtypes  # noqa: F401
except ImportError:
    DTYPES = ("float32", "float64", "float16")
else:
    DTYPES = ("float32", "float64", "float16", "bfloat16")

SEED = 20261123
N_RANDOM = 500
LD = truth.LD

#: By option, what to try that is not the default; words stand for what depends on the shape.
VALUES = {
    "gamma": [0.0, 0.5, 3.0],
    "pos_weight": ["float64", "float32 with zeros", "int8"],
    "hard_targets": ["i8", "u2"],
    "hard_weight": [0.3, 0.9, 1.0],
    "axis": [0, "middle", "negative"],
    "class_weight": ["float64", "float32 with zeros", "uint8"],
    "ignore_index": [None, "in range", -1],
    "label_smoothing": [0.1, 0.5, 1.0],
    "temperature": [0.5, 0.7, 3.0],
    "softcap": [2.0, 30.0, 1e4],
    "z_loss": [1e-4, 0.3, 5.0],
    "sample_weight": ["float64", "float32 with zeros", "int8"],
    "reduction": ["none", "sum"],
    "divisor": [7.0, 1e-3, 0.0],
    "backend": ["the level's"],
    "n_threads": [1, 2, 3],
    "grad_out": ["in place", "elsewhere", "float32"],
    "upstream": [-2.5, 1e-4, "rows"],
}
KINDS = [(name, kind) for name, spec in LOSSES.items() for kind in spec.targets]


# ---- what is tried -------------------------------------------------------------------------------


@dataclass
class Combination:
    """A loss, a kind of target, and the options that are not the default."""

    loss: str
    kind: str
    values: dict
    dtype: str = "float32"
    seed: int = SEED

    def __str__(self):
        given = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        return f"{self.loss}({self.kind}, {self.dtype}: {given})"

    @property
    def rng(self):
        return np.random.default_rng([self.seed, zlib.crc32(str(self).encode())])


def pairs(loss, kind):
    """Every pair of values of two options, each option by itself, and none."""
    options = LOSSES[loss].options[kind]
    single = [(name, value) for name in options for value in VALUES[name]]
    chosen = [(), *((one,) for one in single),
              *(pair for pair in itertools.combinations(single, 2) if pair[0][0] != pair[1][0])]
    # These two are refused together, which test_bad_input.py knows; that is their pair.
    chosen = [some for some in chosen if not {"divisor", "reduction"} <= dict(some).keys()]
    for i, some in enumerate(chosen):
        yield Combination(loss, kind, dict(some), DTYPES[i % len(DTYPES)])


def randomly(loss, kind):
    """Combinations of any number of options."""
    rng = np.random.default_rng([SEED, zlib.crc32(f"{loss}, {kind}".encode())])
    options = LOSSES[loss].options[kind]
    for i in range(N_RANDOM):
        share = rng.uniform(0.2, 1)
        values = {name: VALUES[name][rng.integers(len(VALUES[name]))]
                  for name in options if rng.random() < share}
        if values.get("reduction", "mean") != "mean":
            values.pop("divisor", None)
        yield Combination(loss, kind, values, DTYPES[i % len(DTYPES)])


# ---- one call ------------------------------------------------------------------------------------


@dataclass
class Example:
    """A call of a combination: arrays with classes last, and the options that go with them."""

    combination: Combination
    logits: np.ndarray
    targets: np.ndarray
    weight: np.ndarray  # of every row, 0 where it does not count
    shared: dict = field(default_factory=dict)  # what the truth takes
    others: dict = field(default_factory=dict)
    faults: dict = field(default_factory=dict)  # by the bits they were found in

    @functools.cached_property
    def expected(self):
        """What `expected` returns of it."""
        return expected(self)


def example(combination):
    """Draw the call of a combination: 1 to 3 axes, up to 80 classes, now and then more."""
    rng, values = combination.rng, combination.values
    n_classes = int(rng.integers(1, 81)) if rng.random() < 0.95 else int(rng.integers(1025, 1200))
    ndim = int(rng.integers(1, 4))
    if values.get("axis") == "middle":
        ndim = 3
    shape = tuple(rng.integers(1, 5, ndim - 1))
    z = rng.normal(0, rng.choice([0.1, 3, 40]), (*shape, n_classes))
    z += rng.choice([0, 0, 5, -50])
    if rng.random() < 0.3:
        masked = rng.random(z.shape) < 0.2
        masked[..., rng.integers(n_classes)] = False
        z[masked] = -np.inf
    z = z.astype(storage(combination.dtype))
    if combination.loss in truth.POINTWISE:
        shape = z.shape
    ignored = values.get("ignore_index", DEFAULTS["ignore_index"])
    if ignored == "in range":
        ignored = n_classes - 1
    counts = np.ones(shape, bool)
    classes = np.asarray(rng.integers(0, n_classes, shape))
    # A share of cross-entropy needs its targets.
    has_classes = combination.kind == "classes" or {"hard_targets", "hard_weight"} & set(values)
    if has_classes:
        signed = values.get("hard_targets") != "u2"
        if signed and ignored is not None and ignored != n_classes - 1:
            classes = np.where(rng.random(shape) < 0.2, ignored, classes)
        counts = classes != (n_classes if ignored is None else ignored)
    if combination.kind == "classes":
        targets = classes.astype(rng.choice(["i2", "i4", "i8", ">i8"]))
    elif combination.kind == "logits":
        targets = np.asarray(z, float) + rng.normal(0, rng.choice([0, 1, 10]), z.shape)
        if rng.random() < 0.3:
            targets[..., rng.integers(n_classes)] = -np.inf
        targets[..., classes.reshape(-1)[0] % n_classes] = 1
        targets = targets.astype(rng.choice(["f2", "f4", "f8"]))
    elif combination.loss in truth.POINTWISE:
        targets = np.where(rng.random(shape) < 0.5, rng.random(shape), rng.integers(0, 2, shape))
        targets = targets.astype(rng.choice(["f2", "f4", "f8"]))
    else:
        targets = rng.exponential(1, z.shape) * (rng.random(z.shape) < 0.7)
        targets *= rng.choice([1, 1, 1e-3, 20]) / n_classes
        if rng.random() < 0.8:
            targets[np.isneginf(z.astype(float))] = 0
        targets = targets.astype(rng.choice(["f2", "f4", "f8"]))
    case = Example(combination, z, targets, np.ones(shape))
    draw(case, "sample_weight", shape, rng, case.others)
    draw(case, "class_weight", (n_classes,), rng, case.shared)
    draw(case, "pos_weight", shape, rng, case.shared)
    for name in ("gamma", "hard_weight", "label_smoothing", "temperature", "softcap", "z_loss"):
        if name in values:
            case.shared[name] = values[name]
    if combination.kind == "logits" and has_classes:
        case.others["hard_targets"] = classes.astype(values.get("hard_targets", "i4"))
    if "ignore_index" in values:
        case.others["ignore_index"] = ignored
    for name in ("reduction", "divisor", "n_threads"):
        if name in values:
            case.others[name] = values[name]
    up = values.get("upstream", 1.0)
    if up == "rows":
        per_row = values.get("reduction") == "none"
        up = rng.normal(0, 2, shape) if per_row else float(rng.normal())
    if "upstream" in values:
        case.others["upstream"] = up
    case.weight = np.where(counts, case.others.get("sample_weight", np.ones(shape)), 0)
    # What does not count is not used.
    z[case.weight == 0] = np.nan
    return case


def draw(case, name, shape, rng, into):
    """Draw weights of a kind that the combination names."""
    how = case.combination.values.get(name)
    if how is None:
        return
    weight = np.exp(rng.normal(0, 1, shape))
    if how == "float32 with zeros":
        weight = np.where(rng.random(shape) < 0.3, 0, weight)
    elif how == "int8" or how == "uint8":
        weight = rng.integers(0, 4, shape)
    into[name] = np.asarray(weight).astype(how.split()[0])


def placed(array, rng):
    """The same values in other memory: any order, steps, and sometimes misaligned."""
    order = rng.permutation(array.ndim)
    steps = rng.choice([1, 1, 1, 2, -1, -2], array.ndim)
    shape = [array.shape[axis] * abs(steps[axis]) for axis in order]
    shift = int(rng.choice([0, 0, 1, 4]))
    memory = np.zeros(math.prod(shape) * array.itemsize + shift, np.uint8)
    moved = np.ndarray(shape, array.dtype, memory, shift).transpose(np.argsort(order))
    moved = moved[(..., *(slice(None, None, int(step)) for step in steps))]
    moved[...] = array
    return moved


def evaluate(case, level):
    """Return loss and gradient of the call, the gradient with classes last."""
    values, rng = case.combination.values, case.combination.rng
    ndim = case.logits.ndim
    axis = {"middle": 1, "negative": -min(2, ndim), None: -1}.get(values.get("axis"), 0)

    def moved(array):
        return placed(np.moveaxis(array, -1, axis), rng)

    z = moved(case.logits)
    targets = placed(case.targets, rng) if case.combination.kind == "classes" else moved(
        case.targets)
    options = {**case.shared, **case.others, "backend": level.backend}
    for name in ("sample_weight", "upstream", "class_weight", "pos_weight", "hard_targets"):
        if isinstance(options.get(name), np.ndarray):
            options[name] = placed(options[name], rng)
    if "axis" in values:
        options["axis"] = axis
    how = values.get("grad_out")
    if how == "in place":
        options["grad_out"] = z
    elif how is not None:
        wide = how == "float32" and case.combination.dtype in FORMATS
        out = np.zeros(case.logits.shape, np.float32 if wide else case.logits.dtype)
        options["grad_out"] = moved(out)
    function = getattr(sx, case.combination.loss)
    with_grad = getattr(sx, f"{case.combination.loss}_with_grad")
    alone = {name: value for name, value in options.items() if name not in ("grad_out", "upstream")}
    first = function(z, targets, **alone)
    loss, gradient = with_grad(z, targets, **options)
    np.testing.assert_array_equal(loss, first)
    if how is not None:
        assert gradient is options["grad_out"]
    return loss, np.moveaxis(gradient, axis, -1)


def columns(case):
    """How many classes a row has."""
    return 1 if case.combination.loss in truth.POINTWISE else case.logits.shape[-1]


def expected(case):
    """Truth of the rows, as (N,) and (N, C), and the mean's divisor (1 for other reductions).

    Of single logits C is 1.
    """
    n_classes = columns(case)
    wide = "float64" if case.combination.dtype == "float64" else "float32"
    z = case.logits.astype(wide).reshape(-1, n_classes)
    weight = case.weight.reshape(-1).astype(LD)
    z = np.where(weight[:, None] > 0, z, z.dtype.type(0))
    v = case.shared.get("class_weight", np.ones(n_classes)).astype(LD)
    if case.combination.kind == "classes":
        targets = np.where(weight > 0, case.targets.reshape(-1), 0).astype(int)
        d = (weight * v[targets]).sum()
    else:
        targets = case.targets.reshape(-1, n_classes)
        d = weight.sum()
    shared = dict(case.shared)
    if case.combination.kind == "logits":
        targets = np.where(weight[:, None] > 0, targets, targets.dtype.type(0))
        if shared.get("hard_weight"):
            classes = case.others["hard_targets"].reshape(-1)
            shared["hard_targets"] = np.where(weight > 0, classes, 0).astype(int)
        else:
            shared = {name: shared[name] for name in ("temperature",) if name in shared}
    reduction = case.others.get("reduction", "mean")
    divisor = LD(case.others.get("divisor", d)) if reduction == "mean" else LD(1)
    up = case.others.get("upstream", 1.0)
    factor = np.broadcast_to(np.asarray(up, LD), case.weight.shape).reshape(-1)
    factor = factor / divisor if divisor else 0 * factor
    true = truth.LOSSES[case.combination.loss](
        z, targets, weight=weight, factor=factor, **shared)
    heaviest = np.max(case.shared.get("pos_weight", v), initial=0)
    if case.combination.kind == "logits":
        heaviest = max(heaviest, case.shared.get("temperature", 2.0) ** 2)
    return true, divisor, weight * heaviest


def faults(case, level):
    """What breaks a bound, as text: looked for once for all levels that give the same bits."""
    loss, g = evaluate(case, level)
    bits = type(loss), np.shape(loss), np.asarray(loss).tobytes(), g.shape, g.dtype, g.tobytes()
    if bits not in case.faults:
        case.faults[bits] = [*faults_of(case, loss, g)]
    return case.faults[bits]


def faults_of(case, loss, g):
    """What of a loss and a gradient breaks a bound."""
    true, divisor, heaviest = case.expected
    combination, n_classes = case.combination, columns(case)
    dtype = "float64" if combination.dtype == "float64" else "float32"
    assert np.shape(g) == case.logits.shape
    stored = "float32" if combination.values.get("grad_out") == "float32" and (
        combination.dtype in FORMATS) else combination.dtype
    assert g.dtype == storage(stored)
    names = quantities(combination.loss, combination.kind, case.shared)
    most = bound(names.loss, dtype)
    unit = loss_unit(true, names.loss, dtype)
    allowance = loss_allowance(true, dtype, heaviest)
    reduction = case.others.get("reduction", "mean")
    if reduction == "none":
        assert loss.shape == case.weight.shape
        assert loss.dtype == dtype
        errors = beyond(loss.reshape(-1), true.loss, dtype, allowance, unit)
        if not errors.max(initial=0) <= most:
            yield f"loss {float(errors.max()):.3g} > {most}"
    else:
        assert type(loss) is float
        if divisor == 0:
            assert (loss, math.copysign(1, loss)) == (0, 1)
        else:
            total = true.loss.sum() / divisor
            # A7: the rows' bounds, and the float64 sum's, with the divisor's.
            allowed = allowance + most * truth.EPS[dtype] * true.growth * true.loss_scale
            allowed = allowed.sum() / divisor
            allowed += 4 * truth.EPS["float64"] * true.loss_scale.sum() / divisor
            if not beyond(np.array(loss), total, "float64", allowed, LD(1)) <= 0:
                yield f"{reduction} {loss} is not {float(total)} +- {float(allowed):.3g}"
    g = g.reshape(-1, n_classes)
    if divisor == 0:
        assert not g.astype(float).any()
    rounded_to = stored if stored in FORMATS else ""
    allowed = gradient_allowance(true, dtype, rounded_to)
    unit = truth.EPS[dtype] * true.scale * true.growth[:, None]
    errors = beyond(g, true.gradient, stored, allowed, unit)
    errors = forgiven(errors, g, true, rounded_to)
    most = bound("other gradient" if names.relative else names.gradient, dtype)
    if not errors.max(initial=0) <= most:
        at = np.unravel_index(np.argmax(errors), errors.shape)
        yield (f"gradient {float(errors[at]):.3g} at {at}, C = {n_classes}: {g[at]}, "
               f"not {float(true.gradient[at]):.9g}")
    if names.relative:
        f = truth.F[dtype]
        counts = (np.abs(true.gradient) >= truth.F[stored]) & (true.softmax >= f)
        classes = case.others.get("hard_targets", case.targets)
        at_target = np.arange(n_classes) == classes.reshape(-1, 1)
        flushed = np.maximum(true.size, true.w) * n_classes * f * true.growth
        flushed = np.where(at_target, flushed[:, None], 0)
        ulps = truth.ulp_error(g, true.gradient, stored, flushed)
        most = SIXTEEN["gradient"] if rounded_to else bound("gradient", dtype)
        ulps = ulps if rounded_to else ulps / true.growth[:, None]
        worst = np.where(counts, ulps, 0).max(initial=0)
        if not worst <= most:
            yield f"gradient {float(worst):.3g} ulp > {most}"


@pytest.mark.parametrize(("loss", "kind"), KINDS)
@pytest.mark.parametrize("how", [pairs, randomly], ids=["pairs", "random"])
def test_combinations(how, loss, kind, monkeypatch):
    """Loss and gradient of every combination are within the contract's bounds, at every level.

    All levels in one test: calls and truth are the same for each, and a third of the time.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        cases = [example(combination) for combination in how(loss, kind)]
    found = []
    for level in usable_levels():
        with monkeypatch.context() as patch:
            force(level, patch)
            for case in cases:
                name = f"{level}: {case.combination}"
                try:
                    found += [f"{name}: {fault}" for fault in faults(case, level)]
                except Exception as error:
                    raise AssertionError(f"{name}: {error!r}") from error
    assert not found, f"{len(found)} of {len(cases)} and each level:\n" + "\n".join(found[:10])


# ---- the generator knows the table ---------------------------------------------------------------


def test_generator_knows_every_option():
    """An option in the table that `VALUES` lacks would go untested; so would a loss."""
    assert set(truth.LOSSES) == set(LOSSES)
    offered = {name for spec in LOSSES.values() for some in spec.options.values() for name in some}
    assert offered == set(VALUES)
    for name, values in VALUES.items():
        assert len(values) >= 2 or name == "backend", name
        assert DEFAULTS.get(name, "-") not in values, name


@pytest.mark.parametrize(("loss", "kind"), KINDS)
def test_combinations_cover_the_table(loss, kind):
    """Every pair of options, in every dtype; random ones of every option."""
    options = LOSSES[loss].options[kind]
    met = {frozenset(c.values) for c in pairs(loss, kind)}
    apart = {frozenset(pair) for pair in itertools.combinations(options, 2)} - met
    assert apart == {frozenset({"divisor", "reduction"})}
    assert {c.dtype for c in pairs(loss, kind)} == set(DTYPES)
    drawn = list(randomly(loss, kind))
    assert len(drawn) == N_RANDOM
    assert {name for c in drawn for name in c.values} == set(options)
    shapes = [example(c).logits.shape for c in drawn]
    assert {len(shape) for shape in shapes} == {1, 2, 3}
    assert any(shape[-1] > 1024 for shape in shapes)
    assert any(shape[-1] == 1 for shape in shapes)
