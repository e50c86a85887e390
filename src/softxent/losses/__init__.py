"""The losses: one file each, one row each in `LOSSES`."""

from softxent.losses import cross_entropy as _cross_entropy
from softxent.losses import distillation_loss as _distillation_loss
from softxent.losses import focal_loss as _focal_loss
from softxent.losses import kl_divergence as _kl_divergence
from softxent.losses import nll_loss as _nll_loss
from softxent.losses import sigmoid_binary_cross_entropy as _sigmoid_binary_cross_entropy
from softxent.losses import softmax_squared_error as _softmax_squared_error
from softxent.losses._spec import Spec

#: Public name: what the road needs to know of it.
LOSSES: dict[str, Spec] = {spec.name: spec for spec in (
    _cross_entropy.SPEC,
    _focal_loss.SPEC,
    _kl_divergence.SPEC,
    _distillation_loss.SPEC,
    _nll_loss.SPEC,
    _sigmoid_binary_cross_entropy.SPEC,
    _softmax_squared_error.SPEC,
)}
