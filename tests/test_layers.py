"""The layers: who imports whom, what is compiled by whom, what the public names' docs say."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import softxent as sx
from levels import force, usable_levels
from softxent import _machine
from softxent.losses import LOSSES

ROOT = Path(sx.__file__).parent
MODULES = {
    ".".join(("softxent", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"):
    path for path in sorted(ROOT.rglob("*.py"))
}

#: The road, from the public functions down: a module may import from its own line and those below.
#: A module has the line of the longest name here that it begins with.
ROAD = [
    {"softxent", "softxent.__main__", "softxent.asv", "softxent.cli", "softxent._boosting",
     "softxent.lightgbm", "softxent.numba", "softxent.sklearn", "softxent.xgboost"},
    {"softxent._warmup", "softxent._tune"},
    {"softxent.linear"},
    {"softxent._explain", "softxent._info", "softxent._diagnose"},
    {"softxent.losses", "softxent.pieces", "softxent.metrics", "softxent._row_stats"},
    {"softxent._problem", "softxent._run", "softxent._small", "softxent._ready"},
    {"softxent._plan"},
    {"softxent.backends.cython", "softxent.backends.numba",
     "softxent.backends.reference"},
    {"softxent._tuning"},
    {"softxent._machine", "softxent.backends"},
    {"softxent._threads", "softxent._sums", "softxent._exact"},
    {"softxent._settings", "softxent._cache", "softxent.backends._contract"},
]
#: Imports that go up, each with its reason; "annotations": for a type checker alone.
UPWARD = {
    ("softxent._problem", "softxent.losses._spec"): "annotations",
}


def place(module):
    """Return (line, entry) of `module` on the road."""
    entries = [(line, name) for line, names in enumerate(ROAD) for name in names
               if module == name or (module.startswith(f"{name}.") and name != "softxent")]
    assert entries, f"{module} has no place on the road: add it to ROAD"
    return max(entries, key=lambda entry: len(entry[1]))


def imports(module):
    """Yield (imported module, only for annotations?) of every import statement of ours."""
    tree = ast.parse(MODULES[module].read_text())
    guarded = {
        id(node) for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # The repository's own suite is softxent.asv's files under another name.
            within = module.startswith("softxent.asv") and node.level == 1
            assert node.level == 0 or within, f"{module}: imports are absolute"
            base = f"softxent.asv.{node.module}" if within else node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else base for name in names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        for name in found:
            yield name, id(node) in guarded


def own_imports(module):
    for name, typing_only in imports(module):
        if name.split(".")[0] == "softxent":
            yield name, typing_only


def test_every_module_is_seen():
    assert {"softxent", "softxent._run", "softxent.backends.cython._backend"} <= set(MODULES)
    assert len(MODULES) >= 20
    assert all(place(name) for name in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_road(module):
    line, _ = place(module)
    for name, typing_only in own_imports(module):
        if (module, name) in UPWARD:
            assert typing_only == (UPWARD[module, name] == "annotations")
        else:
            assert place(name)[0] >= line, f"{module} imports {name}, which is above it"


def test_exceptions_to_the_road_are_used():
    for module, name in UPWARD:
        assert name in [imported for imported, _ in own_imports(module)]


@pytest.mark.parametrize("module", [name for name in MODULES if ".backends." in name])
def test_a_backend_knows_no_loss_and_no_other_backend(module):
    folder = ".".join(module.split(".")[:3])
    allowed = {"softxent.backends._contract", "softxent._machine", "softxent._threads",
               "softxent._cache", "softxent._exact"}
    for name, _ in own_imports(module):
        assert name in allowed or name.startswith(folder), f"{module} imports {name}"
    if module != "softxent.backends._contract":  # there the operations are numbered
        text = MODULES[module].read_text()
        assert "softxent.losses" not in text


FUNCTIONS = ("softxent.losses", "softxent.pieces", "softxent.metrics", "softxent._row_stats")


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(FUNCTIONS)])
def test_a_loss_knows_no_backend(module):
    backends = {name for name, _ in own_imports(module) if name.startswith("softxent.backends")}
    assert backends <= {"softxent.backends._contract"}


def test_only_plan_and_run_touch_backends():
    """Who imports what gives out backends' objects, or a backend itself.

    `softxent.numba` is for callers that are compiled: they have kernels of their own to call.
    """
    users = {
        module for module in MODULES if not module.startswith("softxent.backends")
        for name, _ in own_imports(module)
        if name.startswith("softxent.backends") and name != "softxent.backends._contract"
    }
    assert users == {"softxent._plan", "softxent._run", "softxent.numba"}
    binding = {module for module, path in MODULES.items()
               for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
               and node.func.attr == "bind"}
    assert binding == {"softxent._run"}


#: Compiled by Numba, or what compiles them; imported when something is to be compiled.
WALK = {f"softxent.backends.numba.{name}" for name in (
    "_jit", "_elementary", "_exp_many", "_square", "_kept", "_load", "_rows", "_reduce", "_head",
    "_map", "_points", "_distillation", "_walk", "_embed")} | {"softxent.numba"}


#: Adapters, imported only when asked for: what each may import, and is not there without.
PEERS = {
    "softxent.sklearn": {"sklearn", "scipy", "joblib", "threadpoolctl"},
    "softxent.numba": {"scipy"},  # which Numba's matrix products take, in an example
}


def peers(module):
    return {peer for name, found in PEERS.items() if module.startswith(name) for peer in found}


@pytest.mark.parametrize("module", MODULES)
def test_compilers_and_peers_stay_where_they_belong(module):
    """Numba in its places only; nothing that is not NumPy or Python's at import time."""
    for_numba = module.startswith(("softxent.backends.numba", "softxent.numba"))
    for name, _ in imports(module):
        if name.split(".")[0] == "numba":
            assert for_numba
    if not for_numba:
        tree = ast.parse(MODULES[module].read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"njit", "jit", "prange", "vectorize", "guvectorize"}
    heavy = {"scipy", "sklearn", "torch", "jax", "matplotlib", "threadpoolctl", "numba", "xgboost",
             "lightgbm"}
    at_import = {
        getattr(node, "module", alias.name)
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    if module in WALK:
        heavy -= {"numba"}
    else:
        assert not at_import & WALK
    assert not {name.split(".")[0] for name in at_import} & (heavy - peers(module))


# ---- public names --------------------------------------------------------------------------------

PUBLIC = {name: getattr(sx, name) for name in sx.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
SECTIONS = ["Parameters", "Attributes", "Returns", "Raises", "See Also", "Notes", "References",
            "Examples"]


def sections(value):
    """numpydoc: name of each section to its text, in order; "" is what comes before."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", inspect.getdoc(value), flags=re.M)
    found = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    assert list(found)[1:] == [name for name in SECTIONS if name in found], "order, or unknown"
    return found


def described(section):
    """Names that a Parameters section describes."""
    entries = re.findall(r"^(\w[\w, ]*?)(?: :.*)?$", section, flags=re.M)
    return [name for entry in entries for name in entry.split(", ")]


def test_all_is_sorted_and_complete():
    assert sx.__all__ == sorted(sx.__all__)
    extra = {name for name, value in vars(sx).items()
             if not name.startswith("_") and not inspect.ismodule(value)} - set(sx.__all__)
    assert not extra
    assert all(getattr(value, "__module__", "").startswith("softxent") for value in PUBLIC.values())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    value = PUBLIC[name]
    found = sections(value)
    summary = found[""].split("\n\n")[0]
    assert summary.rstrip().endswith(".")
    if inspect.isclass(value):
        return
    parameters = list(inspect.signature(value).parameters)
    if parameters:
        assert described(found["Parameters"]) == parameters
    returns = inspect.signature(value).return_annotation
    if returns not in ("None", None):
        assert "Returns" in found or summary.startswith("Return")
    assert ">>> " in found["Examples"]


def test_losses_document_what_the_contract_asks():
    """Formula, ranges, errors, memory, source."""
    losses = [f"{loss}{suffix}" for loss in LOSSES for suffix in ("", "_with_grad")]
    for name in (*losses, "cross_entropy_grad_hess"):
        found = sections(FUNCTIONS[name])
        assert ".. math::" in found[""], name
        raised = set(re.findall(r"\w+Error", found["Raises"]))
        assert {"TypeError", "ValueError", "BackendUnavailableError"} <= raised, name
        if name == "cross_entropy_grad_hess" or "classes" in LOSSES[
                name.removesuffix("_with_grad")].targets:
            assert "IndexError" in raised, name
        assert "memory:" in found["Notes"].lower(), name
        if name in LOSSES and name != "nll_loss":
            assert "[1]" in found["References"], name


def doctests():
    """(module, its doctests), of every module with one."""
    # Importing a walk that the processor cannot run may be an illegal instruction.
    foreign = {f"softxent.backends.cython._walk_{level}"
               for level in set(_machine.X86_LEVELS) - set(_machine.usable_levels())}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages([str(ROOT)], "softxent."):
        if info.name.endswith("__main__") or info.name in foreign or any(
                importlib.util.find_spec(peer) is None for peer in peers(info.name)):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            if info.name in MODULES:
                raise
            continue
        yield info.name, [test for test in finder.find(module) if test.examples]


@pytest.mark.parametrize("level", {level.backend: level for level in usable_levels()}.values(),
                         ids=str)
def test_examples_run(level, capsys, monkeypatch):
    """Every example of a public docstring does what it says, warnings being errors.

    By each backend, at its highest level.
    """
    force(level, monkeypatch)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    seen = set()
    for _, tests in doctests():
        for test in tests:
            runner.run(test)
            seen.add(test.name.rsplit(".", 1)[-1])
    report = capsys.readouterr().out
    assert runner.failures == 0, report
    assert set(FUNCTIONS) <= seen
