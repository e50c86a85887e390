"""The command line: text on stdout (`--json`: for machines), messages on stderr.

Exit status: 0, 1 if the job failed, 2 for bad arguments. To add a command: a module with `add(
subparsers)`, and its name here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from softxent._plan import BackendUnavailableError

_COMMANDS = ("info", "demo", "eval", "bench", "tune")


class CommandError(Exception):
    """The job failed; the message is the line that the user sees."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="softxent", description="Softmax cross-entropy on CPU, fast and accurate."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        command = importlib.import_module(f"softxent.cli.{name}").add(subparsers)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    try:
        result, text = options.run(options)
    except (CommandError, BackendUnavailableError) as error:
        print(f"softxent {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"softxent {options.command}: interrupted", file=sys.stderr)
        return 1
    try:
        print(json.dumps(result, indent=2) if options.json else text, flush=True)
    except BrokenPipeError:  # `softxent info | head -1`: who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
