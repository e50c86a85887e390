"""docs/examples/: every script runs, warnings being errors, and learns what it says it does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.py"))


def packages(path):
    """Names of the packages that a script imports, but for Python's own and this one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {name for node in ast.walk(tree) for name in (
        [alias.name for alias in node.names] if isinstance(node, ast.Import)
        else [node.module] if isinstance(node, ast.ImportFrom) else [])}
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"softxent"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    """Somewhere else, with a backend of matplotlib that has no window."""
    for package in packages(path):
        pytest.importorskip(package)
    arguments = [str(path)] + ["--quick"] * ('"--quick"' in path.read_text(encoding="utf-8"))
    # Where this process imports from: installed, or a source tree on the path.
    code = (f"import runpy, sys; sys.path[:0] = {sys.path!r}; sys.argv = {arguments!r}; "
            f"runpy.run_path({str(path)!r}, run_name='__main__')")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False,
        timeout=120, cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not list(tmp_path.iterdir()), "it leaves files where it is run"
    assert done.stdout
    accuracies = re.findall(r"accuracy\D+(\d\.\d+)", done.stdout)
    assert all(float(number) > 0.8 for number in accuracies), done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_says_what_it_is(path):
    """What it shows, what it needs, how it is run."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert f"python docs/examples/{path.name}" in doc
    assert all({"sklearn": "scikit-learn"}.get(package, package) in doc
               for package in packages(path) - {"numpy"})


def test_examples_are_seen():
    found = {path.stem: packages(path) for path in EXAMPLES}
    assert found["boosting_digits"] == {"xgboost", "sklearn"}
    assert found["minibatch_trainer"] == {"numpy"}
