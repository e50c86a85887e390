"""`softxent bench`: what it compares computes the same, and the table is of what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

import softxent as sx
from softxent import cli
from softxent.cli import bench, peers


@pytest.mark.parametrize("text", ["32x10", "3x5:float64", "3x5:f64:F", "3x5:F", "2x3:bf16"])
def test_shapes(text):
    shape = bench.Shape.parse(text)
    if shape.dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 is its")
    z, y = shape.arrays()
    assert z.shape == (shape.rows, shape.classes)
    assert z.dtype.name == shape.dtype
    assert z.flags.f_contiguous if shape.order == "F" else z.flags.c_contiguous
    assert y.shape == (shape.rows,)
    assert 0 <= y.min() <= y.max() < shape.classes


@pytest.mark.parametrize("text", ["", "10", "3x", "0x4", "4x-1", "3x4:int8", "3x4:f32:f64",
                                  "3x4x5"])
def test_what_is_no_shape(text, capsys):
    assert cli.main(["bench", "--shapes", text, "--against", ""]) == 1
    assert "ROWSxCLASSES" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["numpy", "scipy", "sklearn"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("fresh", [True, False])
def test_peers_compute_the_same(name, order, fresh, monkeypatch):
    z, y = bench.Shape(40, 7, "float64", order).arrays()
    pytest.importorskip({"numpy": "numpy", "scipy": "scipy", "sklearn": "sklearn"}[name],
                        reason="the peer")
    loss, _ = sx.cross_entropy_with_grad(z, y)
    rows, _ = sx.cross_entropy_with_grad(z, y, reduction="none")
    found = peers.case_of(name, z, y, 1, fresh)()
    if name == "sklearn":
        np.testing.assert_allclose(found[0], rows, rtol=1e-12)
        np.testing.assert_allclose(
            found[1], sx.cross_entropy_with_grad(z, y, reduction="sum")[1], atol=1e-12)
    else:
        assert found == pytest.approx(loss, rel=1e-12)
    z_before, _ = bench.Shape(40, 7, "float64", order).arrays()
    np.testing.assert_array_equal(z, z_before)


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_compiled_peers_compute_the_same(name, order):
    pytest.importorskip(name, reason="the peer")
    z, y = bench.Shape(40, 7, "float32", order).arrays()
    found = peers.case_of(name, z, y, 1)()
    loss = float(found[0]) if isinstance(found, tuple) else found.item()
    assert loss == pytest.approx(sx.cross_entropy(z, y), rel=1e-5)


def test_a_peer_that_fails_is_left_out(monkeypatch):
    def broken(z, y, n_threads, fresh):
        def run():
            raise RuntimeError("no such kernel\nand more")
        return run

    monkeypatch.setitem(peers.PEERS, "numpy", ("numpy", "NumPy", broken))
    said = []
    figures = bench.bench(bench.Shape(4, 3), ["numpy"], 2, 1, say=said.append)
    assert "NumPy" not in figures["results"]
    assert any("no such kernel" in line for line in said)
    assert figures["fastest_peer"] is None


def test_command(capsys):
    assert cli.main(["bench", "--shapes", "50x4", "20x3:float64:F", "--against", "numpy",
                     "--rounds", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [shape["shape"] for shape in found["shapes"]] == [
        "50 x 4 float32", "20 x 3 float64, class-major"]
    first = found["shapes"][0]
    results = first["results"]
    assert set(results) == {"softxent", "softxent, in place", "softxent, loss alone", "NumPy"}
    assert first["fastest_peer"] == "NumPy"
    assert set(first["speedups"]) == {"softxent", "softxent, in place"}
    assert results["softxent"]["ratio"] == 1.0
    for name, result in results.items():
        moved = 50 * 4 * 4 * (1 if name == "softxent, loss alone" else 2)
        assert result["gb_per_second"] * result["seconds"] * 1e9 == pytest.approx(moved)
    assert found["machine"]["threads"] == 1
    assert found["machine"]["versions"]["numpy"] == np.__version__


def test_text_and_fresh(capsys):
    assert cli.main(["bench", "--shapes", "50x4", "--against", "numpy", "--rounds", "1",
                     "--fresh"]) == 0
    text = capsys.readouterr().out
    assert "| 50 x 4 float32 | softxent, fresh |" in text
    assert "| 50 x 4 float32 | NumPy |" in text


def test_the_limit_is_measured_beside_large_arrays():
    if not bench.limits(1 << 12, 1):
        pytest.skip("there is no extension to move memory with")
    figures = bench.bench(bench.Shape(300, 5000), [], 2, 1)
    assert {f"limit: {loop}" for loop in bench.LIMITS} <= set(figures["results"])
    assert figures["results"]["softxent"]["share_of_limit"] > 0.0
    assert figures["results"]["softxent, in place"]["share_of_limit"] > 0.0


def test_moving_memory_moves_it():
    native = pytest.importorskip("softxent._native", reason="the extension moves it")
    a, b = (np.zeros(64 * 100 + 64, np.uint8) for _ in range(2))
    source, target = (x.ctypes.data + -x.ctypes.data % 64 for x in (a, b))
    a[:] = np.arange(len(a)) % 119     # floats that are no NaN, nor subnormal by their top byte
    lo, hi = source - a.ctypes.data, target - b.ctypes.data
    for loop in ("copy", "stream"):
        b[:] = 0
        native.move_memory(loop, source, target, 100, 7, 2)
        floats = a[lo : lo + 6400].view(np.float32)
        np.testing.assert_array_equal(b[hi : hi + 6400].view(np.float32), floats)
    for loop in ("read", "update"):
        before = a.copy()
        native.move_memory(loop, source, target, 100, 7, 2)
        np.testing.assert_array_equal(a, before)
    with pytest.raises(ValueError, match="64-byte"):
        native.move_memory("copy", source + 4, target, 10, 1, 1)


@pytest.mark.parametrize(("arguments", "named"), [
    (["--against", "numpy,tensorflow"], "tensorflow"), (["--rounds", "0"], "rounds"),
    (["--threads", "0"], "threads"),
])
def test_bad_arguments(arguments, named, capsys):
    assert cli.main(["bench", "--shapes", "4x3", *arguments]) == 1
    assert named in capsys.readouterr().err


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws the plot")
    file = tmp_path / "speed.png"
    assert cli.main(["bench", "--shapes", "40x4", "16x10", "--against", "numpy", "--rounds", "1",
                     "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["bench", "--shapes", "4x3", "--against", "", "--rounds", "1", "--plot",
                     str(tmp_path / "none" / "speed.png")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_share_of_the_limit_is_of_the_fastest_loop():
    times = {bench.OURS: [2.0, 2.0], bench.OURS_LOSS: [2.0, 2.0], "limit: copy": [1.9, 1.9],
             "limit: stream": [1.0, 1.0], "limit: read": [0.5, 0.5]}
    assert bench._share(times, bench.OURS) == 0.5
    assert bench._share(times, bench.OURS_LOSS) == 0.25
    assert bench._share(times, bench.OURS_IN_PLACE) is None
