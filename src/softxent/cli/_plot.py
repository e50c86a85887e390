"""What commands that draw a plot share: Matplotlib, if it is there, and the plot's file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from softxent.cli import CommandError


def pyplot(file: str) -> Any:
    """Return Matplotlib's, before the work that is to be drawn in `file`, or raise CommandError.

    That it is missing, or that nothing can be written there, should not come out after minutes.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError(f"--plot needs Matplotlib ({error}); pip install 'softxent[plot]'"
                           ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(file)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise CommandError(f"cannot write the plot: there is no folder {folder}")
    if path.is_dir():
        raise CommandError(f"cannot write the plot: {file} is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise CommandError(f"cannot write the plot: no permission to write {file}")
    known = FigureCanvasBase.get_supported_filetypes()
    if _format(file) not in known:
        raise CommandError(f"cannot write the plot: the end of {file} is no format of "
                           f"Matplotlib's: {', '.join(sorted(known))}")
    return plt


def save(figure: Any, file: str, **options: Any) -> None:
    """Write a figure, and say so on stderr, or raise CommandError."""
    try:
        figure.savefig(file, format=_format(file), **options)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write the plot: {error}") from error
    print(f"plot written to {file}", file=sys.stderr)


def _format(file: str) -> str:
    return Path(file).suffix[1:].lower() or "png"
