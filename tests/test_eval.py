"""`softxent eval`: files read block by block, and gradients that survive whatever happens."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import softxent as sx
from softxent.cli import _gradient_file, main
from softxent.cli import eval as command

#: Set to 1, Linux grants any amount of memory.
OVERCOMMITS = Path("/proc/sys/vm/overcommit_memory")
OVERCOMMITS = OVERCOMMITS.exists() and OVERCOMMITS.read_text().strip() == "1"
posix = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and terminals of POSIX")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows a block, so that small files have many."""
    monkeypatch.setattr(command, "BLOCK_BYTES", 700)
    monkeypatch.setattr(command, "PIECE_BYTES", 40)
    monkeypatch.setattr(command, "FORTRAN_BYTES", 1500)
    monkeypatch.setattr(command, "CHECKED_ROWS", 11)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def evaluate(folder, capsys):
    """A function that runs `softxent eval` here; the error, if that is what should come."""

    def run(*arguments, status=0):
        code = main(["eval", "logits.npy", "targets.npy", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == status, err
        if status:
            assert out == ""
            assert err.startswith("softxent eval: ")
            assert err.count("\n") == 1
            return err
        result = json.loads(out) if "--json" in arguments else out
        return SimpleNamespace(result=result, err=err)

    return run


def files(*expected):
    assert sorted(os.listdir()) == sorted(expected)


def sample(n=97, c=7, dtype="f4", order="C", rows=None, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (*(rows or (n,)), c)).astype(dtype)
    targets = rng.integers(0, c, rows or (n,))
    return np.asarray(logits, order=order), targets


def probabilities(logits, seed=1):
    t = np.random.default_rng(seed).random(logits.shape)
    return t / t.sum(axis=-1, keepdims=True)


def whole(logits, targets, **options):
    """What one call over the whole arrays gives."""
    loss, grad = sx.cross_entropy_with_grad(logits, targets, **options)
    hard = targets
    if targets.dtype.kind not in "iu":
        hard = targets.argmax(axis=-1)
    kept = {k: v for k, v in options.items() if k == "ignore_index"}
    return loss, grad, sx.accuracy(logits, hard, **kept)


def check(figures, logits, targets, **options):
    loss, grad, accuracy = whole(logits, targets, **options)
    assert figures["loss"] == pytest.approx(loss, rel=1e-13)
    assert figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-12)
    assert figures["accuracy"] == accuracy
    assert figures["rows"] == math.prod(logits.shape[:-1])
    assert figures["classes"] == logits.shape[-1]
    return grad


def same_array(path, expected):
    """The file is what `np.save` would have made of `expected`."""
    file = io.BytesIO()
    np.save(file, expected)
    with open(path, "rb") as written:
        assert written.read() == file.getvalue()


# ---- the figures ---------------------------------------------------------------------------------

LAYOUTS = {
    "C": {},
    "Fortran": {"order": "F"},
    "float64": {"dtype": "f8"},
    "float64, Fortran": {"dtype": "f8", "order": "F"},
    "float16": {"dtype": "f2"},
    "float16, Fortran": {"dtype": "f2", "order": "F"},
    "foreign byte order": {"dtype": ">f4"},
    "foreign byte order, Fortran": {"dtype": ">f8", "order": "F"},
    "3-D": {"rows": (9, 11)},
    "3-D, Fortran": {"rows": (9, 11), "order": "F"},
    "4-D, Fortran": {"rows": (3, 4, 5), "order": "F"},
    "one row": {"rows": ()},
    "one row of a matrix": {"n": 1},
    "one row of a matrix, Fortran": {"n": 1, "order": "F"},
    "one class": {"c": 1},
    "one class, Fortran": {"c": 1, "order": "F"},
    "rows larger than a block": {"n": 5, "c": 999},
    "rows larger than a block, Fortran": {"n": 5, "c": 999, "order": "F"},
    "one block": {"n": 3},
    "one block, Fortran": {"n": 3, "order": "F"},
}


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_figures_and_gradient(evaluate, layout, kind):
    """The whole call's: the loss within its rounding, all else bit for bit."""
    logits, targets = sample(**LAYOUTS[layout])
    if kind == "probabilities":
        targets = np.asarray(probabilities(logits), dtype="f4", order=LAYOUTS[layout].get("order"))
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    figures = evaluate("--json").result
    grad = check(figures, logits, targets)
    assert figures["dtype"] == logits.dtype.newbyteorder("=").name
    assert figures["rows_counted"] == figures["rows"]
    assert figures["targets"] == kind
    assert figures["grad"] is None
    with_grad = evaluate("--json", "--grad", "grad.npy").result
    same_array("grad.npy", grad)
    same_array("logits.npy", logits)
    same_array("targets.npy", targets)
    files("logits.npy", "targets.npy", "grad.npy")
    assert with_grad.pop("grad") == "grad.npy"
    figures.pop("grad")
    for name in ("seconds", "gb_per_second"):
        assert figures.pop(name) >= 0
        assert with_grad.pop(name) >= 0
    assert with_grad == figures


@pytest.mark.parametrize("arguments", [
    ("--label-smoothing", "0.1"), ("--ignore-index", "2"), ("--label-smoothing", "1"),
    ("--ignore-index", "-1", "--label-smoothing", "0.25"),
], ids=" ".join)
@pytest.mark.parametrize("order", ["C", "F"])
def test_options(evaluate, arguments, order):
    logits, targets = sample(order=order)
    options = {name[2:].replace("-", "_"): float(value) if "." in value or "smooth" in name
               else int(value) for name, value in zip(*[iter(arguments)] * 2, strict=True)}
    if options.get("ignore_index") == -1:
        targets[::5] = -1
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    figures = evaluate(*arguments, "--grad", "grad.npy", "--json").result
    same_array("grad.npy", check(figures, logits, targets, **options))
    counting = targets != options.get("ignore_index", -100)
    assert figures["rows_counted"] == counting.sum()


def test_label_smoothing_of_probabilities(evaluate):
    logits, _ = sample()
    np.save("logits.npy", logits)
    np.save("targets.npy", targets := probabilities(logits))
    figures = evaluate("--label-smoothing", 0.1, "--grad", "g.npy", "--json").result
    same_array("g.npy", check(figures, logits, targets, label_smoothing=0.1))


@pytest.mark.parametrize("code", ["i1", "u1", "<i2", ">i2", "u4", ">i8", "u8"])
def test_dtypes_of_classes(evaluate, code):
    logits, targets = sample()
    np.save("logits.npy", logits)
    np.save("targets.npy", targets.astype(code))
    check(evaluate("--json").result, logits, targets)


@pytest.mark.parametrize("code", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_orders_and_dtypes_of_probabilities(evaluate, code, orders):
    logits, _ = sample(order=orders[0])
    targets = np.asarray(probabilities(logits), dtype=code, order=orders[1])
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    figures = evaluate("--json", "--grad", "g.npy").result
    same_array("g.npy", check(figures, logits, targets))


@pytest.mark.parametrize("orders", ["CF", "FC"])
def test_rows_of_several_axes_in_two_orders(evaluate, orders):
    """Class numbers are put into the logits' order; probabilities are too many."""
    logits, targets = sample(rows=(6, 5, 4), order=orders[0])
    np.save("logits.npy", logits)
    np.save("targets.npy", np.asarray(targets, order=orders[1]))
    figures = evaluate("--json", "--grad", "g.npy").result
    same_array("g.npy", check(figures, logits, targets))
    targets[3, 2, 1] = 7
    np.save("targets.npy", np.asarray(targets, order=orders[1]))
    assert "targets[3, 2, 1] = 7 is out of range" in evaluate(status=1)
    np.save("targets.npy", np.asarray(probabilities(logits), order=orders[1]))
    assert "rows of several axes must be in the logits' order" in evaluate(status=1)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_format_versions(evaluate, version):
    logits, targets = sample()
    for name, array in (("logits.npy", logits), ("targets.npy", targets)):
        with open(name, "wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "can only be read by newer NumPy"
            np.lib.format.write_array(file, array, version)
    check(evaluate("--json").result, logits, targets)


@pytest.mark.parametrize("saved", ["ml_dtypes", "uint16", "big-endian", "|V2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_bfloat16(evaluate, saved, order):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16: pip install ml_dtypes")
    logits, targets = sample(dtype=ml_dtypes.bfloat16, order=order)
    bits = logits.view("u2")
    np.save("logits.npy", {"ml_dtypes": logits, "uint16": bits, "big-endian": bits.astype(">u2"),
                           "|V2": bits.view("V2")}[saved])
    np.save("targets.npy", targets)
    assert "--dtype bfloat16" in evaluate(status=1)
    figures = evaluate("--dtype", "bfloat16", "--json", "--grad", "g.npy").result
    assert figures["dtype"] == "bfloat16"
    same_array("g.npy", check(figures, logits, targets))
    # Probabilities too.
    np.save("targets.npy", soft := probabilities(logits).astype(ml_dtypes.bfloat16))
    check(evaluate("--dtype", "bfloat16", "--json").result, logits, soft)


def test_bfloat16_without_ml_dtypes(evaluate, monkeypatch):
    logits, targets = sample()
    np.save("logits.npy", logits.astype("f2").view("u2"))
    np.save("targets.npy", targets)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert "pip install ml_dtypes" in evaluate("--dtype", "bfloat16", status=1)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_any_number_of_workers_gives_the_same_bits(evaluate, monkeypatch, workers):
    logits, targets = sample(1000)
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    monkeypatch.setattr(command, "_crew", lambda job, with_grad: (workers, 1))
    figures = evaluate("--json", "--grad", "g.npy").result
    grad = check(figures, logits, targets)
    same_array("g.npy", grad)
    sums = [sx.cross_entropy(logits[i : i + 25], targets[i : i + 25], reduction="sum")
            for i in range(0, 1000, 25)]
    assert figures["loss"] == math.fsum(sums) / 1000


@pytest.mark.parametrize("n", [0, 5])
def test_no_row_counts(evaluate, n):
    """Loss 0, perplexity 1, accuracy 0, gradient 0, and the number of rows says why."""
    logits, _ = sample(n)
    np.save("logits.npy", logits)
    np.save("targets.npy", np.full(n, -100))
    figures = evaluate("--json", "--grad", "g.npy").result
    assert [figures[name] for name in ("rows", "rows_counted", "loss", "perplexity", "accuracy")
            ] == [n, 0, 0.0, 1.0, 0.0]
    same_array("g.npy", np.zeros((n, 7), "f4"))
    assert f"0 of {n} rows count" in evaluate().result


def test_no_rows_of_probabilities(evaluate):
    np.save("logits.npy", np.empty((0, 3)))
    np.save("targets.npy", np.empty((0, 3)))
    assert evaluate("--json", "--grad", "g.npy").result["loss"] == 0.0


@pytest.mark.parametrize(("value", "shown"), [(1e4, "inf"), (np.nan, "nan")])
def test_what_json_cannot_hold_is_null(evaluate, value, shown):
    np.save("logits.npy", np.array([[value, 0.0], [0.0, 0.0]]))
    np.save("targets.npy", np.array([1, 1]))
    figures = evaluate("--json").result
    assert figures["perplexity"] is None
    assert (figures["loss"] is None) == (shown == "nan")
    assert f"perplexity  {shown}" in evaluate().result


def test_a_sum_beyond_float64(evaluate):
    np.save("logits.npy", np.tile([1e308, 0.0], (300, 1)))
    np.save("targets.npy", np.ones(300, int))
    assert "loss        inf" in evaluate().result


def test_text(evaluate):
    logits, targets = sample(1234, order="F")
    targets[:34] = -100
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    done = evaluate("--grad", "g.npy")
    loss, _, accuracy = whole(logits, targets)
    accuracy = float(accuracy)
    text = done.result
    assert done.err == ""
    for part in ("1,234 x 7 float32, Fortran order", "1,200 of 1,234 rows count", "g.npy",
                 f"accuracy    {accuracy!r}", "GB/s"):
        assert part in text
    assert float(re.search(r"loss +(\S+)", text)[1]) == pytest.approx(loss, rel=1e-13)


# ---- errors --------------------------------------------------------------------------------------


def save_both(**layout):
    logits, targets = sample(**layout)
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    return logits, targets


@pytest.mark.parametrize("arguments", [
    ("--resume",), ("--label-smoothing", "1.5"), ("--label-smoothing", "nan"),
    ("--label-smoothing", "x"), ("--ignore-index", "1.5"), ("--dtype", "float32"), ("--grad",),
], ids=" ".join)
def test_bad_arguments(folder, capsys, arguments):
    save_both()
    with pytest.raises(SystemExit) as exit_:
        main(["eval", "logits.npy", "targets.npy", *arguments])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: softxent eval")


@pytest.mark.parametrize("name", ["logits.npy", "targets.npy"])
def test_damaged_files(evaluate, name):
    save_both()
    with open(name, "rb") as file:
        good = file.read()
    for damaged, message in (
        (good[:-1], "truncated"), (good[:128], "truncated"), (good + b"\0", "something follows"),
        (good[:64], "not a .npy file"), (b"", "not a .npy file"), (b"PK\3\4" * 99, "not a .npy"),
        (good[:6] + b"\7" + good[7:], "format version 7.0"),
    ):
        with open(name, "wb") as file:
            file.write(damaged)
        error = evaluate("--grad", "g.npy", status=1)
        assert f"{name}: " in error
        assert message in error
    files("logits.npy", "targets.npy")


def test_damaged_headers(evaluate, capsys):
    """Whatever a header says: an answer or one line, never a traceback."""
    save_both(n=5)
    with open("logits.npy", "rb") as file:
        good = file.read()
    header = [f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}" for shape in (
        "(-5, 7)", "(-5, -7)", "(5, -1)", "(10**30, 7)", "(5,)", "()", "5", "(5.0, 7)", "(0, 7)",
        f"(0, {10**30})", f"({10**30}, 7)", "(5, 0)", "(True, 7)", "((((", "[" * 900, "5" * 9000)]
    header += ["{}", "[]", "'", "\t x", "{'descr': 'no', 'fortran_order': False, 'shape': (5, 7)}",
               "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 7)}",
               "{'descr': '<f4', 'fortran_order': 2, 'shape': (5, 7)}", "1" * 20_000]
    rng = random.Random(0)
    cases = [good[:8] + len(h.encode()).to_bytes(2, "little") + h.encode() + good[128:]
             for h in header]
    cases.append(b"\x93NUMPY\2\0\xff\xff\xff\xff" + good)
    for _ in range(300):
        broken = bytearray(good)
        broken[rng.randrange(128)] = rng.randrange(256)
        cases.append(bytes(broken))
    for data in cases:
        with open("logits.npy", "wb") as file:
            file.write(data)
        code = main(["eval", "logits.npy", "targets.npy"])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "") or (code, out, err.count("\n")) == (1, "", 1), (data, err)


@pytest.mark.parametrize(("logits", "targets", "parts"), [
    (np.zeros((4, 3), int), np.zeros(4, int), ["logits must be float16", "swapped?"]),
    (np.zeros((4, 3), bool), np.zeros(4, int), ["logits must be float16"]),
    (np.zeros((4, 3), "c8"), np.zeros(4, int), ["logits must be float16"]),
    (np.zeros((4, 3), "U3"), np.zeros(4, int), ["logits must be float16"]),
    (np.zeros((4, 3), "u2"), np.zeros(4, int), ["--dtype bfloat16"]),
    (np.zeros((4, 3), "V2"), np.zeros(4, int), ["--dtype bfloat16"]),
    (np.zeros((4, 3), [("a", "f4")]), np.zeros(4, int), ["logits must be float16"]),
    (np.zeros((4, 3), object), np.zeros(4, int), ["never unpickled"]),
    (np.zeros((4, 3)), np.zeros(4, object), ["targets.npy", "never unpickled"]),
    (np.float32(3), np.array(0), ["shape (..., C)"]),
    (np.zeros((4, 0)), np.zeros(4, int), ["at least one class"]),
    (np.zeros((4, 3)), np.zeros(5, int), ["(4,)", "(5,)"]),
    (np.zeros((4, 3)), np.zeros((4, 1), int), ["(4,)", "(4, 1)"]),
    (np.zeros((4, 3)), np.zeros((4, 3), int), ["one-hot"]),
    (np.zeros((4, 3)), np.zeros(4), ["class numbers are integers"]),
    (np.zeros((4, 3)), np.zeros(4, bool), ["class numbers are integers"]),
    (np.zeros((4, 3)), np.zeros((3, 4)), ["(4, 3)", "(3, 4)"]),
    (np.zeros((4, 3)), np.zeros((4, 3), "c8"), ["targets must be integers"]),
    (np.zeros((4, 3)), np.zeros((4, 3), "V2"), ["--dtype bfloat16"]),
    (np.zeros((4, 3)), np.zeros(4, "m8[s]"), ["targets must be integers"]),
], ids=str)
def test_arrays_that_do_not_fit(evaluate, logits, targets, parts):
    for name, array in (("logits.npy", logits), ("targets.npy", targets)):
        np.save(name, array, allow_pickle=True)
    error = evaluate("--grad", "g.npy", status=1)
    for part in parts:
        assert part in error
    files("logits.npy", "targets.npy")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [(97,), (9, 11)])
@pytest.mark.parametrize("value", [7, -1])
def test_class_out_of_range(evaluate, order, rows, value):
    """The first of the file, by its index in the file; before anything is written."""
    logits, targets = sample(rows=rows, order=order)
    targets = np.asarray(targets, order=order)
    for at in (50, 51, 90):
        targets[np.unravel_index(at, rows, order)] = value
    targets[np.unravel_index(3, rows)] = -100
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    where = ", ".join(map(str, np.unravel_index(50, rows, order)))
    error = evaluate("--grad", "g.npy", status=1)
    assert f"targets.npy: targets[{where}] = {value} is out of range for 7 classes" in error
    files("logits.npy", "targets.npy")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
@pytest.mark.parametrize("grad", [(), ("--grad", "g.npy")], ids=["loss", "gradient"])
def test_invalid_probability(evaluate, order, value, grad):
    logits, _ = sample(rows=(9, 11), order=order)
    targets = np.asarray(probabilities(logits), order=order)
    targets[5, 6, 2] = value
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    error = evaluate(*grad, status=1)
    assert "finite and >= 0" in error
    assert "targets.npy: " in error
    assert f"targets[5, 6, 2] = {value:g}" in error
    files("logits.npy", "targets.npy")


def test_ignore_index_with_probabilities(evaluate):
    logits, _ = sample()
    np.save("logits.npy", logits)
    np.save("targets.npy", probabilities(logits))
    assert "ignore_index" in evaluate("--ignore-index", 0, status=1)


def test_dtype_of_a_file_that_has_another(evaluate):
    pytest.importorskip("ml_dtypes", reason="bfloat16: pip install ml_dtypes")
    save_both(dtype="f2")
    assert "these are float16" in evaluate("--dtype", "bfloat16", status=1)


def test_files_that_cannot_be_read(evaluate):
    logits, _ = sample()
    assert "logits.npy: No such file" in evaluate(status=1)
    np.save("logits.npy", logits)
    assert "targets.npy: No such file" in evaluate(status=1)
    os.mkdir("targets.npy")
    assert "targets.npy: not a regular file" in evaluate(status=1)


@posix
def test_a_pipe_is_refused_and_not_waited_for(evaluate):
    os.mkfifo("logits.npy")
    assert "not a regular file" in evaluate(status=1)


def test_not_enough_memory(evaluate, monkeypatch):
    save_both()

    def no_memory(*_):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr(np, "empty", no_memory)
    error = evaluate(status=1)
    assert "not enough memory" in error
    assert "1 TiB" in error


@pytest.mark.skipif(OVERCOMMITS, reason="the system promises memory that it does not have")
def test_a_row_larger_than_memory(evaluate):
    """A sparse file of one row of 8 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1, 2 * 10**12)})
    with open("logits.npy", "wb") as file:
        file.write(header.getvalue())
        try:
            file.truncate(len(header.getvalue()) + 8 * 10**12)
        except OSError as error:
            pytest.skip(f"no sparse files here: {error}")
    np.save("targets.npy", np.zeros(1, int))
    assert "not enough memory, one row must fit in it" in evaluate(status=1)


def test_input_that_changes_meanwhile(evaluate, monkeypatch):
    save_both()
    accuracy = command.accuracy

    def meddling(*arguments, **options):
        os.utime("logits.npy", ns=(0, 0))
        return accuracy(*arguments, **options)

    monkeypatch.setattr(command, "accuracy", meddling)
    assert "logits.npy: was modified while it was being read" in evaluate(
        "--grad", "g.npy", status=1)
    files("logits.npy", "targets.npy")


def test_input_that_becomes_shorter_meanwhile(evaluate, monkeypatch):
    save_both()
    accuracy = command.accuracy
    monkeypatch.setattr(command, "_crew", lambda job, with_grad: (1, 1))

    def meddling(*arguments, **options):
        os.truncate("logits.npy", 900)
        return accuracy(*arguments, **options)

    monkeypatch.setattr(command, "accuracy", meddling)
    assert "logits.npy: became shorter" in evaluate(status=1)


# ---- where the gradient goes ---------------------------------------------------------------------


def test_gradient_over_an_older_file(evaluate):
    logits, targets = save_both()
    with open("g.npy", "w") as file:
        file.write("what was there")
    evaluate("--grad", "g.npy")
    same_array("g.npy", whole(logits, targets)[1])
    files("logits.npy", "targets.npy", "g.npy")


@posix
def test_gradient_through_a_link(evaluate):
    logits, targets = save_both()
    os.mkdir("elsewhere")
    os.symlink("elsewhere/g.npy", "link.npy")
    evaluate("--grad", "link.npy")
    assert os.path.islink("link.npy")
    same_array("elsewhere/g.npy", whole(logits, targets)[1])


@pytest.mark.parametrize("name", ["logits.npy", "targets.npy"])
@pytest.mark.parametrize("way", ["itself", "other spelling", "symlink", "hard link", "partial",
                                 "journal"])
def test_gradient_over_an_input(folder, capsys, name, way):
    save_both()
    paths = {"logits.npy": "logits.npy", "targets.npy": "targets.npy"}
    out = {"itself": name, "other spelling": str(folder / "." / name)}.get(way, "out.npy")
    with contextlib.suppress(OSError, NotImplementedError):
        if way == "symlink":
            os.symlink(name, out)
        elif way == "hard link":
            os.link(name, out)
        elif way in ("partial", "journal"):
            paths[name] = f"out.npy.{'partial' if way == 'partial' else 'progress'}"
            os.rename(name, paths[name])
    if way.endswith("link") and not os.path.exists(out):
        pytest.skip("no links here")
    before = {file: (folder / file).read_bytes() for file in os.listdir()}
    assert main(["eval", *paths.values(), "--grad", out]) == 1
    assert "would overwrite an input" in capsys.readouterr().err
    assert {file: (folder / file).read_bytes() for file in os.listdir()} == before


def test_gradient_into_no_folder(evaluate):
    save_both()
    assert "there is no folder" in evaluate("--grad", "no/g.npy", status=1)
    os.mkdir("g.npy")
    assert "not a regular file" in evaluate("--grad", "g.npy", status=1)
    os.mkdir("h.npy.partial")
    assert "not a regular file" in evaluate("--grad", "h.npy", status=1)
    assert "not a regular file" in evaluate("--grad", os.devnull, status=1)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_gradient_into_a_read_only_folder(evaluate):
    save_both()
    os.mkdir("closed", 0o500)
    assert "no permission" in evaluate("--grad", "closed/g.npy", status=1)


def test_folder_that_refuses(evaluate, monkeypatch):
    """As one that is read-only, which root does not notice."""
    save_both()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "no permission" in evaluate("--grad", "g.npy", status=1)


@posix
def test_one_process_at_a_time(evaluate):
    import fcntl

    save_both()
    with open("g.npy.partial", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for more in ((), ("--resume",)):
            assert "another process is writing" in evaluate("--grad", "g.npy", *more, status=1)
    evaluate("--grad", "g.npy")


def test_partial_renamed_by_the_other_process(evaluate, monkeypatch):
    """It had just finished: its result is not what we are to write into."""
    fcntl = pytest.importorskip("fcntl")
    save_both()
    with open("g.npy.partial", "wb") as file:
        file.write(b"precious")
    flock = fcntl.flock

    def late(fd, how):
        flock(fd, how)
        os.rename("g.npy.partial", "g.npy")

    monkeypatch.setattr(fcntl, "flock", late)
    assert "another process is writing" in evaluate("--grad", "g.npy", status=1)
    with open("g.npy", "rb") as file:
        assert file.read() == b"precious"


# ---- interruptions -------------------------------------------------------------------------------


def figures_of(result):
    return {name: value for name, value in result.items()
            if name not in ("seconds", "gb_per_second")}


def contents(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("nth", range(1, 12))
def test_full_disk(evaluate, monkeypatch, nth):
    """One line; what is finished stays, and a second run, with room, continues it."""
    logits, targets = save_both()
    plain = figures_of(evaluate("--json", "--grad", "plain.npy").result)
    os.unlink("plain.npy")
    monkeypatch.setattr(_gradient_file, "CHECKPOINT_SECONDS", 0.0)
    write = os.write
    calls = []

    def failing(fd, data):
        calls.append(1)
        if len(calls) >= nth:
            write(fd, memoryview(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        # 4 blocks: the headers of gradient and journal, and two writes a block.
        if nth == 11:
            evaluate("--grad", "g.npy")
            return
        error = evaluate("--grad", "g.npy", status=1)
    assert os.strerror(errno.ENOSPC) in error
    assert "g.npy.p" in error
    kept = re.search(r"(\d+) of 97 rows are kept in .*g.npy.partial; --resume continues", error)
    assert kept or nth <= 7
    files("logits.npy", "targets.npy", *(["g.npy.partial", "g.npy.progress"] if kept else []))
    resumed = evaluate("--grad", "g.npy", "--resume", "--json")
    assert resumed.err == ""
    assert figures_of(resumed.result) == {**plain, "grad": "g.npy"}
    same_array("g.npy", whole(logits, targets)[1])
    files("logits.npy", "targets.npy", "g.npy")


@pytest.fixture
def python(folder):
    """A function that runs Python here, with the library."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-W", "error", *map(str, arguments)], text=True, timeout=200,
            check=False, cwd=folder, capture_output=True, env=ENVIRONMENT,
        )

    return run


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@posix
def test_a_limit_on_the_size_of_files(python):
    """A real refusal of the system's, in a process of its own."""
    save_both(n=9000)
    done = python("-c", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999)); "
                        "from softxent.cli import main; raise SystemExit(main("
                        "'eval logits.npy targets.npy --grad g.npy'.split()))")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"softxent eval: .*g.npy.partial: File too large\n", done.stderr)
    files("logits.npy", "targets.npy")


#: Runs the command in children that get a signal at their k-th step on the way to the disk, and
#: goes on with `--resume`, until one lives to the end. Prints what every chain of children came to.
DEATHS = """
import hashlib, importlib.metadata, io, itertools, json, os, signal, sys
from softxent.cli import _gradient_file, eval as command, main

SIGNAL = getattr(signal, sys.argv[1])
STEPS = ("write", "fsync", "replace", "unlink", "ftruncate", "truncate")
command.BLOCK_BYTES, command.PIECE_BYTES, _gradient_file.CHECKPOINT_SECONDS = 700, 40, 0.0
command._crew = lambda job, with_grad: (int(sys.argv[2]), 1)
os.fsync = lambda fd: None  # what has been written outlives a process, if not the machine

def dying(name, at, half, counter):
    function = getattr(os, name)
    def step(*arguments):
        if next(counter) == at:
            written = 0
            if half and name == "write":
                written = function(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), SIGNAL)
            if written:  # and it was no death
                return written
        return function(*arguments)
    return step

def child(at, half, *options):
    # (status, output, messages) of a child that gets the signal at its step `at`
    out, back = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        counter = itertools.count(1)
        for name in STEPS:
            setattr(os, name, dying(name, at, half, counter))
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        status = 99
        try:
            status = main(["eval", "logits.npy", "targets.npy", "--grad", "g.npy", "--json",
                           *options])
        finally:
            with os.fdopen(back, "w") as pipe:
                json.dump([sys.stdout.getvalue(), sys.stderr.getvalue()], pipe)
            os._exit(status)
    os.close(back)
    with os.fdopen(out) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, *(json.loads(text) if text else ("", ""))

def digest():
    with open("g.npy", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()

sys.stdout = io.StringIO()
main(["eval", "logits.npy", "targets.npy"])  # what children would else import, each anew
sys.stdout = sys.__stdout__
chains = []
for at in itertools.count(1):
    chain = []
    for later in itertools.chain([at, at // 2 + 1], itertools.repeat(0)):
        status, out, messages = child(later, at % 2, *["--resume"] * bool(chain))
        there = sorted(os.listdir())
        chain.append([status, out, messages, there, digest() if "g.npy" in there else None])
        if status == 0:
            break
    os.unlink("g.npy")
    chains.append(chain)
    if len(chain) == 1:
        break
print(json.dumps(chains))
"""


@posix
@pytest.mark.parametrize(("name", "order", "workers"), [
    ("SIGKILL", "C", 1),  # the same steps in the same order each time
    ("SIGKILL", "F", 3),  # blocks of several pieces, written at the same time
    ("SIGINT", "C", 3),
])
def test_death_at_every_step(python, evaluate, name, workers, order):
    """Whenever a run ends early, the next goes on, and comes to the same bits and figures."""
    logits, targets = save_both(order=order)
    plain = figures_of(evaluate("--json", "--grad", "g.npy").result)
    same_array("g.npy", whole(logits, targets)[1])
    right = hashlib.sha256(contents("g.npy")).hexdigest()
    os.unlink("g.npy")
    done = python("-c", DEATHS, name, workers)
    assert (done.returncode, done.stderr) == (0, "")
    chains = json.loads(done.stdout)
    assert len(chains) >= 20
    died = name == "SIGKILL"
    for chain in chains:
        for status, out, messages, there, digest in chain[:-1]:
            assert status == (-signal.SIGKILL if died else 1)
            assert out == ""
            if not died:
                assert messages.endswith("softxent eval: interrupted\n")
            # Under the final name: nothing, or all of it.
            assert digest in (None, right)
            assert {"logits.npy", "targets.npy"} <= set(there)
        status, out, messages, there, digest = chain[-1]
        assert status == 0, messages
        assert all("nothing to resume" in line for line in messages.splitlines())
        assert digest == right
        assert figures_of(json.loads(out)) == plain
        assert there == ["g.npy", "logits.npy", "targets.npy"]


#: The command, slowed down to 50 blocks a second a worker.
SLOW = """
import signal, sys, time
from softxent.cli import _gradient_file, eval as command, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # see conftest.heeds_ctrl_c
command.BLOCK_BYTES, _gradient_file.CHECKPOINT_SECONDS = 700, 0.0
fast = command.accuracy
def slow(*arguments, **options):
    open("started", "w").close()
    time.sleep(0.02)
    return fast(*arguments, **options)
command.accuracy = slow
raise SystemExit(main(["eval", "logits.npy", "targets.npy", *sys.argv[1:]]))
"""


@contextlib.contextmanager
def slowly(condition, *arguments):
    """A running process of SLOW, once `condition()` holds."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    try:
        while not condition():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()
        os.unlink("started")


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_signal_from_outside(evaluate, name):
    """As a user stops it: soon, threads and all, and nothing is lost."""
    logits, targets = save_both(n=9000)
    plain = figures_of(evaluate("--json", "--grad", "g.npy").result)
    os.unlink("g.npy")

    def has_progress():
        return os.path.exists("g.npy.progress") and contents("g.npy.progress").count(b"\n") > 5

    with slowly(has_progress, "--grad", "g.npy") as process:
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=20)
    assert out == ""
    if name == "SIGINT":
        assert process.returncode == 1
        assert re.fullmatch(r"softxent eval: [\d,]+ of 9,000 rows are kept in .*g.npy.partial; "
                            r"--resume continues\nsoftxent eval: interrupted\n", err)
    else:
        assert (process.returncode, err) == (-getattr(signal, name), "")
    files("logits.npy", "targets.npy", "g.npy.partial", "g.npy.progress")
    resumed = evaluate("--json", "--grad", "g.npy", "--resume")
    assert resumed.err == ""
    assert figures_of(resumed.result) == plain
    same_array("g.npy", whole(logits, targets)[1])
    files("logits.npy", "targets.npy", "g.npy")


@posix
def test_interrupted_without_gradient(folder):
    save_both(n=99_000)
    with slowly(lambda: os.path.exists("started")) as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "softxent eval: interrupted\n")
        assert process.returncode == 1
    files("logits.npy", "targets.npy")


# ---- resuming ------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(evaluate, monkeypatch, capsys):
    """A function that leaves a gradient behind of which some blocks are finished."""

    def run(*arguments, blocks=2):
        with monkeypatch.context() as patch:
            record = _gradient_file.GradientFile.record
            calls = []

            def stopping(self, *block):
                record(self, *block)
                calls.append(block)
                if len(calls) == blocks:
                    raise KeyboardInterrupt

            patch.setattr(_gradient_file.GradientFile, "record", stopping)
            patch.setattr(command, "_crew", lambda job, with_grad: (1, 1))
            assert main(["eval", "logits.npy", "targets.npy", "--grad", "g.npy", *arguments]) == 1
        assert "--resume continues" in capsys.readouterr().err
        files("logits.npy", "targets.npy", "g.npy.partial", "g.npy.progress")

    return run


def test_resume_computes_only_what_is_missing(evaluate, interrupted, monkeypatch):
    """And the figures are those of all rows."""
    logits, targets = save_both()
    plain = figures_of(evaluate("--json").result)
    interrupted(blocks=2)
    computed = []
    accuracy = command.accuracy

    def counting(z, *arguments, **options):
        computed.append(len(z))
        return accuracy(z, *arguments, **options)

    monkeypatch.setattr(command, "accuracy", counting)
    resumed = evaluate("--grad", "g.npy", "--resume", "--json")
    assert sorted(computed) == [22, 25]
    assert resumed.err == ""
    assert figures_of(resumed.result) == {**plain, "grad": "g.npy"}
    same_array("g.npy", whole(logits, targets)[1])


def test_resume_of_a_complete_file_that_was_not_renamed(evaluate, interrupted):
    logits, targets = save_both()
    interrupted(blocks=4)
    check(evaluate("--grad", "g.npy", "--resume", "--json").result, logits, targets)
    same_array("g.npy", whole(logits, targets)[1])


def test_resume_of_nothing(evaluate):
    """It starts from the first row, without a word."""
    logits, targets = save_both()
    assert evaluate("--grad", "g.npy", "--resume").err == ""
    same_array("g.npy", whole(logits, targets)[1])


def test_starting_afresh_says_so(evaluate, interrupted):
    logits, targets = save_both()
    interrupted()
    assert re.fullmatch(r"softxent eval: .*g.npy.partial: discarded, starting from the first row "
                        r"\(--resume would have continued it\)\n", evaluate("--grad", "g.npy").err)
    same_array("g.npy", whole(logits, targets)[1])
    files("logits.npy", "targets.npy", "g.npy")


@pytest.mark.parametrize(("what", "message"), [
    ("logits", "logits"), ("targets", "targets"), ("smoothing", "label_smoothing 0.0 is now 0.5"),
    ("ignored", "ignore_index -100 is now 1"), ("block", "rows in a block 25 is now 10"),
    ("backend", "is now 'abacus'"),
])
def test_resume_of_something_else(evaluate, interrupted, monkeypatch, what, message):
    """An error that says what differs; the partial file stays as it is."""
    logits, targets = save_both()
    interrupted()
    before = contents("g.npy.partial"), contents("g.npy.progress")
    more = {"smoothing": ("--label-smoothing", 0.5), "ignored": ("--ignore-index", 1)}.get(what, ())
    if what == "logits":
        np.save("logits.npy", logits + 1)
        os.utime("logits.npy", ns=(0, 0))
    elif what == "targets":
        np.save("targets.npy", targets.astype("i4"))
    elif what == "backend":
        plan = SimpleNamespace(backend="abacus", isa="")
        monkeypatch.setattr(command, "explain", lambda *_, **__: plan)
    elif what == "block":
        monkeypatch.setattr(command, "BLOCK_BYTES", 300)
    error = evaluate("--grad", "g.npy", "--resume", *more, status=1)
    assert "cannot be resumed, it was begun otherwise" in error
    assert message in error
    assert (contents("g.npy.partial"), contents("g.npy.progress")) == before


@pytest.mark.parametrize("damage", ["no journal", "empty journal", "torn header", "no partial",
                                    "short partial", "other header", "empty partial"])
def test_resume_of_what_is_damaged(evaluate, interrupted, damage):
    """It starts from the first row."""
    logits, targets = save_both()
    interrupted()
    if damage == "no journal":
        os.unlink("g.npy.progress")
    elif damage == "empty journal":
        os.truncate("g.npy.progress", 0)
    elif damage == "torn header":
        os.truncate("g.npy.progress", 40)
    elif damage == "no partial":
        os.unlink("g.npy.partial")
    elif damage == "other header":
        with open("g.npy.partial", "r+b") as file:
            file.seek(20)
            file.write(b"X")
    else:
        os.truncate("g.npy.partial", 500 if damage == "short partial" else 0)
    done = evaluate("--grad", "g.npy", "--resume", "--json")
    check(done.result, logits, targets)
    assert ("nothing to resume" in done.err) == (damage not in ("no partial", "empty partial"))
    same_array("g.npy", whole(logits, targets)[1])
    files("logits.npy", "targets.npy", "g.npy")


@pytest.mark.parametrize("change", range(-58, 0, 3))
def test_resume_with_a_damaged_end_of_the_journal(evaluate, interrupted, change):
    """Lines count up to the first that is not whole; those blocks are computed again."""
    logits, targets = save_both()
    interrupted(blocks=3)
    data = bytearray(contents("g.npy.progress"))
    if change % 2:
        data[change] ^= 1
    else:
        del data[change:]
    with open("g.npy.progress", "wb") as file:
        file.write(data)
    # Where a block is not in the journal, anything may be in the file.
    lines, _ = _gradient_file._journal_lines(bytes(data))
    assert 1 <= len(lines) <= 3
    with open("g.npy.partial", "r+b") as file:
        for block in set(range(4)) - {int(line.split()[0]) for line in lines[1:]}:
            file.seek(128 + block * 700)
            file.write(b"\xff" * min(700, 97 * 28 - block * 700))
    check(evaluate("--grad", "g.npy", "--resume", "--json").result, logits, targets)
    same_array("g.npy", whole(logits, targets)[1])


def test_checkpoints_are_not_made_for_each_block(evaluate, monkeypatch):
    """They cost the disk's time; a crash may cost CHECKPOINT_SECONDS of work."""
    save_both(n=2000)
    appended = []
    append = _gradient_file.GradientFile._append
    monkeypatch.setattr(_gradient_file.GradientFile, "_append",
                        lambda self, data: (appended.append(data), append(self, data)))
    evaluate("--grad", "g.npy")
    assert len(appended) == 2  # the header, and all blocks at the end
    assert appended[1].count(b"\n") == 80


# ---- memory --------------------------------------------------------------------------------------

PEAK = """
import sys
from softxent.cli import main
status = main(["eval", "logits.npy", "targets.npy", *sys.argv[1:]])
with open("/proc/self/status") as lines:
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024)
raise SystemExit(status)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("order", "shape", "more"), [
    ("C", (5_000_000, 30), ()), ("F", (15_000, 10_000), ()),
    ("F", (150_000, 1000), ("--grad", "g.npy")), ("C", (150_000, 1000), ("--grad", "g.npy")),
], ids=str)
def test_peak_memory(python, folder, order, shape, more):
    """600 MB of zeros, sparse: well below 400 MB of memory at the peak, whatever the order."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": order == "F", "shape": shape})
    size = len(header.getvalue()) + 600_000_000
    with open("logits.npy", "wb") as file:
        file.write(header.getvalue())
        file.truncate(size)
    np.save("targets.npy", np.zeros(shape[0], "i4"))
    done = python("-c", PEAK, *more)
    assert (done.returncode, done.stderr) == (0, "")
    assert float(re.search(r"loss +(\S+)", done.stdout)[1]) == pytest.approx(math.log(shape[1]))
    assert int(done.stdout.splitlines()[-1]) < 350e6
    if more:
        assert os.path.getsize("g.npy") == size
        os.unlink("g.npy")
    os.unlink("logits.npy")


# ---- the terminal --------------------------------------------------------------------------------


def on_a_terminal(script, *arguments):
    """Return (stdout, what the terminal shows) of a run whose stderr is a terminal."""
    import pty
    import termios

    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 100))
    with os.fdopen(master, "rb", buffering=0) as terminal:
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, *arguments], stdout=subprocess.PIPE,
            stderr=slave, text=True, env={**ENVIRONMENT, "TERM": "xterm"}
        ) as process:
            os.close(slave)
            shown = b""
            with contextlib.suppress(OSError):  # Linux: EIO at the end
                while more := terminal.read(65536):
                    shown += more
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, shown
    return out, shown.decode()


@posix
def test_progress_bar(folder):
    """On a terminal, on stderr; not left behind."""
    pytest.importorskip("tqdm", reason="the bar: pip install 'softxent[cli]'")
    save_both(n=1000)
    out, shown = on_a_terminal(SLOW, "--json")
    assert json.loads(out)["rows"] == 1000
    assert "softxent eval: " in shown
    assert "/28.0k" in shown
    assert "\n" not in shown


@posix
def test_bar_of_a_resumed_run_starts_where_the_last_ended(folder, interrupted):
    pytest.importorskip("tqdm", reason="the bar: pip install 'softxent[cli]'")
    save_both()
    interrupted(blocks=3)
    _, shown = on_a_terminal(SLOW, "--grad", "g.npy", "--resume")
    assert " 77%" in shown
    assert " 0%" not in shown


@posix
def test_without_tqdm(python):
    """One line that says how to get the bar, on a terminal alone."""
    save_both()
    script = ("import sys; sys.modules['tqdm'] = None; from softxent.cli import main; "
              "main(['eval', 'logits.npy', 'targets.npy'])")
    done = python("-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    out, shown = on_a_terminal(script)
    assert "loss" in out
    assert shown.splitlines() == [
        "softxent eval: no progress bar without tqdm; pip install 'softxent[cli]'"]


def test_nothing_is_imported_that_is_not_needed(python):
    save_both()
    done = python("-c", "import sys; from softxent.cli import main; "
                        "main(['eval', 'logits.npy', 'targets.npy']); "
                        "print(sorted({'tqdm', 'ml_dtypes', 'numba'} & set(sys.modules)))")
    assert done.stdout.endswith("[]\n")


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["eval", "--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("usage: softxent eval", "LOGITS.npy", "TARGETS.npy", "--grad OUT.npy", "--resume",
                 "--label-smoothing", "--ignore-index", "--dtype", "--json", "larger than memory"):
        assert part in text
