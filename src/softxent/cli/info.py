"""`softxent info`: backends, why, versions."""

from __future__ import annotations

import argparse
from typing import Any

from softxent import _info
from softxent._explain import explain
from softxent._plan import BackendUnavailableError


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info", help="backends, why each is or is not used, versions"
    )
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the facts, and the same as text."""
    facts = _info.collect()
    # The batch of a language model: what a large call would run on.
    try:
        plan = str(explain((1024, 32000)))
    except BackendUnavailableError as error:
        plan = str(error)
    return facts, f"{_info.as_text(facts)}\n\n1,024 x 32,000 float32 would run as\n{plan}"
