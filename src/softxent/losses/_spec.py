"""What a row of the table of losses says."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from softxent.backends._contract import Op

#: What every loss takes.
COMMON = ("sample_weight", "reduction", "divisor", "backend", "n_threads", "grad_out", "upstream")
#: All options, in the order of the docs' matrix.
OPTIONS = ("gamma", "pos_weight", "hard_targets", "hard_weight", "axis", "class_weight",
           "ignore_index", "label_smoothing", "temperature", "softcap", "z_loss", *COMMON)


@dataclass(frozen=True)
class Spec:
    """A loss, or a piece of one, as the road below the public function sees it.

    name
        The public function's name.
    op
        The head that the backends run.
    options
        Kind of target ("classes", "probabilities", "logits"): the options that the loss has with
        it. No targets, for most pieces: empty.
    argument, second
        The first two arguments' names.
    output
        That of the array which receives the map, if there is one.
    """

    name: str
    op: Op
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    argument: str = "logits"
    second: str = "targets"
    output: str = "grad_out"

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """Kinds of target that it takes."""
        return tuple(self.options)

    @functools.cached_property
    def lacks(self) -> dict[str, tuple[str, ...]]:
        """Kind of target: the options that the loss has with another kind only."""
        every = {option for options in self.options.values() for option in options}
        return {kind: tuple(sorted(every - set(options))) for kind, options in self.options.items()}
