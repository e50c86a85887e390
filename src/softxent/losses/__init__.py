"""The losses: one file each, one row each in `LOSSES`."""

from softxent.losses import cross_entropy as _cross_entropy
from softxent.losses._spec import Spec

#: Public name: what the road needs to know of it.
LOSSES: dict[str, Spec] = {spec.name: spec for spec in (_cross_entropy.SPEC,)}
