"""A1: exp of the compiled walks, every float32 argument; softcap; each compiled for each level."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from levels import LEVELS, _processor_has

TESTS = Path(__file__).parent
FLAGS = {"v2": ["-msse4.2"], "v3": ["-mavx2", "-mfma"], "v4": ["-mavx2", "-mfma", "-mavx512f"]}
COMPILER = shutil.which(os.environ.get("CC", "cc").split()[0])

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no truth here"),
]


def measure(tmp_path, source, level, *arguments):
    """Compile a C program of this directory for a level, run it, and return what it prints."""
    if not all(map(_processor_has, LEVELS[level])):
        pytest.skip(f"this processor lacks {level}")
    program = tmp_path / "program"
    subprocess.run(
        [COMPILER, "-O2", "-ffp-contract=off", "-fno-math-errno", *FLAGS[level], "-o", program,
         TESTS / source, f"-I{TESTS.parent}/src/softxent/backends/cython", "-lm"],
        check=True)
    done = subprocess.run([program, *map(str, arguments)], check=True, text=True,
                          stdout=subprocess.PIPE)
    print(level, done.stdout, file=sys.stderr)
    return [float(word) for word in done.stdout.split()]


def check(tmp_path, level, step, samples):
    f32, left_f32, far_f32, f64, left_f64 = measure(tmp_path, "exp_ulp.c", level, step, samples)
    assert f32 <= 1.0
    assert far_f32 <= 1.0
    assert f64 <= 1.0
    assert left_f32 == left_f64 == 0


@pytest.mark.parametrize("level", FLAGS)
def test_exp_is_within_one_ulp(tmp_path, level):
    check(tmp_path, level, 257, 2_000_000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("level", FLAGS)
def test_exp_is_within_one_ulp_at_every_float32(tmp_path, level):
    check(tmp_path, level, 1, 100_000_000)


@pytest.mark.parametrize("level", FLAGS)
def test_softcap_and_temperature(tmp_path, level):
    """The contract's 1 ulp for a capped logit. An exp behind a temperature has no bound of its own:
    what is asserted is half as much again as A1's, for the division.
    """
    cap_f32, slope_f32, cap_f64, slope_f64, exp_f32, exp_f64 = measure(
        tmp_path, "softcap_ulp.c", level, 2_000_000)
    assert cap_f32 <= 1.0
    assert cap_f64 <= 1.0
    assert slope_f32 <= 4.0
    assert slope_f64 <= 4.0
    assert exp_f32 <= 1.5
    assert exp_f64 <= 1.5


@pytest.mark.parametrize("level", FLAGS)
def test_power(tmp_path, level):
    """Within what the comment says of it, where the result is normal; no larger below."""
    worst, tiny = measure(tmp_path, "power_ulp.c", level, 2_000_000)
    assert worst <= 1.5
    assert tiny <= 1.0


@pytest.mark.parametrize("level", FLAGS)
def test_log1p_in_float32(tmp_path, level):
    """Of exp(-|z|), for binary cross-entropy."""
    (worst,) = measure(tmp_path, "log1p_ulp.c", level, 61)
    assert worst <= (2.0 if level == "v2" else 1.5)


@pytest.mark.parametrize("level", FLAGS)
def test_inverse(tmp_path, level):
    """Of 1 + exp(-|z|), for binary cross-entropy, without a division."""
    f32, f64, inexact = measure(tmp_path, "inverse_ulp.c", level, 7, 2_000_000)
    assert max(f32, f64) <= 1.0
    assert inexact == 0
