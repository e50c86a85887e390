"""The constants in the C header are those that the script derives."""

import re
from pathlib import Path

import pytest

from derive_constants import constants

HEADER = Path(__file__).parents[1] / "src/softxent/backends/cython/elementary.h"
# Choices, not results: explained where they stand.
CHOSEN = {"MAGIC_F32", "MAGIC_F64", "BIAS_F32", "BIAS_F64", "LIMIT_F32", "LIMIT_F64",
          "OUT_OF_REACH"}


def test_header_has_the_derived_constants():
    text = HEADER.read_text()
    defined = {
        name: float.fromhex(value.rstrip("f"))
        for name, value in re.findall(r"#define SX_(\w+) (-?0x[0-9a-f.]+p[-+]\d+f?)$", text, re.M)
        if name not in CHOSEN
    }
    assert defined == constants()


# What the arithmetic without FMA has instead; the Numba walk is not for such processors.
WITHOUT_FMA = {"LN2_11_F32", "LN2_NEXT_11_F32", "LN2_22_REST_F32", "LN2_NEXT_21"}


def test_the_numba_walk_has_the_same_constants():
    """Under the same names; also those that are choices."""
    elementary = pytest.importorskip("softxent.backends.numba._elementary", exc_type=ImportError)
    for name, value in constants().items():
        if name not in WITHOUT_FMA:
            assert float(getattr(elementary, name)) == value, name
    text = HEADER.read_text()
    for name in CHOSEN:
        value = re.findall(rf"#define SX_{name} (\S+)", text)[0]  # LIMIT_...: with FMA
        number = float.fromhex(value) if "x" in value else float(value)
        assert getattr(elementary, name) == number, name


def test_no_unnamed_constant_is_left_in_the_header():
    code = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    lines = [line for line in code.splitlines()
             if re.search(r"0x1\.[0-9a-f]{3,}p", line) and not line.startswith("#define")]
    assert lines == []
