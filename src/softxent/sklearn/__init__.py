"""softxent in scikit-learn. Importing this imports no scikit-learn: each name does when asked for.

So a scikit-learn whose private parts have moved takes away the names that need them alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softxent.sklearn._display import LossCurveDisplay
    from softxent.sklearn._loss import HalfMultinomialLoss
    from softxent.sklearn._patch import patch, unpatch
    from softxent.sklearn._regression import SoftmaxRegression

__all__ = ["HalfMultinomialLoss", "LossCurveDisplay", "SoftmaxRegression", "patch", "unpatch"]

_MODULES = {
    "HalfMultinomialLoss": "_loss",
    "LossCurveDisplay": "_display",
    "SoftmaxRegression": "_regression",
    "patch": "_patch",
    "unpatch": "_patch",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
