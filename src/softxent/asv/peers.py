"""Ours beside other libraries, in one process, in turn, by `softxent bench`'s own functions."""

from __future__ import annotations

from ._cells import arrays
from .shapes import TARGETS

#: As `softxent bench --against` names them.
PEERS = ("numpy", "scipy", "torch", "torch.compile", "jax", "sklearn")
ROUNDS = 5


class Ratio:
    """Loss and gradient on all threads, into memory that both use again."""

    version = "1"
    timeout = 300
    unit = "ours/peer"
    params = (tuple(TARGETS), PEERS)
    param_names = ("shape", "peer")

    def setup(self, shape: str, peer: str) -> None:
        """Prepare both; skip a peer that is not installed, or cannot do this."""
        try:
            from softxent.cli import bench, peers
        except ImportError as error:
            raise NotImplementedError(f"this commit has no peers: {error}") from error
        import softxent as sx

        z, y = arrays(shape)
        n_threads = sx.get_num_threads()
        try:
            theirs = peers.case_of(peer, z, y, n_threads)
        except (ImportError, peers.Unsupported) as error:
            raise NotImplementedError(f"{peer}: {error}") from error
        self.cases = {"ours": bench.ours(z, y, n_threads)[bench.OURS], "theirs": theirs}

    def track_ratio(self, shape: str, peer: str) -> float:
        """Return our time over the peer's, the median of rounds: less is better, 1 is as fast."""
        from softxent.cli import bench

        return bench.ratio(bench.measure(self.cases, ROUNDS), "ours", "theirs")
