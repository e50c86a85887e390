"""From what a user typed to a `Problem`: every check and every error text of the road.

Whatever passes here can be computed. Nothing is copied but what cannot be read in place (a class
weight of another dtype, 16-bit or extended weights), and no output is touched.

Order of checks: logits, targets, weights, reduction, outputs. A message says what must hold, what
came, and what to do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._sums import tree_sum
from softxent.backends._contract import Call, Key, Op

if TYPE_CHECKING:
    from softxent.losses._spec import Spec

#: What an option is when it is left out; every signature says the same.
DEFAULTS: dict[str, Any] = {
    "class_weight": None, "ignore_index": -100, "label_smoothing": 0.0, "temperature": 1.0,
    "softcap": None, "z_loss": 0.0,
}

REDUCTIONS = ("none", "sum", "mean")
#: Dtypes that kernels load as they are; the rest become float32 or float64 first.
_LOADED = "bool, int8 … int64, uint8 … uint64, float32, float64"
#: Dtypes of logits.
DTYPES = ("float32", "float64", "float16", "bfloat16")
_BY_SIZE = {4: "float32", 8: "float64", 2: "float16"}
_MOST = float(np.finfo(np.float64).max)
#: What logits can be divided by: products with it stay normal numbers.
_SCALES = (2.0**-500, 2.0**500)
#: The least that XGBoost accepts as a second derivative (src/objective/multiclass_obj.cu).
_XGBOOST_LEAST = 1e-16
#: Rows whose weights are summed at a time: 512 KiB of float64.
_CHUNK = 65_536


@dataclass(slots=True)
class Problem:
    """A checked evaluation: what `_plan` chooses by, `_run` carries out.

    call
        What the kernel will see, outputs still missing.
    key
        What decides the backend.
    reduction
        "none", "sum" or "mean"; "none" for the pieces.
    divisor
        The mean's D; 1.0 otherwise.
    rows_shape
        Shape of the result under "none".
    logits
        The logits as given, and `axis`, the classes' axis of them (None: there is none, each logit
        is a row): outputs take their layout.
    out, given_out
        The caller's output of the logits' shape, as an ndarray and as it came (a subclass, a
        memmap); or None: a fresh one.
    inputs
        The caller's arrays beside the logits, by name: no output may share their memory.
    second
        The problem of the Hessian that was asked for with the gradient.
    """

    call: Call
    key: Key
    reduction: str
    divisor: float
    rows_shape: tuple[int, ...]
    logits: NDArray[np.floating]
    axis: int | None
    out: NDArray[np.floating] | None
    given_out: NDArray[np.floating] | None
    inputs: dict[str, NDArray[Any]]
    second: Problem | None = None

    @property
    def n_rows(self) -> int:
        """`Call.n_rows`."""
        return self.call.n_rows

    @property
    def n_classes(self) -> int:
        """`Call.n_classes`."""
        return self.call.n_classes


def normalise(
    spec: Spec,
    logits: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    gamma: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    divisor: float | None = None,
    wants_map: bool = False,
    out: NDArray[np.floating] | None = None,
    out_dtypes: Collection[str] = (),
    upstream: ArrayLike = 1.0,
    hessian: tuple[str, NDArray[np.floating] | None] | None = None,
    cotangent: ArrayLike | None = None,
    teacher_logits: ArrayLike | None = None,
    hard_weight: float = 0.0,
    taken: Mapping[str, NDArray[Any]] | None = None,
) -> Problem:
    """Check one call of `spec` and describe it.

    `hessian`: a rule of `hessian_rule` and `hess_out`, where the gradient's problem is to have its
    Hessian's as its `second`. `taken`: more arrays of the caller's that no output may share memory
    with.

    Raises
    ------
    TypeError, ValueError, IndexError
        As docs/errors.md lists them; nothing has been written.
    """
    z, dtype = _logits(logits, targets, spec.argument)
    last = _axis(axis, z)
    moved = classes_last(z, last)
    rows_shape = moved.shape[:-1]
    n_classes = moved.shape[-1]
    if n_classes == 0:
        raise ValueError(
            f"logits must have at least one class; axis {last} of shape {z.shape} has none"
        )
    call = Call(spec.op, moved if rows_shape else moved[np.newaxis])
    call_rows = rows_shape or (1,)

    inputs = dict(taken or {})  # what no output may share memory with
    kind = ""
    if call.has_teacher:
        kind = "logits"
        dtype = _distil(call, spec, z, dtype, last, rows_shape, teacher_logits, targets,
                        hard_weight, ignore_index, inputs)
    elif spec.targets:
        y = _targets(targets, spec.targets, z, last, rows_shape)
        inputs["targets"] = y
        kind = "classes" if y.dtype.kind in "iu" else "probabilities"
        if spec.lacks[kind]:
            _refuse(spec, kind, class_weight=class_weight, ignore_index=ignore_index,
                    label_smoothing=label_smoothing, temperature=temperature, softcap=softcap,
                    z_loss=z_loss)
        if spec.op is Op.KL:
            call.slack = 8.0 * _eps(y.dtype)
        if kind == "classes":
            call.ignore_index = _ignore_index(ignore_index, y.dtype)
            _check_range(y, n_classes, call.ignore_index)
            call.targets = y if rows_shape else y.reshape(call_rows)
        else:
            call.soft_targets = matrix(y, last)
    if cotangent is not None:
        u = _cotangent(cotangent, z)
        call.soft_targets = matrix(u, last)
        inputs["upstream"] = u
    if sample_weight is not None:
        s = _weights(sample_weight, "sample_weight", rows_shape, "one a row")
        call.sample_weight = s.reshape(call_rows) if not rows_shape else s
        inputs["sample_weight"] = s
    if class_weight is not None:
        v = _weights(class_weight, "class_weight", (n_classes,), "one a class")
        call.class_weight = np.require(v, np.float64, ["C", "A"])
        inputs["class_weight"] = v
    # What is left out, in most calls all of it, needs no check.
    if label_smoothing.__class__ is not float or label_smoothing != 0.0:
        call.smoothing = _number(label_smoothing, "label_smoothing", 0.0, 1.0)
        if call.class_weight is not None:
            most = call.class_weight.max() or 1.0
            call.class_weight_mean = tree_sum(call.class_weight / most) / n_classes * most
    if temperature.__class__ is not float or temperature != 1.0:
        call.temperature = _number(temperature, "temperature", *_SCALES)
    if softcap is not None:
        call.softcap = _number(softcap, "softcap", *_SCALES)
    if z_loss.__class__ is not float or z_loss != 0.0:
        call.z_loss = _number(z_loss, "z_loss", 0.0, _MOST)
    if gamma.__class__ is not float or gamma != 0.0:
        call.gamma = _number(gamma, "gamma", 0.0, _MOST)
    if call.has_teacher:
        _leave_out(call)

    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    given_out = None
    d = 1.0
    if divisor is not None:
        d = _divisor(divisor, reduction)
    elif reduction == "mean":
        # A class weight is of cross-entropy's share alone.
        d = divisor_of(replace(call, class_weight=None) if kind == "logits" else call)
        if d == math.inf:
            raise ValueError(
                "the mean's divisor, the sum of the weights of the rows that count, overflows "
                "float64; scale sample_weight or class_weight down, or pass a divisor"
            )
    if wants_map:
        up = _upstream(upstream, reduction, rows_shape)
        # The temperature is the chain rule's, of losses (distillation has its own). A scalar and an
        # array filled with it give the same bits.
        inverse = 1.0 / call.temperature if spec.targets and not call.has_teacher else 1.0
        if isinstance(up, float):
            call.scale = up / d * inverse if d else 0.0
        else:
            call.scale = inverse
            call.upstream = up.reshape(call_rows) if not rows_shape else up
            inputs["upstream"] = up
        given_out = out
        if out is not None:
            out = _output(out, spec.output, z, spec.argument, inputs, out_dtypes)
            if kind == "probabilities" and np.may_share_memory(out, z):
                # Logits that are overwritten cannot be had back.
                check_probabilities(call, last, z.ndim)

    key = Key(call.op, dtype, _order(call.logits), wants_map, kind, call.temperature != 1.0,
              call.has_options, given_out is not None and not np.may_share_memory(given_out, z))
    problem = Problem(call, key, reduction, d, rows_shape, z, last, out, given_out, inputs)
    if hessian is not None:
        scale, floor = hessian_rule(hessian[0], call.temperature, n_classes)
        problem.second = hessian_of(problem, scale, floor, hessian[1], "hess_out", out_dtypes)
    return problem


def _distil(call: Call, spec: Spec, z: NDArray[np.floating], dtype: str, axis: int,
            rows_shape: tuple[int, ...], teacher_logits: ArrayLike | None,
            hard_targets: ArrayLike | None, hard_weight: float,
            ignore_index: SupportsIndex | None, inputs: dict[str, NDArray[Any]]) -> str:
    """Take in a teacher's logits, and class numbers if there are; return the key's dtype."""
    u = _logits(teacher_logits, None, spec.second)[0]
    if u.shape != z.shape:
        raise ValueError(f"{spec.second} must have the logits' shape {z.shape}, got {u.shape}"
                         + ("; class numbers? pass hard_targets" if u.shape == rows_shape else ""))
    inputs[spec.second] = u
    call.soft_targets = matrix(u, axis)
    call.hard_weight = _number(hard_weight, "hard_weight", 0.0, 1.0)
    if hard_targets is not None:
        y = _targets(hard_targets, ("classes",), z, axis, rows_shape, "hard_targets")
        inputs["hard_targets"] = y
        call.ignore_index = _ignore_index(ignore_index, y.dtype)
        _check_range(y, z.shape[axis], call.ignore_index, "hard_targets")
        call.targets = y if rows_shape else y.reshape((1,))
    elif call.hard_weight > 0.0:
        raise ValueError(
            f"hard_weight {call.hard_weight:g} is the share of cross-entropy with hard_targets: "
            "pass them, class numbers of the rows' shape, or leave hard_weight at 0"
        )
    return "float64" if call.is_wide and call.hard_weight < 1.0 else dtype


def _leave_out(call: Call) -> None:
    """Make of a distillation that has one part only what that part is."""
    if call.hard_weight == 0.0:
        call.class_weight, call.smoothing = None, 0.0
    elif call.hard_weight == 1.0:
        call.op, call.soft_targets, call.temperature = Op.CROSS_ENTROPY, None, 1.0


def normalise_points(
    spec: Spec,
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    divisor: float | None = None,
    wants_map: bool = False,
    out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> Problem:
    """Check one call of `spec`, of which every logit is a row, and describe it.

    Raises
    ------
    TypeError, ValueError
        As docs/errors.md lists them; nothing has been written.
    """
    z, dtype = _logits(logits, targets, spec.argument, scalar=True)
    call = Call(spec.op, np.atleast_1d(z)[..., np.newaxis])
    rows_shape = call.logits.shape[:-1]
    y = _plain(targets, "targets")
    if y.size == 0 and not isinstance(targets, np.ndarray):
        y = y.astype(np.intp)
    if y.dtype.kind not in "biuf" and not dtype_name(y.dtype):
        raise TypeError(f"targets must be real numbers or bool, got dtype {y.dtype}; pass numbers "
                        "within [0, 1]")
    if y.shape != z.shape:
        raise ValueError(
            f"targets must have the logits' shape {z.shape}, one for each logit; got {y.shape}; "
            "class numbers for rows of logits? use cross_entropy"
        )
    inputs = {"targets": y}
    call.soft_targets = y.reshape(call.logits.shape) if y.ndim == 0 else y[..., np.newaxis]
    d = float(z.size)
    if pos_weight is not None:
        v = _weights(pos_weight, "pos_weight", None, "")
        call.pos_weight = _broadcast(v, "pos_weight", z.shape).reshape(rows_shape)
        inputs["pos_weight"] = v
    if sample_weight is not None:
        s = _weights(sample_weight, "sample_weight", None, "")
        call.sample_weight = _broadcast(s, "sample_weight", z.shape).reshape(rows_shape)
        inputs["sample_weight"] = s
        # Each of its numbers stands for as many logits as any other.
        d = _sum(s) * (z.size / s.size) if z.size else 0.0
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    call.summed = reduction != "none"
    if divisor is not None:
        d = _divisor(divisor, reduction)
    elif reduction != "mean":
        d = 1.0
    elif d == math.inf:
        raise ValueError(
            "the mean's divisor, the sum of the weights, overflows float64; scale sample_weight "
            "down, or pass a divisor"
        )
    given_out = None
    if wants_map:
        up = _upstream(upstream, reduction, z.shape)
        if isinstance(up, float):
            call.scale = up / d if d else 0.0
        else:
            call.upstream = up.reshape(rows_shape)
            inputs["upstream"] = up
        given_out = out
        if out is not None:
            out = _output(out, spec.output, z, spec.argument, inputs)
            if np.may_share_memory(out, z):
                # Logits that are overwritten cannot be had back.
                check_shares(call, z.ndim)
    key = Key(spec.op, dtype, _order(call.logits), wants_map, "probabilities")
    return Problem(call, key, reduction, d, z.shape, z, None, out, given_out, inputs)


def block_of_classes(
    logits: ArrayLike, targets: ArrayLike, axis: SupportsIndex, class_offset: SupportsIndex,
    class_weight: ArrayLike | None, ignore_index: SupportsIndex | None,
) -> tuple[NDArray[np.floating], int, NDArray[np.integer], NDArray[np.bool_], int,
           NDArray[np.float64] | None]:
    """Check a block of logits with targets among all classes.

    Returns
    -------
    logits, axis, targets
        As arrays, the axis not negative.
    counts
        Which rows are not ignored.
    class_offset, class_weight
        The offset as an int, the weights as float64.
    """
    z, _ = _logits(logits, targets, "logits")
    last = _axis(axis, z)
    rows_shape = z.shape[:last] + z.shape[last + 1 :]
    if z.shape[last] == 0:
        raise ValueError(f"a block must have at least one class; axis {last} of {z.shape} has none")
    y = _targets(targets, ("classes",), z, last, rows_shape)
    ignored = _ignore_index(ignore_index, y.dtype)
    counts = np.ones(y.shape, bool) if ignored is None else y != ignored
    bad = (y < 0) & counts
    if bad.any():
        at = np.unravel_index(int(np.argmax(bad)), y.shape)
        where = f"[{', '.join(map(str, at))}]" if at else ""
        raise IndexError(f"targets{where} = {y[at]} is no class number: those among all classes "
                         f"are >= 0; padding? pass ignore_index={y[at]}")
    try:
        offset = operator.index(class_offset)
    except TypeError:
        raise TypeError(
            f"class_offset must be an integer, got {type(class_offset).__name__}") from None
    if offset < 0:
        raise ValueError(f"class_offset must be >= 0, the number of the block's first class; got "
                         f"{offset}")
    v = None
    if class_weight is not None:
        v = _weights(class_weight, "class_weight", (z.shape[last],), "one a class of the block")
        v = v.astype(np.float64)
    return z, last, y, counts, offset, v


def hessian_rule(hessian: str, temperature: float, n_classes: int) -> tuple[float, float]:
    """Return what multiplies A p (1 - p), and the least a Hessian of a row that counts may be.

    Of "xgboost-residual", what multiplies the gradient's amount.
    """
    scale = 1.0 / temperature / temperature
    if hessian == "diagonal":
        return scale, 0.0
    if hessian == "xgboost":
        return 2.0 * scale, _XGBOOST_LEAST
    if hessian == "xgboost-residual":
        return 1.0 / temperature, _XGBOOST_LEAST
    if hessian == "lightgbm":
        if n_classes < 2:
            raise ValueError("hessian='lightgbm' has the factor C / (C - 1): two classes or more")
        return n_classes / (n_classes - 1.0) * scale, 0.0
    raise ValueError("hessian must be one of 'diagonal', 'xgboost', 'xgboost-residual', "
                     f"'lightgbm', got {hessian!r}")


def hessian_of(problem: Problem, scale: float, floor: float,
               out: NDArray[np.floating] | None, name: str, dtypes: Collection[str]) -> Problem:
    """Return the problem of the Hessian that goes with a gradient's, into `out`."""
    call = problem.call
    given_out = out
    if out is not None:
        taken = {} if problem.out is None else {"grad_out": problem.out}
        out = _output(out, name, problem.logits, "logits", {**problem.inputs, **taken}, dtypes)
        if np.may_share_memory(out, problem.logits):
            check_soft_targets(problem)
    second = replace(call, op=Op.HESSIAN, scale=scale, floor=floor, upstream=None)
    return replace(problem, call=second, out=out, given_out=given_out,
                   key=problem.key._replace(op=Op.HESSIAN, apart=False))


def rows_output(problem: Problem, out: NDArray[np.floating] | None, name: str,
                others: dict[str, NDArray[Any] | None]) -> NDArray[np.floating] | None:
    """Check an output of the rows' shape, which shares memory with nothing."""
    if out is None:
        return None
    if np.ma.isMaskedArray(out) or not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array to write into, got {type(out).__name__}")
    into = np.asarray(out)
    if into.shape != problem.rows_shape:
        raise ValueError(
            f"{name} must have the rows' shape {problem.rows_shape}, got {into.shape}")
    if into.dtype.kind != "f" or not dtype_name(into.dtype):
        raise ValueError(f"{name} must be float32 or float64, got {into.dtype}")
    _check_room(into, name)
    for other, array in {"logits": problem.logits, **problem.inputs, **others}.items():
        if array is not None and _share(into, array):
            raise ValueError(f"{name} shares memory with {other}; pass an array of its own")
    return into


def _broadcast(weights: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a view of weights in the logits' shape."""
    try:
        return np.broadcast_to(weights, shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the logits' shape {shape}, got {weights.shape}"
        ) from None


def check_shares(call: Call, ndim: int) -> None:
    """Raise for the first target of a logit that counts that is not within [0, 1]."""
    t = call.soft_targets
    assert t is not None
    rows = t.shape[:-1]
    n = math.prod(rows)
    # Most often all are; a NaN is least and most.
    if n == 0 or (t.min() >= 0 and t.max() <= 1):
        return
    few = _CHUNK // 16  # whose indices are larger than themselves
    for start in range(0, n, few):
        at = np.unravel_index(np.arange(start, min(start + few, n)), rows)
        block = t[(*at, 0)]
        bad = ~((block >= 0) & (block <= 1))
        if call.sample_weight is not None:
            bad &= call.sample_weight[at] != 0
        if bad.any():
            first = int(np.argmax(bad))
            where = [int(i[first]) for i in at][:ndim]
            raise ValueError(
                f"targets must be within [0, 1], got targets{where} = {block[first]}; class "
                "numbers of several classes? use cross_entropy"
            )


def check_soft_targets(problem: Problem) -> None:
    """Raise for the first value of probability targets that must not be."""
    if problem.key.targets != "probabilities":
        return
    if problem.axis is None:
        check_shares(problem.call, problem.logits.ndim)
    else:
        check_probabilities(problem.call, problem.axis, problem.logits.ndim)


def classes_last(array: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Return a view of `array` with the classes' axis (not negative; None: a new one) last."""
    if axis is None:
        return array[..., np.newaxis]
    return array if axis == array.ndim - 1 else np.moveaxis(array, axis, -1)


def matrix(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return a view with classes last and at least one axis of rows."""
    moved = classes_last(array, axis)
    return moved if moved.ndim > 1 else moved[np.newaxis]


def rows_that_count(call: Call) -> NDArray[np.bool_]:
    """Return which rows have a loss: not ignored, and not of weight 0."""
    counts = np.ones(call.logits.shape[:-1], bool)
    if call.sample_weight is not None:
        counts &= call.sample_weight != 0
    if call.targets is not None:
        if call.ignore_index is not None:
            counts &= call.targets != call.ignore_index
        if call.class_weight is not None and not call.smoothing and not call.z_loss:
            counts &= call.class_weight[np.where(counts, call.targets, 0).astype(np.intp)] != 0.0
    return counts


def divisor_of(call: Call) -> float:
    """Return D of `call`: the weights s·v[target] of the rows that count, summed.

    Without weights it is the number of rows whose target is not `ignore_index`. Probabilities have
    no class to take a weight of: the sum of s.
    """
    y = call.targets
    if y is None:
        return float(call.n_rows) if call.sample_weight is None else _sum(call.sample_weight)
    if call.sample_weight is None and call.class_weight is None:
        if call.ignore_index is None:
            return float(y.size)
        return float(y.size - np.count_nonzero(y == call.ignore_index))
    flat = y.reshape(-1)
    s = None if call.sample_weight is None else call.sample_weight.reshape(-1)
    parts = np.empty(-(-flat.size // _CHUNK))
    for i in range(parts.size):
        chunk = flat[i * _CHUNK : (i + 1) * _CHUNK]
        counts = np.ones(chunk.shape, bool) if call.ignore_index is None else (
            chunk != call.ignore_index)
        if s is None:
            weight = counts.astype(np.float64)
        else:
            weight = np.where(counts, s[i * _CHUNK : (i + 1) * _CHUNK], 0.0).astype(np.float64)
        if call.class_weight is not None:
            with np.errstate(over="ignore"):  # the sum is judged, not its terms
                weight *= call.class_weight[np.where(counts, chunk, 0).astype(np.intp)]
        parts[i] = tree_sum(weight)
    return tree_sum(parts)


def targets_divisor(
    targets: ArrayLike, class_weight: ArrayLike | None, sample_weight: ArrayLike | None,
    ignore_index: SupportsIndex | None,
) -> float:
    """Check what makes up a mean's divisor, without logits, and return it."""
    y = _plain(targets, "targets")
    if y.size == 0 and not isinstance(targets, np.ndarray):
        y = y.astype(np.intp)
    if y.dtype.kind not in "iu":
        raise TypeError(
            f"targets must be integers, got dtype {y.dtype}; the divisor of probability targets is "
            "the sum of sample_weight, without it the number of rows"
        )
    v = None if class_weight is None else _reals(class_weight, "class_weight")
    if v is not None:
        v = _weights(v, "class_weight", v.shape[:1] or (1,), "one a class").astype(np.float64)
    s = None if sample_weight is None else _weights(
        sample_weight, "sample_weight", y.shape, "one a target")
    ignored = _ignore_index(ignore_index, y.dtype)
    if v is not None:
        _check_range(y, len(v), ignored)
    # No logits: a single zero stands for them.
    zeros = np.broadcast_to(np.float32(0), (*(y.shape or (1,)), 1))
    y = y.reshape(zeros.shape[:-1])
    s = s if s is None else s.reshape(y.shape)
    return divisor_of(Call(Op.CROSS_ENTROPY, zeros, y, ignored, s, v))


def _sum(array: NDArray[Any]) -> float:
    flat = array.reshape(-1)
    chunks = (flat[i : i + _CHUNK].astype(np.float64) for i in range(0, flat.size, _CHUNK))
    return tree_sum(np.array([tree_sum(chunk) for chunk in chunks]))


# ---- logits --------------------------------------------------------------------------------------


def _plain(array: ArrayLike | None, name: str) -> NDArray[Any]:
    """Return `array` as a base-class ndarray: a view where it is an array."""
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise TypeError(
                f"{name} must not be a masked array with a mask set: masks would be lost; mark "
                "rows with ignore_index or sample_weight=0, classes with -inf logits"
            )
        array = array.data
    try:
        return np.asarray(array)
    except ValueError as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error


def _logits(
    logits: ArrayLike | None, targets: ArrayLike | None, argument: str, *, scalar: bool = False
) -> tuple[NDArray[np.floating], str]:
    """Return the logits as an array, and the name of their dtype."""
    z = _plain(logits, argument)
    name = dtype_name(z.dtype)
    if not name:
        cure = f"convert them with {argument}.astype(numpy.float32)"
        if z.dtype.kind in "iub" and getattr(targets, "ndim", 0) == z.ndim + 1:
            cure = "are logits and targets swapped? logits come first"
        elif z.dtype.kind in "iub" and targets is not None:
            cure += "; class numbers are targets, the second argument"
        raise TypeError(f"{argument} must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got "
                        f"{z.dtype}; {cure}")
    if z.ndim == 0 and not scalar:
        raise ValueError(
            f"{argument} must have a class axis: shape (C,) for one row, (N, C) for N; got a scalar"
        )
    return z, name


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype that logits may have, in any byte order; "" of any other."""
    if dtype.kind == "f":
        return _BY_SIZE.get(dtype.itemsize, "")
    # ml_dtypes' type: no NumPy kind of its own, and nothing to import here.
    return "bfloat16" if dtype.kind == "V" and dtype.name == "bfloat16" else ""


def _axis(axis: SupportsIndex, z: NDArray[np.floating]) -> int:
    try:
        last = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {type(axis).__name__}") from None
    if not -z.ndim <= last < z.ndim:
        raise ValueError(f"axis {last} is out of range for logits of shape {z.shape}")
    return last % z.ndim


def _order(moved: NDArray[np.floating]) -> str:
    flags = moved.flags
    if not flags.aligned or not moved.dtype.isnative:
        return "strided"
    if flags.c_contiguous or moved.strides[-1] == moved.itemsize or moved.shape[-1] == 1:
        return "C"
    rows = [stride for stride, length in zip(moved.strides, moved.shape, strict=True)
            if length != 1][:-1]
    return "F" if rows and min(rows) == moved.itemsize else "strided"


# ---- targets -------------------------------------------------------------------------------------


def _targets(targets: ArrayLike | None, kinds: tuple[str, ...], z: NDArray[np.floating], axis: int,
             rows_shape: tuple[int, ...], name: str = "targets") -> NDArray[Any]:
    """Return class numbers of the rows' shape, or probabilities of the logits', as `kinds` says."""
    y = _plain(targets, name) if targets is not None else np.empty(0, object)
    if y.size == 0 and not isinstance(targets, np.ndarray) and targets is not None:
        y = y.astype(np.intp)  # an empty list has no dtype of its own
    kind = y.dtype.kind
    floats = kind == "f" or dtype_name(y.dtype) == "bfloat16"
    soft = "probabilities" in kinds
    if "classes" not in kinds and not floats:
        cure = "class numbers have no entropy: use cross_entropy"
        if y.shape == z.shape and kind in "biu":
            cure = "pass targets.astype(logits.dtype)"
        raise TypeError(f"targets must be probabilities, floats of the logits' shape {z.shape}, "
                        f"got dtype {y.dtype} of shape {y.shape}; {cure}")
    if kind in "iu" and y.shape == rows_shape:
        return y
    if "classes" in kinds and kind not in "iu" and not (
            floats and soft and y.shape != rows_shape):
        cure = "pass an array of integer class numbers 0 … C-1"
        if floats:
            cure = f"class numbers are integers: pass {name}.astype(numpy.intp)"
            if soft:
                cure += f"; probabilities have the logits' shape {z.shape}"
            elif y.shape == z.shape:
                cure = f"for one-hot rows pass {name}.argmax(axis={axis})"
        elif kind == "b":
            cure = f"for two classes pass {name}.astype(numpy.intp)"
            if y.shape == z.shape:
                cure = f"for one-hot rows pass {name}.argmax(axis={axis})"
        raise TypeError(f"{name} must be integers{' (or probabilities)' if soft else ''}, got "
                        f"dtype {y.dtype} of shape {y.shape}; {cure}")
    if floats and y.shape == z.shape:
        return y
    if floats:
        raise ValueError(
            f"probability targets must have the logits' shape {z.shape}, got {y.shape}"
            + (f"; class numbers are integers of shape {rows_shape}"
               if "classes" in kinds else "")
        )
    if y.shape == z.shape:
        cure = f"pass {name}.argmax(axis={axis})"
        if soft:
            cure += ", or targets.astype(logits.dtype) for probabilities"
        raise ValueError(
            f"integer {name} must be class numbers of shape {rows_shape}, got the logits' own "
            f"shape {y.shape}: one-hot rows? {cure}"
        )
    message = (f"{name} must have the logits' shape without axis {axis}: logits {z.shape} need "
               f"{name} of shape {rows_shape}, got {y.shape}")
    fitting = [other for other in range(z.ndim)
               if z.shape[:other] + z.shape[other + 1 :] == y.shape]
    if fitting:
        message += f"; is axis {fitting[0]} the classes'? pass axis={fitting[0]}"
    elif y.size == math.prod(rows_shape):
        message += f"; pass {name}.reshape({rows_shape})"
    raise ValueError(message)


def _eps(dtype: np.dtype[Any]) -> float:
    """Return the spacing of floats at 1, in float64."""
    return 2.0**-7 if dtype.kind == "V" else float(np.finfo(dtype).eps)


def _refuse(spec: Spec, kind: str, **given: Any) -> None:
    """Raise for an option that `spec` does not have with this kind of targets."""
    for name in spec.lacks[kind]:
        value, default = given[name], DEFAULTS[name]
        if value is default:
            continue
        if np.ndim(value) == 0 and default is not None and value == default:
            continue
        raise TypeError(
            f"{spec.name} with {kind} as targets has no {name}: leave it out (or pass "
            f"{default!r}), got {value!r}"
        )


def check_probabilities(call: Call, axis: int, ndim: int) -> None:
    """Raise for the first probability target of a row that counts that is not >= 0 and finite.

    `axis` is the classes' of `ndim` axes, as the targets were given. Reads a block at a time.
    """
    t = call.soft_targets
    assert t is not None
    rows = t.shape[:-1]
    step = max(1, _CHUNK // t.shape[-1])
    for start in range(0, call.n_rows, step):
        at = np.unravel_index(np.arange(start, min(start + step, call.n_rows)), rows)
        for first in range(0, t.shape[-1], _CHUNK):
            where_in_t: tuple[Any, ...] = (*at, slice(first, first + _CHUNK))
            block = t[where_in_t]
            bad = ~((block >= 0) & (block < np.inf))
            if call.sample_weight is not None:
                bad &= (call.sample_weight[at] != 0)[:, None]
            if bad.any():
                row, column = np.unravel_index(int(np.argmax(bad)), bad.shape)
                where = [int(i[row]) for i in at][: ndim - 1]  # one row has no axis of rows
                where.insert(axis, int(column) + first)
                raise ValueError(
                    f"probability targets must be finite and >= 0, got targets{where} = "
                    f"{block[row, column]}; logits or log-probabilities? pass their softmax"
                )


def _ignore_index(ignore_index: SupportsIndex | None, dtype: np.dtype[Any]) -> int | None:
    if ignore_index is None:
        return None
    try:
        number = operator.index(ignore_index)
    except TypeError:
        raise TypeError(
            "ignore_index must be an integer, or None to ignore no row; got "
            f"{type(ignore_index).__name__}"
        ) from None
    # No target of this dtype can be equal to what it cannot hold.
    limits = np.iinfo(dtype)
    return number if limits.min <= number <= limits.max else None


def _check_range(y: NDArray[np.integer], n_classes: int, ignore_index: int | None,
                 name: str = "targets") -> None:
    if y.size == 0 or (y.min() >= 0 and y.max() < n_classes):
        return
    bad = (y < 0) | (y >= n_classes)
    if ignore_index is not None:
        bad &= y != ignore_index
    first = int(np.argmax(bad))
    at = np.unravel_index(first, y.shape)
    if not bad[at]:
        return
    value = int(y[at])
    where = f"[{', '.join(map(str, at))}]" if at else ""
    advice = ["labels that start at 1? subtract 1"] if value == n_classes else []
    advice.append(f"padding? pass ignore_index={value}")
    raise IndexError(
        f"{name}{where} = {value} is out of range for {n_classes} classes (0…{n_classes - 1}); "
        + "; ".join(advice)
    )


# ---- weights, reduction, divisor, upstream -------------------------------------------------------


def _reals(array: ArrayLike, name: str) -> NDArray[Any]:
    """Return real numbers that kernels can load, without a copy where they already can."""
    a = _plain(array, name)
    if a.dtype.kind in "biu" or (a.dtype.kind == "f" and a.dtype.itemsize in (4, 8)):
        return a
    if a.dtype.itemsize == 2 and dtype_name(a.dtype):
        return a.astype(np.float32)
    if a.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite
            return a.astype(np.float64)
    raise TypeError(f"{name} must be real numbers ({_LOADED}), got dtype {a.dtype}")


def _cotangent(array: ArrayLike, z: NDArray[np.floating]) -> NDArray[Any]:
    u = _plain(array, "upstream")
    if u.dtype.kind not in "biuf" and not dtype_name(u.dtype):
        raise TypeError(f"upstream must be real numbers, got dtype {u.dtype}")
    if u.shape != z.shape:
        raise ValueError(f"upstream must have the probabilities' shape {z.shape}, got {u.shape}")
    return u


def _number(value: Any, name: str, least: float, most: float) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not least <= number <= most:
        if (least, most) == _SCALES:
            wanted = "> 0 and finite (2**-500 … 2**500)"
            if name == "softcap":
                wanted += ", or None for no cap"
        elif most == _MOST:
            wanted = ">= 0 and finite"
        else:
            wanted = f"within [{least:g}, {most:g}]"
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def _weights(
    array: ArrayLike, name: str, shape: tuple[int, ...] | None, meaning: str
) -> NDArray[Any]:
    """Return weights of a shape (None: any), once their values are checked."""
    w = _reals(array, name)
    if shape is not None and w.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, {meaning}; got {w.shape}")
    # A NaN makes both comparisons false.
    if w.size == 0 or (w.min() >= 0 and w.max() < np.inf):
        return w
    bad = ~((w >= 0) & (w < np.inf))
    at = np.unravel_index(int(np.argmax(bad)), w.shape)
    where = f"[{', '.join(map(str, at))}]" if at else ""
    raise ValueError(
        f"{name} must be finite and >= 0, got {name}{where} = {w[at]}; a row or class that is "
        "not to count has weight 0"
    )


def _divisor(divisor: Any, reduction: str) -> float:
    if reduction != "mean":
        raise ValueError(
            f"divisor replaces the mean's: it goes with reduction='mean', got {reduction!r}"
        )
    if not hasattr(divisor, "__float__") and not hasattr(divisor, "__index__"):
        raise TypeError(f"divisor must be a number, got {type(divisor).__name__}")
    try:
        d = float(divisor)
    except OverflowError:
        d = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"divisor must be one number, got {divisor!r}") from None
    if not 0.0 <= d < math.inf:
        raise ValueError(
            f"divisor must be finite and > 0, or 0 (loss and gradient are then 0); got {d}"
        )
    return d


def _upstream(
    upstream: Any, reduction: str, rows_shape: tuple[int, ...]
) -> float | NDArray[Any]:
    if isinstance(upstream, (float, int)):
        try:
            return float(upstream)
        except OverflowError:
            return math.copysign(math.inf, upstream)
    u = _reals(upstream, "upstream")
    if u.ndim == 0:
        return float(u)
    if reduction != "none" or u.shape != rows_shape:
        wanted = f"a scalar or of shape {rows_shape}" if reduction == "none" else "a scalar"
        raise ValueError(
            f"upstream must be {wanted} with reduction={reduction!r}, got shape {u.shape}"
        )
    return u


# ---- outputs -------------------------------------------------------------------------------------


def _output(out: NDArray[np.floating], name: str, z: NDArray[np.floating], argument: str,
            inputs: dict[str, NDArray[Any]], dtypes: Collection[str] = (),
            ) -> NDArray[np.floating]:
    """Return an output of the logits' shape; `dtypes`: those it may have beside the usual."""
    if np.ma.isMaskedArray(out) or not isinstance(out, np.ndarray):
        raise TypeError(
            f"{name} must be a NumPy array to write into, got {type(out).__name__}"
        )
    into = np.asarray(out)
    if into.shape != z.shape:
        raise ValueError(f"{name} must have the {argument}' shape {z.shape}, got {into.shape}")
    own = dtype_name(z.dtype)
    others = dict.fromkeys(("float32",) * (z.itemsize == 2) + tuple(dtypes))
    if dtype_name(into.dtype) not in {own, *others}:
        choice = " or ".join(["", *(other for other in others if other != own)])
        raise ValueError(
            f"{name} must have the {argument}' dtype {z.dtype}{choice}, got {into.dtype}")
    _check_room(into, name)
    if _share(into, z) and not _same_memory(into, z):
        raise ValueError(
            f"{name} shares memory with {argument} but is not the same array; pass "
            f"{name}={argument} to overwrite them in place, or an array of its own"
        )
    for other, array in inputs.items():
        if _share(into, array):
            raise ValueError(f"{name} shares memory with {other}; pass an array of its own")
    return into


def _check_room(into: NDArray[Any], name: str) -> None:
    if not into.flags.writeable:
        raise ValueError(f"{name} is read-only; pass a writeable array or leave it out")
    if _overlaps_itself(into):
        raise ValueError(
            f"{name} must not overlap itself, but strides {into.strides} of shape {into.shape} "
            "reach some elements twice; pass a copy"
        )


def _same_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether arrays of one shape have the same elements at the same places."""
    if a is b:
        return True
    steps = [(s, t) for s, t, length in zip(a.strides, b.strides, a.shape, strict=True)
             if length > 1]
    return (a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
            and all(s == t for s, t in steps) and a.dtype == b.dtype)


def _share(a: NDArray[Any], b: NDArray[Any]) -> bool:
    # Exact for any layout that slicing makes; where the question is too hard, bounds decide.
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(a: NDArray[Any]) -> bool:
    if a.flags.c_contiguous or a.flags.f_contiguous:
        return False
    # Whatever slices and transposes give is nested: each axis steps over all the smaller ones.
    reach = a.itemsize
    for stride, length in sorted(zip(map(abs, a.strides), a.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return True
            reach += stride * (length - 1)
    return a.size > 1 and reach < a.size * a.itemsize
