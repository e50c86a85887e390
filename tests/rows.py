"""Hard rows, seeded: what the accuracy tests and the benchmarks feed on.

`cases(dtype)` gives one `Case` for every number of classes in `CLASSES`: its rows come from every
family below that the number of classes allows, some of each (`copies`), with the target chosen by
the family or at random (the largest, the runner-up, any, the smallest). `probabilities(case)` are
targets of the other kind, one of the families at the end for every row. Everything is a function of
the seed, the dtype and the number of classes.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

#: Around every tail of 8, 16, 32, 64, 256, 1,024 and 2,048, and a vocabulary.
CLASSES = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 66, 100),
    *(127, 128, 129, 191, 192, 193, 255, 256, 257, 319, 320, 321),
    *(1000, 1023, 1024, 1025, 2047, 2048, 2049, 4099, 32000),
)
SEED = 20260922

#: Where exp underflows to nothing: below half the smallest subnormal number.
DEEPEST = {"float32": 104.0, "float64": 745.2}
#: -log of the smallest normal number.
LOG_F = {"float32": 126 * np.log(2.0), "float64": 1022 * np.log(2.0)}


def exactly(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray | float) -> np.ndarray:
    """Return `function` of float64 numbers, by way of extended precision.

    NumPy's float64 functions differ in the last bit between CPUs (those with AVX-512 have others),
    and so would the rows: the worst errors that worst.json keeps are of these, on every machine.
    """
    return function(np.asarray(x, np.longdouble)).astype(np.float64)


def powers_of_ten(exponents: np.ndarray) -> np.ndarray:
    """Return powers of ten, the same everywhere as `exactly`'s are."""
    return exactly(lambda x: 10 ** x, exponents)


@dataclass(frozen=True)
class Case:
    """Rows of one length: finite logits, or -inf beside a finite one."""

    name: str
    logits: np.ndarray  # (N, C)
    targets: np.ndarray  # (N,)
    families: list[str]  # (N,)
    #: What `probabilities` has drawn for it, by `subnormal`.
    drawn: dict[bool, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dtype(self) -> str:
        return self.logits.dtype.name


#: A family takes (generator, number of classes, dtype name) and returns a row, and its target or
#: None where any will do. It returns None where it has no row of that length.
Row = tuple[np.ndarray, int | None] | None
Family = Callable[[np.random.Generator, int, str], Row]
FAMILIES: dict[str, Family] = {}


def _family(function: Family) -> Family:
    FAMILIES[function.__name__] = function
    return function


def _lse(z: np.ndarray) -> np.ndarray:
    return exactly(np.log, exactly(np.exp, z).sum())


def _normal(sigma: float) -> Family:
    return lambda rng, n, dtype: (rng.normal(0, sigma, n), None)


for _sigma in (0.1, 1, 5, 20):
    FAMILIES[f"normal_{_sigma}"] = _normal(_sigma)


@_family
def equal(rng, n, dtype):
    """Every logit the same: S is C exactly."""
    return np.full(n, rng.normal(0, 3)), None


@_family
def ties(rng, n, dtype):
    """Few distinct values, each many times."""
    return rng.integers(-3, 4, n) * 0.75, None


@_family
def near_tie(rng, n, dtype):
    """The target one step below the largest."""
    if n < 2:
        return None
    z = rng.normal(0, 1, n).astype(dtype)
    a, b = rng.permutation(n)[:2]
    z[a] = z.max() + 1
    z[b] = np.nextafter(z[a], np.array(-np.inf, dtype))
    return z, b


@_family
def gaps(rng, n, dtype):
    """Distances to the largest all over the range where exp is not 0."""
    return rng.normal(0, 3) - rng.uniform(0, DEEPEST[dtype], n), None


@_family
def one_gap(rng, n, dtype):
    """One other class at a distance of any size, the rest far below."""
    z = rng.normal(0, 1, n) - 4 * DEEPEST[dtype]
    a, b = rng.integers(n), rng.integers(n)
    z[b] = rng.normal(0, 3) - rng.uniform(0, DEEPEST[dtype])
    z[a] = rng.normal(0, 3)
    return z, a


@_family
def confident(rng, n, dtype):
    """The target leads by 10 to 100."""
    z = rng.normal(0, 1, n)
    a = rng.integers(n)
    z[a] = z.max() + rng.uniform(10, 100)
    return z, a


@_family
def confident_halfway(rng, n, dtype):
    """The target leads by about log C: S' crosses 1, where the form of the loss changes."""
    z = rng.normal(0, 1, n)
    a = rng.integers(n)
    z[a] = _lse(z) + rng.normal(0, 0.02)
    return z, a


@_family
def wrong(rng, n, dtype):
    """The target trails by up to 1,000."""
    z = rng.normal(0, 1, n)
    a = rng.integers(n)
    z[a] -= rng.uniform(10, 1000)
    return z, a


@_family
def crosses_f(rng, n, dtype):
    """The others add up to about the smallest normal number."""
    z = rng.normal(0, 0.5, n)
    a = rng.integers(n)
    z[a] = _lse(z) + LOG_F[dtype] + rng.uniform(-3, 3)
    return z, a


def _around(centre: float) -> Family:
    def family(rng, n, dtype):
        # Steps the format has there, so that gaps are not all 0 or huge.
        step = max(1.0, float(np.spacing(np.dtype(dtype).type(centre))))
        return rng.choice([-1, 1]) * centre + step * rng.normal(0, 3, n), None

    return family


for _centre in (1e6, 2.0**20, 1e12):
    FAMILIES[f"around_{_centre:.3g}"] = _around(_centre)


@_family
def wide(rng, n, dtype):
    """Logits of 1e6 and of 1 in one row."""
    return rng.normal(0, 1, n) * powers_of_ten(rng.integers(-6, 7, n)), None


@_family
def lse_near_0(rng, n, dtype):
    """The largest is about -log S."""
    z = rng.normal(0, 1, n)
    return z - _lse(z), None


@_family
def equal_lse_near_0(rng, n, dtype):
    """All are about -log C: the worst cancellation in m + log S."""
    return np.full(n, -exactly(np.log, n)) + rng.normal(0, 1e-4), None


@_family
def offset(rng, n, dtype):
    """Moved by a large number."""
    return rng.normal(0, 2, n) + rng.uniform(-3000, 3000), None


def _mask(value: Callable[[str], float], share: float) -> Family:
    def family(rng, n, dtype):
        z = rng.normal(0, 3, n)
        masked = rng.random(n) < share
        kept = rng.integers(n)
        masked[kept] = False
        z[masked] = value(dtype)
        return z, kept

    return family


for _name, _value in {
    "inf": lambda dtype: -np.inf,
    "1e9": lambda dtype: -1e9,
    "min": lambda dtype: np.finfo(dtype).min,
}.items():
    FAMILIES[f"mask_{_name}"] = _mask(_value, 0.4)
    FAMILIES[f"mask_{_name}_most"] = _mask(_value, 0.97)


@_family
def masked_target(rng, n, dtype):
    """The target is among the masked: the loss is +inf."""
    if n < 2:
        return None
    z = rng.normal(0, 3, n)
    a = rng.integers(n)
    z[a] = -np.inf
    return z, a


@_family
def one_finite(rng, n, dtype):
    """A single class is possible."""
    z = np.full(n, -np.inf)
    a = rng.integers(n)
    z[a] = rng.normal(0, 50)
    return z, a


@_family
def first_block_masked(rng, n, dtype):
    """The first block of classes holds nothing."""
    if n <= 1024:
        return None
    z = rng.normal(0, 3, n)
    z[:1024] = -np.inf
    return z, None


@_family
def rising(rng, n, dtype):
    """Each logit above the one before: every block of classes has a new maximum."""
    return np.linspace(-60, 30, n) + rng.normal(0, 1e-3, n), None


@_family
def falling(rng, n, dtype):
    """The largest first."""
    return np.linspace(30, -60, n), 0


@_family
def tiny(rng, n, dtype):
    """Logits that are subnormal."""
    return rng.normal(0, 1, n) * float(np.finfo(dtype).tiny) / 8, None


@_family
def largest_numbers(rng, n, dtype):
    """Differences that overflow, and a loss that does."""
    top = float(np.finfo(dtype).max)
    return rng.choice([-top, -top / 3, 0.0, top / 3, top], n), None


def row(name: str, n_classes: int, dtype: str, rng: np.random.Generator) -> Row:
    """One row of a family, in its dtype, with a target; None if there is none of that length."""
    made = FAMILIES[name](rng, n_classes, dtype)
    if made is None:
        return None
    logits, target = made
    logits = np.asarray(logits).astype(dtype)
    if target is None:
        order = np.argsort(logits, kind="stable")
        finite = order[np.isfinite(logits[order])]
        picks = (finite[-1], finite[max(len(finite) - 2, 0)], rng.choice(finite), finite[0])
        target = picks[rng.integers(len(picks))]
    return logits, int(target)


def copies(n_classes: int) -> int:
    """How many rows of a family a case has: fewer of the long ones, for the time they take."""
    return 6 if n_classes < 100 else 4 if n_classes < 1000 else 2 if n_classes < 4000 else 1


@functools.cache
def case(n_classes: int, dtype: str) -> Case:
    """Rows of every family with this many classes; the same arrays each time, read-only."""
    rng = np.random.default_rng([SEED, n_classes, np.dtype(dtype).itemsize])
    logits, targets, families = [], [], []
    for name in FAMILIES:
        for _ in range(copies(n_classes)):
            made = row(name, n_classes, dtype, rng)
            if made is not None:
                logits.append(made[0])
                targets.append(made[1])
                families.append(name)
    made = Case(f"C={n_classes}", np.stack(logits), np.array(targets), families)
    made.logits.flags.writeable = made.targets.flags.writeable = False
    return made


def cases(dtype: str) -> Iterator[Case]:
    """Yield every case of a dtype."""
    for n_classes in CLASSES:
        yield case(n_classes, dtype)


def offset_pair(n_classes: int, dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return rows z, and z + c where each sum is exact."""
    grid = 2.0**-8
    z = np.round(rng.normal(0, 4, (8, n_classes)) / grid) * grid
    c = np.array([1, -1, 64, -64, 1000, -1000, 4096, 2.0**14])[:, None]
    return z.astype(dtype), (z + c).astype(dtype)


# ---- probability targets -------------------------------------------------------------------------


def _softmax(z: np.ndarray) -> np.ndarray:
    e = exactly(np.exp, z - z.max())
    return e / e.sum()


def _one_hot(k: int, n: int) -> np.ndarray:
    return (np.arange(n) == k).astype(float)


def _without_tiny(t: np.ndarray) -> np.ndarray:
    """Zeros where flushing, of t or of t times a weight, may begin."""
    return np.where(t < 1e-31, 0.0, t)


def _sharp(rng: np.random.Generator, z: np.ndarray, dtype: str) -> np.ndarray:
    return _softmax(rng.normal(0, DEEPEST[dtype] / 8, len(z)))


def _subnormal(rng: np.random.Generator, z: np.ndarray, dtype: str) -> np.ndarray:
    return rng.uniform(0, np.finfo(dtype).tiny, len(z))


def _some(rng: np.random.Generator, n: int) -> np.ndarray:
    """At most three classes with all the mass."""
    t = np.zeros(n)
    at = rng.permutation(n)[:3]
    t[at] = rng.dirichlet(np.ones(len(at)))
    return t


#: (generator, the row's logits as finite float64, dtype name) to probabilities of the row.
TARGET_FAMILIES: dict[str, Callable[[np.random.Generator, np.ndarray, str], np.ndarray]] = {
    "softmax": lambda rng, z, dtype: _softmax(rng.normal(0, 2, len(z))),
    "sharp": lambda rng, z, dtype: _without_tiny(_sharp(rng, z, dtype)),
    # The gradient is 0 but for roundings.
    "own": lambda rng, z, dtype: _without_tiny(_softmax(z)),
    "one_hot_largest": lambda rng, z, dtype: _one_hot(int(z.argmax()), len(z)),
    "one_hot": lambda rng, z, dtype: _one_hot(int(rng.integers(len(z))), len(z)),
    "some": lambda rng, z, dtype: _some(rng, len(z)),
    "uniform": lambda rng, z, dtype: np.full(len(z), 1 / len(z)),
    "unnormalised": lambda rng, z, dtype: rng.exponential(5, len(z)),
    "large": lambda rng, z, dtype: rng.exponential(1e25, len(z)),
    "tiny": lambda rng, z, dtype: 1e-30 * rng.uniform(0.1, 1, len(z)),
    "one_tiny_beside": lambda rng, z, dtype: np.where(
        np.arange(len(z)) == z.argmax(), 1.0, 1e-30 * (rng.random(len(z)) < 0.3)),
    "zero": lambda rng, z, dtype: np.zeros(len(z)),
}


def probabilities(case: Case, *, subnormal: bool = False) -> np.ndarray:
    """Probability targets for the rows of a case, of its dtype; mostly 0 where a logit is -inf.

    `subnormal`: all of them below the smallest normal number, or some beside others. The same
    array each time, read-only.
    """
    if subnormal not in case.drawn:
        case.drawn[subnormal] = _drawn_probabilities(case, subnormal)
    return case.drawn[subnormal]


def _drawn_probabilities(case: Case, subnormal: bool) -> np.ndarray:
    dtype, (n, n_classes) = case.dtype, case.logits.shape
    rng = np.random.default_rng([SEED, n_classes, np.dtype(dtype).itemsize, 1])
    order = rng.permutation(n)
    t = np.zeros(case.logits.shape)
    families = (_subnormal, _sharp) if subnormal else TARGET_FAMILIES.values()
    for i, make in zip(order, itertools.cycle(families), strict=False):
        z = case.logits[i].astype(float)
        lowest = z[np.isfinite(z)].min()
        with np.errstate(over="ignore", invalid="ignore"):
            t[i] = make(rng, np.where(np.isfinite(z), z, lowest - 10), dtype)
    t = np.nan_to_num(t)
    impossible = (case.logits == -np.inf) & (rng.random(n) < 0.8)[:, None]
    t[impossible] = 0.0
    t = t.astype(dtype)
    t.flags.writeable = False
    return t


def teacher(case: Case) -> np.ndarray:
    """A teacher's logits for the rows of a case, of its dtype; mostly -inf where the student's are.

    Those of another row, the student's own, nearly so, flatter, steeper, or in another order.
    """
    z = case.logits.astype(float)
    rng = np.random.default_rng([SEED, z.shape[1], np.dtype(case.dtype).itemsize, 3])
    u = z[rng.permutation(len(z))]
    turn = np.arange(len(z))
    u[turn % 8 == 1] = z[turn % 8 == 1]
    for i, noise in ((2, 1e-6), (3, 1e-3), (4, 1.0)):
        here = turn % 8 == i
        u[here] = z[here] + rng.normal(0, noise, u[here].shape)
    u[turn % 8 == 5] = z[turn % 8 == 5] / 3
    with np.errstate(over="ignore"):
        u[turn % 8 == 6] = z[turn % 8 == 6] * 1.5
        u = u.astype(case.dtype)
    u[u == np.inf] = np.finfo(case.dtype).max
    u[turn % 8 == 7] = case.logits[turn % 8 == 7, ::-1]
    u[(case.logits == -np.inf) & (rng.random(len(z)) < 0.8)[:, None]] = -np.inf
    empty = ~np.isfinite(u.max(axis=1))
    u[empty, z[empty].argmax(axis=1)] = 0
    return u


def some(case: Case, copies: int) -> Case:
    """The same with at most so many rows of a family."""
    seen: Counter[str] = Counter()
    keep = []
    for i, name in enumerate(case.families):
        seen[name] += 1
        if seen[name] <= copies:
            keep.append(i)
    return Case(case.name, case.logits[keep], case.targets[keep], [case.families[i] for i in keep])
