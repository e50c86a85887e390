"""E9: the bits of a million fixed rows, which guard E7 and E8."""

import json

import pytest

import bits
from levels import LEVELS, force, usable_levels

STORED = json.loads(bits.FILE.read_text())


def test_there_are_a_million_rows():
    assert sum(bits.ROWS.values()) == 1_000_000
    assert set(STORED) == {f"{dtype} {name}" for dtype, name in bits.cases()}


@pytest.mark.parametrize("level", [one for one in usable_levels() if one.isa in LEVELS], ids=str)
@pytest.mark.parametrize(("dtype", "name"), bits.cases())
def test_same_bits_as_ever(level, dtype, name, monkeypatch):
    """A change is a commit of its own: `python tests/bits.py --write`."""
    force(level, monkeypatch)
    group = "v2" if level.isa == "v2" else "fma"
    assert bits.hashes(level.backend, dtype, name) == STORED[f"{dtype} {name}"][group]
