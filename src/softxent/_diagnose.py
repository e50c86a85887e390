"""`diagnose`: classic mistakes with logits and targets, found and put into words.

Everything here is a guess about what somebody meant, so each guess has to be safe: the comments
bound the chance that ordinary input sets it off. Plain NumPy on a sample, in float64; the checks of
the road itself (`normalise`) say what `cross_entropy` would refuse.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import classes_last, dtype_name, normalise
from softxent.losses.cross_entropy import SPEC
from softxent.pieces import LOGSUMEXP

#: What is read at most: elements, and rows.
_ELEMENTS = 1 << 22
_ROWS = 1 << 18
#: Elements that are converted to float64 at a time: 2 MiB.
_BLOCK = 1 << 18

#: Ordinary input may look like probabilities or log-probabilities with this chance at most.
_FORM = 1e-5
#: The same for a wrong axis and for shifted labels.
_FIT = 1e-6
#: The same for padding and for a class that never comes.
_TARGETS = 1e-9
#: A hit rate as good as this one's chance is no evidence that the targets fit as they are.
_NO_FIT = 1e-3
#: Nobody's logits are so far apart, masks (-1e4 in float16, -1e9, the smallest number) are.
_MASK = 1e4


def diagnose(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    ignore_index: SupportsIndex | None = -100,
) -> list[str]:
    r"""Say in plain sentences what looks wrong with logits and targets.

    For the first batch of a new program, or when a model does not learn. Finds: probabilities,
    log-probabilities or sigmoid outputs in place of logits; classes on another axis; padding that
    is not ignored; labels that start at 1; one-hot, multi-hot and float targets; swapped arguments;
    NaN, infinite and masked-out values; targets that are all ignored; whatever else `cross_entropy`
    would refuse.

    Parameters
    ----------
    logits : array of shape (..., C, ...)
        What goes to `cross_entropy` as its first argument; any strides and byte order. Rows that
        are ignored are not looked at.
    targets : array
        What goes to it as its second: class numbers of the logits' shape without `axis`, or
        probabilities of the logits' shape; or what was taken for them by mistake.
    axis : int, default -1
        The classes' axis.
    ignore_index : int or None, default -100
        Rows with this class number do not count.

    Returns
    -------
    list of str
        One sentence a finding: what was seen, what is probably wrong, what to do. Empty when
        nothing looks wrong.

    Raises
    ------
    TypeError
        An argument that is no array of real numbers (strings, objects, complex numbers, a mask
        that is set), as `cross_entropy`; an `axis` or `ignore_index` that is no integer.
    ValueError
        Logits that are a scalar or have no class, an `axis` that they do not have.

    See Also
    --------
    cross_entropy : refuses what cannot be computed, and computes the rest without a guess.

    Notes
    -----
    What cannot be decided is not reported: a finding needs as many rows as make an accident
    unlikely (chances of 1e-5 and less). A single row can be told to be probabilities, or
    log-probabilities, in float32 and float64 only, and of few classes; a wrong axis and shifted
    labels need a model that is better than chance.

    Reads at most 4 million logits, or one row where that is longer: up to 262,144 rows, evenly
    spaced. Counts in a sentence are of the rows read. The range of class numbers is checked for all
    of them. Memory: up to 64 MiB, 40 B a class, and 8 B a target that is not an integer.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.random.default_rng(0).normal(size=(64, 10))
    >>> targets = logits.argmax(axis=1)
    >>> sx.diagnose(logits, targets)
    []
    >>> [sentence] = sx.diagnose(sx.softmax(logits), targets)
    >>> print(sentence.replace("; ", ";\n"))
    every row of the logits sums to 1 and lies in [0, 1]: they look like probabilities;
    pass the logits themselves (before the softmax)
    """
    if ignore_index is not None:
        try:
            ignore_index = operator.index(ignore_index)
        except TypeError:
            raise TypeError(
                f"ignore_index must be an integer or None, got {type(ignore_index).__name__}"
            ) from None
    z, y = _readable(logits), _readable(targets)
    if z is None or y is None:
        normalise(SPEC, logits, targets, axis=axis, ignore_index=ignore_index)
        raise TypeError("logits and targets must be arrays of real numbers")
    if _swapped(z, y):
        return [
            f"logits of shape {z.shape} and dtype {z.dtype}, targets of shape {y.shape} and dtype "
            f"{y.dtype}: the arguments look swapped; logits come first"
        ]
    # The shape is judged apart from the dtype and the values.
    stand_in = np.broadcast_to(np.float32(0), z.shape)
    classes = normalise(LOGSUMEXP, stand_in, axis=axis).axis
    assert classes is not None
    found = []
    if not dtype_name(z.dtype):
        found.append(
            f"logits are {z.dtype}, which cross_entropy refuses: scores before the softmax are "
            "floats; convert them with logits.astype(numpy.float32), or pass the model's output "
            "itself if these are class numbers or one-hot rows"
        )
    sentences, y, classes = _targets(stand_in, y, classes, ignore_index)
    found += sentences
    if z.size == 0:
        return found

    moved = classes_last(z, classes)
    n_classes = moved.shape[-1]
    if n_classes == 1:
        found.append(
            "logits have a single class: its probability is always 1 and the loss always 0; one "
            "logit a row is for the sigmoid's binary cross-entropy, two classes need two logits"
        )
    at = _spread(math.prod(moved.shape[:-1]), min(_ROWS, max(1, _ELEMENTS // n_classes)))
    hard = None
    if y is not None and y.shape == z.shape:
        if y.dtype.kind in "iub":
            sentences, hard = _one_hot(classes_last(y, classes), at)
        else:
            sentences = _probabilities(y, classes, at)
        found += sentences
    elif y is not None:
        hard = y.flat[at]
        counting = math.prod(y.shape) if ignore_index is None else _count(y, ignore_index)
        if counting == 0:
            found.append(
                f"every target is ignore_index ({ignore_index}): no row counts, and loss and "
                "gradient are 0; check how targets are masked"
            )
        found += _padding(y, n_classes, ignore_index)
        if ignore_index is not None:
            at, hard = at[hard != ignore_index], hard[hard != ignore_index]
    if len(at) == 0:
        return found
    rows = _read(moved, at, hard)
    found += _values(rows, moved.shape[:-1])
    if n_classes > 1:
        found += _form(rows)
        if hard is not None:
            found += _fit(z, y, classes, rows, ignore_index)
    return found


def _readable(array: Any) -> NDArray[Any] | None:
    """Return `array` as an ndarray of real numbers, or None."""
    if np.ma.is_masked(array):
        return None
    try:
        a = np.asarray(array)
    except ValueError:  # ragged lists
        return None
    if a.size == 0 and not isinstance(array, np.ndarray):
        return a.astype(np.intp)  # an empty list has no dtype of its own
    return a if a.dtype.kind in "biuf" or dtype_name(a.dtype) else None


def _swapped(z: NDArray[Any], y: NDArray[Any]) -> bool:
    """Whether `z` would fit as the targets of `y`, and not the other way round."""
    if z.dtype.kind not in "iub" and y.dtype.kind in "iub":
        return False
    return any(y.shape[:k] + y.shape[k + 1 :] == z.shape for k in range(y.ndim))


def _spread(n: int, most: int) -> NDArray[np.intp]:
    """Return `most` of n row numbers, evenly spaced; all of them if there are not more."""
    if n <= most:
        return np.arange(n)
    return np.linspace(0, n - 1, most).astype(np.intp)


def _place(number: int, shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(int(i)) for i in np.unravel_index(number, shape))}]"


def _rows_that(bad: NDArray[np.bool_], what: str, singular: str, plural: str) -> str:
    """Return "every row of the logits holds", or "3 of 64 rows of the logits hold"."""
    count, total = int(np.count_nonzero(bad)), bad.size
    verb = plural if 1 < count < total else singular
    if count == total:
        return f"{'every' if total > 1 else 'the only'} row of the {what} {verb}"
    return f"{count:,} of {total:,} rows of the {what} {verb}"


def _take(moved: NDArray[Any], at: NDArray[np.intp]) -> NDArray[Any]:
    """Return a copy of the rows `at`, numbered in C order, of an array with classes last."""
    if moved.ndim == 1:
        moved = moved[np.newaxis]
    rows: NDArray[Any] = moved[np.unravel_index(at, moved.shape[:-1])]
    return rows


def _tail(n: int, hits: float, p: float) -> float:
    """Bound the chance of `hits` or more in n independent trials of chance p (Chernoff)."""
    share = hits / n if n else 0.0
    if share <= p:
        return 1.0
    if p <= 0.0:
        return 0.0
    divergence = share * math.log(share / p)
    if share < 1.0:
        divergence += (1.0 - share) * math.log((1.0 - share) / (1.0 - p))
    return math.exp(-n * divergence)


# ---- what cross_entropy would refuse -------------------------------------------------------------


def _targets(
    stand_in: NDArray[np.float32], y: NDArray[Any], axis: int, ignore_index: int | None
) -> tuple[list[str], NDArray[Any] | None, int]:
    """Return findings, and the targets and the axis as they were probably meant.

    The targets are class numbers of the rows' shape, or of the logits' shape (integers: one-hot
    rows); None if they cannot be made sense of.
    """
    shape = stand_in.shape
    rows_shape = shape[:axis] + shape[axis + 1 :]
    try:
        normalise(SPEC, stand_in, y, axis=axis, ignore_index=ignore_index)
        return [], y, axis
    except IndexError:
        return [_out_of_range(y, shape, axis, ignore_index)], y, axis
    except (TypeError, ValueError) as error:
        name = type(error).__name__
        sentence = f"cross_entropy would raise {name}: {error}"
    if y.shape == shape:
        # One-hot and multi-hot rows are told apart where they are read.
        return ([] if y.dtype.kind in "iub" else [sentence]), y, axis
    fitting = [k for k in range(len(shape)) if shape[:k] + shape[k + 1 :] == y.shape]
    if not fitting and math.prod(y.shape) == math.prod(rows_shape):
        y, fitting = y.reshape(rows_shape), [axis]
    if len(fitting) != 1 and axis not in fitting:
        return [sentence], None, axis
    axis = axis if axis in fitting else fitting[0]
    if y.dtype.kind not in "iub":
        if y.size and not _whole(y):
            return [
                f"{sentence}; these are not whole numbers: a squared error's targets? "
                "cross-entropy needs the class of each row"
            ], None, axis
        y = y.astype(np.int64)
    elif y.dtype.kind == "b":
        y = y.astype(np.int8)
    # What was wrong with the form may have hidden what is wrong with the range.
    further = _out_of_range(y, shape, axis, ignore_index)
    return [sentence, further] if further else [sentence], y, axis


def _whole(y: NDArray[Any]) -> bool:
    for start in range(0, y.size, _BLOCK):
        block = y.flat[start : start + _BLOCK].astype(np.float64)
        if not (np.isfinite(block) & (block == np.round(block)) & (abs(block) < 2.0**62)).all():
            return False
    return True


def _out_of_range(
    y: NDArray[Any], shape: tuple[int, ...], axis: int, ignore_index: int | None
) -> str:
    """Return what the class numbers outside [0, C) look like; "" if there are none."""
    n_classes = shape[axis]
    count = 0
    values: set[int] = set()  # all of them while they are few, then the least and the largest
    least = None
    for start in range(0, y.size, _BLOCK):
        block = y.flat[start : start + _BLOCK]
        if ignore_index is not None:
            block = block[block != ignore_index]
        if block.size:
            least = int(block.min()) if least is None else min(least, int(block.min()))
        bad = block[(block < 0) | (block >= n_classes)]
        if bad.size:
            count += bad.size
            values |= set(np.unique(bad).tolist())
            if len(values) > 4:
                values = {*sorted(values)[:2], *sorted(values)[-2:]}
    if not values:
        return ""
    first, last = min(values), max(values)
    share = f"{count:,} of {y.size:,} targets"
    classes = f"0…{n_classes - 1}, the classes of axis {axis}"
    if first == last == n_classes and least is not None and least >= 1:
        return (f"targets run from {least} to {n_classes}, outside {classes}: labels that start at "
                "1? pass targets - 1")
    if len(values) > 3:
        return (f"{share} are outside {classes}, from {first} to {last}: fewer classes in the "
                f"logits than in the data, or classes on another axis of {shape}? pass it as axis")
    listed = " and ".join(map(str, sorted(values)))
    cure = (f"padding? pass ignore_index={first}" if first == last else
            "padding? set all of it to one number and pass that as ignore_index")
    if n_classes in values:
        cure += "; a class too few in the logits? give them one more"
    return f"{share} {'is' if count == 1 else 'are'} {listed}, outside {classes}: {cure}"


def _count(y: NDArray[Any], ignore_index: int) -> int:
    """Return how many targets are not `ignore_index`."""
    return sum(int(np.count_nonzero(y.flat[start : start + _BLOCK] != ignore_index))
               for start in range(0, y.size, _BLOCK))


# ---- reading rows --------------------------------------------------------------------------------


@dataclass
class _Rows:
    """What is known of the rows read; arrays have one value a row, none without class numbers.

    at
        The rows' numbers, in C order.
    low, high, total, lse, nan
        Of a row's logits: least, largest, sum, log-sum-exp, whether one is NaN.
    eps
        Spacing at 1 of the coarsest dtype that holds all of them (bfloat16 usually reaches NumPy as
        float32).
    alike
        Whether all rows are the same.
    target, hard
        The target's logit; the target, -1 if it is out of range.
    best, before
        The class of the largest logit; whether the class before the target has the largest.
    """

    at: NDArray[np.intp]
    n_classes: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]
    lse: NDArray[np.float64]
    nan: NDArray[np.bool_]
    eps: float
    alike: bool
    target: NDArray[np.float64]
    hard: NDArray[np.int64]
    best: NDArray[np.intp]
    before: NDArray[np.bool_]

    @property
    def judged(self) -> NDArray[np.bool_]:
        return (self.hard >= 0) & np.isfinite(self.lse) & ~self.nan & np.isfinite(self.target)


def _read(moved: NDArray[Any], at: NDArray[np.intp], hard: NDArray[Any] | None) -> _Rows:
    """Read the rows `at` of logits with classes last, a block at a time."""
    n, n_classes = len(at), moved.shape[-1]
    low, high, total, lse = np.empty((4, n))
    nan = np.empty(n, bool)
    known = n if hard is not None else 0
    target = np.full(known, np.nan)
    best = np.zeros(known, np.intp)
    before = np.zeros(known, bool)
    classes = np.full(known, -1, np.int64)
    if hard is not None:
        inside = (hard >= 0) & (hard < n_classes)
        classes[inside] = hard[inside]
    single = brain = half = alike = True
    first = None
    step = max(1, _BLOCK // n_classes)
    with np.errstate(all="ignore"):
        for start in range(0, n, step):
            part = slice(start, start + step)
            x = _take(moved, at[part]).astype(np.float64)
            first = x[0].copy() if first is None else first
            alike = alike and bool((x == first).all())
            x32 = x.astype(np.float32)
            number = np.isfinite(x)
            single = single and bool((x32 == x)[number].all())
            brain = brain and single and not (x32.view(np.uint32) & 0xFFFF)[number].any()
            half = half and single and bool((x32.astype(np.float16) == x32)[number].all())
            low[part], high[part] = x.min(axis=1), x.max(axis=1)
            total[part] = x.sum(axis=1)
            nan[part] = np.isnan(x).any(axis=1)
            top = high[part, None]
            if known:
                c, i = classes[part], np.arange(len(x))
                target[part] = x[i, c]
                best[part] = x.argmax(axis=1)
                before[part] = (c > 0) & (x[i, np.maximum(c - 1, 0)] == high[part])
            x -= np.where(np.isfinite(top), top, 0.0)
            lse[part] = high[part] + np.log(np.exp(x, out=x).sum(axis=1))
    eps = 2.0**-7 if brain else 2.0**-10 if half else 2.0**-23 if single else 2.0**-52
    return _Rows(at, n_classes, low, high, total, lse, nan, eps, alike and n > 1, target, classes,
                 best, before)


# ---- logits --------------------------------------------------------------------------------------


def _values(rows: _Rows, shape: tuple[int, ...]) -> list[str]:
    """NaN, infinities, masks: nothing that a finite, ordinary logit can be."""
    found = []

    def say(bad: NDArray[np.bool_], singular: str, plural: str, what: str, cure: str) -> None:
        if bad.any():
            where = f" (first: row {_place(int(rows.at[np.argmax(bad)]), shape)})" if shape else ""
            found.append(f"{_rows_that(bad, 'logits', singular, plural)} {what}{where}: {cure}")

    say(rows.nan, "holds", "hold", "NaN",
        "the loss is NaN there; look at what comes before (overflow, 0/0, missing values), or "
        "ignore the row")
    say(~rows.nan & (rows.high == np.inf), "holds", "hold", "+inf",
        "the loss is NaN there; something overflows before, or a mask has the wrong sign (-inf "
        "excludes a class)")
    say(~rows.nan & (rows.high == -np.inf), "is", "are", "-inf throughout",
        "no class is left and the loss is NaN there; give such rows ignore_index as target")
    if rows.target.size:
        live = np.isfinite(rows.high) & ~rows.nan & (rows.hard >= 0)
        say(live & (rows.target == -np.inf), "has", "have", "-inf at the target",
            "the loss is +inf there; a mask excludes the right class, or targets and mask belong "
            "to different rows")
        far = np.zeros(live.shape, bool)
        finite = live & np.isfinite(rows.target)
        far[finite] = rows.high[finite] - rows.target[finite] > _MASK
        say(far, "has", "have", f"the target more than {_MASK:,.0f} below the largest logit",
            "a mask covers the right class, or the logits have the wrong scale")
    return found


def _form(rows: _Rows) -> list[str]:
    """Probabilities, log-probabilities and sigmoid outputs.

    The first two lie on a surface: a sum, or log-sum-exp, that is right to rounding. A row of
    ordinary logits comes within `tolerance` of it with a chance of 2 · tolerance · (density of that
    sum there); the density is at most 0.4 sqrt(C) / (spread of a term in units of the mean), and q
    takes that spread as 1. That all signs must be right as well (2**-C for logits around 0) is left
    out. There are enough rows when q**rows <= 1e-5: one in float32 and float64 with few classes,
    2 to 17 of 16 bits.
    """
    live = np.isfinite(rows.high) & ~rows.nan
    n = int(np.count_nonzero(live))
    if n == 0:
        return []
    low, high, c = rows.low[live], rows.high[live], rows.n_classes
    coarse = rows.eps > 1e-4  # 16 bits: each value rounded by itself, after a sum in float32

    def enough(tolerance: float, factor: float) -> bool:
        q = min(0.5, factor * tolerance * math.sqrt(c))
        return n * -math.log(q) >= -math.log(_FORM)

    # Sums of float32 in any order, and the clips of 1e-7 that old recipes have.
    tolerance = min(0.02, max(1e-6, 1e-7 * c, rows.eps * (2 if coarse else 4 + 2 * math.sqrt(c))))
    if (low.min() >= 0 and high.max() <= 1 + tolerance
            and abs(rows.total[live] - 1).max() <= tolerance and enough(tolerance, 1.0)):
        return [
            "every row of the logits sums to 1 and lies in [0, 1]: they look like probabilities; "
            "pass the logits themselves (before the softmax)"
        ]
    # The entropy, at most log C, is what rounding each log p moves the log-sum-exp by. Rows that
    # are all the same are a new model's with the classes' frequencies as bias: no mistake.
    tolerance = rows.eps * ((2 if coarse else 8) + 2 * math.log(c))
    if (high.max() <= 0 and abs(rows.lse[live]).max() <= tolerance and not rows.alike
            and enough(tolerance, 2.0)):
        return [
            "every row of the logits has log-sum-exp 0: they look like log-probabilities; loss "
            "and gradient are right all the same, but pass the logits themselves: the "
            "log_softmax before is a pass and some digits too many (temperature, softcap and "
            "z_loss mean something else with it)"
        ]
    # Logits of either sign all lie in (0, 1] with a chance of 2**-64. Zeros (ReLU, a new model)
    # and equal values are left alone.
    if (low.min() > 0 and high.max() <= 1 and n * c >= 64 and high.max() - low.min() > 0.1):
        floor = math.log1p((c - 1) / math.e)
        return [
            f"every logit lies between 0 and 1 ({low.min():.3g} … {high.max():.3g}): they look "
            "like sigmoid outputs, or similarities, and cannot be sure of a class (no loss below "
            f"{floor:.3g}); pass the values before the sigmoid, or a small temperature"
        ]
    return []


# ---- targets -------------------------------------------------------------------------------------


def _one_hot(moved: NDArray[Any], at: NDArray[np.intp]) -> tuple[list[str], NDArray[Any] | None]:
    """Return findings on integers of the logits' shape, and the class numbers that were meant."""
    n_classes = moved.shape[-1]
    hard = np.empty(len(at), np.intp)
    binary, several, none = True, 0, 0
    step = max(1, _BLOCK // n_classes)
    for start in range(0, len(at), step):
        part = slice(start, start + step)
        t = _take(moved, at[part])
        binary = binary and bool(((t == 0) | (t == 1)).all())
        ones = (t == 1).sum(axis=1)
        several += int(np.count_nonzero(ones > 1))
        none += int(np.count_nonzero(ones == 0))
        hard[part] = t.argmax(axis=1)
    what = f"targets are {moved.dtype} of the logits' own shape"
    if binary and not several and not none:
        return [
            f"{what}, a single 1 in each row: one-hot rows, which cross_entropy refuses; pass "
            "class numbers, targets.argmax(axis), or probabilities, targets.astype(logits.dtype)"
        ], hard
    if binary:
        return [
            f"{what}, with several ones in {several:,} and none in {none:,} of {len(at):,} rows: "
            "labels that go together? softmax cross-entropy is for exactly one class a row, the "
            "sigmoid's binary cross-entropy for one yes or no a label"
        ], None
    return [
        f"{what}, and not one-hot: class numbers have the logits' shape without the classes' axis, "
        "probabilities are floats"
    ], None


def _sums(y: NDArray[Any], axis: int, at: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return sum, least and largest value and whether all are 0 or 1, of the rows of targets."""
    moved = classes_last(y, axis)
    out = np.empty((4, len(at)))
    step = max(1, _BLOCK // moved.shape[-1])
    with np.errstate(all="ignore"):
        for start in range(0, len(at), step):
            part = slice(start, start + step)
            t = _take(moved, at[part]).astype(np.float64)
            out[:, part] = (t.sum(axis=1), t.min(axis=1), t.max(axis=1),
                            ((t == 0) | (t == 1)).all(axis=1))
    return out


def _probabilities(y: NDArray[Any], axis: int, at: NDArray[np.intp]) -> list[str]:
    """Return findings on probability targets.

    Rounding to 16 bits moves a sum of 1 by 0.004 at most, so 0.01 is not rounding.
    """
    total, low, high, binary = _sums(y, axis, at)
    bad = ~((low >= 0) & (high < np.inf))
    if bad.any():
        return [
            f"{_rows_that(bad, 'probability targets', 'holds', 'hold')} a negative, NaN or "
            "infinite value: logits or log-probabilities of a teacher? pass their softmax"
        ]
    empty = total == 0
    off = ~empty & (abs(total - 1) > 0.01)
    if 2 * np.count_nonzero(off) > len(at):
        for other in range(y.ndim):
            across = _spread(y.size // y.shape[other], len(at))
            if other != axis and (abs(_sums(y, other, across)[0] - 1) <= 0.01).all():
                return [
                    f"probability targets sum to 1 along axis {other}, not along axis {axis}: "
                    f"classes on another axis? pass axis={other}"
                ]
        if binary.all():
            return [
                "probability targets hold zeros and ones, several ones in a row: labels that go "
                "together? softmax cross-entropy is for exactly one class a row, the sigmoid's "
                "binary cross-entropy for one yes or no a label"
            ]
        return [
            f"rows of the probability targets sum to {total.min():.3g} … {total.max():.3g}, not to "
            "1: counts or scores? divide each row by its sum, and give rows their weight with "
            "sample_weight"
        ]
    if empty.any():
        return [
            f"{_rows_that(empty, 'probability targets', 'is', 'are')} 0 throughout: padding? it "
            "costs nothing but counts in the mean; pass sample_weight=0 for it"
        ]
    return []


def _padding(y: NDArray[Any], n_classes: int, ignore_index: int | None) -> list[str]:
    """Report runs of one class at the end of the rows of 2-D (and higher) targets.

    In rows whose classes follow one another as a Markov chain (independent ones are the simplest),
    a run that has begun goes on with the chance that this class follows itself, read off the rest
    of the rows: the larger of the class's own, with three standard deviations added, and that of
    all classes. Rows may all end in one class (a full stop), so only what follows the first one is
    counted. Images, whose background is at either end, are told by the runs at the beginning.
    """
    if y.ndim < 2 or y.shape[-1] < 4 or y.size == 0:
        return []
    length = y.shape[-1]
    at = _spread(y.size // length, max(1, _ROWS // length))
    rows = y[np.unravel_index(at, y.shape[:-1])]
    numbers, counts = np.unique(rows[:, -1], return_counts=True)
    value = int(numbers[counts.argmax()])
    if value == ignore_index or not 0 <= value < n_classes:
        return []
    same = rows == value
    run = np.where(same.all(axis=1), length, (~same[:, ::-1]).argmax(axis=1))
    full = run == length
    lead = np.where(full, 0, (~same).argmax(axis=1))
    body = np.arange(length) < (length - run)[:, None]
    pairs = body[:, 1:]
    inside = int(np.count_nonzero(same & body))
    again = int(np.count_nonzero(same[:, 1:] & same[:, :-1] & pairs))
    any_again = int(np.count_nonzero((rows[:, 1:] == rows[:, :-1]) & pairs))
    stay = (any_again + 1) / (int(np.count_nonzero(pairs)) + 2)
    if inside:
        own = (again + 1) / (inside + 2)
        stay = max(stay, own + 3 * math.sqrt(own * (1 - own) / (inside + 2)))
    begun = int(np.count_nonzero(run))
    further = int(run.sum()) - begun
    share = run.sum() / rows.size
    trailing = int(run[~full].sum())
    if (share < 0.05 or trailing < 4 * int(lead.sum()) or stay >= 1 or trailing == 0
            or _tail(further + begun, further, stay) > _TARGETS):
        return []
    return [
        f"{begun:,} of {len(rows):,} rows of the targets end in runs of {value}, {share:.0%} of "
        "all targets and far longer than its runs before: padding that counts? pass "
        f"ignore_index={value}, or mark the padding with -100 if {value} is a class as well"
    ]


# ---- logits against targets ----------------------------------------------------------------------


def _chance(rows: _Rows, shift: int = 0) -> float:
    """Return the hit rate of rows and class numbers that have nothing to do with each other.

    From how often each class is the largest, and the target: one that always is makes hits alone.
    """
    keep = rows.judged
    n = int(np.count_nonzero(keep))
    c = rows.n_classes
    largest = np.bincount(rows.best[keep], minlength=c)
    targets = np.bincount(rows.hard[keep], minlength=c)
    if shift:
        largest, targets = largest[:-1], targets[1:]
    return max(1 / c, float(largest @ targets) / n / n)


def _fit(
    z: NDArray[Any], y: NDArray[Any] | None, axis: int, rows: _Rows, ignore_index: int | None
) -> list[str]:
    """Report targets that fit another axis, or the classes before them, and not what they are for.

    Evidence is the number of rows whose target has the largest logit. As things stand it must be
    no better than chance, in the other reading better than chance would have it once in a million.
    """
    keep = rows.judged
    n = int(np.count_nonzero(keep))
    if n == 0:
        return []
    counts = np.bincount(rows.hard[keep], minlength=rows.n_classes)
    hits = int(np.count_nonzero((rows.target == rows.high) & keep))
    fits = _tail(n, hits, _chance(rows)) <= _NO_FIT
    if not fits and y is not None:
        loss = float(np.mean(rows.lse[keep] - rows.target[keep]))
        for other in range(z.ndim):
            if other == axis or z.shape[:other] + z.shape[other + 1 :] != y.shape:
                continue
            hard = y.flat[rows.at]
            moved = classes_last(z, other)
            there = _read(moved, rows.at, hard)
            good = there.judged
            m = int(np.count_nonzero(good))
            if m == 0:
                continue
            other_hits = int(np.count_nonzero((there.target == there.high) & good))
            other_loss = float(np.mean(there.lse[good] - there.target[good]))
            # Targets that have nothing to do with the logits cost log C or more on average (lse is
            # at least log C above the mean), whatever hits an odd distribution makes.
            if (other_loss < min(loss, math.log(there.n_classes))
                    and _tail(m, other_hits, _chance(there)) <= _FIT):
                return [
                    f"the targets fit classes on axis {other} better than on axis {axis}: loss "
                    f"{other_loss:.3g} against {loss:.3g}, {other_hits / m:.0%} against "
                    f"{hits / n:.0%} right; classes on another axis? pass axis={other}"
                ]
    if (rows.hard < 0).any():
        return []  # out of range, and said to be
    if not fits:
        before = int(np.count_nonzero(rows.before & keep))
        if _tail(n, before, _chance(rows, 1)) <= _FIT:
            return [
                f"the largest logit is that of the class before the target in {before:,} of "
                f"{n:,} rows, that of the target in {hits:,}: labels that start at 1? pass "
                "targets - 1"
            ]
    # As rare as the rarest of the others, class 0 would be missing with a chance of
    # (1 - least/n)**n <= exp(-least).
    if (rows.n_classes > 2 and counts[0] == 0 and ignore_index != 0
            and math.exp(-int(counts[1:].min())) <= _TARGETS):
        return [
            f"class 0 is never a target, each of 1…{rows.n_classes - 1} at least "
            f"{int(counts[1:].min()):,} times: labels that start at 1, and a class too many in the "
            "logits? pass targets - 1"
        ]
    return []
