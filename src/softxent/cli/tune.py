"""`softxent tune`: measures where variants cross over on this machine, and keeps it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from softxent._tune import tune
from softxent.cli import CommandError


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tune", help="measure where threads, stores and backends cross over here, and keep it"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="default: 30")
    parser.add_argument("--dry-run", action="store_true", help="do not keep it")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Tune; return what was found, and the same as text."""
    try:
        found = tune(seconds=options.seconds, save=not options.dry_run)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return asdict(found), str(found)
