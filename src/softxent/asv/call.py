"""What a call costs beside its work."""

from __future__ import annotations

from ._cells import Timed, arrays, function, once

FUNCTIONS = ("cross_entropy", "cross_entropy_with_grad", "logsumexp", "softmax", "accuracy")


class Call(Timed):
    """32 x 10 logits, 100 ns of work: arguments are checked, a backend chosen, outputs made."""

    params = (FUNCTIONS,)
    param_names = ("function",)

    def setup(self, name: str) -> None:
        """Make the arguments, and the first call."""
        self.function = function(name)
        z, y = arrays("32x10")
        self.arguments = (z,) if name in ("logsumexp", "softmax") else (z, y)
        once(name, lambda: self.time_call(name))

    def time_call(self, name: str) -> None:
        """Call with default options."""
        self.function(*self.arguments)
