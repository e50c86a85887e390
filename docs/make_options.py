"""Write docs/options.md: which loss has which option, and what each means.

    python docs/make_options.py            write it
    python docs/make_options.py --check    exit status 1 if it is not up to date

Nothing is said twice: what there is comes from the table of losses, defaults from the signatures,
meanings from the docstrings.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import softxent
from softxent.losses import LOSSES
from softxent.losses._spec import OPTIONS

PAGE = Path(__file__).with_name("options.md")

HEAD = """\
<!-- Written by `python docs/make_options.py` from the code; do not edit. -->
# Options

Every option is keyword-only. ✓: the loss has it with that kind of target. –: it has not; where one
function takes both kinds, giving it is then a `TypeError` (its default is not). `grad_out` and
`upstream` are parameters of the functions `…_with_grad`.
"""
MEANINGS = """
## What they mean

`help(softxent.{first})` has the details; where losses differ, so do their docstrings.

"""
#: A sentence's end; "..." and "d1, ...)." are none.
SENTENCE = re.compile(r"(?<=[^.]\.)\s+(?=[^\s.])")


def functions(loss: str) -> list[Callable[..., Any]]:
    """Return the functions of a loss: without the gradient, and with it."""
    found = (getattr(softxent, name, None) for name in (loss, f"{loss}_with_grad"))
    return [function for function in found if function is not None]


def keywords(loss: str) -> dict[str, Any]:
    """Return the keyword-only parameters of a loss with their defaults, in order."""
    return {
        name: parameter.default
        for function in functions(loss)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def described(function: Callable[..., Any]) -> dict[str, str]:
    """Return what a numpydoc docstring says of each parameter, on one line each."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Parameters\n-{3,}\n(.*?)(?=^\w[\w ]*\n-{3,}\n|\Z)", text, re.M | re.S)
    found: dict[str, str] = {}
    if section:
        entries = re.split(r"^(?=\S)", section[1], flags=re.M)
        for head, _, body in (entry.partition("\n") for entry in entries if entry.strip()):
            for name in head.partition(" : ")[0].split(","):
                found[name.strip(" *")] = " ".join(body.split())
    return found


def meaning(option: str) -> str:
    """Return the first words on `option` that do not send the reader elsewhere; "" if none do."""
    for loss in LOSSES:
        for function in functions(loss):
            text = described(function).get(option, "")
            if not text or re.match(r"As (for )?`", text):
                continue
            kept = ""
            for sentence in SENTENCE.split(text):
                kept = f"{kept} {sentence}".strip()
                if len(kept) > 40:  # "v, >= 0." alone says little
                    break
            return re.sub(r"\s*\[\d+\]_", "", kept)  # footnotes stay in the docstring
    return ""


def options() -> list[str]:
    """Return every option of every loss, the common order first."""
    names = [*OPTIONS, *(name for spec in LOSSES.values() for kind in spec.options.values()
                         for name in kind), *(name for loss in LOSSES for name in keywords(loss))]
    return [name for name in dict.fromkeys(names) if any(has(name, loss) for loss in LOSSES)]


def has(option: str, loss: str, kind: str | None = None) -> bool:
    """Whether `loss` has the option: with a kind of target, or at all."""
    by_kind = LOSSES[loss].options
    listed = {name for names in by_kind.values() for name in names}
    if option in listed:
        return any(option in names for key, names in by_kind.items() if kind in (None, key))
    return option in keywords(loss)  # a parameter of its own, such as a focal loss's gamma


def default(option: str) -> str:
    """Return "axis=-1", or the name alone where losses have different defaults."""
    found = {repr(keywords(loss)[option]) for loss in LOSSES if option in keywords(loss)}
    return f"{option}={found.pop()}" if len(found) == 1 else option


def page() -> str:
    """Return the page."""
    columns = [(loss, kind) for loss, spec in LOSSES.items() for kind in spec.targets or ("",)]
    titles = [f"`{loss}`{f', {kind}' if kind else ''}" for loss, kind in columns]
    lines = [f"| option | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for option in options():
        marks = ["✓" if has(option, loss, kind or None) else "–" for loss, kind in columns]
        lines.append(f"| `{default(option)}` | {' | '.join(marks)} |")
    meanings = [f"- `{name}`: {text}" for name in options() if (text := meaning(name))]
    return "\n".join([HEAD, *lines, MEANINGS.format(first=next(iter(LOSSES))).rstrip("\n"), "",
                      *meanings, ""])


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE} is not up to date: run python docs/make_options.py", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
