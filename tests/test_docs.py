"""docs/: the option matrix is the code's, the page on PyTorch names tests that exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import accuracy_table as table
import softxent as sx
from softxent.backends._contract import Op
from softxent.losses import LOSSES
from softxent.losses._spec import OPTIONS, Spec

DOCS = Path(__file__).parents[1] / "docs"
PYTORCH = (DOCS / "coming_from_pytorch.md").read_text(encoding="utf-8")


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_options():
    return script("make_options")


# ---- docs/options.md -----------------------------------------------------------------------------


def test_options_page_is_up_to_date(make_options):
    assert make_options.PAGE.read_text(encoding="utf-8") == make_options.page(), (
        "run python docs/make_options.py")


def test_options_page_has_every_option_and_says_what_it_means(make_options):
    rows = re.findall(r"^\| `(\w+)", make_options.page(), re.M)
    assert rows == [name for name in OPTIONS if name in rows]
    for loss in LOSSES:
        assert set(make_options.keywords(loss)) <= set(rows)
    for name in rows:
        text = make_options.meaning(name)
        assert len(text) > 20, f"no docstring says what {name} means"
        assert text.endswith((".", ")")), text


@pytest.mark.parametrize("loss", LOSSES)
def test_signatures_have_the_options_of_the_table(make_options, loss):
    listed = {name for names in LOSSES[loss].options.values() for name in names}
    assert listed & set(OPTIONS) == set(make_options.keywords(loss)) & set(OPTIONS)


def test_options_page_follows_the_table_of_losses(make_options, monkeypatch):
    """A loss with an option of its own, kinds of its own, and a docstring that sends elsewhere."""

    def other(logits, targets, *, beta=2.0, axis=0):
        """Another loss.

        Parameters
        ----------
        logits, targets, axis
            As `cross_entropy`.
        beta : float, default 2.0
            Focuses on rows that are not sure yet; 0 is cross-entropy. More.

        Returns
        -------
        float
            The loss.
        """

    monkeypatch.setattr(sx, "other", other, raising=False)
    monkeypatch.setitem(LOSSES, "other", Spec("other", Op.CROSS_ENTROPY, {"classes": ("axis",)}))
    monkeypatch.setitem(LOSSES, "unwritten", Spec("unwritten", Op.CROSS_ENTROPY))
    page = make_options.page()
    header = next(line for line in page.splitlines() if line.startswith("| option"))
    assert header.endswith("| `other`, classes | `unwritten` |")
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert lines["beta=2.0"].endswith("| – | – | ✓ | – |")
    assert lines["axis"].endswith("| ✓ | ✓ | ✓ | – |")  # defaults differ
    assert lines["softcap=None"].endswith("| – | – |")
    assert "- `beta`: Focuses on rows that are not sure yet; 0 is cross-entropy.\n" in page


def test_options_command(tmp_path):
    """`--check` compares, without it the page is written."""
    script = tmp_path / "make_options.py"
    script.write_text((DOCS / "make_options.py").read_text(encoding="utf-8"), encoding="utf-8")

    def run(*arguments):
        # Where this process imports from: installed, or a source tree on the path.
        code = f"import runpy, sys; sys.path[:0] = {sys.path!r}; sys.argv[1:] = {arguments!r}; "
        return subprocess.run(
            [sys.executable, "-c", f"{code}runpy.run_path({str(script)!r}, run_name='__main__')"],
            capture_output=True, text=True, check=False, timeout=60)

    missing = run("--check")
    assert missing.returncode == 1
    assert "run python docs/make_options.py" in missing.stderr
    assert run().returncode == 0
    assert (tmp_path / "options.md").read_bytes() == (DOCS / "options.md").read_bytes()
    assert run("--check").returncode == 0
    (tmp_path / "options.md").write_text("other", encoding="utf-8")
    assert run("--check").returncode == 1


# ---- docs/coming_from_pytorch.md -----------------------------------------------------------------


def test_pytorch_page_names_tests_that_exist():
    tree = ast.parse((Path(__file__).parent / "test_peers.py").read_text(encoding="utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = set(re.findall(r"`(test_\w+)`", PYTORCH))
    assert named <= tests
    differences = {name for name in tests if name.startswith("test_torch_differs")}
    assert differences <= named, "a difference that is tested and not listed"
    table = PYTORCH.split("## What differs")[1].split("\n\n")[1]
    for line in table.splitlines()[2:]:
        assert re.search(r"\| `test_torch_differs_\w+` \|$", line), line


def test_pytorch_page_names_every_parameter():
    functional = pytest.importorskip("torch.nn.functional", reason="its signature is looked at")
    table = PYTORCH.split("## Every parameter")[1].split("##")[0]
    for name in inspect.signature(functional.cross_entropy).parameters:
        assert re.search(rf"^\|[^|]*`{name}\b", table, re.M), name


def test_pytorch_page_names_our_options():
    """What is in its right-hand columns as `name=` is a parameter."""
    functions = [sx.softmax, sx.accuracy, *(getattr(sx, f"{loss}_with_grad") for loss in LOSSES)]
    parameters = {name for function in functions
                  for name in inspect.signature(function).parameters}
    ours = re.findall(r"^\|[^|]*\|([^|]*)\|", PYTORCH.split("## What differs")[0], re.M)
    assert {name for cell in ours for name in re.findall(r"\b(\w+)=", cell)} <= parameters


def test_pytorch_page_python_runs():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PYTORCH, re.S):
        exec(compile(block, "coming_from_pytorch.md", "exec"), names)
    assert names["grad"].shape == names["z"].shape


# ---- accuracy ------------------------------------------------------------------------------------


def test_accuracy_page_says_what_is_kept():
    """Its lines, bounds and our columns are those of the tests; peers' are its script's."""
    maker = script("make_accuracy")
    text = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    assert text.startswith(maker.HEAD)
    sections = re.split(r"^## (\w+)$", text, flags=re.M)[1:]
    assert sections[::2] == ["float32", "float64"]
    for dtype, section in zip(sections[::2], sections[1::2], strict=True):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines()
                 if line.startswith("|")]
        assert [cell.strip() for cell in lines[0][2:5]] == ["v2", "v3, v4, Numba", "NumPy"]
        assert [line[0].strip() for line in lines[2:]] == [line[0] for line in maker.LINES]
        for (_, bound, v2, fma, numpy, *_), (_, setting, quantities) in zip(
                lines[2:], maker.LINES, strict=True):
            assert float(bound.strip("≤ ")) == table.bound(quantities[0], dtype)
            for isa, cell in (("v2", v2), ("v3", fma)):
                most = max(table.kept(isa, dtype, setting)[quantity] for quantity in quantities)
                assert float(cell) <= most <= float(bound.strip("≤ "))
            assert float(numpy) <= float(bound.strip("≤ "))
