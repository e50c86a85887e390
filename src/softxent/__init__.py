"""softxent: softmax cross-entropy on CPU, fast and right to the last bits.

NumPy arrays in, loss and gradient out. Importing starts no thread and compiles nothing.
"""

import typing

from softxent._diagnose import diagnose
from softxent._explain import explain
from softxent._info import show_versions
from softxent._plan import BackendUnavailableError, Plan, available_backends, set_backend
from softxent._row_stats import (
    RowStats,
    finish_row_stats,
    grad_from_row_stats,
    merge_row_stats,
    row_stats,
)
from softxent._threads import get_num_threads, register_threadpoolctl, set_num_threads
from softxent._tune import tune
from softxent._tuning import Tuning
from softxent._warmup import warmup
from softxent.losses.cross_entropy import cross_entropy, cross_entropy_with_grad
from softxent.losses.cross_entropy_grad_hess import cross_entropy_grad_hess
from softxent.losses.distillation_loss import distillation_loss, distillation_loss_with_grad
from softxent.losses.focal_loss import focal_loss, focal_loss_with_grad
from softxent.losses.kl_divergence import kl_divergence, kl_divergence_with_grad
from softxent.losses.nll_loss import nll_loss, nll_loss_with_grad
from softxent.losses.sigmoid_binary_cross_entropy import (
    sigmoid_binary_cross_entropy,
    sigmoid_binary_cross_entropy_with_grad,
)
from softxent.losses.softmax_squared_error import (
    softmax_squared_error,
    softmax_squared_error_with_grad,
)
from softxent.metrics import accuracy, mean_divisor
from softxent.pieces import (
    log_softmax,
    logsumexp,
    softmax,
    softmax_entropy,
    softmax_vjp,
    target_log_probs,
)

if typing.TYPE_CHECKING:
    from softxent.linear import LinearGrads

__all__ = [
    "BackendUnavailableError",
    "LinearGrads",
    "Plan",
    "RowStats",
    "Tuning",
    "accuracy",
    "available_backends",
    "cross_entropy",
    "cross_entropy_grad_hess",
    "cross_entropy_with_grad",
    "diagnose",
    "distillation_loss",
    "distillation_loss_with_grad",
    "explain",
    "finish_row_stats",
    "focal_loss",
    "focal_loss_with_grad",
    "get_num_threads",
    "grad_from_row_stats",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "logsumexp",
    "mean_divisor",
    "merge_row_stats",
    "nll_loss",
    "nll_loss_with_grad",
    "register_threadpoolctl",
    "row_stats",
    "set_backend",
    "set_num_threads",
    "show_versions",
    "sigmoid_binary_cross_entropy",
    "sigmoid_binary_cross_entropy_with_grad",
    "softmax",
    "softmax_entropy",
    "softmax_squared_error",
    "softmax_squared_error_with_grad",
    "softmax_vjp",
    "target_log_probs",
    "tune",
    "warmup",
]


def __getattr__(name: str) -> typing.Any:
    if name == "LinearGrads":
        from softxent.linear import LinearGrads  # with the module that returns it

        return LinearGrads
    if name == "__version__":
        from importlib import metadata  # 20 ms that an import need not cost

        try:
            return metadata.version("softxent")
        except metadata.PackageNotFoundError:
            raise AttributeError("softxent is not installed, so it has no version") from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
