"""Worst errors over the hard rows, by backend, level and dtype: `python tests/accuracy_table.py`.

`measure` is what `test_accuracy.py` asserts on, `measure_options` what `test_options.py` does:
cross-entropy with the options of `SETTINGS`, and the pieces. `BOUNDS` and `OPTION_BOUNDS` hold the
contract's figures, nowhere else repeated, `worst.json` what was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rows
import softxent as sx
import truth

#: What is measured, the contract's line and its bound for float32 and float64 logits, in the unit
#: named. A quantity's absolute allowance (C F) is taken off before it is counted.
BOUNDS = {
    "lse": ("A2", "eps max(1, |lse|)", 1.5, 4.0),
    "loss": ("A3", "ulp", 2.0, 6.0),
    "log_softmax": ("A3", "ulp", 4.0, 6.0),
    "softmax": ("A4", "ulp", 4.0, 6.0),
    "softmax below F": ("A4", "ulp, where not 0", 4.0, 6.0),
    "gradient": ("A5", "ulp", 4.0, 6.0),
    "gradient at target": ("A5", "ulp", 4.0, 6.0),
    "gradient below F": ("A6", "eps p", 4.0, 8.0),
    "sum p - 1": ("E1", "eps", 2.0, 8.0),
    "sum g": ("E1", "eps sum |g|", 2.0, 8.0),
}

#: The same of what options make of cross-entropy, and of the pieces.
OPTION_BOUNDS = {
    "loss": BOUNDS["loss"],
    "soft loss": ("A8", "ulp of sum q (lse - z)", 8.0, 16.0),
    "loss with z-loss": ("A9", "eps sum |terms|", 8.0, 16.0),
    "divergence": ("A9", "eps sum |terms|", 8.0, 16.0),
    "distillation": ("A9", "eps sum |terms|", 8.0, 16.0),
    "squared error": ("A9", "eps sum |terms|", 8.0, 16.0),
    "binary cross-entropy": ("A9", "eps sum |terms|", 8.0, 16.0),
    "Hessian": ("A9", "eps sum |terms|", 8.0, 16.0),
    "gradient": BOUNDS["gradient"],
    "gradient below F": BOUNDS["gradient below F"],
    "other gradient": ("A6", "eps (|A| p + |B|)", 4.0, 8.0),
    "gradient of distillation": ("A9", "eps sum |terms|", 8.0, 16.0),
    "gradient of squared error": ("A9", "eps sum |terms|", 8.0, 16.0),
    "gradient of binary cross-entropy": ("A9", "eps sum |terms|", 8.0, 16.0),
    "sum g": BOUNDS["sum g"],
    "sum of other g": ("E1", "eps (|A| + sum |B|)", 2.0, 8.0),
    "softmax": BOUNDS["softmax"],
    "softmax below F": BOUNDS["softmax below F"],
    "sum p - 1": BOUNDS["sum p - 1"],
    "log_softmax": BOUNDS["log_softmax"],
    "target_log_probs": ("A3", "ulp", 2.0, 6.0),
    "entropy": ("A9", "eps sum |terms|", 8.0, 16.0),
    "vjp": ("A6", "eps p (|u| + sum p |u|)", 4.0, 8.0),
}
#: Results of 16-bit logits that are rounded to their format, in ulp of it; A6 has the one rounding
#: as an allowance, and all else is float32.
SIXTEEN = dict.fromkeys(("gradient", "softmax", "softmax below F", "log_softmax"), 0.51)

#: Numbers of classes that options are measured on.
OPTION_CLASSES = (1, 2, 3, 7, 10, 17, 33, 64, 65, 100, 257, 1025)
#: Formats of 16 bits; bfloat16 where ml_dtypes is installed.
FORMATS = ("float16", "bfloat16")


def storage(dtype: str) -> np.dtype:
    """The dtype of a name."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


class Quantities(NamedTuple):
    """The quantities of `OPTION_BOUNDS` that a loss, its gradient and that one's sums are."""

    loss: str
    gradient: str
    sums: str = ""

    @property
    def relative(self) -> bool:
        """Whether A5, relative and stronger than A6, is promised of the gradient."""
        return self.gradient == "gradient"


def quantities(loss: str, kind: str, options: Mapping[str, object]) -> Quantities:
    """What is promised of a loss, from the options that are on."""
    if loss == "nll_loss":
        return Quantities("loss", "gradient")
    if loss == "sigmoid_binary_cross_entropy":
        return Quantities("binary cross-entropy", "gradient of binary cross-entropy")
    if loss == "softmax_squared_error":
        return Quantities("squared error", "gradient of squared error")
    if loss == "distillation_loss" and options.get("hard_weight") != 1:
        return Quantities("distillation", "gradient of distillation", "sum of other g")
    sums = {"z_loss", "softcap"}.isdisjoint(options)
    if loss == "kl_divergence":
        return Quantities("divergence", "other gradient", "sum of other g" if sums else "")
    soft = kind == "probabilities" or "label_smoothing" in options
    name = "loss with z-loss" if "z_loss" in options else "soft loss" if soft else "loss"
    if soft or not sums:
        return Quantities(name, "other gradient", "sum of other g" if sums else "")
    return Quantities(name, "gradient", "sum g")


@dataclass(frozen=True)
class Setting:
    """Options of a call: kind of target, numbers, and which arrays are drawn beside."""

    loss: str = "cross_entropy"
    kind: str = "classes"
    options: tuple[tuple[str, float], ...] = ()
    class_weight: bool = False
    row_weights: bool = False  # sample_weight and upstream
    subnormal: bool = False  # probabilities are, all or some, below the smallest normal number

    def arrays(self, case: rows.Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return what is drawn for a case: what truth takes as well, and the rows' weights."""
        n, n_classes = case.logits.shape
        rng = np.random.default_rng([rows.SEED, n_classes, 2])
        shared, of_rows = {}, {}
        if self.class_weight:
            v = rows.exactly(np.exp, rng.normal(0, 2, n_classes))
            v[rng.random(n_classes) < 0.1] = 0
            shared["class_weight"] = v
        if self.row_weights:
            of_rows["sample_weight"] = rows.exactly(np.exp, rng.normal(0, 2, n))
            of_rows["upstream"] = rng.normal(0, 1, n) * rows.powers_of_ten(rng.integers(-5, 6))
        if "hard_weight" in self.names:
            shared["hard_targets"] = case.targets
        if self.loss in truth.POINTWISE and self.class_weight:
            shared["pos_weight"] = rows.exactly(np.exp, rng.normal(0, 2, n))
            del shared["class_weight"]
        return shared, of_rows

    def targets(self, case: rows.Case) -> np.ndarray:
        """Class numbers, probabilities or a teacher; of single logits: 0, 1 and between."""
        if self.loss in truth.POINTWISE:
            rng = np.random.default_rng([rows.SEED, len(case.targets)])
            shares = np.where(rng.random(len(case.targets)) < 0.3, rng.random(len(case.targets)),
                              rng.integers(0, 2, len(case.targets)))
            return shares.astype(case.dtype)
        if self.kind == "classes":
            return case.targets
        if self.kind == "logits":
            return rows.teacher(case)
        return rows.probabilities(case, subnormal=self.subnormal)

    @property
    def names(self) -> set[str]:
        """The numeric options that are on."""
        return {name for name, _ in self.options}

    @property
    def quantities(self) -> Quantities:
        """What is measured of it."""
        return quantities(self.loss, self.kind, dict(self.options))


def _setting(kind: str = "classes", class_weight: bool = False, row_weights: bool = False,
             loss: str = "cross_entropy", **options: float) -> Setting:
    return Setting(loss, kind, tuple(options.items()), class_weight, row_weights)


#: Every option by itself, and some together.
SETTINGS = {
    "temperature 0.7": _setting(temperature=0.7),
    "temperature 3": _setting(temperature=3.0),
    "temperature 1e5": _setting(temperature=1e5),
    "class_weight, temperature": _setting(class_weight=True, row_weights=True, temperature=1.3),
    "smoothing 0.1": _setting(label_smoothing=0.1),
    "smoothing 1e-6": _setting(label_smoothing=1e-6),
    "smoothing 1": _setting(label_smoothing=1.0),
    "smoothing, class_weight": _setting(class_weight=True, label_smoothing=0.1),
    "z_loss 1e-4": _setting(z_loss=1e-4),
    "z_loss 2": _setting(z_loss=2.0),
    "softcap 30": _setting(softcap=30.0),
    "softcap 1": _setting(softcap=1.0),
    "softcap, temperature": _setting(softcap=50.0, temperature=0.3),
    "probabilities": _setting("probabilities"),
    "subnormal probabilities": Setting(kind="probabilities", subnormal=True),
    "probabilities, weights": _setting("probabilities", True, True),
    "probabilities, smoothing": _setting("probabilities", label_smoothing=0.2),
    "probabilities, temperature": _setting("probabilities", temperature=0.7),
    "probabilities, z_loss": _setting("probabilities", z_loss=1e-3),
    "probabilities, softcap": _setting("probabilities", softcap=30.0),
    "everything, classes": _setting("classes", True, True, label_smoothing=0.1, temperature=1.7,
                                    softcap=20.0, z_loss=1e-2),
    "everything, probabilities": _setting("probabilities", True, True, label_smoothing=0.1,
                                          temperature=1.7, softcap=20.0, z_loss=1e-2),
    "focal": _setting(loss="focal_loss", gamma=2.0),
    "focal, gamma 0.5, weights": _setting("classes", True, True, "focal_loss", gamma=0.5),
    "focal, gamma 5, temperature": _setting(loss="focal_loss", gamma=5.0, temperature=0.7),
    "focal, everything": _setting("classes", True, True, "focal_loss", gamma=1.5, temperature=1.7,
                                  softcap=20.0, z_loss=1e-2),
    "KL": _setting("probabilities", loss="kl_divergence"),
    "KL, everything": _setting("probabilities", row_weights=True, loss="kl_divergence",
                               temperature=1.7, softcap=20.0),
    "distillation": _setting("logits", loss="distillation_loss", temperature=2.0),
    "distillation, at 0.7": _setting("logits", row_weights=True, loss="distillation_loss",
                                     temperature=0.7),
    "distillation, classes": _setting("logits", loss="distillation_loss", temperature=1.0,
                                      hard_weight=0.25),
    "distillation, everything": _setting(
        "logits", True, True, "distillation_loss", temperature=4.0, hard_weight=0.6,
        label_smoothing=0.1),
    "NLL": _setting("classes", True, True, "nll_loss"),
    "squared error": _setting(loss="softmax_squared_error"),
    "squared error, probabilities": _setting("probabilities", row_weights=True,
                                             loss="softmax_squared_error", temperature=0.7),
}
#: The same of losses of single logits.
POINTS = {
    "sigmoid": _setting("probabilities", loss="sigmoid_binary_cross_entropy"),
    "sigmoid, weights": _setting("probabilities", True, True, "sigmoid_binary_cross_entropy"),
}
#: The same of cross-entropy's Hessian.
HESSIANS = {
    "Hessian": _setting(),
    "Hessian, everything": _setting("probabilities", True, label_smoothing=0.2, temperature=0.6),
}
#: What `measure_options` knows beside them: the pieces, at a temperature.
PIECES = {f"pieces, temperature {value:g}": value for value in (0.7, 1.0, 3.0, 1e5)}


@dataclass
class Worst:
    """The largest error of one quantity, and the row it was seen on."""

    error: float = 0.0
    where: str = ""

    def see(self, errors: np.ndarray, case: rows.Case, wanted: np.ndarray | bool = True) -> None:
        """Take note of errors, (N,) or (N, C), where `wanted`; NaN counts as infinite."""
        errors = np.where(wanted, np.where(np.isnan(errors), np.inf, errors), 0)
        place = np.unravel_index(np.argmax(errors), errors.shape)
        if errors[place] > self.error:
            self.error = float(errors[place])
            self.where = f"{case.name} {case.families[place[0]]}, row {place[0]}" + (
                f", class {place[1]}" if len(place) > 1 else ""
            )


_KNOWN: dict[tuple[object, ...], dict[str, Worst]] = {}


def observe_once(worst: dict[str, Worst], key: tuple[object, ...], results: tuple[np.ndarray, ...],
                 look: Callable[[dict[str, Worst]], None]) -> None:
    """Let `look` note the errors of `results`: once for all levels that give the same bits."""
    digest = hashlib.sha256()
    for array in results:
        digest.update(array.tobytes())
    key = (*key, digest.digest())
    if key not in _KNOWN:
        _KNOWN[key] = {quantity: Worst() for quantity in worst}
        look(_KNOWN[key])
    for quantity, found in _KNOWN[key].items():
        if found.error > worst[quantity].error:
            worst[quantity] = found


#: Worst errors as they were measured: by dtype, setting ("": none), quantity and group of levels
#: that have the same bits. A ratchet: `--write` writes it, and an error rises only in a commit of
#: its own. Not of NumPy's backend, whose exp is NumPy's and the processor's.
WORST = Path(__file__).with_name("worst.json")
GROUPS = {"v2": "v2", "v3": "fma", "v4": "fma"}


@cache
def kept(isa: str, dtype: str, name: str) -> dict[str, float]:
    """Worst errors that the file has, by quantity; infinite where it has none."""
    found = json.loads(WORST.read_text())[dtype][name]
    return {quantity: errors.get(GROUPS.get(isa, ""), math.inf)
            for quantity, errors in found.items()}


def bound(quantity: str, dtype: str) -> float:
    """The contract's bound, for logits of `dtype`."""
    _, _, single, double = {**BOUNDS, **OPTION_BOUNDS}[quantity]
    if dtype in FORMATS and quantity in SIXTEEN:
        return SIXTEEN[quantity]
    return double if dtype == "float64" else single


def observe(worst: dict[str, Worst], case: rows.Case, backend: str) -> None:
    """Evaluate a case and take note of its errors."""
    z = case.logits
    results = (
        sx.logsumexp(z, backend=backend), sx.log_softmax(z, backend=backend),
        sx.softmax(z, backend=backend),
        *sx.cross_entropy_with_grad(z, case.targets, reduction="none", backend=backend))
    observe_once(worst, (case.name, case.dtype), results,
                 lambda fresh: look_at(fresh, case, *results))


def look_at(worst: dict[str, Worst], case: rows.Case, lse: np.ndarray, log_p: np.ndarray,
            p: np.ndarray, loss: np.ndarray, g: np.ndarray) -> None:
    """Take note of the errors of a case's results."""
    z, targets, dtype = case.logits, case.targets, case.dtype
    f, eps = truth.F[dtype], truth.EPS[dtype]
    flushed = z.shape[1] * truth.LD(f)

    def ulps(got, true, allowance=0.0):
        return truth.ulp_error(got, true, dtype, allowance)

    true_lse = truth.lse(z)
    scale = eps * np.maximum(1, np.abs(true_lse))
    worst["lse"].see(truth.absolute_error(lse, true_lse, dtype) / scale, case)

    worst["log_softmax"].see(ulps(log_p, truth.log_softmax(z), flushed), case)

    true_p = truth.softmax(z)
    normal = true_p >= f
    errors = ulps(p, true_p)
    worst["softmax"].see(errors, case, normal)
    worst["softmax below F"].see(errors, case, ~normal & (p != 0))
    worst["sum p - 1"].see(np.abs(p.astype(truth.LD).sum(axis=1) - 1) / eps, case)

    worst["loss"].see(ulps(loss, truth.loss(z, targets), flushed), case)

    true_g = truth.gradient(z, targets)
    at_target = np.zeros(z.shape, dtype=bool)
    at_target[np.arange(len(z)), targets] = True
    counts = (np.abs(true_g) >= f) & (normal | at_target)
    worst["gradient"].see(ulps(g, true_g), case, counts & ~at_target)
    worst["gradient at target"].see(ulps(g, true_g, flushed), case, counts & at_target)
    absolute = np.maximum(truth.absolute_error(g, true_g, dtype) - 2 * flushed, 0)
    worst["gradient below F"].see(absolute / (eps * (true_p + at_target + f)), case, ~counts)

    wide = g.astype(truth.LD)
    off = np.maximum(np.abs(wide.sum(axis=1)) - flushed, 0)
    size = np.abs(wide).sum(axis=1)
    worst["sum g"].see(np.where(off > 0, off / (eps * np.where(size > 0, size, 1)), 0), case)


# ---- with options --------------------------------------------------------------------------------


def beyond(got: np.ndarray, true: np.ndarray, dtype: str, allowance, unit) -> np.ndarray:
    """|got - true| beyond an allowance, in a unit; the unit is 0 only where both are exact."""
    error = truth.absolute_error(got, true, dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        # An error that is infinite is so whatever is allowed.
        over = np.where(np.isfinite(error), error - allowance, error)
        over = np.where(error == 0, 0, np.where(np.isnan(over), 0, np.maximum(over, 0)))
        return np.where(over > 0, over / unit, 0)


def forgiven(errors: np.ndarray, got: np.ndarray, true: truth.Loss,
             rounded_to: str = "") -> np.ndarray:
    """Errors but for an infinity where something on the way to the result is beyond float64.

    Or where what A6 allows reaches beyond the format of 16 bits that a gradient is rounded to.
    """
    overflow = true.overflow.reshape(-1, *(1,) * (errors.ndim - 1))
    if rounded_to:
        reach = np.abs(true.gradient) + bound("other gradient", "") * truth.EPS["float32"] * (
            true.scale)
        overflow = overflow | (reach >= truth.largest(rounded_to))
    return np.where(overflow & np.isinf(got), 0, errors)


def lse_slack(true: truth.Loss, dtype: str) -> np.ndarray:
    """What A2 lets an lse be off, (N,): the z-loss's formula is of lse, not of what it sums."""
    return bound("lse", dtype) * truth.EPS[dtype] * np.maximum(1, np.abs(true.lse))


def loss_allowance(true: truth.Loss, dtype: str, weight=1.0) -> np.ndarray:
    """What a row loss may be off beside its bound.

    C F for flushing, times the largest `weight` of a term where that is above 1; one ulp of every
    logit under a softcap; what A2 allows the lse of a z-loss.
    """
    flushed = true.softmax.shape[1] * truth.F[dtype] * np.maximum(truth.LD(1), weight)
    flushed = flushed * true.growth
    return true.moved_loss + true.loss_by_lse * lse_slack(true, dtype) + flushed


def loss_unit(true: truth.Loss, quantity: str, dtype: str) -> np.ndarray:
    """What a quantity of `OPTION_BOUNDS` that is a loss is counted in.

    Focal loss has 1 + gamma such units (A9).
    """
    if "terms" in OPTION_BOUNDS[quantity][1]:
        return truth.EPS[dtype] * true.loss_scale * true.growth
    return truth.spacing(true.loss, dtype) * true.growth


def gradient_allowance(true: truth.Loss, dtype: str, rounded_to: str = "") -> np.ndarray:
    """What a gradient may be off beside A6's bound.

    (1 + |A|) C F, one ulp of every logit under a softcap, what A2 allows the lse of a z-loss; and
    the one rounding to a format of 16 bits.
    """
    flushed = true.softmax.shape[1] * truth.F[dtype] * true.growth
    allowance = ((1 + true.size) * flushed)[:, None]
    allowance = allowance + true.moved_gradient
    allowance += true.gradient_by_lse * lse_slack(true, dtype)[:, None]
    if rounded_to:
        reach = np.abs(true.gradient) + allowance
        reach += bound("other gradient", dtype) * truth.EPS[dtype] * true.scale
        allowance += truth.spacing(reach, rounded_to) / 2
    return allowance


def see_gradient(worst: dict[str, Worst], case: rows.Case, g: np.ndarray,
                 true: truth.Loss, names: Quantities) -> None:
    """Take note of a gradient's errors: of A5 or A6, as `names` says, and of E1."""
    dtype = case.dtype
    stored = g.dtype.name
    eps, f = truth.EPS[dtype], truth.F[dtype]
    rounded_to = stored if stored in FORMATS else ""
    wide = g.astype(truth.LD)
    off, size = np.abs(wide.sum(axis=1)), np.abs(wide).sum(axis=1)
    flushed = np.maximum(true.size, true.w) * g.shape[1] * f * true.growth
    growth = true.growth[:, None]
    errors = beyond(g, true.gradient, stored, gradient_allowance(true, dtype, rounded_to),
                    eps * true.scale * growth)
    errors = forgiven(errors, g, true, rounded_to)
    if not names.relative:
        worst[names.gradient].see(errors, case)
        if not rounded_to and names.sums:
            worst[names.sums].see(
                beyond(off, truth.LD(0), dtype, np.maximum(g.shape[1] * f, flushed),
                       eps * (true.size + true.mass)), case)
        return
    at_target = np.arange(g.shape[1]) == case.targets[:, None]
    counts = (np.abs(true.gradient) >= truth.F[stored]) & ((true.softmax >= f) | at_target)
    ulps = truth.ulp_error(g, true.gradient, stored, np.where(at_target, flushed[:, None], 0))
    worst["gradient"].see(ulps if rounded_to else ulps / growth, case, counts)
    worst["gradient below F"].see(errors, case, ~counts)
    if not rounded_to and names.sums:
        worst[names.sums].see(beyond(off, truth.LD(0), dtype, flushed, eps * size), case)


def as_points(case: rows.Case) -> rows.Case:
    """Return a case's logits as rows of one class each."""
    n_classes = case.logits.shape[1]
    return rows.Case(case.name, case.logits.reshape(-1, 1), np.zeros(case.logits.size, int),
                     [family for family in case.families for _ in range(n_classes)])


def observe_setting(worst: dict[str, Worst], case: rows.Case, backend: str, setting: Setting,
                    dtype: str) -> None:
    """Evaluate a loss with options over a case, as logits of `dtype`; note its errors."""
    options = dict(setting.options)
    logits = case.logits.astype(storage(dtype))
    if setting.loss in truth.POINTWISE:
        logits = logits.reshape(-1)
        case = as_points(case)
    shared, of_rows = setting.arrays(case)
    targets = setting.targets(case)
    loss, g = getattr(sx, f"{setting.loss}_with_grad")(
        logits, targets, reduction="none", backend=backend, **options, **shared, **of_rows)
    g = g.reshape(case.logits.shape)
    assert g.dtype == storage(dtype)
    observe_once(worst, (case.name, dtype, setting), (loss, g),
                 lambda fresh: look_at_setting(fresh, case, setting, loss, g))


def look_at_setting(worst: dict[str, Worst], case: rows.Case, setting: Setting, loss: np.ndarray,
                    g: np.ndarray) -> None:
    """Take note of the errors of a loss and its gradient."""
    options = dict(setting.options)
    shared, of_rows = setting.arrays(case)
    targets = setting.targets(case)
    targets = targets[:, None] if setting.loss in truth.POINTWISE else targets
    weight = of_rows.get("sample_weight", np.ones(len(loss))).astype(truth.LD)
    true = truth.LOSSES[setting.loss](case.logits, targets, weight=weight,
                                      factor=of_rows.get("upstream"), **options, **shared)
    quantity = setting.quantities.loss
    heaviest = max((shared[name].max() for name in shared if "weight" in name), default=1.0)
    if setting.kind == "logits":
        heaviest = max(heaviest, options["temperature"] ** 2)
    errors = beyond(loss, true.loss, case.dtype,
                    loss_allowance(true, case.dtype, weight * heaviest),
                    loss_unit(true, quantity, case.dtype))
    worst[quantity].see(forgiven(errors, loss, true), case)
    see_gradient(worst, case, g, true, setting.quantities)


def observe_hessian(worst: dict[str, Worst], case: rows.Case, backend: str, setting: Setting,
                    dtype: str) -> None:
    """Evaluate cross-entropy's Hessian over a case, as logits of `dtype`; note its errors."""
    options, targets = {**dict(setting.options), **setting.arrays(case)[0]}, setting.targets(case)
    z = case.logits.astype(storage(dtype))
    h = sx.cross_entropy_grad_hess(z, targets, backend=backend, **options)[2]
    assert h.dtype == z.dtype

    def look(fresh: dict[str, Worst]) -> None:
        true, scale = truth.hessian(case.logits, targets, **options)
        masses = truth.hessian_masses(targets, z.shape[1], **options)
        allowed = 2 * z.shape[1] * truth.LD(truth.F[case.dtype]) * (1 + masses)[:, None]
        if dtype in FORMATS:
            allowed = allowed + truth.spacing(true + allowed, dtype) / 2
        over = np.isinf(h.astype(float)) & (true >= truth.largest(dtype))
        errors = beyond(h, true, dtype, allowed, truth.EPS[case.dtype] * scale)
        fresh["Hessian"].see(np.where(over, 0, errors), case)

    observe_once(worst, (case.name, dtype, "Hessian", setting), (h,), look)


def observe_pieces(worst: dict[str, Worst], case: rows.Case, backend: str, temperature: float,
                   dtype: str) -> None:
    """Evaluate the pieces at a temperature over a case, as logits of `dtype`; note their errors."""
    z = case.logits.astype(storage(dtype))
    options = {"temperature": temperature, "backend": backend}
    p, log_p = sx.softmax(z, **options), sx.log_softmax(z, **options)
    assert p.dtype == log_p.dtype == z.dtype
    target_log_p = sx.target_log_probs(z, case.targets, **options)
    entropy = sx.softmax_entropy(z, **options)
    assert entropy.dtype == target_log_p.dtype == case.dtype
    rng = np.random.default_rng(z.shape[1])
    u = rng.normal(0, 1, z.shape) * rows.powers_of_ten(rng.integers(-4, 5, (len(z), 1)))
    u = u.astype(case.dtype)
    u[::3] = u[::3].mean(axis=1, keepdims=True) + u[::3] * case.logits.dtype.type(1e-3)
    results = (p, log_p, target_log_p, entropy, sx.softmax_vjp(p, u, backend=backend))
    observe_once(worst, (case.name, dtype, "pieces", temperature), results,
                 lambda fresh: look_at_pieces(fresh, case, temperature, dtype, u, *results))


def look_at_pieces(worst: dict[str, Worst], case: rows.Case, temperature: float, dtype: str,
                   u: np.ndarray, p: np.ndarray, log_p: np.ndarray, target_log_p: np.ndarray,
                   entropy: np.ndarray, vjp: np.ndarray) -> None:
    """Take note of the errors of the pieces; `vjp` is of `p` and `u`."""
    exact = case.logits
    f, eps = truth.F[case.dtype], truth.EPS[case.dtype]
    flushed = p.shape[1] * truth.LD(f)

    true_p = truth.softmax(exact, temperature)
    errors = truth.ulp_error(p, true_p, dtype)
    normal = true_p >= truth.F[dtype]
    worst["softmax"].see(errors, case, normal)
    worst["softmax below F"].see(errors, case, ~normal & (p != 0))
    worst["sum p - 1"].see(np.abs(p.astype(truth.LD).sum(axis=1) - 1) / eps, case)
    true_log_p = truth.log_softmax(exact, temperature)
    worst["log_softmax"].see(truth.ulp_error(log_p, true_log_p, dtype, flushed), case)
    true_log_p = true_log_p[np.arange(len(p)), case.targets]
    worst["target_log_probs"].see(
        truth.ulp_error(target_log_p, true_log_p, case.dtype, flushed), case)
    true_entropy = truth.entropy(exact, temperature)
    worst["entropy"].see(
        beyond(entropy, true_entropy, case.dtype, flushed, eps * true_entropy), case)

    true, scale = truth.vjp(p, u)
    size = (p.astype(truth.LD) * np.abs(u)).sum(axis=1)[:, None]
    allowance = flushed * (1 + size)
    if dtype in FORMATS:
        allowance = allowance + truth.spacing(np.abs(true) + 4 * eps * scale, dtype) / 2
    worst["vjp"].see(beyond(vjp, true, dtype, allowance, eps * scale), case)


@cache
def option_cases(dtype: str) -> list[rows.Case]:
    """Cases that options are measured on: fewer rows than `rows.cases`.

    For a format of 16 bits they are float32, of numbers that it has.
    """
    wide = "float32" if dtype in FORMATS else dtype
    cases = [rows.some(rows.case(n, wide), 2 if n < 100 else 1) for n in OPTION_CLASSES]
    return cases if wide == dtype else [rounded(case, dtype) for case in cases]


def rounded(case: rows.Case, dtype: str) -> rows.Case:
    """The rows of a case that still have a softmax with logits rounded to 16 bits."""
    with np.errstate(over="ignore"):
        z = case.logits.astype(storage(dtype)).astype(np.float32)
    keep = np.flatnonzero(np.isfinite(z.max(axis=1)))
    return rows.Case(case.name, z[keep], case.targets[keep], [case.families[i] for i in keep])


@cache
def measure_options(backend: str, isa: str, dtype: str, name: str) -> dict[str, Worst]:
    """Worst errors under a setting, or those of `PIECES`; `dtype` the logits'."""
    worst = {quantity: Worst() for quantity in OPTION_BOUNDS}
    with np.errstate(invalid="ignore"):
        for case in option_cases(dtype):
            if name in HESSIANS:
                observe_hessian(worst, case, backend, HESSIANS[name], dtype)
            elif name in PIECES:
                observe_pieces(worst, case, backend, PIECES[name], dtype)
            else:
                observe_setting(worst, case, backend, {**SETTINGS, **POINTS}[name], dtype)
    return worst


def measured(name: str, dtype: str) -> list[str]:
    """Quantities of `OPTION_BOUNDS` that `measure_options` measures under a name."""
    if name in HESSIANS:
        return ["Hessian"]
    if name in PIECES:
        sums = [] if dtype in FORMATS else ["sum p - 1"]
        return ["softmax", "softmax below F", *sums, "log_softmax", "target_log_probs", "entropy",
                "vjp"]
    names = {**SETTINGS, **POINTS}[name].quantities
    found = [names.loss, names.gradient]
    if names.relative:
        found.append("gradient below F")
    return found + [names.sums] * (names.sums != "" and dtype not in FORMATS)


@cache
def measure(backend: str, isa: str, dtype: str) -> dict[str, Worst]:
    """Worst error of every quantity, over every case; `isa` must be in force, and is only a key."""
    worst = {quantity: Worst() for quantity in BOUNDS}
    with np.errstate(invalid="ignore"):
        for case in rows.cases(dtype):
            observe(worst, case, backend)
    return worst


def main() -> None:
    """Print a table for each dtype: the worst over all settings of the options, or each setting."""
    from levels import LEVELS, usable_levels

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", action="store_true", help="a line for each setting")
    parser.add_argument("--write", action="store_true", help=f"the errors into {WORST.name}")
    parser.add_argument("--rows", action="store_true", help="the worst row of each line")
    arguments = parser.parse_args()
    each, written = arguments.settings, {}
    levels = usable_levels()

    def columns(function, *args):
        for level in levels:
            os.environ.pop("SOFTXENT_MAX_ISA", None)
            if level.isa in LEVELS:
                os.environ["SOFTXENT_MAX_ISA"] = level.isa
            assert sx.explain((4, 4), "float32", backend=level.backend).isa == level.isa
            yield function(*level, *args)

    for dtype in ("float32", "float64", *FORMATS):
        if dtype == "bfloat16" and find_spec("ml_dtypes") is None:
            continue
        errors: dict[str, list[float]] = {}
        where: dict[str, str] = {}
        cases = list(rows.cases(dtype)) if dtype not in FORMATS else option_cases(dtype)
        print(f"{sum(len(case.logits) for case in cases):,} rows, "
              f"{sum(case.logits.size for case in cases):,} logits")

        def see(label, quantity, table, found, errors=errors, where=where, dtype=dtype):
            promise, unit, *_ = table[quantity]
            name = f"{promise} {label if each else ''}{quantity}, {unit}"
            key = f"{name:66}{bound(quantity, dtype):8g}"
            before = errors.get(key, [0.0] * len(found))
            errors[key] = [max(old, column[quantity].error)
                           for old, column in zip(before, found, strict=True)]
            worst = max((column[quantity] for column in found), key=lambda column: column.error)
            if worst.error > max(before):
                where[key] = f"  {label}{worst.where}"
            into = written.setdefault(dtype, {}).setdefault(label.removesuffix(": "), {})
            into[quantity] = {GROUPS[level.isa]: rounded_up(column[quantity].error)
                              for level, column in zip(levels, found, strict=True)
                              if level.isa in GROUPS}

        if dtype not in FORMATS:
            found = list(columns(measure, dtype))
            for quantity in BOUNDS:
                see("", quantity, BOUNDS, found)
        for name in (*SETTINGS, *POINTS, *HESSIANS, *PIECES):
            found = list(columns(measure_options, dtype, name))
            for quantity in measured(name, dtype):
                see(f"{name}: ", quantity, OPTION_BOUNDS, found)
        print(f"{dtype:66}{'bound':>8}" + "".join(f"{level!s:>12}" for level in levels))
        for key, values in errors.items():
            row = where.get(key, "") if arguments.rows else ""
            print(key + "".join(f"{value:12.3f}" for value in values) + row)
        print()
    if arguments.write:
        WORST.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")


def rounded_up(error: float) -> float:
    """Two digits behind the point, above the error by 0.005 to 0.015.

    The truth is the C library's, in extended precision: another one's may differ by less.
    """
    return math.ceil(100 * (error + 0.005)) / 100


if __name__ == "__main__":
    main()
