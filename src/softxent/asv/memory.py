"""How much memory a call needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._cells import BACKENDS, arrays, function, require

#: 32 MiB of logits: a temporary of their size would stand out.
SHAPE = "8192x1000"


class Memory:
    """The most that a process held: interpreter, logits, a gradient, and what ought not to be."""

    version = "1"
    timeout = 300
    params = (BACKENDS,)
    param_names = ("backend",)

    def setup_cache(self) -> dict[str, str]:
        """Store the logits: to make them takes more memory than the call."""
        files = {"z": "logits.npy", "y": "targets.npy"}
        for name, array in zip(files.values(), arrays(SHAPE), strict=True):
            np.save(name, array)
        return {name: str(Path(file).resolve()) for name, file in files.items()}

    def setup(self, files: dict[str, str], backend: str) -> None:
        """Skip where there is no such backend."""
        require(backend)

    def peakmem_loss_grad(self, files: dict[str, str], backend: str) -> None:
        """Loss and gradient on one thread, of logits that are read as they are needed."""
        z, y = (np.load(files[name], mmap_mode="r") for name in "zy")
        function("cross_entropy_with_grad")(z, y, backend=backend, n_threads=1)
