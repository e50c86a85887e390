"""The command line, as a user meets it: each case a process of its own, but for bad arguments."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import softxent as sx
from softxent.cli import demo, main

#: Put before a missing package's name: an interpreter in which it cannot be imported.
BLOCKER = """\
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r} or name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


#: An interpreter in which the demo times so many trainings of each kind.
ROUNDS = """\
from softxent.cli import demo
demo.ROUNDS = {rounds}
"""


@pytest.fixture
def softxent(tmp_path):
    """A function that runs `python -m softxent ...`; `without`: packages that are missing.

    `rounds`: how many trainings the demo times, where the times are not what a test is about.
    """

    def run(*arguments, without=(), rounds=None, **environment):
        path = [p for p in sys.path if p]
        first = BLOCKER.format(names=set(without)) if without else ""
        first += ROUNDS.format(rounds=rounds) if rounds else ""
        if first:
            (tmp_path / "sitecustomize.py").write_text(first)
            path.insert(0, str(tmp_path))
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SOFTXENT_")}
        return subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-m", "softxent", *arguments],
            capture_output=True, text=True, timeout=100, check=False,
            env={**kept, "PYTHONPATH": os.pathsep.join(path), "MPLCONFIGDIR": str(tmp_path),
                 **environment},
        )

    return run


def succeeded(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failed(done, *parts):
    """The job failed: status 1, nothing on stdout, one line on stderr that says why."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("softxent ")
    for part in parts:
        assert part in done.stderr


# ---- info ----------------------------------------------------------------------------------------


def test_info(softxent):
    text = succeeded(softxent("info"))
    for part in ("backends:", "numpy", "available", "threads:", np.__version__, "would run as"):
        assert part in text


def test_info_json(softxent):
    facts = json.loads(succeeded(softxent("info", "--json", OMP_NUM_THREADS="1")))
    assert facts["backends"] == sx.available_backends()
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["threads"] == 1
    assert facts["environment"]["OMP_NUM_THREADS"] == "1"
    assert sys.version.split()[0] in facts["python"]


EXTENSIONS = ("softxent._native", "softxent.backends.cython._bind")


def test_info_without_extensions(softxent):
    """It says why the compiled backend is not used, even where it is asked for."""
    for asked in ({}, {"SOFTXENT_BACKEND": "cython"}):
        done = softxent("info", without=EXTENSIONS, **asked)
        assert done.returncode == 0, done.stderr
        assert "not built" in done.stdout
        assert "Traceback" not in done.stderr


# ---- demo ----------------------------------------------------------------------------------------


@pytest.fixture
def digits():
    for name in ("sklearn", "scipy"):
        pytest.importorskip(name, reason="the demo: pip install 'softxent[demo]'")


@pytest.mark.usefixtures("digits")
def test_demo_json(softxent):
    """The main job: digits are learned, as well as with plain NumPy, and the loss falls."""
    figures = json.loads(succeeded(softxent("demo", "--json")))
    assert (figures["train_rows"], figures["test_rows"]) == (1347, 450)
    assert figures["held_out_accuracy"] >= 0.95
    assert abs(figures["held_out_accuracy"] - figures["held_out_accuracy_numpy"]) <= 0.01
    losses = figures["losses"]
    assert losses[-1] < 0.3 < 1 < losses[0] < np.log(10)
    assert losses == sorted(losses, reverse=True)
    assert figures["backend"] in sx.available_backends()
    assert min(figures["seconds"], figures["seconds_numpy"], figures["speedup"]) > 0


@pytest.mark.usefixtures("digits")
def test_demo_keeps_a_blas_to_one_thread(monkeypatch):
    """And gives its threads back: of two, most of the demo was waiting for each other."""
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="comes with scikit-learn")

    def threads():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()
                if pool["user_api"] == "blas"]

    seen = []
    monkeypatch.setattr(demo, "_train", lambda *data: ({}, str(seen.append(threads()))))
    with threadpoolctl.threadpool_limits(2, "blas"):
        before = threads()
        demo.run(argparse.Namespace(plot=None))
        assert threads() == before
    assert seen == [[1] * len(before)]


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("name", ["loss.png", "no suffix"])
def test_demo_text_and_plot(softxent, tmp_path, name):
    """The text says what was done, and the plot lies in the file that is named."""
    pytest.importorskip("matplotlib", reason="the plot: pip install 'softxent[plot]'")
    file = tmp_path / name
    done = softxent("demo", "--plot", file, rounds=1)
    assert done.returncode == 0
    for part in ("1347", "450", "iteration", "held-out accuracy", "training time"):
        assert part in done.stdout
    assert "medians of 1 in turn" in done.stdout
    assert f"plot written to {file}" in done.stderr.splitlines()
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("file", ["no such folder/loss.png", "loss.no-such-format", "."])
def test_demo_plot_that_cannot_be_written(softxent, tmp_path, file):
    """It is said before the work: without what that needs, too."""
    pytest.importorskip("matplotlib", reason="the plot: pip install 'softxent[plot]'")
    failed(softxent("demo", "--plot", tmp_path / file, without=["sklearn"]), "softxent demo:",
           "cannot write the plot")


@pytest.mark.parametrize("missing", ["sklearn", "scipy"])
def test_demo_without_what_it_needs(softxent, missing):
    failed(softxent("demo", without=[missing]), "softxent demo:", "scikit-learn and SciPy",
           "pip install 'softxent[demo]'")


def test_demo_plot_without_matplotlib(softxent):
    failed(softxent("demo", "--plot", "loss.png", without=["matplotlib"]), "softxent demo:",
           "Matplotlib", "pip install 'softxent[plot]'")


@pytest.mark.usefixtures("digits")
def test_demo_with_a_backend_that_cannot_be_used(softxent):
    failed(softxent("demo", without=EXTENSIONS, SOFTXENT_BACKEND="cython"), "softxent demo:",
           "'cython'", "not built")


# ---- arguments, and the way the output goes ----------------------------------------------------


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["--json"], ["info", "extra"], ["info", "--plot", "x"], ["demo", "--plot"],
    ["demo", "--rounds", "3"],
], ids=" ".join)
def test_bad_arguments(arguments, capsys):
    """Status 2, and the usage on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: softxent")


def test_bad_arguments_of_the_process(softxent):
    done = softxent("nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'nonsense'" in done.stderr


def test_help(capsys):
    for arguments in (["--help"], ["info", "--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0
        assert "usage: softxent" in capsys.readouterr().out


def test_interrupted(monkeypatch, capsys):
    """Ctrl-C: status 1 and one line."""
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("softxent._info.collect", interrupt)
    assert main(["info"]) == 1
    assert capsys.readouterr() == ("", "softxent info: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="a pipe of the shell")
def test_reader_that_has_had_enough():
    """`softxent info | head -0` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([sys.executable, "-m", "softxent", "info"], stdout=pipe,
                              stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
