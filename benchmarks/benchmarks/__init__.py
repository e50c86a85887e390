"""The suite, as asv reads it: `softxent.asv` of this checkout, and what is the repository's alone.

asv runs the suite of the checkout against whatever commit is installed, whose own `softxent.asv`
may be older, or not there at all. So the files are taken from the source tree, as modules of this
package: `loss.Loss.time_loss` is `src/softxent/asv/loss.py`.
"""

import os
from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "src" / "softxent" / "asv"))

# What a commit compiles is kept with its environment: once a commit, not a process, and apart from
# what other commits, and `softxent tune`, have left in the user's cache.
if "ASV_ENV_DIR" in os.environ:
    _cache = str(Path(os.environ["ASV_ENV_DIR"], f"cache-{os.environ.get('ASV_COMMIT', '')[:12]}"))
    os.environ["SOFTXENT_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"] = _cache
