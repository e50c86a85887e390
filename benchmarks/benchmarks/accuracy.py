"""The worst errors of every loss, over hard rows: the tests' rows, against the tests' truth.

Not in `softxent.asv`: the truth is extended precision, held against mpmath, in `tests/`, and needs
nothing of the package.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from ._cells import BACKENDS, require
from .losses import LOSSES as FILES

TESTS = Path(__file__).parents[2] / "tests"
#: A Hessian is no gradient: `tests/accuracy_table.py` has its errors.
LOSSES = tuple(loss for loss in FILES if not loss.endswith("_hess"))
#: Of rows that the tests have: tiles, squares, a tail, and more than a block.
CLASSES = (2, 10, 65, 1025)


class Accuracy:
    """In float32, with the loss's first setting in `accuracy_table.SETTINGS`.

    In the units of `accuracy_table.OPTION_BOUNDS`: ulp, or of losses that are sums of terms, eps of
    the sum of their absolute values. Exact: any change is one of the code, or of the truth.
    """

    version = "1"
    unit = "ulp"
    timeout = 600
    params = (LOSSES, BACKENDS)
    param_names = ("loss", "backend")

    def setup(self, loss: str, backend: str) -> None:
        """Measure, once; skip a loss that the commit does not have."""
        require(backend)
        self.loss, self.gradient = worst(loss, backend)

    def track_worst_ulp_loss(self, loss: str, backend: str) -> float:
        """The loss's worst error."""
        return self.loss

    def track_worst_ulp_grad(self, loss: str, backend: str) -> float:
        """The worst error of an element of its gradient."""
        return self.gradient


@functools.cache
def worst(loss: str, backend: str) -> tuple[float, float]:
    """Return the worst errors of a loss and of its gradient."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    import numpy as np

    import accuracy_table
    import rows
    import softxent as sx

    if not hasattr(sx, f"{loss}_with_grad"):
        raise NotImplementedError(f"there is no {loss}")
    setting = accuracy_table.Setting(loss) if loss == "cross_entropy" else next(
        setting for setting in {**accuracy_table.SETTINGS, **accuracy_table.POINTS}.values()
        if setting.loss == loss)
    names = setting.quantities
    errors = {quantity: accuracy_table.Worst() for quantity in accuracy_table.OPTION_BOUNDS}
    with np.errstate(invalid="ignore"):
        for n_classes in CLASSES:
            case = rows.some(rows.case(n_classes, "float32"), 1)
            accuracy_table.observe_setting(errors, case, backend, setting, "float32")
    return errors[names.loss].error, errors[names.gradient].error
