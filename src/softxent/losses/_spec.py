"""What a row of the table of losses says."""

from __future__ import annotations

from dataclasses import dataclass

from softxent.backends._contract import Op


@dataclass(frozen=True)
class Spec:
    """A loss, or a piece of one, as the road below the public function sees it.

    name
        The public function's name.
    op
        The head that the backends run.
    targets
        Kinds of target it takes: "classes" so far; empty for the pieces.
    """

    name: str
    op: Op
    targets: tuple[str, ...] = ()
