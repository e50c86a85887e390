"""The project's benchmarks, for asv: what a dashboard of yours imports.

A file in your own suite (docs/benchmarks.md)::

    from softxent.asv import Call, LossGrad, Startup

Nothing here needs asv to be imported. The repository's own suite is these very files, read from the
checkout (`benchmarks/benchmarks/__init__.py`): they run on commits that are months old, so they ask
the package for nothing before `setup`, and import each other relatively.
"""

from .call import Call
from .limit import Limit
from .loss import Loss, LossGrad
from .losses import Losses
from .memory import Memory
from .peers import Ratio
from .pieces import Pieces
from .startup import Startup
from .trainer import Trainer

__all__ = ["Call", "Limit", "Loss", "LossGrad", "Losses", "Memory", "Pieces", "Ratio", "Startup",
           "Trainer"]
