"""Derives every constant of backends/cython/elementary.h again; run it to print them.

mpmath, 60 digits; ln2 by its leading bits, exp's polynomials by Remez's exchange on the relative
error, the logarithms' at Chebyshev's nodes.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 60


def leading(x: mp.mpf, bits: int) -> mp.mpf:
    """x cut (not rounded) to its leading bits."""
    mantissa, exponent = mp.frexp(x)
    return mp.floor(mantissa * 2**bits) / 2**bits * mp.mpf(2) ** exponent


def remez(powers: range, target: Callable, bound: mp.mpf) -> list[mp.mpf]:
    """Coefficients of x^p, p in powers: least max |(sum - target) / exp| over |x| <= bound."""
    m = len(powers)
    grid = [-bound + 2 * bound * mp.mpf(i) / 400 for i in range(401)]
    points = [-bound * mp.cos(mp.pi * i / m) for i in range(m + 1)]
    for _ in range(60):
        rows = [[x**p / mp.exp(x) for p in powers] + [mp.mpf(-1) ** i]
                for i, x in enumerate(points)]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([target(x) / mp.exp(x) for x in points]))
        coefficients = list(solution)[:m]
        errors = [(sum(c * x**p for c, p in zip(coefficients, powers, strict=True)) - target(x))
                  / mp.exp(x) for x in grid]
        # One extremum from each stretch of equal sign; the outermost ones beyond m + 1 go.
        peaks: list[int] = []
        for i, error in enumerate(errors):
            if error == 0:
                continue
            if peaks and errors[peaks[-1]] * error > 0:
                if abs(error) > abs(errors[peaks[-1]]):
                    peaks[-1] = i
            else:
                peaks.append(i)
        while len(peaks) > m + 1:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        # x^2 and up all vanish at 0, so the exchange may end with an extremum less than usual.
        if len(peaks) < m + 1:
            break
        points = [grid[i] for i in peaks]
    return coefficients


def chebyshev(function: Callable, low: mp.mpf, high: mp.mpf, degree: int) -> list[mp.mpf]:
    """Coefficients of the polynomial that agrees with `function` at Chebyshev's nodes."""
    n = degree + 1
    nodes = [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * n))
             for i in range(n)]
    vandermonde = mp.matrix([[x**p for p in range(n)] for x in nodes])
    return list(mp.lu_solve(vandermonde, mp.matrix([function(x) for x in nodes])))


def atanh_rest(w: mp.mpf) -> mp.mpf:
    """(log((1 + s) / (1 - s)) - 2s) / s^3 as a function of w = s^2."""
    s = mp.sqrt(w)
    return ((mp.log((1 + s) / (1 - s)) - 2 * s) / s) / w


def tanh_rest(w: mp.mpf) -> mp.mpf:
    """((tanh(y) / y - 1) / w + 1/3) / w as a function of w = y^2."""
    y = mp.sqrt(w)
    return ((mp.tanh(y) / y - 1) / w + mp.mpf(1) / 3) / w


def constants() -> dict[str, float]:
    """Every named constant that is not a choice but follows from the mathematics."""
    ln2, found = mp.log(2), {}
    found["LOG2E"] = 1 / ln2
    found["LN2"], found["LN2_REST"] = mp.mpf(float(ln2)), ln2 - mp.mpf(float(ln2))
    found["LN2_32"] = leading(ln2, 32)
    found["LN2_32_REST"] = ln2 - found["LN2_32"]
    found["LN2_NEXT_21"] = leading(found["LN2_32_REST"], 21)
    found["LN2_24_F32"] = mp.mpf(float(np.float32(float(ln2))))
    found["LN2_24_REST_F32"] = ln2 - found["LN2_24_F32"]
    found["LN2_11_F32"] = leading(ln2, 11)
    found["LN2_NEXT_11_F32"] = leading(ln2 - found["LN2_11_F32"], 11)
    found["LN2_22_REST_F32"] = ln2 - found["LN2_11_F32"] - found["LN2_NEXT_11_F32"]
    found["SQRT2"], found["SQRT2_LESS_1"] = mp.sqrt(2), mp.sqrt(2) - 1
    for suffix, top, bound in (("F32", 6, "0.3605"), ("F64", 11, "0.3468")):
        found |= {f"Q{i}_{suffix}": c for i, c in enumerate(
            remez(range(2, top + 1), lambda x: mp.exp(x) - 1 - x, mp.mpf(bound)))}
    widest = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1) * mp.mpf("1.0001")
    found |= {f"R{i}": c for i, c in enumerate(
        chebyshev(atanh_rest, mp.mpf(0), widest**2, 6))}
    third = mp.mpf(float(-mp.mpf(1) / 3))
    found["THIRD"], found["THIRD_REST"] = third, -mp.mpf(1) / 3 - third
    for name, degree in (("TANH", 14), ("TANH_SHORT", 7)):
        found |= {f"{name}_{i}": c for i, c in enumerate(
            chebyshev(tanh_rest, mp.mpf("1e-30"), mp.mpf("0.8101"), degree))}
    found |= {f"LOG1P_{i}_F32": c for i, c in enumerate(
        chebyshev(lambda x: mp.log1p(x) / x, mp.mpf("1e-30"), mp.mpf(1), 9))}
    # Of least relative error for 1/d on [1, 2]: (1 - T4(2 d - 3) / T4(-3)) / d.
    inverse = {f"INVERSE_{i}": mp.mpf(c) / 577 for i, c in enumerate((1632, -1696, 768, -128))}
    found |= {f"{name}_{suffix}": c for suffix in ("F32", "F64") for name, c in inverse.items()}
    return {name: float(np.float32(float(value))) if name.endswith("F32") else float(value)
            for name, value in found.items()}


if __name__ == "__main__":
    for name, value in constants().items():
        print(f"#define SX_{name} {value.hex()}")
